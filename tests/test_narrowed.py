"""An index of a part of a document."""

import pytest
import torch

from homerlm.errors import InputError
from homerlm.index.joined import join
from homerlm.index.narrowed import narrowed
from serving import WORDS, tiny_homer

SPANS = [(0, 30), (500, 560), (1400, 1410)]


@pytest.fixture(scope="module")
def homer():
    return tiny_homer()


@pytest.fixture(scope="module")
def whole(homer):
    return homer.read(WORDS)


@pytest.mark.parametrize("joined", [False, True])
def test_its_tokens_are_those_of_the_spans(whole, joined):
    given = join([whole]) if joined else whole
    index = narrowed(given, SPANS)
    places = whole.spans.tolist()
    inside = [n for n, (start, end) in enumerate(places) if any(start < e and end > s for s, e in SPANS)]
    assert 20 < len(index) == len(inside) < len(whole)
    assert index.ids.tolist() == whole.ids[inside].tolist()
    assert index.spans.tolist() == [places[n] for n in inside]
    assert torch.equal(index.keys_of(0, len(index)), torch.cat([whole.keys_of(n, n + 1) for n in inside]))
    assert index.text_of(index.parts[0]) == WORDS
    for name in ("chunks", "units"):
        starts = getattr(whole, name).tolist()
        groups = [max((m for m, start in enumerate(starts) if start <= n), default=-1) for n in inside]
        begins = [k for k, group in enumerate(groups) if k == 0 or group != groups[k - 1]]
        assert getattr(index, name).tolist() == (begins if starts else [])


def test_a_question_finds_nothing_else(homer, whole):
    index = narrowed(whole, SPANS)
    found = homer.select(index, "w1 w2 ?", tokens=10)
    assert found.passages
    for one in found.passages:
        assert any(one.start < end and one.end > start for start, end in SPANS)
        assert WORDS[one.start : one.end] == one.text


def test_all_of_it_is_found_as_in_the_whole(homer, whole):
    index = narrowed(whole, [(0, len(WORDS))])
    assert homer.select(index, "w5 ?", tokens=20).passages == homer.select(whole, "w5 ?", tokens=20).passages


def test_what_cannot_be_narrowed_is_refused(homer, whole):
    with pytest.raises(InputError, match="2 documents"):
        narrowed(join([whole, homer.read(f"{WORDS} w1")]), SPANS)
    with pytest.raises(InputError, match="no token"):
        narrowed(whole, [(10_000, 10_001)])
