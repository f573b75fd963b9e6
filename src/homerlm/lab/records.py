"""Records of a run: one JSON line each, appended as it comes, so that a run that was stopped can go on."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homerlm.errors import InputError

Record = Mapping[str, Any]


RECORDS = "records.jsonl"
WRITTEN = (RECORDS, "command.txt", "report.md", "report.html", "ratios.json")  # into a run's folder
OUT_OF_MEMORY = "out of memory"  # how the error of a record begins
KEY = ("task", "variant", "ask", "method", "length", "sample", "seed", "model", "text", "chat")
BENCH_KEY = ("task", "method", "length", "cell")  # known before the model is


def key_of(record: Record) -> str:
    """What tells records apart: one with the key of an earlier one replaces it."""
    return repr([record.get(name) for name in (BENCH_KEY if "cell" in record else KEY)])


@dataclass
class RecordFile:
    """`folder/records.jsonl`; what it (or its compressed copy) held without an error is known. Each line is written in
    one piece, so that several runs may share the file. Raises `InputError` for a folder that cannot be written."""

    folder: Path
    _known: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_output(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output is {str(self.folder)!r}; it cannot be made: {error.strerror}") from None
        known = unique(record for path in record_files(self.folder) for record in lines(path, []))
        self._known = {key_of(record): record for record in known if not record.get("error")}
        if self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._write("\n")  # a run was killed in the middle of a line: that line is lost, the next one is not

    @property
    def path(self) -> Path:
        return self.folder / RECORDS

    def get(self, key: Record) -> Record | None:
        """The record of this key that was made without an error."""
        return self._known.get(key_of(key))

    def append(self, record: Record) -> None:
        self._write(json.dumps(record, ensure_ascii=False) + "\n")

    def _write(self, line: str) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def check_output(folder: Path) -> None:
    """Raises `InputError` for a folder that a run could not make, or not write its files in."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        files = [path for name in WRITTEN if (path := folder / name).exists()]
        wrong = [] if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK) else [existing]
        wrong += [path for path in files if not path.is_file() or not os.access(path, os.W_OK)]
    except OSError as error:
        raise InputError(f"output is {str(folder)!r}; it cannot be used: {error.strerror}") from None
    if wrong:
        raise InputError(
            f"output is {str(folder)!r}; it must be a folder to write into, but {wrong[0]} is in the way or "
            "write-protected: name another folder"
        )


def record_files(folder: Path) -> list[Path]:
    """Where a folder's records are, the compressed ones first: those were written before."""
    return [path for path in (folder / f"{RECORDS}.gz", folder / RECORDS) if path.is_file()]


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records in a folder, each once, and notes on what was skipped.

    Raises `InputError` if there is no file of records, or none in it can be used.
    """
    paths = record_files(folder)
    if not paths:
        raise InputError(f"{folder} holds no records.jsonl: run `homer eval` or `homer bench` with this folder first")
    notes: list[str] = []
    records = [record for path in paths for record in lines(path, notes)]
    if not records:
        raise InputError(f"{paths[-1]} holds no complete record: the run stopped before its first sample")
    once = unique(records)
    if again := len(records) - len(once):
        notes.append(f"{again} records were written again by a later run; the later ones count.")
    return once, notes


def lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The usable lines of a file; a killed run leaves half a line, or half a gzip stream."""
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line) if line.strip() else None
                except ValueError:
                    notes.append(f"Line {number} of {path.name} is incomplete and was skipped.")
                    continue
                if isinstance(record, dict) and record.get("task") and isinstance(record.get("length"), int):
                    yield record
                elif record is not None:
                    notes.append(f"Line {number} of {path.name} has no task and length, and was skipped.")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            notes.append(f"{path.name} is cut off after line {number}; what follows is lost.")


def unique(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The records in their first order, the last of each key: a resumed run repeats what it is not sure of."""
    return list({key_of(record): dict(record) for record in records}.values())
