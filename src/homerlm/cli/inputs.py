"""The arguments FILE... QUESTION: which of them is the question, and the documents' text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from homerlm.cli.errors import UsageError

if TYPE_CHECKING:
    from homerlm.documents import Inputs

_FILE_NAME = re.compile(r"\S*[/\\*]\S*|\S+\.[A-Za-z]\w{0,4}")  # one word with a folder, a star or an extension


def split(given: Sequence[str], question: str | None, *, has_context: bool) -> tuple[list[str], str]:
    """Documents and question; `question` if it was given by name, else the last argument. Raises `UsageError`."""
    files = list(given)
    if question is None:
        if not files:
            raise UsageError("no question given: give it last, or with -q/--question")
        question = files.pop()
        if _is_file(question) or (files and all(map(_FILE_NAME.fullmatch, given))):
            raise UsageError(f"{question} is a file, not a question: give the question last, or with -q/--question")
        _check_quoted(files)
    if not question.strip():
        raise UsageError("the question is empty: ask something")
    if has_context and files:
        raise UsageError(f"--context takes no documents, but {', '.join(files)} is given: leave out one of them")
    if not has_context and not files:
        raise UsageError(
            'no document given: name it before the question, FILE... "QUESTION" (- is standard input), or give '
            "what was read before with --context"
        )
    return files, question


def expand(paths: Sequence[str]) -> Inputs:
    """The files that paths, folders and globs stand for, and what was skipped and why. Raises `DocumentError`."""
    from homerlm.documents import expand_inputs

    return expand_inputs(paths)


def read(found: Inputs, password: str | None) -> tuple[str, Inputs]:
    """Their text, and the inputs as they were read: files in folders that cannot be read are skipped. Raises
    `DocumentError`."""
    from homerlm.documents import read_inputs

    return read_inputs(found, password=password)


def described(found: Inputs | None) -> list[str]:
    """A line for each file or folder that was left out: its path and why."""
    return [f"{item.path}: {item.reason}" for item in found.skipped] if found else []


def names(paths: Sequence[str | Path]) -> list[str]:
    """Names of documents for people: without their folders where that tells them apart."""
    files = list(map(str, paths))
    shown = ["standard input" if file == "-" else Path(file).name for file in files]
    return shown if len(set(shown)) == len(shown) else ["standard input" if file == "-" else file for file in files]


def _check_quoted(files: Sequence[str]) -> None:
    """Refuse words of a question that was not put in quotes: behind the first document they name nothing."""
    for word in files[1:]:
        if not (_is_file(word) or _FILE_NAME.fullmatch(word) or has_magic(word)):
            raise UsageError(f"{word} is no file: put a question of several words in quotes, or check the spelling")


def _is_file(argument: str) -> bool:
    return argument == "-" or os.path.exists(argument)
