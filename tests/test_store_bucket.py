"""A store in a bucket: servers that share nothing else see one store, whoever is first, falls behind or is killed."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from homerlm.errors import ConfigError, CorruptFileError, InputError, MismatchError, QuotaError, Unreachable
from homerlm.index import buckets
from homerlm.server.indexing import indexing_of
from homerlm.store import bucket as bucket_files
from homerlm.store import log
from homerlm.store.store import Store
from serving import QUESTION, WORDS, client, openai_client, serving, until

LARGE = 1 << 30
WRITER = Path(__file__).parent / "bucket_writer.py"


@pytest.fixture
def place(bucket):
    return f"{bucket}/store"


@pytest.fixture
def machine(place, tmp_path, monkeypatch):
    """Opens the store as another machine does, with a cache of its own."""
    opened = []

    def on(name):
        monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / name))
        opened.append(Store(place, max_bytes=LARGE, owner_bytes=LARGE))
        return opened[-1]

    yield on
    for store in opened:
        store.close()


def upload(store, content=b"file", **more):
    path = store.temporary()
    path.write_bytes(content)
    return store.add_file(path, owner="ann", **({"name": "a.txt", "purpose": "assistants"} | more))


def document(store, content="index"):
    path = store.temporary()
    path.write_text(content)
    facts = {"name": "a.txt", "sha256": content, "model": "tiny", "maker": "m", "tokens": 1}
    return store.add_document(path, owner="ann", **facts)


def tables(store):
    store.usage()  # catches up
    return list(store._database._connection.iterdump())


def entries(place):
    return sorted(buckets.names_in(f"{place}/log", "*"))


def test_what_one_machine_does_another_sees_at_once(machine):
    here, there = machine("here"), machine("there")
    file, made = upload(here), here.vector_stores.create("ann", name="all")
    assert there.files("ann") == ([file], False)
    assert there.file_path(file.id).read_bytes() == b"file"
    assert there.file_path(file.id) != here.file_path(file.id)
    there.vector_stores.add(made.id, [file.id])
    assert here.vector_stores.member(made.id, file.id).status == "in_progress"
    read = document(there)
    assert here.find_document("ann", "index", "m") == read
    assert here.document_path(read.id).read_text() == "index"
    assert there.remove_file("ann", file.id)
    assert here.file("ann", file.id) is None
    assert here.vector_stores.members(made.id) == ([], False)
    assert tables(here) == tables(there)


def test_of_two_that_write_at_once_the_second_tries_again(machine, monkeypatch, place):
    here, there = machine("here"), machine("there")
    append, cut_in = log.Log.append, [there]

    def late(self, number, statements):
        if cut_in:
            upload(cut_in.pop(), name="first.txt")
        return append(self, number, statements)

    monkeypatch.setattr(log.Log, "append", late)
    upload(here, name="second.txt")
    assert [file.name for file in here.all_files()] == ["first.txt", "second.txt"]
    assert tables(here) == tables(there)
    assert len(entries(place)) == 3  # the first is the store itself


def test_room_that_another_machine_has_just_taken_is_not_given_twice(place, machine, monkeypatch):
    small = Store(place, max_bytes=10, owner_bytes=LARGE)
    there, append, cut_in = machine("there"), log.Log.append, [True]

    def late(self, number, statements):
        if cut_in.pop() if cut_in else False:
            upload(there, b"6 more")
        return append(self, number, statements)

    monkeypatch.setattr(log.Log, "append", late)
    with pytest.raises(QuotaError, match="6 B more do not fit"):
        upload(small, b"6 byte")
    assert [file.bytes for file in small.all_files()] == [6]
    assert buckets.names_in(f"{place}/files", "*") == [there.all_files()[0].id]
    small.close()


@pytest.mark.parametrize("told", [False, True])
def test_a_change_whose_answer_is_lost_counts_once(machine, monkeypatch, place, told):
    """The library tries again and finds the entry there; or it gives up, and the entry is seen later."""
    store, create = machine("here"), buckets.create

    def lost(where, content):
        assert create(where, content)
        if told:
            raise buckets.InputError("timed out")
        return False

    with monkeypatch.context() as patched:
        patched.setattr(buckets, "create", lost)
        if told:
            with pytest.raises(Unreachable):
                store.vector_stores.create("ann", name="one")
        else:
            store.vector_stores.create("ann", name="one")
    assert [one.name for one in store.vector_stores.all()] == ["one"]
    store.vector_stores.create("ann", name="two")
    assert [one.name for one in machine("there").vector_stores.all()] == ["one", "two"]
    assert len(entries(place)) == 3  # the first is the store itself


def test_what_changes_nothing_is_not_in_the_log(machine, place):
    store = machine("here")
    made = document(store)
    before = entries(place)
    store.usage()
    store.gc()
    store.touch(made)
    assert not store.remove_document("bob", made.id)
    assert entries(place) == before


def test_a_document_that_was_used_long_ago_is_noted(machine, monkeypatch):
    store = machine("here")
    made = document(store)
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)
    store.touch(made)
    assert store.documents()[0].used == later


def test_a_new_server_starts_from_a_snapshot(machine, monkeypatch, place):
    monkeypatch.setattr(log, "EVERY", 4)
    monkeypatch.setattr(log, "OLD_SECONDS", 0.0)  # nobody is behind
    store = machine("here")
    names = [f"store {number}" for number in range(10)]
    for name in names:
        store.vector_stores.create("ann", name=name)
    assert buckets.names_in(f"{place}/snapshots", "*") == ["000000000008.sqlite"]
    assert [int(name[:12]) for name in entries(place)] == [5, 6, 7, 8, 9, 10, 11]
    again = machine("there")
    assert [one.name for one in again.vector_stores.all()] == names
    again.vector_stores.create("ann", name="more")
    assert [one.name for one in store.vector_stores.all()] == [*names, "more"]
    assert tables(store) == tables(again)


def test_a_server_that_slept_through_what_it_missed_catches_up(machine, monkeypatch):
    monkeypatch.setattr(log, "EVERY", 4)
    sleeper, store = machine("there"), machine("here")
    sleeper.vector_stores.create("ann", name="before")
    with monkeypatch.context() as patched:
        patched.setattr(log, "OLD_SECONDS", 0.0)
        for number in range(12):
            store.vector_stores.create("ann", name=str(number))
    asleep = time.time() + log.OLD_SECONDS
    monkeypatch.setattr(time, "time", lambda: asleep)
    sleeper.vector_stores.create("ann", name="after")
    names = ["before", *map(str, range(12)), "after"]
    assert [one.name for one in sleeper.vector_stores.all()] == names
    assert [one.name for one in store.vector_stores.all()] == names


def test_a_snapshot_that_fails_is_made_later(machine, monkeypatch, place):
    monkeypatch.setattr(log, "EVERY", 2)
    store = machine("here")
    with monkeypatch.context() as patched:
        patched.setattr(buckets, "write_bytes", _broken)
        for name in "abc":
            store.vector_stores.create("ann", name=name)
    assert buckets.names_in(f"{place}/snapshots", "*") == []
    store.vector_stores.create("ann", name="d")
    assert buckets.names_in(f"{place}/snapshots", "*") == ["000000000005.sqlite"]


def _broken(*_, **__):
    raise buckets.InputError("s3://secret-name cannot be written: connection refused")


@pytest.mark.parametrize("call", ["read_if_there", "put"])
def test_a_bucket_that_does_not_answer_is_told_without_its_name_and_changes_nothing(machine, monkeypatch, call):
    store = machine("here")
    kept = upload(store)
    with monkeypatch.context() as patched:
        patched.setattr(buckets, call, _broken)
        with pytest.raises(Unreachable, match="try again later") as error:
            upload(store, b"another")
    assert "secret-name" not in str(error.value)
    assert store.all_files() == [kept]
    assert len(list(store.temporary().parent.iterdir())) == 0
    assert upload(store, b"another")


def test_a_copy_that_breaks_off_is_fetched_again(machine, monkeypatch):
    made = upload(machine("here"), b"0" * 1000)
    store = machine("there")

    def cut(_place, path):
        path.write_bytes(b"0" * 10)
        raise buckets.InputError("connection reset")

    with monkeypatch.context() as patched:
        patched.setattr(buckets, "fetch", cut)
        with pytest.raises(Unreachable):
            store.file_path(made.id)
    assert store.file_path(made.id).read_bytes() == b"0" * 1000


def test_a_bucket_that_writes_over_what_is_there_is_refused(bucket, monkeypatch):
    import s3fs

    pipe = s3fs.S3FileSystem._pipe_file

    async def over(self, path, value, mode="overwrite", **more):
        return await pipe(self, path, value, **more)

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_pipe_file", over)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ConfigError, match="If-None-Match"):
            Store(f"{bucket}/store", max_bytes=LARGE, owner_bytes=LARGE)
    s3fs.S3FileSystem.clear_instance_cache()
    assert buckets.names_in(f"{bucket}/store/checks", "*") == []


@pytest.mark.parametrize("place", ["gs://bucket/store", "memory://store", "file:///tmp/store"])
def test_a_store_of_a_kind_that_nobody_tried_is_refused(place):
    with pytest.raises(ConfigError, match="s3://bucket/name"):
        Store(place, max_bytes=LARGE, owner_bytes=LARGE)


def test_a_bucket_that_is_not_there_is_told_by_name(bucket):
    with pytest.raises(InputError, match=rf"^{bucket}-of-nobody/store cannot be used as a store: (?!.*checks)"):
        Store(f"{bucket}-of-nobody/store", max_bytes=LARGE, owner_bytes=LARGE)


def test_files_whose_log_is_lost_are_refused_and_stay(machine, place):
    store = machine("here")
    upload(store)
    for entry in entries(place):
        buckets.remove(f"{place}/log/{entry}")
    with pytest.raises(CorruptFileError, match="holds files, but log and snapshots in it are empty or gone"):
        machine("there")
    assert len(buckets.names_in(f"{place}/files", "*")) == 1


@pytest.mark.parametrize("damage", [b"no JSON", b"[]", b'{"version": 1}', b'{"version": 1, "writer": "x"}'])
def test_a_damaged_entry_is_refused_by_name(machine, place, damage):
    upload(machine("here"))
    buckets.write_bytes(f"{place}/log/000000000001.json", damage)
    with pytest.raises(CorruptFileError, match=r"000000000001.json is damaged"):
        machine("there")


def test_an_entry_of_a_newer_homerlm_is_refused(machine, place):
    upload(machine("here"))
    name = f"{place}/log/000000000001.json"
    buckets.write_bytes(name, json.dumps(json.loads(buckets.read_bytes(name)) | {"version": 7}).encode())
    with pytest.raises(MismatchError, match="version 7"):
        machine("there")


def test_what_nobody_lists_goes_after_a_day_and_rows_without_a_file_at_once(machine, place, monkeypatch):
    store = machine("here")
    kept, lost = upload(store), upload(store, b"lost")
    buckets.write_bytes(f"{place}/files/file-unknown", b"another machine is about to list it, or was killed")
    buckets.remove(f"{place}/files/{lost.id}")
    again = machine("there")
    assert again.all_files() == [kept]
    assert again._files.ids("files") == {kept.id, "file-unknown"}
    monkeypatch.setattr(bucket_files, "OLD_SECONDS", 0.0)
    again.gc()
    assert again._files.ids("files") == {kept.id}


def test_copies_of_what_is_gone_go(machine):
    here, there = machine("here"), machine("there")
    made = document(here)
    copy = there.document_path(made.id)
    assert copy.exists()
    here.remove_document("ann", made.id)
    there.gc()
    assert not copy.exists()
    assert not there.document_path(made.id).exists()


def test_processes_that_write_at_once_and_are_killed_leave_one_complete_store(place, machine, tmp_path):
    """Each adds and removes as fast as it can; two are killed in the middle of it."""
    writers = [
        subprocess.Popen([sys.executable, WRITER, place, str(seed), tmp_path / f"cache-{seed}"], stdout=subprocess.PIPE)
        for seed in range(3)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"writing\n"
    time.sleep(1)
    for writer in writers[:2]:
        writer.kill()
        writer.wait()
    told, _ = writers[2].communicate(timeout=60)
    assert writers[2].returncode == 0
    stores = [machine("here"), machine("there")]
    assert tables(stores[0]) == tables(stores[1])
    files, documents = stores[0].all_files(), stores[0].documents()
    mine = {one.id for one in files if one.owner == "2"} | {one.id for one in documents if one.owner == "2"}
    assert mine == set(told.decode().split()) != set()
    assert {one.owner for one in (*files, *documents)} == {"0", "1", "2"}
    for file in files:
        assert hashlib.sha256(stores[0].file_path(file.id).read_bytes()).hexdigest() == file.name
    for one in documents:
        assert hashlib.sha256(stores[1].document_path(one.id).read_bytes()).hexdigest() == one.sha256


def test_threads_of_one_server_read_and_write_at_once(machine):
    store, failed = machine("here"), []

    def work(number):
        try:
            made = store.vector_stores.create("ann", name=str(number))
            assert store.vector_stores.get("ann", made.id).name == str(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert sorted(int(one.name) for one in machine("there").vector_stores.all()) == list(range(12))


def test_two_servers_are_one_to_their_clients(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / "here"))
    with serving(place) as here:
        monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / "there"))
        with serving(place) as there:
            first, second = openai_client(here), openai_client(there)
            file = first.files.create(file=("a.txt", WORDS.encode()), purpose="assistants")
            assert second.files.content(file.id).content == WORDS.encode()
            made = second.vector_stores.create(name="all")
            done = first.vector_stores.files.create_and_poll(file.id, vector_store_id=made.id, poll_interval_ms=50)
            assert done.status == "completed"
            found = [api.vector_stores.search(made.id, query=QUESTION).data for api in (first, second)]
            assert found[0] == found[1] != []
            with monkeypatch.context() as patched:
                patched.setattr(buckets, "read_if_there", _broken)
                refused = client(there).get("/v1/files")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unreachable")
                assert refused.headers["retry-after"]
                assert "secret-name" not in refused.text
            assert second.files.delete(file.id).deleted
            assert client(here).get(f"/v1/files/{file.id}").status_code == 404


@pytest.mark.parametrize("also", [False, True])
def test_what_is_read_of_a_file_that_another_server_removes_meanwhile_does_not_stay(place, machine, monkeypatch, also):
    """Unless another file says the same."""
    other, reading, removed = machine("there"), threading.Event(), threading.Event()
    add = Store.add_document

    def held(self, *given, **named):
        reading.set()
        assert removed.wait(20)
        return add(self, *given, **named)

    monkeypatch.setattr(Store, "add_document", held)
    with serving(place) as server:
        api = openai_client(server)
        made, files = api.vector_stores.create(), [api.files.create(file=("a.txt", b"w1 w2 w3"), purpose="assistants")]
        if also:
            files.append(api.files.create(file=("b.txt", b"w1 w2 w3"), purpose="assistants"))
        for file in files:
            api.vector_stores.files.create(file_id=file.id, vector_store_id=made.id)
        assert reading.wait(20)
        until(lambda: len(other._database.rows("SELECT * FROM texts")) == len(files))
        assert other.remove_file(None, files[0].id)
        removed.set()
        until(lambda: not indexing_of(server.config.app)._tasks)
        assert len(other.documents()) == also


def test_a_file_is_read_once_the_bucket_answers_again(place, monkeypatch):
    monkeypatch.setattr("homerlm.server.indexing.BUSY_SECONDS", 0.05)
    with serving(place) as server:
        api = openai_client(server)
        file, made = api.files.create(file=("a.txt", WORDS.encode()), purpose="assistants"), api.vector_stores.create()
        put, broken = buckets.put, threading.Event()

        def once(*given):
            if not broken.is_set():
                broken.set()
                _broken()
            put(*given)

        monkeypatch.setattr(buckets, "put", once)
        done = api.vector_stores.files.create_and_poll(file.id, vector_store_id=made.id, poll_interval_ms=50)
        assert (done.status, broken.is_set()) == ("completed", True)


def test_the_commands_take_a_bucket(place, machine, run, monkeypatch):
    code, _, said = run("store", "ls", "--store", place)
    assert code == 2
    assert f"{place} holds no store" in said
    store = machine("here")
    made = document(store)
    code, out, said = run("store", "ls", "--store", place, "--json")
    assert code == 0, said
    assert [entry["id"] for entry in json.loads(out)["entries"]] == [made.id]
    assert run("store", "gc", "--store", place)[0] == 0
    monkeypatch.setenv("HOMER_SERVE_STORE", place)
    assert run("store", "rm", made.id)[0] == 0
    assert store.documents() == []
    code, _, said = run("chat")
    assert code == 2
    assert "on this machine: give a folder with --store" in said
