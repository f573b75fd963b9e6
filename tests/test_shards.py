"""A collection in many files: asked by workers that hold some each, it answers as one index of all documents."""

import random
from itertools import chain

import pytest
import torch

from homerlm import Homer, HomerConfig, Index
from homerlm.errors import CorruptFileError
from homerlm.executor import LoadedModel
from homerlm.index import shards
from homerlm.index.joined import join
from homerlm.index.spread import SpreadDocument, document_of
from homerlm.passes import run_steps
from homerlm.scale.devices import Devices
from homerlm.select.document import Document
from homerlm.select.links import RARE, Links
from homerlm.select.words import Words
from tiny import llama


def texts_of(seed=0, count=40):
    """Documents of a few words to several chunks."""
    draw = random.Random(seed)
    return [
        (f"d{n}", " ".join(f"w{draw.randrange(85)}" for _ in range(draw.choice((3, 7, 20, 150))))) for n in range(count)
    ]


@pytest.fixture(scope="module")
def copies(words):
    made = Devices([LoadedModel.of(llama(), words) for _ in range(2)])
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(text_homer):
    return text_homer.read_all(texts_of())


@pytest.fixture(scope="module")
def files(text_homer, tmp_path_factory):
    """The same documents in ten files."""
    folder, texts = tmp_path_factory.mktemp("shards"), texts_of()
    for number in range(10):
        text_homer.read_all(texts[4 * number : 4 * number + 4], path=folder / f"{number}")
    return [folder / f"{number}" for number in range(10)]


def opened(files, homer):
    return join([Index.load(path, homer.model, homer.tokenizer) for path in files])


def places(homer, index, question):
    return homer.ask(index, question, max_new_tokens=2).context.token_indices.tolist()


@pytest.mark.parametrize("changes", [{}, {"unit": "neighbours"}])
@pytest.mark.parametrize("part", [1 << 18, 90])
def test_workers_find_what_one_index_of_all_documents_gives(
    text_homer, words, whole, files, copies, changes, part, monkeypatch
):
    monkeypatch.setattr(shards, "PART_TOKENS", part)
    config = HomerConfig(**{"max_chunk_len": 48, "target_len": 40, "pooling": 3} | changes)
    alone, spread = Homer(text_homer.model, words, config), Homer(text_homer.model, words, config, copies)
    joined = opened(files, alone)
    assert any(len(one.files) > 1 for one in shards.parts_of(joined))  # a block reaches into the next file
    for question in ("w1 w2", "w50 w51 w7", "w84"):
        expected = places(alone, whole, question)
        assert places(spread, joined, question) == expected
        assert places(alone, joined, question) == expected
        assert places(spread, whole, question) == expected  # in memory: asked here


def test_a_part_stays_with_the_worker_that_holds_its_file(text_homer, words, files, monkeypatch):
    monkeypatch.setattr(shards, "PART_TOKENS", 90)
    given = []

    class Asked:
        def map(self, here, work, items, homes=None):
            given.append((items, homes))
            return (here.run(work, item) for item in items)

    spread = Homer(text_homer.model, words, text_homer.config, Asked())
    places(spread, opened(files, spread), "w1 w2")
    items, homes = given[0]
    assert sorted(set(homes)) == list(range(10))
    assert len(items) > 10
    assert [str(files[home]) for home in homes] == [item.files[0].path for item in items]


def test_links_are_those_of_one_index(text_homer, words, files, whole, copies):
    """Rare words are looked for by the workers; of others it is enough to know that they are not rare."""
    spread = Homer(text_homer.model, words, text_homer.config, copies)
    alone = Document(whole.ids, whole.units)
    found = document_of(spread.method, opened(files, spread))
    assert isinstance(found, SpreadDocument)
    assert not isinstance(document_of(text_homer.method, opened(files, text_homer)), SpreadDocument)
    linked = 0
    for unit in range(0, len(whole.units), 3):
        sources = [unit, (unit + 5) % len(whole.units)]
        expected = run_steps(Links(alone, Words(words), whole.ids[:0]).of(sources))
        assert run_steps(Links(found, Words(words), whole.ids[:0]).of(sources)) == expected
        linked += len(expected)
    assert linked > 20


def test_a_word_that_is_not_rare_in_one_file_is_not_rare(text_homer, words, copies, tmp_path):
    """More units of the first file than a rare word stands in hold it, one of the second; another word stands in one
    of each."""
    texts = [*((f"a{n}", f"w1 w{10 + n}") for n in range(RARE + 4)), ("b", "w3"), ("c", "w3 w1")]
    for name, part in (("0", texts[:-1]), ("1", texts[-1:])):
        text_homer.read_all(part, path=tmp_path / name)
    spread = Homer(text_homer.model, words, text_homer.config, copies)
    document = document_of(spread.method, opened([tmp_path / "0", tmp_path / "1"], spread))
    run = tuple(words("w1").input_ids)
    found = list(chain.from_iterable(document.units_with([run], RARE)))
    assert len(found) > RARE
    assert run_steps(Links(document, Words(words), document.ids[:0]).of([RARE + 5])) == [RARE + 4]


def test_rows_are_gathered_from_every_file(text_homer, whole, files):
    joined = opened(files, text_homer)
    rows = torch.randperm(len(whole))[:500]
    for name, tensor in whole.tensors().items():
        if name not in ("chunks", "units", "text"):
            assert torch.equal(joined.tensors()[name][rows], tensor[rows])
            assert torch.equal(joined.tensors()[name][37:411], tensor[37:411])
    assert [joined.text_of(part) for part in joined.parts] == [text for _, text in texts_of()]


def test_a_damaged_file_is_told_by_the_worker_that_reads_it(text_homer, words, files, copies, tmp_path):
    damaged = tmp_path / "damaged"
    content = bytearray(files[3].read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    index = join([Index.load(path, text_homer.model, check=False) for path in (files[2], damaged)])
    spread = Homer(text_homer.model, words, text_homer.config, copies)
    with pytest.raises(CorruptFileError, match="SHA-256"):
        spread.ask(index, "w1 w2", max_new_tokens=1)
