"""Sentences that stay whole: where they end, and what that does to what is kept."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from homerlm import Homer, HomerConfig
from homerlm.score.neighbours import pool_within, significance
from homerlm.score.sentences import Sentences
from tiny import VOCAB, llama, prompt


class Tokens:
    """A tokenizer as far as sentences look at it: what each token stands for."""

    def __init__(self, *texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def convert_ids_to_tokens(self, ids):
        return [self.texts[i] for i in ids]


def _numbers(texts, places=None):
    vocab = [*dict.fromkeys(texts)]
    sentences = Sentences(Tokens(*vocab), len(vocab) + 3)
    ids = torch.tensor([[vocab.index(text) for text in texts]])
    return sentences.number(ids, torch.tensor([[*(places or range(len(texts)))]]))[0].tolist()


def _literal_units(sentences, line_ends):
    """Numbers of units, token by token, from those of sentences."""
    units, start = [0], 0
    for at in range(1, len(sentences)):
        length = at - start
        cut = sentences[at] != sentences[at - 1] or length >= 64 or (length >= 32 and line_ends[at - 1])
        units.append(units[-1] + cut)
        start = at if cut else start
    return units


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 14])
@pytest.mark.parametrize("length", [1, 2, 65, 700])
@pytest.mark.parametrize("rare", [2, 60], ids=["short", "long"])
def test_units_block_by_block_are_those_of_the_whole_text(monkeypatch, block, length, rare):
    monkeypatch.setattr("homerlm.score.sentences.BLOCK", block)
    texts = ["Ġa", "Ġb", "c", ".", "Ċ", "ĊĊ"]
    weights = torch.tensor([rare, rare, rare, 1.0, 1.0, 0.2])
    generator = torch.Generator().manual_seed(length + rare)
    ids = torch.multinomial(weights, length, replacement=True, generator=generator)
    sentences, places = Sentences(Tokens(*texts), len(texts)), torch.arange(length)[None]
    expected = _literal_units(sentences.number(ids[None], places)[0].tolist(), [texts[i].endswith("Ċ") for i in ids])
    assert sentences.units(ids[None], places)[0].tolist() == expected
    starts = list(sentences.unit_starts(ids))
    assert torch.cat(starts).tolist() == [at for at in range(length) if not at or expected[at] != expected[at - 1]]
    assert len(starts) == -(-max(length - 1, 1) // block)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["It", "Ġis", ".", "ĠNo", "?", "ĠOh", '!"', "ĠThe"], [0, 0, 0, 1, 1, 2, 2, 3]),
        (["▁It", "▁is", ".", "▁No"], [0, 0, 0, 1]),
        (["ĠPi", "Ġis", "Ġ3", ".", "14", ".", "ĠYes"], [0, 0, 0, 0, 0, 0, 1]),
        (["A", "Ċ", "list", "ĊĊ", "B"], [0, 0, 0, 0, 1]),
        (["▁A", "<0x0A>", "<0x0A>", "▁B"], [0, 0, 1, 1]),
        (["东京", "。", "京都", "。”", "奈良"], [0, 0, 1, 1, 2]),
        (["ä¸ľäº¬", "ãĢĤ", "äº¬éĥ½", "ãĢĤâĢĿ", "å¥Ī"], [0, 0, 1, 1, 2]),  # the same, as byte-level BPE writes it
        ([b"It", b" is", b".", b" No", None], [0, 0, 0, 1, 1]),
    ],
    ids=lambda texts: "",
)
def test_sentences_end_at_stops_before_white_space_and_at_empty_lines(texts, expected):
    assert _numbers(texts) == expected


def test_what_stands_apart_in_the_document_is_not_one_sentence():
    assert _numbers(["one", "Ġtwo", "Ġthree", "Ġfour"], places=[3, 4, 9, 10]) == [0, 0, 1, 1]


def test_ids_that_the_tokenizer_does_not_know_end_nothing():
    sentences = Sentences(Tokens("."), 5)
    assert sentences.number(torch.tensor([[0, 4, 3]]), torch.arange(3)[None]).tolist() == [[0, 0, 0]]


def test_a_maximum_stays_within_its_group_and_reach():
    scores = torch.tensor([[9.0, 1.0, 2.0, 0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -7.0]])
    groups = torch.tensor([[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 1]])
    assert pool_within(scores, groups, 2).tolist() == [[9.0, 9.0, 2.0, 5.0, 5.0, 5.0, 0.0], [0.0] * 6 + [-7.0]]
    assert pool_within(scores, groups, 9)[0].tolist() == [9.0, 9.0, 5.0, 5.0, 5.0, 5.0, 0.0]


@pytest.fixture(scope="module")
def model():
    return llama()


SIZES = {"max_chunk_len": 60, "pooling": 1, "recap_len": 0, "min_share": 1.0}


def _words(stop: int) -> PreTrainedTokenizerFast:
    """A tokenizer of words, one of which ends a sentence."""
    vocab = {"." if i == stop else f"\u0120w{i}": i for i in range(VOCAB)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="."))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _kept(homer, ids):
    """Places in the context of what is left of a prompt, as runs of neighbours: first and last place of each."""
    places = [i - 4 for i in homer.compress(*ids).token_indices[0].tolist()[4:-5]]
    starts = [i for i in places if i - 1 not in places]
    return list(zip(starts, [i for i in places if i + 1 not in places], strict=True))


def test_the_best_token_brings_its_sentence_along(model):
    ids = prompt(context=40)

    def kept(tokenizer, **changes):
        return _kept(Homer(model, tokenizer, HomerConfig(**SIZES, **changes, unit="neighbours", target_len=48)), ids)

    ((best, _),) = kept(None)
    words = ids[1][0].tolist()
    stop = next(word for word in words[best + 3 :] if words.index(word) > best + 2)
    assert kept(_words(stop), sentence_weight=0.0) == [(best, best)]
    assert kept(_words(stop), sentence_weight=0.9) == [(best, best)]  # the rest is below the floor
    assert kept(_words(stop), sentence_weight=1.0) == [(0, words.index(stop))]


def test_the_tree_keeps_sentences_whole_too(model):
    ids = prompt(context=300)
    words = ids[1][0].tolist()
    stop = max(set(words), key=words.count)
    settings = {"max_chunk_len": 60, "pooling": 1, "target_len": 40, "rerank": "never"}
    config = HomerConfig(**settings, sentence_weight=1.0, unit="neighbours")
    alone, whole = (_kept(Homer(model, tokenizer, config), ids) for tokenizer in (None, _words(stop)))
    assert len(whole) < len(alone) / 2  # as many tokens, in fewer pieces


def test_what_speaks_against_a_token_is_not_weakened_by_its_sentence():
    sentences = Sentences(Tokens("a", "b"), 2)
    scores, places = torch.tensor([[-4.0, -2.0, -3.0]]), torch.tensor([[1, 2, 3]])

    def of(scores, weight):
        ids = places % 2
        return significance(scores, ids, places, pooling=1, sentence_weight=weight, sentences=sentences)[0].tolist()

    assert of(scores, 0.5) == [-4.0, -2.0, -3.0]
    assert of(-scores, 0.5) == [4.0, 2.0, 3.0]
    assert of(-scores, 0.9) == pytest.approx([4.0, 3.6, 3.6])
