"""A full disk, damaged indexes and a damaged database under a real `homer serve` of a tiny model: what its clients are
told, whether it goes on, and whether anything is half written or served wrong. Each fault has a line in the results.

    python benchmarks/serve_faults.py --output results/serve/faults.json         # mounts small file systems: as root

Model, parser and template that fail are the tests' (tests/test_server_chat.py, tests/test_store_parsing.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from serve_process import Launcher, ServerProcess, machine, tiny_model
from serve_requests import CHAT, Ask

SETTINGS: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 8}
SMALL = 3 << 20  # bytes of a file system that is to be full
LONG, SHORT = Ask("document", 1, 12, 9_000), Ask("chat", 1, 12, 0)
Start = Callable[..., ServerProcess]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own of `SMALL` bytes. Raises `CalledProcessError` where none may be mounted."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def running(start: Start, **settings: Any) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    server = start(**settings)
    try:
        with server.client() as http:
            yield server, http
    finally:
        server.kill()


def full_store(start: Start, folder: Path) -> dict[str, Any]:
    """Files are uploaded and a document is read until the store's disk is full."""
    with small_disk(folder / "disk") as disk, running(start, store=disk / "store") as (server, http):
        kept = []
        while (last := _upload(http, 400_000)).is_success:
            kept.append(last.json()["id"])
        told = [last, _ask(http, LONG)]
        for answer in told:
            _check_told(answer, (413, 507), server)
        assert _ask(http, SHORT).status_code == 200, "it does not go on"
        assert [one["id"] for one in http.get("/v1/files").json()["data"]] == kept[::-1], "not the files that were kept"
        assert not list(server.store.glob("incoming/*/*")), "something is half written"
        assert not list((server.store / "documents").iterdir()), "something is half written"
        for id in kept:
            http.delete(f"/v1/files/{id}").raise_for_status()
        assert _upload(http, 400_000).is_success, "not even with room"
        assert _ask(http, LONG).is_success, "not even with room"
    return {"uploaded": len(kept), "told": [_told(answer) for answer in told]}


def full_temporary_folder(start: Start, folder: Path) -> dict[str, Any]:
    """The folder for a request's larger parts is full, which is not the store's."""
    with small_disk(folder / "temporary") as disk, running(start, environment={"TMPDIR": str(disk)}) as (server, http):
        answer = _upload(http, 2 * SMALL)
        _check_told(answer, (413, 507), server)
        assert _upload(http, 1000).is_success, "it does not go on"
        assert len(http.get("/v1/files").json()["data"]) == 1
    return {"told": [_told(answer)]}


def damaged_index(start: Start, _folder: Path) -> dict[str, Any]:
    """A document's file is changed, cut off, emptied or taken away while the server stands still."""
    found = {}
    for name, damage in DAMAGES.items():
        with running(start) as (server, http):
            right = _ask(http, LONG).json()["choices"][0]
            (document,) = http.get("/v1/documents").json()["data"]
        damage(server.store / "documents" / document["id"])
        with running(start) as (server, http):
            asked = http.get(f"/v1/documents/{document['id']}/kept", params={"question": "What?"})
            said = server.log.read_text().strip().splitlines()
            told = any(document["id"] in line and "forgotten" in line for line in said)
            assert told or name == "taken away", "it is not said"
            assert asked.status_code == 404, f"a damaged document answers: {asked.text}"
            answer = _ask(http, LONG)
            assert answer.json()["choices"][0] == right, "it is not read anew"
            assert answer.json()["usage"]["homer"]["read"] > document["tokens"] // 2, "it is not read anew"
            (anew,) = http.get("/v1/documents").json()["data"]
            assert anew["id"] != document["id"]
            http.delete(f"/v1/documents/{anew['id']}").raise_for_status()
        found[name] = asked.json()["error"]["message"]
    return {"told": found}


def damaged_database(start: Start, _folder: Path) -> dict[str, Any]:
    """The database is changed, cut off or replaced while the server stands still: it refuses to start, by name."""
    found = {}
    with running(start) as (server, http):
        _upload(http, 1000).raise_for_status()
    database = server.store / "store.sqlite"
    start().end()  # what was in the write-ahead log is in the database now
    whole = {path.name: path.read_bytes() for path in server.store.glob("store.sqlite*")}
    for name, damage in (DAMAGES | {"changed": _change_page}).items():
        for path in server.store.glob("store.sqlite*"):
            path.unlink()
        database.write_bytes(whole["store.sqlite"])
        damage(database)
        before = database.read_bytes() if database.exists() else b""
        try:
            with running(start):
                raise AssertionError("it starts with a damaged database")
        except RuntimeError as refused:
            said = str(refused)
        assert "store.sqlite" in said, "it does not say what is damaged"
        assert "Traceback" not in said
        assert database.read_bytes().startswith(before), "it has changed what is damaged"
        assert len(list((server.store / "files").iterdir())) == 1, "it has removed what the database knew"
        found[name] = " ".join(said[said.index("Error: ") :].split()).replace(str(server.store), "STORE")
    return {"told": found}


def _upload(http: httpx.Client, size: int) -> httpx.Response:
    return http.post("/v1/files", files={"file": ("a.txt", b"word " * (size // 5))}, data={"purpose": "user_data"})


def _ask(http: httpx.Client, ask: Ask) -> httpx.Response:
    return http.post(CHAT, json=ask.body(stream=False))


def _check_told(answer: httpx.Response, statuses: tuple[int, ...], server: ServerProcess) -> None:
    assert answer.status_code in statuses, f"{answer.status_code} {answer.text}"
    assert str(server.store) not in answer.text, "the store's place is told"
    assert "Traceback" not in answer.text


def _told(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.json()['error']['message']}"


def _change(path: Path) -> None:
    """Some bytes in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = b"\xaa" * 2000
    path.write_bytes(content)


def _change_page(path: Path) -> None:
    """The beginning of the database's page that holds the file's row."""
    content = bytearray(path.read_bytes())
    start = content.index(b"a.txt") // 4096 * 4096
    content[start : start + 200] = b"\xaa" * 200
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "changed": _change,
    "cut off": _cut,
    "replaced": lambda path: path.write_bytes(b"no such thing\n" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "taken away": lambda path: path.unlink(),
}
FAULTS = {one.__name__: one for one in (full_store, full_temporary_folder, damaged_index, damaged_database)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/serve/faults.json"))
    parser.add_argument("--only", choices=list(FAULTS), help="One of them.")
    options = parser.parse_args()
    found, launcher = {}, Launcher(forked=True)
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as given:
            folder = Path(given)
            if options.only in (None, name):
                model = tiny_model(folder / "model")
                start = partial(ServerProcess, folder, model, launcher=launcher, **SETTINGS)
                found[name] = fault(start, folder)
                print(name, json.dumps(found[name], indent=1), flush=True)
    launcher.close()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
