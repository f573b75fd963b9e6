"""Passages by the question's words, before anything is read."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.errors import ConfigError
from homerlm.passes import Event
from homerlm.select.document import Document
from homerlm.select.prefilter import PASSAGE, passages, worth_reading
from tiny import llama

SIZES = {"max_chunk_len": 120, "target_len": 80, "pooling": 3, "recap_len": 0, "link_len": 0}
WORDS = [f"w{i % 40}" for i in range(1500)]
TOLD = 700
WORDS[TOLD : TOLD + 3] = ["w70", "w71", "w72"]
TEXT = " ".join(WORDS)
QUESTION = "w70 w72 w1"


def test_passages_are_whole_sentences_and_cover_the_document():
    starts = torch.arange(0, 1500, 50)
    spans = passages(Document(torch.zeros(1500), starts))
    assert spans == [(0, 300), (300, 600), (600, 900), (900, 1200), (1200, 1500)]
    unknown = passages(Document(torch.zeros(600)))
    assert unknown == [(0, PASSAGE), (PASSAGE, 2 * PASSAGE), (2 * PASSAGE, 600)]
    assert passages(Document(torch.zeros(9), torch.tensor([0, 4]))) == [(0, 9)]


def test_the_best_passage_comes_first_and_the_prompts_own_words_do_not_count(words):
    document = Document(torch.tensor(words(TEXT).input_ids))
    asked, usual = (torch.tensor(words(text).input_ids) for text in (QUESTION, "w1"))
    assert worth_reading(document, words, asked, usual, 200).tolist() == list(range(2 * PASSAGE, 2 * PASSAGE + 200))
    wrong = torch.tensor(words("w72 w70 w71").input_ids)  # all that tells the passage
    nothing_left = worth_reading(document, words, asked, wrong, 200)
    assert nothing_left.tolist() != worth_reading(document, words, asked, usual, 200).tolist()


@pytest.fixture(scope="module")
def model():
    return llama()


def ask(model, words, **changes):
    homer, events = Homer(model, words, HomerConfig(**(SIZES | changes))), []
    answer = homer.ask(TEXT, QUESTION, max_new_tokens=2, chat=False, observer=events.append)
    return answer, events


def test_only_the_passages_are_read_and_what_is_kept_is_said_in_the_documents_places(model, words):
    answer, events = ask(model, words, prefilter=256)
    context = answer.context
    inside = context.token_indices[0, context.prefix_len : -context.suffix_len] - context.prefix_len
    assert len(inside)
    assert set(inside.tolist()) <= set(range(2 * PASSAGE, 3 * PASSAGE))
    assert words.convert_ids_to_tokens(context.input_ids[0, context.prefix_len : -context.suffix_len]) == [
        WORDS[place] for place in inside.tolist()
    ]
    assert context.prompt_len == 1500 + context.prefix_len + context.suffix_len
    assert [event for event in events if isinstance(event, Event)][-1].total == context.prompt_len - (
        context.prefix_len + context.suffix_len
    )
    assert answer.tokens_read == 256 + context.prefix_len + context.suffix_len
    homer = Homer(model, words, HomerConfig(**SIZES, prefilter=256))
    assert homer.select(TEXT, QUESTION, tokens=50).tokens_read == 256
    plan = homer.plan(4, 1500, 5)
    assert sum(run.tokens for run in plan.passes if run.kind == "chunk") < 256 + 5 * 40
    assert "256 tokens of the document that BM25 ranks first are read" in str(plan)


def test_it_equals_the_passages_read_alone(model, words):
    prefix, suffix = (torch.tensor([words(text).input_ids]) for text in ("w3 w4", QUESTION))
    document = torch.tensor([words(TEXT).input_ids])
    homer = Homer(model, words, HomerConfig(**SIZES, prefilter=256, contrast="none"))
    whole = homer.compress(prefix, document, suffix)
    alone = homer.compress(prefix, document[:, 2 * PASSAGE : 3 * PASSAGE], suffix)
    assert torch.equal(whole.input_ids, alone.input_ids)
    assert torch.equal(whole.logits, alone.logits)


@pytest.mark.parametrize("enough", [1500, 1_000_000])
def test_where_all_would_be_read_it_changes_nothing(model, words, enough):
    usual, filtered = ask(model, words)[0], ask(model, words, prefilter=enough)[0]
    assert torch.equal(usual.context.token_indices, filtered.context.token_indices)
    assert usual.token_ids == filtered.token_ids


def test_few_tokens_are_read_without_choosing_and_short_prompts_as_they_are(model, words):
    answer, _ = ask(model, words, prefilter=30)
    assert answer.tokens_kept == 30 + answer.context.prefix_len + answer.context.suffix_len
    homer = Homer(model, words, HomerConfig(**SIZES, prefilter=10))
    assert homer.ask("w1 w2 w3 " * 5, "w70", max_new_tokens=1).tokens_kept > 15


def test_an_index_finds_among_all_tokens(model, words):
    found = [
        Homer(model, words, HomerConfig(**SIZES, prefilter=count)).ask(
            Homer(model, words, HomerConfig(**SIZES)).read(TEXT), QUESTION, max_new_tokens=2
        )
        for count in (None, 20)
    ]
    assert torch.equal(found[0].context.token_indices, found[1].context.token_indices)


def test_rows_are_filtered_each_by_its_own_question(model, words):
    homer = Homer(model, words, HomerConfig(**SIZES, prefilter=256, contrast="none"))
    other = " ".join([*WORDS[:1200], "w80", "w81", *WORDS[1202:]])
    ids = [torch.tensor([words(text).input_ids for text in texts]) for texts in (("w3", "w3"), (TEXT, other))]
    suffix = torch.tensor([words(text).input_ids for text in ("w70 w72", "w80 w81")])
    both = homer.compress(*ids, suffix)
    for row in range(2):
        alone = homer.compress(*(part[row : row + 1] for part in (*ids, suffix)))
        assert torch.equal(both.row(row).input_ids, alone.input_ids)


def test_what_it_cannot_do_is_refused(model):
    with pytest.raises(ConfigError, match="tokenizer"):
        Homer(model, None, HomerConfig(**(SIZES | {"unit": "neighbours"}), prefilter=100)).compress(
            *(torch.ones(1, n, dtype=torch.long) for n in (3, 900, 4))
        )
    with pytest.raises(ConfigError, match="without the question"):
        HomerConfig(prefilter=100, chosen_by="surprisal")
    with pytest.raises(ConfigError, match="at least 1"):
        HomerConfig(prefilter=0)
