"""Whether a store is whole: what a killed server has left, and what the next one makes of it."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

KINDS = ("documents", "files")


@dataclass
class Expected:
    """files: ids of uploads that were acknowledged and not deleted; perhaps: of one whose deletion was under way."""

    files: list[str] = field(default_factory=list)
    perhaps: str | None = None


@dataclass
class Found:
    """How many files were read back and found whole, and how many documents answered."""

    files: int = 0
    documents: int = 0
    vector_store_files: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def left_behind(store: Path) -> dict[str, int]:
    """What a killed process has left: unfinished files, files in their place that nobody lists, rows without a file. A
    copy is looked at, so that the next server finds everything as it was."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "store"
        shutil.copytree(store, copy)
        with closing(sqlite3.connect(copy / "store.sqlite")) as database:
            left = {"unfinished": sum(path.is_file() for path in copy.glob("incoming/*/*"))}
            for kind in KINDS:
                listed, there = _listed(database, kind), _there(copy, kind)
                made = database.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (kind,)).fetchone()
                left[f"removed {kind}"] = (made or [0])[0] - len(listed)  # since the store was made
                left |= {f"unlisted {kind}": len(there - listed), f"lost {kind}": len(listed - there)}
    return left


def check(address: str, store: Path, expected: Expected) -> Found:
    """What a server that has just started tells of its store. Raises `AssertionError` where something is half visible:
    a listed thing that does not open, a file that nobody lists, an acknowledged upload that is gone, a damaged
    database."""
    found = Found()
    _check_folder(store)
    with httpx.Client(base_url=address, timeout=60) as http:
        _check_files(http, expected, found)
        _check_documents(http, found)
        _check_vector_stores(http, found)
    _check_database(store)
    return found


def _check_folder(store: Path) -> None:
    """Right after the start: only the living process has a folder for what is being written, and every file is
    listed. What the server goes on with meanwhile may come in between, so a difference must stay to count."""
    assert len(list((store / "incoming").iterdir())) <= 1, "unfinished files of a dead process"
    for kind in KINDS:
        for _ in range(50):
            with closing(sqlite3.connect(store / "store.sqlite")) as database:
                listed, there = _listed(database, kind), _there(store, kind)
            if listed == there:
                break
            time.sleep(0.1)
        assert there == listed, f"{kind}: {len(there - listed)} that nobody lists, {len(listed - there)} without a file"


def _check_files(http: httpx.Client, expected: Expected, found: Found) -> None:
    listed = {one["id"]: one for one in _got(http, "/v1/files")["data"]}
    gone = set(expected.files) - listed.keys()
    assert not gone, f"{len(gone)} acknowledged uploads are gone"
    for id, one in listed.items():
        answer = http.get(f"/v1/files/{id}/content")
        assert answer.status_code == 200, f"a listed file does not open: {answer.text}"
        name = hashlib.sha256(answer.content).hexdigest()
        assert (one["filename"], one["bytes"]) == (f"{name}.txt", len(answer.content)), "a file is not what was sent"
        found.files += 1
    expected.files = list(listed)  # an upload may be whole though its client was not told


def _check_documents(http: httpx.Client, found: Found) -> None:
    for one in _got(http, "/v1/documents?limit=1000")["data"]:
        answer = http.get(f"/v1/documents/{one['id']}/kept", params={"question": "Who keeps the light?"})
        if answer.status_code == 404 and http.get(f"/v1/documents/{one['id']}").status_code == 404:
            continue  # it has given way meanwhile: the server reads again what was left undone
        assert answer.status_code == 200, f"a listed document does not answer: {answer.text}"
        assert answer.json()["document_tokens"] == one["tokens"], "a document is not what was read"
        found.documents += 1


def _check_vector_stores(http: httpx.Client, found: Found) -> None:
    """Everything that was left undone is gone on with and comes to an end; then they go."""
    while stores := _got(http, "/v1/vector_stores?limit=100")["data"]:
        for store in stores:
            end = time.monotonic() + 60
            while _got(http, f"/v1/vector_stores/{store['id']}")["file_counts"]["in_progress"]:
                assert time.monotonic() < end, "a file of a vector store is never read"
                time.sleep(0.05)
            for one in _got(http, f"/v1/vector_stores/{store['id']}/files")["data"]:
                told = one["last_error"] or {"message": ""}
                assert one["status"] == "completed" or "limit" in told["message"], told
                found.vector_store_files += 1
            http.delete(f"/v1/vector_stores/{store['id']}").raise_for_status()


def _check_database(store: Path) -> None:
    with closing(sqlite3.connect(store / "store.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def _got(http: httpx.Client, path: str) -> Any:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _listed(database: sqlite3.Connection, kind: str) -> set[str]:
    return {row[0] for row in database.execute(f"SELECT id FROM {kind}")}


def _there(store: Path, kind: str) -> set[str]:
    return {path.name for path in (store / kind).iterdir()}
