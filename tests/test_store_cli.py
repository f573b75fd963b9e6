"""`homer store`: listed, removed, cleared, beside a server or without one."""

import json

import pytest

from homerlm.store.store import Store

LARGE = 1 << 30


@pytest.fixture
def store(tmp_path):
    """A store with a document, a file and a vector store of two owners, and one that is about to expire."""
    store = Store(tmp_path / "store", max_bytes=LARGE, owner_bytes=LARGE)
    for owner, name, lifetime in (("ann", "book [bold].txt", None), ("bob", "gone", 0.0)):
        path = store.temporary()
        path.write_bytes(b"x" * 2000)
        facts = {"sha256": name, "model": "Tiny", "maker": "m", "tokens": 1234, "lifetime": lifetime}
        store.add_document(path, owner=owner, name=name, **facts)
    path = store.temporary()
    path.write_bytes(b"y" * 10)
    file = store.add_file(path, owner="bob", name="b.pdf", purpose="assistants")
    store.vector_stores.add(store.vector_stores.create("bob", name="both").id, [file.id])
    yield store
    store.close()


def _entries(run, store):
    code, text, _ = run("store", "ls", "--store", str(store.folder), "--json")
    assert code == 0
    return {entry["kind"]: entry for entry in json.loads(text)["entries"]}


def test_everything_is_listed(run, store):
    entries = _entries(run, store)
    assert entries["document"]["name"] == "book [bold].txt"
    assert (entries["document"]["tokens"], entries["document"]["model"]) == (1234, "Tiny")
    assert (entries["file"]["owner"], entries["file"]["bytes"]) == ("bob", 10)
    assert (entries["vector_store"]["name"], entries["vector_store"]["files"]) == ("both", 1)
    code, text, said = run("store", "ls", "--store", str(store.folder))
    assert code == 0
    assert "book [bold].txt" in text
    assert "1,234" in text
    assert all(entry["id"] in text for entry in entries.values()), "an id is not folded"
    assert "3 entries" in said


def test_what_is_named_is_removed(run, store):
    first, *ids = [entry["id"] for entry in _entries(run, store).values()]
    code, text, _ = run("store", "rm", first, "--store", str(store.folder), "--json")
    assert (code, json.loads(text)) == (0, {"removed": [first]})
    code, _, _ = run("store", "rm", *ids, "--store", str(store.folder))
    assert code == 0
    assert _entries(run, store) == {}
    code, _, said = run("store", "rm", "doc-none", "--store", str(store.folder))
    assert code == 2
    assert "doc-none: not in the store" in said


def test_what_has_expired_and_what_is_above_the_limit_goes(run, store):
    code, text, _ = run("store", "gc", "--store", str(store.folder), "--json")
    assert code == 0
    assert json.loads(text) == {"documents": 1, "files": 0, "bytes": 2000, "bytes_left": 2010}
    code, _, said = run("store", "gc", "--max-bytes", "100", "--store", str(store.folder))
    assert code == 0
    assert "1 documents and 0 files removed" in said
    assert [path.name for path in (store.folder / "documents").iterdir()] == []


def test_a_folder_without_a_store_is_refused_and_stays_as_it_was(run, tmp_path):
    code, _, said = run("store", "ls", "--store", str(tmp_path))
    assert code == 2
    assert "holds no store" in said
    assert list(tmp_path.iterdir()) == [] or not (tmp_path / "store.sqlite").exists()
