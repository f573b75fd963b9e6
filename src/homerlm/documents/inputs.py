"""Files that folders and patterns stand for, and what in them is not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from homerlm.documents.charsets import is_binary
from homerlm.documents.formats import HEAD_BYTES, REFUSED, identify
from homerlm.errors import DocumentError


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, and why: "an image; run OCR on it first"."""

    path: Path
    reason: str


@dataclass(frozen=True)
class DocumentSpan:
    """Where in a text of several documents one is: characters `[start, end)`, which begin with character `first` of its
    own text."""

    name: str
    start: int
    end: int
    first: int


@dataclass(frozen=True)
class Inputs:
    """Files to read, in the order that they were named in, sorted within a folder or pattern; what is left out; those
    of the files that nobody named on their own; and, once several are read, where each is in the text of all."""

    files: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    found: frozenset[Path] = frozenset()
    spans: tuple[DocumentSpan, ...] = ()


def expand_inputs(paths: Sequence[str | Path]) -> Inputs:
    """Files of a command's inputs: each folder stands for the readable files in it and below; a pattern such as
    "notes/**/*.md", unless a file has that name, for what it matches. "-" and files named one by one are kept unseen.

    Links to folders are not followed. Raises `DocumentError` for an input that stands for nothing.
    """
    files: dict[str, Path] = {}  # by real path: no file is read twice
    named: set[str] = set()
    skipped: dict[Path, Skipped] = {}
    for path in paths:
        found = dict.fromkeys(_expanded(path))  # a pattern can match a folder, and again the files in it
        if not any(isinstance(item, Path) for item in found):
            raise DocumentError(_nothing_in(path, [item for item in found if isinstance(item, Skipped)]))
        if _is_named(path):
            named.add(os.path.realpath(path))
        for item in found:
            if isinstance(item, Skipped):
                skipped.setdefault(item.path, item)
            elif (real := os.path.realpath(item)) in files:
                skipped.setdefault(item, Skipped(item, "named before"))
            else:
                files[real] = item
    unnamed = frozenset(item for real, item in files.items() if real not in named)
    return Inputs(tuple(files.values()), tuple(skipped.values()), unnamed)


def first_reasons(skipped: Sequence[Skipped]) -> str:
    """The first few files that are left out, and why."""
    return ", ".join([f"{item.path.name}: {item.reason}" for item in skipped[:3]] + ["..."] * (len(skipped) > 3))


def _nothing_in(path: str | Path, skipped: list[Skipped]) -> str:
    return f"{path}: holds no readable file ({first_reasons(skipped) or 'it is empty'}); name other files"


def _is_named(path: str | Path) -> bool:
    """Whether a file is named itself, and not by its folder or a pattern."""
    return str(path) == "-" or (os.path.lexists(path) and not Path(path).is_dir())


def _expanded(path: str | Path) -> Iterator[Path | Skipped]:
    if not str(path):  # which pathlib takes for the current folder
        raise DocumentError("documents: an empty name is given; name a file, or . for the current folder")
    if _is_named(path):
        yield Path(path)
    elif Path(path).is_dir():
        yield from _in_folder(Path(path))
    elif matches := sorted(glob(str(path), recursive=True)):
        for match in map(Path, matches):
            yield from _in_folder(match) if match.is_dir() else [_judged(match)]
    elif has_magic(str(path)):
        raise DocumentError(f"{path}: matches no file; check the pattern and the current folder")
    else:
        raise DocumentError(f"{path}: does not exist; check the spelling and the current folder")


def _in_folder(folder: Path) -> Iterator[Path | Skipped]:
    """Files in the folder, then those in its folders, each sorted by name."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name))
    except OSError as error:
        entries = []
        yield Skipped(folder, f"cannot be listed ({error.strerror})")
    for entry in entries:
        if entry.name.startswith("."):
            yield Skipped(entry, "hidden")
        elif not entry.is_dir():
            yield _judged(entry)
        elif entry.is_symlink():
            yield Skipped(entry, "a link to a folder; name it to read it")
        else:
            yield from _in_folder(entry)


def _judged(path: Path) -> Path | Skipped:
    reason = _reason_to_skip(path)
    return path if reason is None else Skipped(path, reason)


def _reason_to_skip(path: Path) -> str | None:
    """Why a file that nobody named on its own is not read."""
    if not path.is_file():
        return "a broken link" if path.is_symlink() else "not a regular file"
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            kind = identify(file, path.suffix.lower())
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if not head:
        return "empty"
    if kind in REFUSED:
        return "; ".join(REFUSED[kind])
    return "binary data" if not kind and is_binary(head) else None
