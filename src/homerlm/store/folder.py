"""The files of a store: written aside, put in place at once, and what a killed process left cleared away."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from homerlm.errors import InputError, QuotaError

KINDS = ("documents", "files")
OLD_SECONDS = 24 * 3600  # no file takes so long to be written


class Folder:
    """documents/ID and files/ID, complete ones only, and incoming/PROCESS/, which nobody else looks into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._incoming = path / "incoming" / this_process()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (*(path / kind for kind in KINDS), self._incoming):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(f"{path} cannot be used as a store: {error}; choose another folder") from error

    def of(self, kind: str, id: str) -> Path:
        return self.path / kind / id

    def ids(self, kind: str) -> set[str]:
        return {entry.name for entry in os.scandir(self.path / kind)}

    def left_over(self, kind: str, unlisted: Iterable[str]) -> list[str]:  # noqa: ARG002 (a bucket asks for it)
        """All of them: a file is put in place in the transaction that lists it."""
        return list(unlisted)

    def temporary(self) -> Path:
        """A new name for a file that is being written."""
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)  # another store of this process may have ended
        return self._incoming / secrets.token_hex(12)

    @contextmanager
    def placing(self, temporary: Path, kind: str, id: str) -> Iterator[Callable[[], None]]:
        """What puts a complete file in its place, for the transaction that lists it."""
        yield lambda: self.place(temporary, kind, id)

    def place(self, temporary: Path, kind: str, id: str) -> None:
        """Put a complete file in its place; it is on the disk, and its name too, when this returns. Raises `QuotaError`
        where the disk does not take it."""
        target = self.of(kind, id)
        try:
            os.chmod(temporary, 0o600)  # documents are their owner's alone
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync(target.parent)
        except OSError as error:
            raise QuotaError(f"the store's disk does not take it: {error.strerror}; free space") from error

    def remove(self, kind: str, id: str) -> None:
        self.of(kind, id).unlink(missing_ok=True)

    def clear_incoming(self) -> None:
        """Remove what processes that have ended left unfinished; of another machine's, what has lain there for long."""
        for folder in (self.path / "incoming").iterdir():
            if folder != self._incoming and (not runs(folder.name) or _is_old(folder)):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        with suppress(OSError):  # others of this process write there
            self._incoming.rmdir()

    def __iter__(self) -> Iterator[Path]:
        """Every complete file."""
        for kind in KINDS:
            yield from (self.path / kind).iterdir()


def this_process() -> str:
    """This process by number, beginning and machine: numbers are given again."""
    return f"{os.getpid()}-{_began(psutil.Process())}-{platform.node()}"


def runs(name: str) -> bool:
    """Whether a process of this name (`this_process`) runs; of one on another machine nobody can tell, and it does."""
    number, _, rest = name.partition("-")
    began, _, node = rest.partition("-")
    if node not in ("", platform.node()):
        return True
    try:
        return number.isdecimal() and _began(psutil.Process(int(number))) == began
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _is_old(folder: Path) -> bool:
    with suppress(OSError):
        return time.time() - folder.stat().st_mtime > OLD_SECONDS and not folder.name.endswith(platform.node())
    return False


def _began(process: psutil.Process) -> str:
    return str(round(process.create_time() * 1000))


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the system can."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
