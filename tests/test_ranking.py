"""Passages ranked by a question: the scores of a chunk of them, and what becomes of those that do not fit one."""

from dataclasses import replace

import pytest
import torch

from homerlm import Homer, HomerConfig, prompt
from homerlm.errors import ConfigError, InputError, ScheduleError
from homerlm.passes import run_steps
from homerlm.score.neighbours import unit_scores
from homerlm.select import passages
from homerlm.select.passages import _above, _groups, _leading, _Part
from homerlm.select.reading import Reading
from tiny import llama
from words import tokenizer_of

TEXTS = ["w1 w2 w3", "w40", "", "w5 w6 w7 w8 . w9"]


@pytest.fixture(scope="module")
def homer():
    return Homer(llama(), tokenizer_of(97, chat=True), HomerConfig(max_chunk_len=100, target_len=60))


def _ranked(homer, texts, question="w5 w6", **more):
    return run_steps(homer.ranking(question, texts, **more))


def _literal(homer, texts, question):
    """Scores of passages that stand in one chunk, unit by unit."""
    tokenizer = homer.tokenizer
    affixes, neutral = prompt.affixes(tokenizer, question), prompt.neutral(tokenizer)
    ids = [prompt.token_ids(tokenizer, text) for text in texts]
    whole = prompt.encode(tokenizer, affixes[0], "\n\n".join(texts), affixes[1], neutral)
    plan = homer.method.plan(*whole.lengths)
    with homer.decoder.session(), torch.no_grad():
        scores = Reading(homer.decoder, plan, whole, homer.method.ranking).score(whole.context, plan.reading)
    found, start = [], 0
    for own in ids:
        count = own.shape[1]
        units = homer.method.sentences.units(own, torch.arange(count)[None]) if count else None
        found.append(float(unit_scores(scores[:, start : start + count], units).amax()) if count else 0.0)
        start += count
    return found


def test_passages_of_one_chunk_are_scored_side_by_side(homer):
    expected = _literal(homer, TEXTS, "w5 w6")
    found = _ranked(homer, TEXTS)
    assert found == pytest.approx([score / max(expected) for score in expected], abs=1e-6)
    assert found[2] == 0
    assert max(found) == 1


def test_the_best_of_several_chunks_are_scored_again_side_by_side(homer, monkeypatch):
    texts = [f"w{i} w{(3 * i) % 70} w{(7 * i) % 70}" for i in range(80)]
    read_again = []
    monkeypatch.setattr(passages, "_leading", lambda *given: read_again.extend(_leading(*given)) or read_again)
    found = _ranked(homer, texts)
    chosen = [part.passage for part in read_again]
    assert 20 < len(chosen) < 40
    assert [found[i] for i in chosen] == pytest.approx(_ranked(homer, [texts[i] for i in chosen]), abs=1e-6)
    assert max(found[i] for i in range(80) if i not in chosen) <= min(found[i] for i in chosen)


def test_those_that_were_not_scored_again_stay_below_the_others():
    found = _above(torch.tensor([0.0, 5.0, 3.0, 0.0]), torch.tensor([9.0, 1.0, 2.0, 3.0]), {1, 2})
    assert found.tolist() == [3, 5, 3, 1]
    found = _above(torch.tensor([0.0, 5.0]), torch.tensor([0.5, 1.0]), {1})
    assert found.tolist() == [0.5, 5]


def test_chunks_are_about_as_long_as_each_other():
    parts = [_Part(number, torch.zeros(size)) for number, size in enumerate([10, 30, 20, 5, 35, 40, 7, 3])]
    sizes = [[len(part.ids) for part in group] for group in _groups(parts, 60)]
    assert [size for group in sizes for size in group] == [10, 30, 20, 5, 35, 40, 7, 3]
    assert [sum(group) for group in sizes] == [60, 40, 50]


def test_the_best_part_of_each_of_the_best_passages_leads():
    parts = [_Part(passage, torch.zeros(20)) for passage in (0, 0, 1, 2, 3)]
    scored = list(zip((1.0, 9.0, 5.0, 2.0, 7.0), parts, strict=True))
    assert _leading(scored, 65) == [parts[1], parts[2], parts[4]]
    assert _leading(scored, 20) == [parts[1]]
    assert _leading(scored, 200) == parts[1:]


def test_a_passage_longer_than_a_chunk_counts_as_its_best_part(homer):
    long = " ".join(f"w{i % 80}" for i in range(400))
    found = _ranked(homer, [long, "w1", long, "w5 w6"])
    assert max(found) == 1
    assert all(0 <= score <= 1 for score in found)
    assert len(found) == 4


def test_events_count_tokens_and_closing_stops(homer):
    events = []
    run_steps(homer.ranking("w5", ["w1 w2"] * 100), events.append)
    assert [event.read for event in events] == sorted(event.read for event in events)
    assert events[-1].read == events[-1].total == 200
    assert len(events) > 3
    steps = homer.ranking("w5", ["w1 w2"] * 100)
    next(steps)
    steps.close()


def test_the_same_however_often_it_is_asked_and_no_passages_are_no_scores(homer):
    assert _ranked(homer, TEXTS) == _ranked(homer, TEXTS)
    assert _ranked(homer, []) == []
    assert _ranked(homer, ["", ""]) == [0, 0]


@pytest.mark.parametrize("changes", [{"unit": "neighbours"}, {"contrast": "none"}, {"rerank": "never"}])
def test_other_settings_rank_too(homer, changes):
    other = Homer(homer.model, homer.tokenizer, replace(homer.config, **changes))
    found = _ranked(other, [*TEXTS] * 20)
    assert max(found) == 1
    assert len(found) == 80


def test_what_cannot_be_ranked_is_refused_at_once(homer):
    with pytest.raises(InputError, match="empty"):
        homer.ranking(" ", ["w1"])
    with pytest.raises(ConfigError, match="paper"):
        Homer(homer.model, homer.tokenizer, HomerConfig.paper(score="softmax")).ranking("w1", ["w1"])
    with pytest.raises(ScheduleError, match="shorten"):
        _ranked(homer, ["w1"], "w1 " * 120)
