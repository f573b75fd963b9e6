"""Documents of a store: read once for everybody who asks, found again by their text, joined as if read together."""

import asyncio
import gc
import os
from dataclasses import replace

import pytest
import torch

from homerlm import Homer, HomerConfig, Index
from homerlm.engine import Engine
from homerlm.errors import InputError, MismatchError, QuotaError
from homerlm.index.joined import join
from homerlm.store.documents import Documents, sha256_of
from homerlm.store.store import Store
from tiny import llama

LARGE = 1 << 30
TEXTS = {
    name: " ".join(f"w{(i * step) % 83}" for i in range(count))
    for name, step, count in (("a.txt", 3, 200), ("b.txt", 7, 23), ("c.txt", 11, 160))
}


@pytest.fixture
def with_documents(text_homer, tmp_path):
    """Runs async work on the documents of a new store."""
    return lambda work, **more: _run(text_homer, tmp_path, work, **more)


def _run(homer, folder, work, max_bytes=LARGE, lifetime=None):
    async def main():
        store, engine = Store(folder, max_bytes=max_bytes, owner_bytes=LARGE), Engine(homer)
        try:
            return await asyncio.wait_for(work(Documents(homer, engine, store, lifetime=lifetime)), 60)
        finally:
            await engine.close(5)
            store.close()

    return asyncio.run(main())


def _same(one, other):
    tensors = other.tensors()
    assert one.parts == other.parts
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor[:], tensors[name][:]), name


def test_a_text_is_read_once_and_found_again_after_a_restart(with_documents, text_homer):
    async def first(documents):
        index, known = await documents.index("ann", "a.txt", TEXTS["a.txt"])
        again, known_again = await documents.index("ann", "other.txt", TEXTS["a.txt"])
        assert (known, known_again, again.names) == (False, True, ("other.txt",))
        assert again.mapped is index.mapped
        _same(index, text_homer.read(TEXTS["a.txt"], name="a.txt"))
        return documents.store.documents("ann")

    async def later(documents):
        events = []
        index, known = await documents.index("ann", "a.txt", TEXTS["a.txt"], events.append)
        assert (known, events) == (True, [])
        assert len(index) == 200
        return documents.store.documents("ann")

    before, after = with_documents(first), with_documents(later)
    assert [one.id for one in before] == [one.id for one in after]
    assert (before[0].tokens, before[0].name, before[0].sha256) == (200, "a.txt", sha256_of(TEXTS["a.txt"]))
    assert after[0].used > before[0].used


def test_what_was_read_is_not_cut_into_tokens_again_to_count_them(with_documents, text_homer, monkeypatch):
    async def work(documents):
        assert await documents.length("ann", TEXTS["a.txt"]) == 200
        await documents.index("ann", "a", TEXTS["a.txt"])
        monkeypatch.setattr(type(text_homer.tokenizer), "__call__", None)
        assert await documents.length("ann", TEXTS["a.txt"]) == 200
        with pytest.raises(InputError, match="not callable"):
            await documents.length("bob", TEXTS["a.txt"])  # who has not read it

    with_documents(work)


def test_another_owner_reads_for_itself(with_documents):
    async def work(documents):
        await documents.index("ann", "a", TEXTS["a.txt"])
        _, known = await documents.index("bob", "a", TEXTS["a.txt"])
        assert not known
        (stored,) = documents.store.documents("ann")
        assert await documents.open("bob", stored.id) is None
        assert len(await documents.open("ann", stored.id)) == 200

    with_documents(work)


def test_those_who_ask_at_once_share_one_reading(with_documents, monkeypatch):
    async def work(documents):
        read = _counted(documents, monkeypatch)
        seen = [[], []]
        asks = [documents.index("ann", f"{n}", TEXTS["a.txt"], seen[n].append) for n in (0, 1)]
        (one, known), (other, followed) = await asyncio.gather(*asks)
        assert (known, followed, one.names, other.names) == (False, True, ("0",), ("1",))
        assert read == [["0"]]
        assert seen[0] == seen[1] != []

    with_documents(work)


def test_who_stops_waiting_leaves_the_others_alone_and_the_last_one_stops_the_reading(with_documents, monkeypatch):
    async def work(documents):
        read = _counted(documents, monkeypatch)
        await documents.maker()
        started = asyncio.Event()
        tasks = [
            asyncio.create_task(documents.index("ann", "a", TEXTS["a.txt"], lambda _: started.set())) for _ in range(2)
        ]
        await started.wait()
        tasks[0].cancel()
        index, _ = await tasks[1]
        assert len(index) == 200
        started.clear()
        alone = asyncio.create_task(documents.index("ann", "c", TEXTS["c.txt"] * 20, lambda _: started.set()))
        await started.wait()
        alone.cancel()
        await asyncio.wait([alone])
        assert len(documents.store.documents()) == 1
        while read[1:] != [["c"], "closed"]:
            await asyncio.sleep(0.01)
        _, known = await documents.index("ann", "c", TEXTS["c.txt"] * 20)
        assert alone.cancelled()
        assert not list(documents.store.folder.glob("incoming/*/*"))
        assert not known
        assert read == [["a"], ["c"], "closed", ["c"]]
        assert len(documents.store.documents()) == 2

    with_documents(work)


def test_what_is_being_read_of_a_file_that_is_deleted_is_not_kept(with_documents):
    async def work(documents):
        store, text = documents.store, TEXTS["c.txt"] * 20
        path = store.temporary()
        path.write_text(text)
        file = store.add_file(path, owner="ann", name="c.txt", purpose="assistants")
        store.note_text(file.id, sha256_of(text))
        await documents.maker()
        started = asyncio.Event()
        reading = asyncio.create_task(documents.index("ann", "c.txt", text, lambda _: started.set()))
        await started.wait()
        assert not await documents.remove_file("bob", file.id)
        assert await documents.remove_file("ann", file.id)
        assert len((await reading)[0]) > 0
        assert not store.documents()
        assert not list(store.folder.glob("documents/*"))
        assert not (await documents.index("ann", "c.txt", text))[1]  # given again, it is a document as any other
        assert len(store.documents()) == 1

    with_documents(work)


def test_what_another_file_says_too_is_kept(with_documents):
    async def work(documents):
        store, text, files = documents.store, TEXTS["c.txt"] * 20, []
        for name in ("c.txt", "same.txt"):
            path = store.temporary()
            path.write_text(text)
            files.append(store.add_file(path, owner="ann", name=name, purpose="assistants").id)
            store.note_text(files[-1], sha256_of(text))
        await documents.maker()
        started = asyncio.Event()
        reading = asyncio.create_task(documents.index("ann", "c.txt", text, lambda _: started.set()))
        await started.wait()
        assert await documents.remove_file("ann", files[0])
        await reading
        assert len(store.documents()) == 1
        assert await documents.remove_file("ann", files[1])
        assert not store.documents()

    with_documents(work)


def test_an_error_reaches_everybody_and_is_not_kept(with_documents, monkeypatch):
    async def work(documents):
        with monkeypatch.context() as patched:
            patched.setattr(documents.homer, "reading", _failing)
            documents._maker = "m"
            asks = [documents.index("ann", "a", TEXTS["a.txt"]) for _ in range(2)]
            found = await asyncio.gather(*asks, return_exceptions=True)
        assert [str(error) for error in found] == ["no", "no"]
        assert documents.store.documents() == []
        documents._maker = None
        await documents.index("ann", "a", TEXTS["a.txt"])
        with pytest.raises(InputError, match="surrogates"):
            await documents.index("ann", "a", "\ud800")

    with_documents(work)


def test_a_damaged_or_lost_index_is_read_anew_and_said(with_documents, caplog):
    async def work(documents):
        for damage in (lambda path: path.write_bytes(b"x" * 100), os.unlink, _flip):
            await documents.index("ann", "a", TEXTS["a.txt"])
            (stored,) = documents.store.documents()
            documents.in_use(stored.id)  # closes it
            damage(documents.store.document_path(stored.id))
            index, known = await documents.index("ann", "a", TEXTS["a.txt"])
            assert (known, len(index)) == (False, 200)
            (new,) = documents.store.documents()
            assert new.id != stored.id
            assert (
                f"forgotten, and read anew where it is given again: {documents.store.document_path(stored.id)}"
                in (caplog.messages[-1])
            )

    with_documents(work)


def test_another_models_documents_are_listed_and_refused_by_name(with_documents, words, tmp_path):
    async def read(documents):
        await documents.index("ann", "a", TEXTS["a.txt"])
        return documents.store.documents()[0]

    async def other(documents):
        assert documents.store.documents("ann") == [stored]
        with pytest.raises(MismatchError, match=f"{stored.id} was read by {stored.model}"):
            await documents.open("ann", stored.id)
        _, known = await documents.index("ann", "a", TEXTS["a.txt"])
        assert not known
        assert len(documents.store.documents("ann")) == 2

    stored = with_documents(read)
    _run(Homer(llama(seed=5), words, HomerConfig(max_chunk_len=48, target_len=40)), tmp_path, other)


def test_other_settings_that_an_index_does_not_depend_on_know_it(with_documents, text_homer, words, tmp_path):
    async def read(documents):
        return (await documents.index("ann", "a", TEXTS["a.txt"]))[1], await documents.maker()

    assert not with_documents(read)[0]
    for changes, known in (({"target_len": 44}, True), ({"max_chunk_len": 60}, False)):
        homer = Homer(text_homer.model, words, replace(text_homer.config, **changes))
        assert _run(homer, tmp_path, read)[0] is known, changes


def test_one_that_is_held_does_not_give_way(with_documents):
    async def size_of_one(documents):
        await documents.index("ann", "a", TEXTS["a.txt"])
        return documents.store.usage()

    async def work(documents):
        held, _ = await documents.index("ann", "a", TEXTS["a.txt"])
        with pytest.raises(QuotaError, match="cannot give way"):
            await documents.index("ann", "b", TEXTS["c.txt"])
        again, known = await documents.index("ann", "a", TEXTS["a.txt"])
        assert known
        del again
        with pytest.raises(QuotaError, match="cannot give way"):
            await documents.index("ann", "b", TEXTS["c.txt"])
        assert len(held) == 200

    size = with_documents(size_of_one)
    with_documents(work, max_bytes=int(size * 1.3))

    async def dropped(documents):
        await documents.index("ann", "a", TEXTS["a.txt"])
        gc.collect()
        await documents.index("ann", "c", TEXTS["c.txt"])
        assert [one.name for one in documents.store.documents()] == ["c"]

    with_documents(dropped, max_bytes=int(size * 1.3))


def test_a_collection_is_what_reading_all_of_them_makes(with_documents, text_homer):
    async def work(documents):
        joined = await documents.collection("ann", TEXTS.items())
        whole = text_homer.read_all(list(TEXTS.items()))
        _same(joined, whole)
        assert joined.blocks == whole.blocks
        for question in ("w5 w80", "w33"):
            one = await documents.engine.run(documents.homer.finding(joined, question, tokens=20))
            assert one == text_homer.select(whole, question, tokens=20)
            found = await documents.search([joined], question, 20)
            assert found == one
        joined.forget()

    with_documents(work)


@pytest.mark.parametrize("int8", [False, True])
def test_joined_indexes_are_saved_as_one(text_homer, tmp_path, int8):
    indexes = [text_homer.read(text, name=name, int8=int8) for name, text in TEXTS.items()]
    joined = join(indexes, ["1", "2", "3"])
    joined.save(tmp_path / "joined.homer")
    loaded = Index.load(tmp_path / "joined.homer", text_homer.model, text_homer.tokenizer)
    assert loaded.names == ("1", "2", "3")
    _same(loaded, text_homer.read_all([(name, TEXTS[old]) for name, old in zip("123", TEXTS, strict=True)], int8=int8))
    assert loaded.text_of(loaded.parts[1]) == TEXTS["b.txt"]
    for rows in (slice(0, 5), slice(190, 230), slice(0, None), slice(223, 223), slice(380, 999)):
        assert torch.equal(joined.keys[rows], loaded.keys[rows])


def test_indexes_of_different_making_are_not_joined(text_homer, words):
    index = text_homer.read(TEXTS["a.txt"])
    other = Homer(llama(seed=4), words, text_homer.config).read(TEXTS["b.txt"])
    with pytest.raises(MismatchError, match="different models"):
        join([index, other])
    longer = Homer(text_homer.model, words, replace(text_homer.config, max_chunk_len=60)).read(TEXTS["b.txt"])
    with pytest.raises(MismatchError, match="chunk_len"):
        join([index, longer])
    with pytest.raises(InputError, match="names are 1"):
        join([index, index], ["one"])
    with pytest.raises(InputError, match="empty"):
        join([])


def _counted(documents, monkeypatch):
    """A list that gets the names of every reading, and that it was closed."""
    read, reading = [], type(documents.homer).reading

    def counting(homer, texts, **more):
        texts = list(texts)
        if texts:
            read.append([name for name, _ in texts])
        try:
            return (yield from reading(homer, texts, **more))
        except GeneratorExit:
            read.append("closed")
            raise

    monkeypatch.setattr(type(documents.homer), "reading", counting)
    return read


def _failing(texts, **more):
    raise RuntimeError("no")
    yield


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
