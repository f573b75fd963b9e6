"""The store: what is listed is complete, owners see their own, and a kill at any moment leaves nothing half visible."""

import errno
import hashlib
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from homerlm.errors import CorruptFileError, InputError, MismatchError, QuotaError
from homerlm.store.store import Store

LARGE = 1 << 30


folder_only = pytest.mark.parametrize("store", ["folder"], indirect=True)


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    place = tmp_path / "store" if request.param == "folder" else f"{request.getfixturevalue('bucket')}/store"
    store = Store(place, max_bytes=LARGE, owner_bytes=LARGE)
    yield store
    store.close()


def _again(store, max_bytes=LARGE, owner_bytes=LARGE):
    """Another one on the same folder, with limits of its own."""
    return Store(store.folder, max_bytes=max_bytes, owner_bytes=owner_bytes)


def _document(store, content="index", owner="ann", maker="m", **more):
    """A document whose index is this text."""
    path = store.temporary()
    path.write_text(content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    facts = {"name": f"{content}.txt", "sha256": sha256, "model": "tiny", "maker": maker, "tokens": len(content)}
    return store.add_document(path, owner=owner, **(facts | more))


def _file(store, content=b"file", owner="ann", **more):
    path = store.temporary()
    path.write_bytes(content)
    return store.add_file(path, owner=owner, **({"name": "a.txt", "purpose": "assistants"} | more))


def _there(store, kind):
    return store._files.ids(kind)


def test_a_document_is_found_by_its_text_owner_and_maker(store):
    made = _document(store)
    assert store.find_document("ann", made.sha256, "m") == made
    assert store.document_path(made.id).read_text() == "index"
    assert store.find_document("ann", made.sha256, "another") is None
    assert store.find_document("bob", made.sha256, "m") is None
    assert store.document("bob", made.id) is None
    assert store.documents("bob") == []
    assert not store.remove_document("bob", made.id)
    assert store.remove_document("ann", made.id)
    assert _there(store, "documents") == set()


def test_a_document_outlives_its_store(store):
    made = _document(store)
    again = _again(store)
    assert again.documents() == [made]
    again.close()


def test_the_same_text_is_kept_once(store):
    first, second = _document(store), _document(store)
    assert store.documents("ann") == [second]
    assert _there(store, "documents") == {second.id} != {first.id}


def test_the_documents_used_longest_ago_give_way(store, monkeypatch):
    monkeypatch.setattr("homerlm.store.log.LoggedDatabase.used_seconds", 0)
    small = _again(store, max_bytes=30)
    first, second, third = (_document(small, letter * 10) for letter in "abc")
    small.touch(first)
    fourth = _document(small, "d" * 10, owner="bob")
    assert {one.id for one in small.documents()} == {first.id, third.id, fourth.id} == _there(small, "documents")
    assert second.id not in {one.id for one in small.documents()}
    small.close()


def test_one_in_use_never_gives_way(store):
    small = _again(store, max_bytes=30)
    first, second, _ = (_document(small, letter * 10) for letter in "abc")
    _document(small, "d" * 10, in_use={first.id}.__contains__)
    assert small.document("ann", first.id)
    assert small.document("ann", second.id) is None
    with pytest.raises(QuotaError, match="of the store is 30"):
        _document(small, "e" * 10, in_use=lambda _: True)
    assert len(small.documents()) == len(_there(small, "documents")) == 3
    assert not list(small.temporary().parent.glob("*"))
    small.close()


def test_an_owner_has_a_quota_of_its_own(store):
    small = _again(store, owner_bytes=25)
    other = _document(small, "x" * 20, owner="bob")
    first, second, third = (_document(small, letter * 10) for letter in "abc")
    assert [one.id for one in small.documents()] == [other.id, second.id, third.id]
    assert first.id not in _there(small, "documents")
    with pytest.raises(QuotaError, match="of one owner is 25"):
        _document(small, "e" * 26)
    assert len(small.documents("ann")) == 2  # what could not make enough room did not go
    small.close()


def test_uploaded_files_never_give_way(store):
    small = _again(store, max_bytes=30)
    _file(small, b"f" * 20)
    gone = _document(small, "a" * 10)
    kept = _file(small, b"g" * 10)
    assert small.document("ann", gone.id) is None
    with pytest.raises(QuotaError):
        _file(small, b"h")
    assert _there(small, "files") >= {kept.id}
    small.close()


def test_what_has_expired_is_not_found_and_goes(store):
    document, file = _document(store, lifetime=0.5), _file(store, lifetime=0.5)
    lasting = _document(store, "lasting", lifetime=100)
    assert store.document("ann", document.id)
    time.sleep(0.51)
    assert store.document("ann", document.id) is None
    assert store.file("ann", file.id) is None
    assert store.files("ann") == ([], False)
    done = store.gc()
    assert (done.documents, done.files, done.bytes) == (1, 1, len("index") + len("file"))
    assert _there(store, "documents") == {lasting.id}
    assert _there(store, "files") == set()


def test_files_come_in_pages(store):
    names = [_file(store, name=f"{number}.txt").id for number in range(5)]
    _file(store, owner="bob")
    page, more = store.files("ann", limit=2)
    assert ([one.id for one in page], more) == (names[:2:-1], True)
    page, more = store.files("ann", limit=3, after=page[-1].id)
    assert ([one.id for one in page], more) == (names[2::-1], False)
    page, more = store.files("ann", limit=2, descending=False, after=names[0])
    assert ([one.id for one in page], more) == (names[1:3], True)
    assert store.files("ann", purpose="vision") == ([], False)


@folder_only
def test_files_nobody_lists_and_rows_without_a_file_are_cleared_at_the_start(store):
    kept, lost = _document(store, "kept"), _document(store, "lost")
    file = _file(store)
    (store.folder / "documents" / "doc-unknown").write_text("x")
    (store.folder / "files" / "file-unknown").write_text("x")
    store.document_path(lost.id).unlink()
    store.file_path(file.id).unlink()
    dead = store.folder / "incoming" / "999999999-1"
    dead.mkdir()
    (dead / "half").write_text("x")
    running = store.temporary()
    running.write_text("being written")
    again = _again(store)
    assert again.documents() == [kept]
    assert again.files("ann") == ([], False)
    assert (_there(again, "documents"), _there(again, "files")) == ({kept.id}, set())
    assert not dead.exists()
    assert running.exists()
    running.unlink()
    again.close()


@folder_only
def test_a_number_that_another_process_has_now_is_no_reason_to_keep_its_files(store):
    reused = store.folder / "incoming" / f"{os.getppid()}-1"
    reused.mkdir()
    _again(store).close()
    assert not reused.exists()


def test_a_damaged_database_is_refused_by_name(tmp_path):
    Store(tmp_path, max_bytes=LARGE, owner_bytes=LARGE).close()
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptFileError, match=r"store.sqlite is damaged"):
        Store(tmp_path, max_bytes=LARGE, owner_bytes=LARGE)


@folder_only
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_files_whose_database_is_lost_are_refused_and_stay(store, damage):
    file = _file(store)
    store.close()
    damage(store.folder / "store.sqlite")
    for _ in range(2):
        with pytest.raises(CorruptFileError, match=r"holds files, but store.sqlite"):
            _again(store)
        assert _there(store, "files") == {file.id}
    store.file_path(file.id).unlink()
    _again(store).close()


@folder_only
def test_a_database_with_a_damaged_page_is_refused(store):
    for number in range(200):
        _document(store, f"document {number}")
    store.close()
    path = store.folder / "store.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 3] = os.urandom(4096 * 2)
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="damaged"):
        _again(store)


@folder_only
def test_a_database_of_a_newer_homerlm_is_refused(store):
    connection = sqlite3.connect(store.folder / "store.sqlite")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(MismatchError, match="version 7"):
        _again(store)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="choose another folder"):
        Store(tmp_path / "file", max_bytes=LARGE, owner_bytes=LARGE)


@folder_only
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_disk_that_is_full_leaves_everything_as_it_was(store, monkeypatch, call):
    kept = _document(store)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(QuotaError, match="No space left"):
            _document(store, "another")
        with pytest.raises(QuotaError, match="No space left"):
            _file(store)
    assert store.documents() == [kept]
    assert store.files("ann") == ([], False)
    assert not list(store.folder.glob("incoming/*/*"))
    again = _again(store)
    assert _there(again, "documents") == {kept.id}
    again.close()
    assert _document(store, "another")


@folder_only
def test_a_database_that_is_full_says_so_without_its_place(store):
    pages = store._database.row("PRAGMA page_count")["page_count"]
    store._database.row(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(QuotaError, match="full") as error:  # noqa: PT012
        for number in range(1000):
            _document(store, f"document {number}")
    assert str(store.folder) not in str(error.value)
    listed = {one.id for one in store.documents()}
    again = _again(store)
    assert {one.id for one in again.documents()} == listed == _there(again, "documents")
    again.close()


def test_files_of_a_vector_store(store):
    first, second = _file(store), _file(store, b"2")
    made = store.vector_stores.create("ann", name="both", metadata={"a": "b"}, days=2)
    assert store.vector_stores.get("bob", made.id) is None
    store.vector_stores.add(made.id, [first.id, second.id], attributes={"year": 2020})
    member = store.vector_stores.member(made.id, first.id)
    assert (member.status, member.attributes, member.owner) == ("in_progress", {"year": 2020}, "ann")
    assert {one.id for one in store.vector_stores.unfinished()} == {first.id, second.id}
    store.vector_stores.finish(member, "completed", sha256="s", bytes=7)
    found = store.vector_stores.get("ann", made.id)
    assert found.counts == {"in_progress": 1, "completed": 1, "failed": 0, "cancelled": 0}
    assert (found.bytes, found.metadata, found.expires) == (7, {"a": "b"}, found.active + 2 * 86_400)
    assert store.remove_file("ann", first.id)
    assert store.vector_stores.member(made.id, first.id) is None
    assert store.vector_stores.remove("ann", made.id)
    assert store.vector_stores.unfinished() == []
    assert store.file("ann", second.id)


def test_what_was_removed_meanwhile_is_not_added(store):
    made, file = store.vector_stores.create("ann"), _file(store, b"1")
    store.vector_stores.add(made.id, [file.id, "file-gone"])
    assert [one.id for one in store.vector_stores.members(made.id)[0]] == [file.id]
    store.vector_stores.add("vs_gone", [file.id])
    assert store.vector_stores.members("vs_gone") == ([], False)
    assert store.vector_stores.add_batch("vs_gone") is None


def test_a_file_that_was_added_anew_is_not_finished_by_the_one_before(store):
    file, made = _file(store), store.vector_stores.create("ann")
    store.vector_stores.add(made.id, [file.id])
    before = store.vector_stores.member(made.id, file.id)
    store.vector_stores.add(made.id, [file.id])
    store.vector_stores.finish(before, "failed", error_code="server_error", error="x")
    assert store.vector_stores.member(made.id, file.id).status == "in_progress"


def test_what_was_read_of_a_file_goes_with_it_unless_another_has_the_same_text(store):
    document = _document(store)
    made = store.vector_stores.create("ann")
    files = [_file(store), _file(store, b"2")]
    store.vector_stores.add(made.id, [file.id for file in files])
    for file in files:
        member = store.vector_stores.member(made.id, file.id)
        store.vector_stores.finish(member, "completed", sha256=document.sha256, bytes=1)
    store.vector_stores.remove("ann", made.id)
    store.remove_file("ann", files[0].id)
    assert store.document("ann", document.id)
    store.remove_file("ann", files[1].id)
    assert store.document("ann", document.id) is None
    assert _there(store, "documents") == set()


@folder_only
def test_a_store_of_before_knows_what_its_files_say(store):
    document, file, made = _document(store), _file(store), store.vector_stores.create("ann")
    store.vector_stores.add(made.id, [file.id])
    member = store.vector_stores.member(made.id, file.id)
    store.vector_stores.finish(member, "completed", sha256=document.sha256, bytes=1)
    with sqlite3.connect(store.folder / "store.sqlite") as connection:
        connection.execute("DROP TABLE texts")
    connection.close()
    again = _again(store)
    again.vector_stores.remove("ann", made.id)
    again.remove_file("ann", file.id)
    assert again.document("ann", document.id) is None
    again.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_nothing_half_visible(tmp_path):
    draw = random.Random(3)
    seen = 0
    for attempt in range(60):
        opened, telling = os.pipe()
        child = os.fork()
        if child == 0:
            _work_for_ever(tmp_path, attempt, telling)
        os.close(telling)
        if attempt % 3:  # else it may be killed while it opens the store
            os.read(opened, 1)
        os.close(opened)
        time.sleep(draw.uniform(0.005, 0.04))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        store = Store(tmp_path, max_bytes=LARGE, owner_bytes=LARGE)
        documents, (files, _) = store.documents(), store.files("ann")
        for one in documents:
            content = store.document_path(one.id).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (one.sha256, one.bytes)
        for one in files:
            content = store.file_path(one.id).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (one.name, one.bytes)
        assert {one.id for one in documents} == _there(store, "documents")
        assert {one.id for one in files} == _there(store, "files")
        assert len(list((tmp_path / "incoming").iterdir())) == 1
        seen += len(documents) + len(files)
        store.close()
    assert seen > 60


def _work_for_ever(folder, seed, telling):
    """Adds, removes and evicts until it is killed; an error ends it early, and is said."""
    try:
        draw = random.Random(seed)
        store = Store(folder, max_bytes=40_000, owner_bytes=30_000)
        os.write(telling, b".")
        while True:
            content, path = draw.randbytes(draw.randint(1, 9000)), store.temporary()
            path.write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            facts = {"name": "n", "model": "m", "maker": "m", "tokens": 1, "sha256": sha256}
            store.add_document(path, owner=draw.choice(["ann", "bob"]), **facts)
            if draw.random() < 0.3:
                path.write_bytes(content[:2000])
                name = hashlib.sha256(content[:2000]).hexdigest()
                store.add_file(path, owner="ann", name=name, purpose="assistants")
            if len(files := store.files("ann")[0]) > 3:
                store.remove_file("ann", files[-1].id)
            if draw.random() < 0.2:
                store.remove_document(None, draw.choice(store.documents()).id)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(1)


@folder_only
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_what_it_keeps_is_its_owners_alone(store):
    _document(store)
    _file(store)
    kept = [path for path in store.folder.rglob("*") if path.is_file()]
    assert {"store.sqlite", "store.sqlite-wal"} < {path.name for path in kept}
    assert {path.name: path.stat().st_mode & 0o777 for path in kept} == {path.name: 0o600 for path in kept}


def test_a_file_is_read_by_one_server_until_that_ends_or_falls_silent(store, tmp_path, monkeypatch):
    vector_store = store.vector_stores.create("me")
    path = store.temporary()
    path.write_text("text")
    file = store.add_file(path, owner="me", name="a.txt", purpose="assistants")
    store.vector_stores.add(vector_store.id, [file.id])
    member = store.vector_stores.member(vector_store.id, file.id)
    claim, ended = store.vector_stores.claim, set()

    def runs(holder):
        return holder not in ended

    assert claim(member, "a", 30, runs)
    assert claim(member, "a", 30, runs)
    assert not claim(member, "b", 30, runs)
    store.vector_stores.release(member, "b")
    assert not claim(member, "b", 30, runs)
    ended.add("a")
    assert claim(member, "b", 30, runs)
    store.vector_stores.release(member, "b")
    assert claim(member, "c", -1, runs)  # its time is over at once
    assert claim(member, "d", 30, runs)


@folder_only
def test_what_another_machine_writes_is_not_cleared_away(store):
    incoming = store.folder / "incoming"
    others = {incoming / "999999999-1-elsewhere": True, incoming / "999999999-1": False}
    old = incoming / "999999998-1-elsewhere"
    for folder in (*others, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    store.clear_orphans()
    assert {folder: folder.exists() for folder in others} == others
    assert not old.exists()


def test_a_store_on_a_network_has_no_write_ahead_log(tmp_path):
    for on_network, log in ((True, False), (False, True)):
        made = Store(tmp_path / str(on_network), max_bytes=LARGE, owner_bytes=LARGE, on_network=on_network)
        made.vector_stores.create("me")
        assert (made.folder / "store.sqlite-wal").exists() is log
        made.close()
