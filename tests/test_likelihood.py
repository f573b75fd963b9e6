"""How likely the question is behind a sentence, against the model's own forward, and what that chooses."""

import random

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.passes import run_steps
from homerlm.prompt import PromptIds
from homerlm.score.likelihood import LONGEST, Asked
from homerlm.score.neighbours import log_share_above, top_tokens
from homerlm.select import likelihood
from homerlm.select.likelihood import Candidates, likely
from homerlm.select.reading import Reading
from tiny import VOCAB, llama
from tiny import prompt as random_prompt

SIZES = {"max_chunk_len": 60, "target_len": 40, "recap_len": 0, "link_len": 0}
P, S = 4, 5


@pytest.fixture(scope="module")
def model():
    return llama(attn_implementation="eager")


def homer_of(model, tokenizer, **changes):
    return Homer(model, tokenizer, HomerConfig(**(SIZES | changes)))


def prompt(context, batch=1, seed=1, suffix=S):
    return PromptIds(*random_prompt(P, context, suffix, batch, seed))


def literal(model, asked, text):
    """The sum of what the model's own forward says of the counted tokens."""
    ids = torch.cat([asked.before, text, asked.ids])
    with torch.no_grad():
        logits = model(ids[None]).logits[0].float().log_softmax(-1)
    places = range(len(ids) - asked.counted, len(ids))
    return sum(float(logits[place - 1, ids[place]]) for place in places)


class TestQuestion:
    def test_it_is_the_suffix_up_to_the_end_of_its_own_tokens(self):
        before, suffix = torch.tensor([9]), torch.arange(20, 32)
        asked = Asked.of(before, suffix, slice(2, 8))
        assert (asked.before.tolist(), asked.ids.tolist(), asked.counted) == ([9], list(range(20, 28)), 6)
        assert len(asked) == 9

    def test_of_a_long_one_the_end_is_asked(self):
        asked = Asked.of(torch.tensor([9]), torch.arange(200), slice(3, 150))
        assert asked.ids.tolist() == list(range(150 - LONGEST, 150))
        assert asked.counted == LONGEST

    @pytest.mark.parametrize("most", [1, 20, 40, 1000])
    def test_each_text_stands_in_one_batch_of_at_most_so_many_tokens(self, most):
        draw = random.Random(most)
        texts = [torch.arange(1, draw.randint(2, 20)) for _ in range(30)]
        asked = Asked(torch.tensor([7]), torch.tensor([3, 4, 5]), 2)
        batches = list(asked.behind(texts, most))
        assert sorted(number for batch in batches for number in batch.numbers) == list(range(30))
        for batch in batches:
            assert batch.input_ids.numel() <= most or len(batch.numbers) == 1
            for number, row, last in zip(batch.numbers, batch.input_ids, batch.last, strict=True):
                assert row[: last + 1].tolist() == [7, *texts[number].tolist(), 3, 4, 5]
        if most == 1000:
            assert len(batches) == 1


@pytest.mark.parametrize("chunk_len", [24, 60])
@pytest.mark.parametrize("counted", [1, 4])
def test_it_is_the_models_own_likelihood(model, words, chunk_len, counted):
    homer = homer_of(model, words, max_chunk_len=chunk_len)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(1, VOCAB, (n,), generator=generator) for n in (1, 7, 3, 12, 7, 2)]
    asked = Asked(torch.tensor([5]), torch.tensor([8, 30, 41, 2]), counted)
    ids = prompt(200)
    with torch.no_grad(), homer.decoder.session():
        reading = Reading(homer.decoder, homer.method.plan(*ids.lengths), ids, homer.method.ranking)
        got = run_steps(reading.likelihoods(texts, asked))
    assert got.tolist() == pytest.approx([literal(model, asked, text) for text in texts], rel=1e-4)


def test_the_others_wait_no_longer_than_for_a_chunk(model, words):
    homer, ids = homer_of(model, words), prompt(200)
    texts = [torch.arange(1, 20)] * 6
    asked = Asked(torch.tensor([5]), torch.tensor([8, 30, 41, 2]), 2)
    with torch.no_grad(), homer.decoder.session():
        plan = homer.method.plan(*ids.lengths)
        pauses = list(Reading(homer.decoder, plan, ids, homer.method.ranking).likelihoods(texts, asked))
    assert len(pauses) >= 6 * 23 * len(model.model.layers) / (plan.chunk_len * len(model.model.layers) / 3) - 2
    assert set(pauses) == {plan.pause}


class TestPlan:
    def test_so_many_tokens_at_most(self, model, words):
        homer = homer_of(model, words)
        asked = {length: homer.plan(P, length, S).asked_len for length in (40, 60, 100, 300, 10_000)}
        assert asked == {40: 0, 60: 22, 100: 37, 300: 112, 10_000: 3 * 51}

    @pytest.mark.parametrize(
        "changes",
        [
            {"likelihood": "never"},
            {"rerank": "never"},
            {"rerank": "later"},
            {"chosen_by": "both"},
            {"unit": "neighbours"},
        ],
        ids=str,
    )
    def test_not_asked(self, model, words, changes):
        changes = {"link_len": 128 * (changes.get("rerank") != "never"), **changes}
        homer = Homer(model, words, HomerConfig(max_chunk_len=60, target_len=40, **changes))
        plan = homer.plan(P, 300, S)
        assert plan.asked_len == 0
        assert "ask" not in {run.kind for run in plan.passes}

    def test_not_asked_without_sentences(self, model):
        assert homer_of(model, None).plan(P, 300, S).asked_len == 0

    def test_it_says_so_and_counts_it(self, model, words):
        plan = homer_of(model, words).plan(P, 2100, S)
        assert "the question is asked behind the best sentences of these, 153 tokens in all" in str(plan)
        passes = [run for run in plan.passes if run.kind == "ask"]
        assert all(run.finish and (run.first_layer, run.last_layer) == (0, 10) for run in passes)
        assert sum(run.tokens * run.rows for run in passes) == 153 // 37 * 37


class TestChoice:
    @pytest.fixture
    def found(self, model, words, monkeypatch):
        """A choice of so many tokens of a document of so many in units of eight, by likelihoods that are given; and
        what was asked behind."""
        seen = []

        def choose(length, given, count, question=S, apart=2):
            homer, ids = homer_of(model, words), prompt(length, suffix=question)
            monkeypatch.setattr(
                type(homer.method.ranking), "units", lambda *_: (torch.arange(length) // 8)[None], raising=True
            )

            def likelihoods(_self, texts, _asked):
                yield from ()
                seen.extend(text.tolist() for text in texts)
                return torch.tensor([given(text) for text in texts])

            monkeypatch.setattr(Reading, "likelihoods", likelihoods)
            reading = Reading(homer.decoder, homer.method.plan(*ids.lengths), ids, homer.method.ranking)
            ranked = torch.arange(length, 0, -1) // 8 * 1.0  # the earlier, the better
            places = torch.arange(length)[None] * apart
            return ids, run_steps(likely(reading, ranked[None], places, count)), seen

        return choose

    def test_the_best_are_asked_as_long_as_they_fit(self, found):
        ids, _, seen = found(400, lambda _: 0.0, 51)
        fitting = int(400 * 3 / 8) // (8 + 1 + S)
        assert seen == [ids.context[0, start : start + 8].tolist() for start in range(0, 8 * fitting, 8)]

    def test_a_long_question_is_asked_behind_fewer(self, found):
        *_, seen = found(400, lambda _: 0.0, 51, question=30)
        assert len(seen) == 3 * (60 - P - 30) // (8 + 1 + 30)

    def test_both_ranks_choose(self, found):
        draw = random.Random(4)
        likelihoods = {}

        def given(text):
            return likelihoods.setdefault(tuple(text.tolist()), draw.uniform(-50, -10))

        _, candidates, seen = found(400, given, 48)
        sizes = torch.full((50,), 8)
        above = torch.zeros(50)
        of = torch.tensor([likelihoods[tuple(text)] for text in seen])
        above[: len(seen)] = log_share_above(of, sizes[: len(seen)])
        both = -(log_share_above(-torch.arange(50.0), sizes) + above)
        best = top_tokens(both.repeat_interleave(8)[None], 48)[0]
        assert candidates.places[0].tolist() == (2 * best).tolist()
        torch.testing.assert_close(candidates.above[0], above.repeat_interleave(8)[best])

    def test_a_sentence_gains_from_the_better_one_beside_it(self, found):
        """Two equal ones: one beside a likely one, one beside what is less likely than most."""

        def given(text):
            return {3: 10.0, 4: 0.0, 8: 0.0, 9: -10.0}.get(numbers.index(text.tolist()), 0.0)

        numbers = [part.tolist() for part in prompt(400).context[0].split(8)]
        above = [found(400, given, 96, apart=apart)[1].above[0, ::8].tolist() for apart in (1, 2)]
        order = [sorted(range(11), key=one.__getitem__) for one in above]
        assert order[0][:3] == [3, 2, 4]
        assert order[1] == [3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10]

    def test_nothing_fits(self, model, words):
        homer = Homer(model, words, HomerConfig(max_chunk_len=40, target_len=20))
        with torch.no_grad(), homer.decoder.session():
            ids = prompt(45)
            reading = Reading(homer.decoder, homer.method.plan(*ids.lengths), ids, homer.method.ranking)
            assert reading.plan.asked_len == 16
            got = run_steps(likely(reading, torch.arange(45.0)[None], torch.arange(45)[None], 31))
        assert got.places.tolist() == [list(range(31))]
        assert got.above.tolist() == [[0.0] * 31]

    def test_what_was_not_asked_comes_last(self, found):
        _, candidates, _ = found(400, lambda _: 0.0, 96)
        assert candidates.places[0].tolist() == list(range(0, 2 * 96, 2))


class TestCut:
    def test_likely_ones_count_more(self, monkeypatch):
        monkeypatch.setattr(likelihood, "CUT_WEIGHT", 0.5)
        above = torch.tensor([0.0, -2.0, -4.0])
        got = Candidates(torch.arange(3), above).weighted(torch.tensor([2.0, 2.0, -2.0]))
        assert got.tolist() == pytest.approx([2.0, 2 * 2.718281828, -2 / 7.389056])

    def test_where_nothing_was_asked_scores_stay(self):
        scores = torch.tensor([2.0, 2.0, -2.0])
        assert Candidates(torch.arange(3)).weighted(scores) is scores

    def test_rows(self):
        both = Candidates(torch.arange(6).view(2, 3), torch.arange(6.0).view(2, 3))
        assert (both.row(1).places.tolist(), both.row(1).above.tolist()) == ([3, 4, 5], [3.0, 4.0, 5.0])


def test_it_keeps_a_sentence_that_the_reranking_would_drop(model, words, monkeypatch):
    monkeypatch.setattr(likelihood, "CUT_WEIGHT", 5.0)
    homer, ids = homer_of(model, words, min_share=0.9, max_chunk_len=100, target_len=90), prompt(600)
    asked, wanted = [], []

    def likelihoods(_self, texts, _asked):
        yield from ()
        asked[:] = [text.tolist() for text in texts]
        return torch.tensor([float(text.tolist() == wanted) for text in texts])

    def kept():
        return homer.compress(ids.prefix, ids.context, ids.suffix).input_ids[0].tolist()

    monkeypatch.setattr(Reading, "likelihoods", likelihoods)
    before = kept()
    dropped = [text for text in asked if not _within(text[:8], before)]
    assert dropped
    for text in dropped:
        wanted[:] = text
        assert _within(text[:8], kept())


def _within(part, whole):
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))


def test_rows_of_a_batch_choose_as_alone(model, words):
    homer, ids = homer_of(model, words), random_prompt(P, 300, S, 3)
    together = homer.compress(*ids)
    for row in range(3):
        alone = homer.compress(*(part[row : row + 1] for part in ids))
        assert together.row(row).token_indices.tolist() == alone.token_indices.tolist()


def test_never_is_the_choice_of_before(model, words):
    """Without it the candidates are the best by the chunks alone."""
    homer, ids = homer_of(model, words, likelihood="never"), prompt(300)
    with torch.no_grad(), homer.decoder.session():
        reading = Reading.on(homer.decoder, homer.method.plan(*ids.lengths), ids, homer.method.ranking)
        candidates = run_steps(homer.method._candidates(reading, torch.arange(300)[None]))
        scores = torch.cat([scored.scores for _, scored in reading.chunks()], 1)
    best = homer.method.ranking.candidates(scores, ids.context, torch.arange(300)[None], 51)
    assert candidates.above is None
    assert candidates.places.tolist() == best.tolist()
