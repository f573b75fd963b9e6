"""Records of an evaluation: one JSON line per sample, appended as it comes, so that a killed run goes on."""

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
KEY = ("task", "variant", "ask", "method", "length", "sample", "seed", "model", "text", "chat")
CELL_KEY = ("task", "method", "length", "cell")  # of a benchmark: known before the model is


def key_of(record: Record) -> str:
    """What tells samples apart: a record with the key of an earlier one replaces it."""
    return repr([record.get(name) for name in (CELL_KEY if "cell" in record else KEY)])


@dataclass
class RecordFile:
    """`folder/records.jsonl`; what it (or its compressed copy) holds without an error is `in` it. Each line is written
    in one piece, so that several runs may share the file."""

    folder: Path
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        known = unique(record for path in record_files(self.folder) for record in lines(path, []))
        self._known = {key_of(record) for record in known if not record.get("error")}
        if self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._write("\n")  # a run was killed in the middle of a line: that line is lost, the next one is not

    @property
    def path(self) -> Path:
        return self.folder / RECORDS

    def __contains__(self, record: Record) -> bool:
        return key_of(record) in self._known

    def append(self, record: Record) -> None:
        self._write(json.dumps(record, ensure_ascii=False) + "\n")

    def _write(self, line: str) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def record_files(directory: Path) -> list[Path]:
    """Where a folder's records are, the compressed ones first: those were written before."""
    return [path for path in (directory / f"{RECORDS}.gz", directory / RECORDS) if path.is_file()]


def read_records(directory: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records in `directory`, each once, and notes on what was skipped.

    Raises `InputError` if there is no file of records, or none in it can be used.
    """
    paths = record_files(directory)
    if not paths:
        raise InputError(
            f"{directory} holds no records.jsonl: run `homer eval` or `homer bench` with this folder first"
        )
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
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    notes.append(f"Line {number} of {path.name} is incomplete and was skipped.")
                    continue
                if isinstance(record, dict) and record.get("task") and isinstance(record.get("length"), int):
                    yield record
                else:
                    notes.append(f"Line {number} of {path.name} has no task and length, and was skipped.")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            notes.append(f"{path.name} is cut off after line {number}; what follows is lost.")


def unique(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The records in their first order, the last of each key: a resumed run repeats what it is not sure of."""
    last: dict[str, dict[str, Any]] = {}
    for record in records:
        last[key_of(record)] = dict(record)
    return list(last.values())
