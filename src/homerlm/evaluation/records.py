"""Records of an evaluation: one JSON line per sample, appended as it comes, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDS = "records.jsonl"
KEY = ("task", "variant", "ask", "method", "length", "sample", "seed", "model", "text", "chat")


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What tells samples apart: a record with the key of an earlier one replaces it."""
    return tuple(record.get(name) for name in KEY)


@dataclass
class RecordFile:
    """`folder/records.jsonl`; what it holds without an error is `in` it. Each line is written in one piece, so that
    several runs may share the file."""

    folder: Path
    _known: set[tuple[Any, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        latest = {key_of(record): record for record in read_records(self.path)}
        self._known = {key for key, record in latest.items() if not record.get("error")}
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size:
            self._write("\n")  # a run was killed in the middle of a line: that line is lost, the next one is not

    @property
    def path(self) -> Path:
        return self.folder / RECORDS

    def __contains__(self, record: dict[str, Any]) -> bool:
        return key_of(record) in self._known

    def append(self, record: dict[str, Any]) -> None:
        self._write(json.dumps(record, ensure_ascii=False) + "\n")

    def _write(self, line: str) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, whole lines only; none where there is no file."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
