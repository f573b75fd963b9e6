"""Files that a command is to write, checked before it begins: no work is lost at its end, and no file by mistake."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile

from homerlm.cli.errors import UsageError


def check_outputs(
    outputs: dict[str, Path | None], inputs: Iterable[str | Path | None], *, force: bool, instead: str = ""
) -> None:
    """Refuse outputs, by the options that name them, which could not be written or would destroy something.

    Each must be a file in a folder that exists and is writable, no other output and none of `inputs`, and must not
    exist yet unless `force`. instead: what else the user can do where one exists. Raises `UsageError`.
    """
    given = {name: path for name, path in outputs.items() if path is not None}
    read = [Path(path) for path in inputs if path is not None]
    for name, path in given.items():
        _check_place(name, path)
        for other, taken in given.items():
            if other != name and _same(path, taken):
                raise UsageError(f"{name} and {other} are the same file, {path}: give each its own")
        if any(_same(path, source) for source in read):
            raise UsageError(f"{name} {path} is an input, which would be overwritten: give another file")
        if os.path.exists(path) and not force:
            raise UsageError(f"{name} {path} exists: give another file, {instead}or --force to replace it")


def _check_place(name: str, path: Path) -> None:
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"{name} {path}: the folder {folder} does not exist: make it first")
    if os.path.isdir(path):
        raise UsageError(f"{name} {path} is a folder: give the name of a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{name} {path} is not a regular file and would be replaced by one: give another file")
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{name} {path} cannot be written: {error.strerror} in the folder {folder}: choose another one"
        ) from error


def _same(path: Path, other: Path) -> bool:
    """Whether two paths are one file, existing or not, through links too."""
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)
