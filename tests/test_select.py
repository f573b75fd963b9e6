"""The default method against a literal one: chunks scored, all tokens ranked, candidates reranked, the best read."""

from itertools import chain
from typing import ClassVar

import pytest
import torch

import families
from homerlm import Homer, HomerConfig
from homerlm.config import MergeConfig
from homerlm.errors import InputError, ScheduleError
from homerlm.model.decoder import Decoder
from homerlm.passes import run_steps
from homerlm.prompt import PromptIds
from homerlm.score.neighbours import pool
from homerlm.score.surprisal import NEIGHBOURS
from homerlm.select.document import Document
from homerlm.select.links import Following, Links
from homerlm.select.method import Select
from homerlm.select.plan import even_spans
from homerlm.select.ranking import Ranking
from homerlm.select.reading import Reading
from homerlm.select.recap import recap
from homerlm.select.words import Words
from homerlm.trace import LevelTrace
from tiny import llama, prompt

SIZES = {"max_chunk_len": 60, "target_len": 40, "pooling": 3, "recap_len": 0}
P, S = 4, 5


@pytest.fixture(scope="module")
def model():
    made = llama(attn_implementation="eager")
    homer_of(made)  # which looks at a model it has not seen: some tests count what runs
    return made


def homer_of(model, **changes):
    return Homer(model, None, HomerConfig(**(SIZES | changes)))


@torch.no_grad()
def literal_scores(model, ids, layers=(5,)):
    """(B, S) maximum of the question's attention over its tokens and all heads, by the model's own weights."""
    weights = model(ids, output_attentions=True).attentions
    return sum(weights[layer][:, :, -S:].amax((1, 2)) for layer in layers)


def literal(model, ids, target, min_share=0.1):
    """Indices in the prompt of what stays of a prompt of one row, without sentences and recap."""
    prefix, document, suffix = ids
    length, room = document.shape[1], 60 - P - S
    kept = list(range(length))
    for times in [min(length // (8 * room), 4)] * (length >= 2 * 8 * room) + [1]:
        scores = []
        for start, stop in even_spans(len(kept), room):
            chunk = torch.cat([prefix, document[:, kept[start:stop]], suffix], dim=1)
            scores.append(literal_scores(model, chunk)[:, P:-S])
        ranked = pool(torch.cat(scores, dim=1), 7)[0]
        best = ranked.argsort(descending=True, stable=True)[: times * room].tolist()
        kept = sorted(kept[i] for i in best)
    again = literal_scores(model, torch.cat([prefix, document[:, kept], suffix], dim=1))[0, P:-S]
    reranked = pool(again[None], 3)[0]
    best = reranked.argsort(descending=True, stable=True)[: target - P - S].tolist()
    chosen = sorted(kept[i] for i in best if reranked[i] >= min_share * reranked.max())
    return [*range(P), *(P + i for i in chosen), *range(P + length, P + length + S)]


@pytest.mark.parametrize("length", [45, 120, 300, 815, 816, 1300, 2100])
def test_equals_a_literal_selection(model, length):
    ids = prompt(context=length)
    context = homer_of(model).compress(*ids)
    kept = literal(model, ids, 40)
    assert context.token_indices[0].tolist() == kept
    whole = torch.cat(ids, dim=1)[:, kept]
    with torch.no_grad():
        expected = model(whole, use_cache=True)
    torch.testing.assert_close(context.logits, expected.logits[:, -1], rtol=1e-4, atol=1e-5)
    for layer, keys in zip(expected.past_key_values.layers, context.keys, strict=True):
        torch.testing.assert_close(keys, layer.keys, rtol=1e-4, atol=1e-5)
    assert context.position_ids[0].tolist() == list(range(len(kept)))


def what_runs(model, homer, ids):
    """(layer, tokens) of each layer's calls while a prompt is compressed, whether they end after the MLP."""
    calls, hooks = [], []
    for i, layer in enumerate(model.model.layers):
        hooks += [
            layer.self_attn.q_proj.register_forward_pre_hook(
                lambda _m, args, i=i: calls.append([i, args[0].shape[0] * args[0].shape[1], False])
            ),
            layer.mlp.register_forward_hook(lambda *_: calls[-1].__setitem__(2, True)),
        ]
    homer.compress(*ids)
    for hook in hooks:
        hook.remove()
    return [tuple(call) for call in calls]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk_batch": 3},
        {"scoring_layers": "upper_half"},
        {"rerank": "never"},
        {"rerank": "later"},
        {"chosen_by": "surprisal"},
        {"chosen_by": "both", "rerank": "later"},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [20, 45, 301, 901])
def test_the_plans_passes_are_what_runs(model, changes, length):
    homer = homer_of(model, min_share=0.0, **changes) if "never" not in changes.values() else homer_of(model, **changes)
    ids = prompt(context=length)
    ran = what_runs(model, homer, ids)
    planned = []
    for p in homer.plan(P, length, S).passes:
        layers = range(p.first_layer, p.last_layer)
        planned += [(i, p.tokens * p.rows, p.finish or i < p.last_layer - 1) for i in layers]
    assert ran == planned


def test_the_best_of_a_long_document_are_read_again(model):
    lengths = (815, 816, 1300, 2100, 10_000)
    assert [homer_of(model).plan(P, length, S).again_len for length in lengths] == [0, 102, 153, 204, 204]
    plan = homer_of(model).plan(P, 2100, S)
    assert "the best 204 tokens of these are read again, in 4 chunks" in str(plan)
    tokens = {kind: [run.tokens - P - S for run in plan.passes if run.kind == kind] for kind in ("chunk", "again")}
    assert (sum(tokens["chunk"]), tokens["again"]) == (2100, [51] * 4)
    for changes in ({"rerank": "never"}, {"rerank": "later"}, {"chosen_by": "surprisal"}, {"chosen_by": "both"}):
        assert homer_of(model, **changes).plan(P, 2100, S).again_len == 0


def test_what_is_far_below_the_best_goes_even_where_there_is_room(model):
    ids = prompt(context=300)
    lengths = [len(homer_of(model, min_share=share).compress(*ids)) for share in (0.0, 0.5, 0.9, 1.0)]
    assert lengths[0] == 40
    assert lengths == sorted(lengths, reverse=True)
    assert P + S < lengths[-1] < lengths[0]


def test_of_scores_below_zero_the_best_stay():
    scores = torch.tensor([-5.0, -1, -2, -9])
    places = torch.arange(4)
    for share, expected in ((1.0, [1]), (0.9, [1]), (0.0, [1, 2])):
        ranking = Ranking(HomerConfig(pooling=1, min_share=share), None)
        assert ranking.kept(ranking.reranked(scores, places, places), 2).tolist() == expected


def test_rows_of_a_batch_keep_what_each_of_them_needs(model):
    homer, ids = homer_of(model, min_share=0.6, recap_len=6), prompt(context=300, batch=3)
    together = homer.compress(*ids)
    assert together.padding is not None
    new = homer.generate(together, max_new_tokens=5, do_sample=False, eos_token_id=None)
    scores = homer.score(together, ids[2])
    for row in range(3):
        alone = homer.compress(*(part[row : row + 1] for part in ids))
        assert together.row(row).token_indices.tolist() == alone.token_indices.tolist()
        expected = homer.generate(alone, max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert new[row].tolist() == expected[0].tolist()
        got = homer.score(alone, ids[2][row : row + 1])
        torch.testing.assert_close(scores[row : row + 1], got, rtol=1e-4, atol=1e-4)
    assert len({together.row(row).token_indices.shape[1] for row in range(3)}) > 1


def test_a_padded_batch_is_saved_and_asked_again(model, tmp_path):
    from homerlm import CompactContext

    homer, ids = homer_of(model, min_share=0.6, recap_len=6), prompt(context=300, batch=3)
    context = homer.compress(*ids)
    assert context.padding is not None
    context.save(tmp_path / "rows")
    loaded = CompactContext.load(tmp_path / "rows", model)
    assert torch.equal(loaded.padding, context.padding)
    other = prompt(seed=8, suffix=6, batch=3)[2]
    for again in (homer.focus, homer.exchange_suffix):
        rows = again(loaded, other)
        for row in range(3):
            alone = again(context.row(row), other[row : row + 1])
            torch.testing.assert_close(rows.row(row).logits, alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [0, 20, 31])
def test_what_fits_the_target_is_read_as_it_is(model, length):
    ids = prompt(context=length)
    context = homer_of(model).compress(*ids)
    assert context.token_indices[0].tolist() == list(range(length + P + S))
    with torch.no_grad():
        plain = model(torch.cat(ids, dim=1)).logits[:, -1]
    torch.testing.assert_close(context.logits, plain, atol=1e-4, rtol=1e-4)


def test_both_halves_of_a_document_compete(model):
    """All that matters is in one half: a tree that keeps as much of each half would keep half of it."""
    ranking = Ranking(HomerConfig(pooling=1, unit="neighbours", sentence_weight=0.0, rerank="never"), None)
    scores = torch.zeros(1, 100)
    scores[0, 60:90] = 1.0
    assert ranking.candidates(scores, torch.zeros(1, 100, dtype=torch.long), torch.arange(100)[None], 30)[
        0
    ].tolist() == list(range(60, 90))


def test_neighbours_reach_over_the_ends_of_chunks():
    ranking = Ranking(HomerConfig(pooling=3, unit="neighbours", sentence_weight=0.0, rerank="never"), None)
    scores = torch.zeros(1, 40)
    scores[0, 20] = 1.0  # the first token of a second chunk
    assert ranking.candidates(scores, torch.zeros(1, 40, dtype=torch.long), torch.arange(40)[None], 3)[0].tolist() == [
        19,
        20,
        21,
    ]


@pytest.mark.parametrize("context", [40, 300])
def test_others_get_a_turn_before_it_is_more_work_than_a_chunk(model, monkeypatch, context):
    """But for the question of an index, which runs behind a stand-in that is longer than these chunks."""
    homer, ids, work, turns = homer_of(model), prompt(context=context), [], []
    step = Decoder._step

    def counted(self, index, hidden, *more):
        work.append(hidden.shape[1])
        return step(self, index, hidden, *more)

    def next_turn(_event=None):
        turns.append(sum(work))
        work.clear()

    monkeypatch.setattr(Decoder, "_step", counted)
    plan = homer.plan(*(part.shape[1] for part in ids))
    whole = homer.compress(*ids, observer=next_turn)
    next_turn()
    assert max(turns) <= plan.chunk_len * (plan.reading.last + 1)
    assert sum(turns) >= len(whole) * len(homer.decoder.layers)
    index = homer.index(*ids[:2])
    work.clear()
    turns.clear()
    homer.search(index, ids[2], observer=next_turn)
    next_turn()
    assert max(turns[context > 60 :]) <= plan.chunk_len * (plan.reading.last + 1)


def test_events_tell_what_was_read_and_what_is_left(model):
    events, trace = [], LevelTrace()

    def observe(event):
        events.append(event)
        trace(event)

    context = homer_of(model).compress(*prompt(context=300), observer=observe)
    events = events[:6] + [event for event in events[6:] if event.level]  # without pauses
    assert [event.read for event in events] == [50, 100, 150, 200, 250, 300, 300, 300]
    assert {event.total for event in events} == {300}
    assert [event.level for event in events] == [0] * 6 + [1, 2]
    assert events[-2].kept.shape == (1, 60)
    assert [i for i, level in enumerate(trace.levels) if level == 2] == context.token_indices[0].tolist()


class TestLengths:
    def test_are_absolute_and_at_most_a_share_of_the_limit(self):
        for limit, expected in ((512, (128, 64)), (2048, (512, 256)), (8192, (1024, 1024)), (131_072, (1024, 1024))):
            homer = Homer(llama(max_position_embeddings=limit))
            plan = homer.plan(P, 200_000, S)
            assert (plan.chunk_len, plan.target_len) == expected

    def test_follow_long_affixes_up_to_the_limit(self):
        homer = Homer(llama(max_position_embeddings=8192))
        plan = homer.plan(20, 50_000, 2500)
        assert (plan.chunk_len, plan.target_len) == (2520 + 1024, 2520 + 512)
        with pytest.raises(ScheduleError, match="within the model's limit of 8192 tokens: shorten"):
            homer.plan(50, 50_000, 8200)

    @pytest.mark.parametrize(
        ("sizes", "named"),
        [
            ({"max_chunk_len": 60, "target_len": 9}, r"target_len is 9.*--target-len"),
            ({"max_chunk_len": 60, "target_len": 5}, r"target_len is 5.*--target-len"),
            ({"max_chunk_len": 8, "target_len": 40}, r"max_chunk_len is 8.*--max-chunk-len"),
        ],
    )
    def test_given_ones_that_leave_no_room_are_refused_by_name(self, model, sizes, named):
        with pytest.raises(ScheduleError, match=named):
            Homer(model, None, HomerConfig(**sizes)).plan(P, 300, S)

    def test_a_later_question_longer_than_the_target_is_refused(self, model):
        homer = homer_of(model, rerank="later")
        context = homer.compress(*prompt(context=300))
        for length in (36, 80):
            with pytest.raises(ScheduleError, match="target_len is 40"):
                homer.focus(context, prompt(suffix=length)[2])
        assert len(homer.focus(context, prompt(suffix=35)[2])) == 40


class TestRecap:
    def test_where_several_lead_each_comes_once_in_the_documents_order(self):
        #          0    1    2    3    4    5    6
        scores = [0.7, 0.1, 0.2, 0.9, 0.8, 0.1, 0.2]
        assert recap(scores, [0, 0, 1, 2, 2, 2, 3], 50) == [0, 1, 3, 4, 5]

    def test_units_beside_them_come_too_the_best_first_while_they_fit(self):
        scores, units = [0.5, 0.7, 0.9, 0.6, 0.4], [0, 1, 2, 3, 4]
        for room, found in ((1, [2]), (2, [1, 2]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (50, [0, 1, 2, 3])):
            assert recap(scores, units, room) == found

    def test_one_that_leads_alone_comes_without_those_beside_it(self):
        assert recap([0.9, 0.6, 0.5], [0, 1, 2], 2) == [0, 0]

    @pytest.mark.parametrize(("room", "times"), [(3, 1), (4, 2), (7, 3), (50, 3)])
    def test_one_that_leads_alone_comes_over_and_over_while_it_fits(self, room, times):
        assert recap([0.9, 0.1, 0.2], [0, 0, 1], room) == [0, 1] * min(times, room // 2)

    @pytest.mark.parametrize("room", [3, 4])
    def test_a_unit_that_does_not_fit_whole_is_left_out(self, room):
        assert recap([0.9, 0.5, 0.5, 0.8, 0.7], [0, 0, 0, 1, 1], room) == [0, 1, 2]

    def test_of_a_unit_longer_than_the_room_its_best_stretch_comes(self):
        assert recap([0.9, 0.1, 0.1, 0.8, 0.7], [0, 0, 0, 0, 0], 2) == [3, 4]

    def test_of_logits_below_0_the_best_unit_leads(self):
        assert recap([-3.0, -1.0, -1.2], [0, 1, 2], 2) == [1, 2]
        assert recap([-3.0, -1.0, -1.4], [0, 1, 2], 2) == [1, 1]

    def test_nothing_comes_of_nothing_or_where_there_is_no_room(self):
        assert recap([0.1, 0.9], [0, 1], 0) == recap([], [], 0) == recap([], [], 50) == []

    def test_runs_of_neighbours_are_the_units_without_sentences(self):
        ranking = Ranking(HomerConfig(unit="neighbours", sentence_weight=0), None)
        places = torch.tensor([3, 4, 9, 20, 21])
        scores = torch.tensor([0.8, 0.1, 0.2, 0.3, 0.9])
        assert ranking.recap(scores, torch.zeros_like(places), places, 4) == [0, 1, 3, 4]

    @pytest.mark.parametrize(("length", "document"), [(10, 25), (1000, 20), (0, 35)])
    def test_the_cache_stays_within_its_target(self, model, length, document):
        context = homer_of(model, min_share=0.0, recap_len=length).compress(*prompt(context=300))
        inside = context.token_indices[0, P:-S].tolist()
        assert len(context) <= 40
        assert set(inside[document:]) <= set(inside[:document])


class TestQuestionsThatComeLater:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("changes", [{}, {"min_share": 0.0}, {"scoring_layers": "all"}, {"scoring_queries": 2}])
    def test_asked_at_once_or_later_a_question_gets_the_same(self, model, batch, changes):
        """The candidates' keys hold what a chunk of candidates and question would compute: causal attention."""
        ids = prompt(context=300, batch=batch)
        now = homer_of(model, **changes).compress(*ids)
        homer = homer_of(model, **changes, rerank="later")
        broad = homer.compress(*ids)
        later = homer.focus(broad, ids[2])
        assert len(broad) == 60 > len(later)
        assert torch.equal(later.token_indices, now.token_indices)
        assert torch.equal(later.input_ids, now.input_ids)
        torch.testing.assert_close(later.logits, now.logits, rtol=1e-4, atol=1e-5)
        assert (later.next_position, later.prompt_len) == (now.next_position, now.prompt_len)

    def test_each_question_takes_its_own_and_leaves_the_rest(self, model):
        homer = homer_of(model, rerank="later", min_share=0.5)
        prefix, document, suffix = prompt(context=300)
        broad = homer.compress(prefix, document, suffix)
        before = [t.clone() for t in (*broad.keys, broad.token_indices)]
        questions = [prompt(seed=seed, suffix=7)[2] for seed in range(4)]
        found = [homer.focus(broad, question) for question in questions]
        for question, context in zip(questions, found, strict=True):
            assert torch.equal(context.input_ids[:, -7:], question)
            assert context.token_indices[0, -7:].tolist() == list(range(304, 311))
            kept = context.token_indices[0, :-7]
            assert set(kept.tolist()) <= set(broad.token_indices[0, :-5].tolist())
            assert torch.equal(context.input_ids[0, :-7], torch.cat([prefix, document], 1)[0, kept])
        assert len({tuple(context.token_indices[0].tolist()) for context in found}) > 1
        assert all(torch.equal(a, b) for a, b in zip(before, (*broad.keys, broad.token_indices), strict=True))

    def test_a_compressor_for_later_keeps_half_the_limit_up_to_4096_tokens_unless_told(self, model):
        long = llama(max_position_embeddings=100_000)
        for homer, expected in ((Homer(model), 256), (Homer(long), 4096)):
            config = homer.for_later().config
            assert (config.max_chunk_len, config.target_len, config.rerank) == (expected, expected, "later")
        told = homer_of(model).for_later().config
        assert (told.max_chunk_len, told.target_len, told.chosen_by) == (60, 40, "both")
        assert homer_of(model).for_later(chosen_by="attention").config.chosen_by == "attention"
        paper = Homer(model, None, MergeConfig(score="logit"))
        assert paper.for_later() is paper

    @pytest.mark.parametrize("rerank", ["never", None])
    def test_without_a_reranking_the_suffix_is_exchanged(self, model, rerank):
        config = HomerConfig(**SIZES, rerank=rerank) if rerank else MergeConfig(max_chunk_len=60, score="logit")
        homer = Homer(model, None, config)
        broad, other = homer.compress(*prompt(context=300)), prompt(seed=3, suffix=7)[2]
        got, expected = homer.focus(broad, other), homer.exchange_suffix(broad, other)
        assert torch.equal(got.token_indices, expected.token_indices)
        assert torch.equal(got.logits, expected.logits)

    def test_a_context_without_a_document_is_only_asked(self, model):
        homer = homer_of(model, rerank="later")
        broad, other = homer.compress(*prompt(context=0)), prompt(seed=3, suffix=7)[2]
        assert homer.focus(broad, other).token_indices[0].tolist() == list(range(P + 7))

    def test_another_number_of_rows_is_refused(self, model):
        homer = homer_of(model, rerank="later")
        with pytest.raises(InputError, match="suffix_ids is"):
            homer.focus(homer.compress(*prompt(context=300)), prompt(batch=2)[2])

    @pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
    def test_every_family_sees_its_cache_as_it_sees_a_prompt(self, family):
        """Sliding windows, query norms, soft caps: the question must meet the same keys through the model's masks."""
        if not family.available():
            pytest.skip(f"this transformers has no {family.name} that runs")
        model, ids = family.build(), prompt(context=150)
        homer = homer_of(model)
        now = homer.compress(*ids)
        homer = homer_of(model, rerank="later")
        later = homer.focus(homer.compress(*ids), ids[2])
        assert torch.equal(later.token_indices, now.token_indices)
        torch.testing.assert_close(later.logits, now.logits, rtol=1e-3, atol=1e-4)


class TestSurprisal:
    SIZES: ClassVar = {"max_chunk_len": 300, "target_len": 40, "pooling": 3}
    ALONE: ClassVar = {"max_chunk_len": 300, "target_len": 40, "chosen_by": "surprisal", "rerank": "never"}

    @pytest.fixture(scope="class")
    def model(self):
        return llama(max_position_embeddings=1024)

    @staticmethod
    def expected(model, ids, span, lead):
        """(B, C) by the model's own forward over the prefix, what came right before the chunk, and the chunk."""
        prefix, context, _ = ids
        start = max(span[0] - lead, 0)
        text = torch.cat([prefix, context[:, start : span[1]]], dim=1)
        with torch.no_grad():
            log_probs = model(text).logits[:, :-1].log_softmax(-1)
        nats = -log_probs.gather(2, text[:, 1:, None])[..., 0][:, prefix.shape[1] + span[0] - start - 1 :]
        half, n = NEIGHBOURS // 2, nats.shape[1]
        return torch.stack([nats[:, max(i - half, 0) : i + half + 1].mean(1) for i in range(n)], dim=1)

    @staticmethod
    @torch.no_grad()
    def scores(homer, ids):
        """(spans of a group, scores (B, C)) of each chunk."""
        assert isinstance(homer.method, Select)
        plan = homer.plan(*(part.shape[1] for part in ids))
        with homer.decoder.session():
            reading = Reading(homer.decoder, plan, PromptIds(*ids), homer.method.ranking)
            return plan, [(spans, scored.scores) for spans, scored in reading.chunks()]

    @pytest.mark.parametrize("batch", [1, 2])
    def test_each_chunk_is_scored_by_the_models_own_surprise(self, model, batch):
        ids = prompt(context=900, batch=batch)
        plan, chunks = self.scores(Homer(model, None, HomerConfig(**self.ALONE)), ids)
        assert len(chunks) == 6
        for (span,), scores in chunks:
            torch.testing.assert_close(scores, self.expected(model, ids, span, plan.lead), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(("rerank", "neighbours"), [("later", 7), ("never", 3)])
    def test_both_count_a_token_by_the_mean_of_its_ranks(self, model, rerank, neighbours):
        ids = prompt(context=900)
        homer = Homer(model, None, HomerConfig(**self.SIZES, chosen_by="both", rerank=rerank))
        plan, chunks = self.scores(homer, ids)
        ((start, stop),), scores = chunks[2]
        first = start - plan.lead
        chunk = torch.cat([ids[0], ids[1][:, first:stop], ids[2]], dim=1)
        other = llama(max_position_embeddings=1024, attn_implementation="eager")
        asked = pool(literal_scores(other, chunk)[:, P + plan.lead : -S], neighbours)
        surprise = self.expected(model, ids, (start, stop), plan.lead)
        ranks = [t.argsort(stable=True).argsort() / (stop - start) for t in (surprise, asked)]
        assert (ranks[0] - ranks[1]).abs().mean() > 0.2
        torch.testing.assert_close(scores, (ranks[0] + ranks[1]) / 2, atol=0.02, rtol=0)

    def test_the_most_surprising_tokens_are_kept_whatever_the_suffix_says(self, model):
        ids = prompt(context=900)
        homer = Homer(model, None, HomerConfig(**self.ALONE))
        kept = homer.compress(*ids).token_indices[0, P:-S] - P
        plan, chunks = self.scores(homer, ids)
        scores = torch.cat([self.expected(model, ids, span, plan.lead)[0] for (span,), _ in chunks])
        assert kept.tolist() == scores.topk(40 - P - S).indices.sort().values.tolist()
        other = homer.compress(*ids[:2], prompt(seed=9)[2])
        assert torch.equal(other.token_indices, homer.compress(*ids).token_indices)

    def test_a_later_question_reranks_what_surprisal_chose(self, model):
        ids = prompt(context=900)
        now = Homer(model, None, HomerConfig(**self.SIZES, chosen_by="surprisal")).compress(*ids)
        homer = Homer(model, None, HomerConfig(**self.SIZES, chosen_by="surprisal", rerank="later"))
        broad = homer.compress(*ids)
        assert len(broad) == 300
        assert torch.equal(homer.focus(broad, ids[2]).token_indices, now.token_indices)

    @pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
    def test_every_familys_logits_are_its_own(self, family):
        """Capped and scaled heads too: their surprisal is that of the model's own forward."""
        if not family.available():
            pytest.skip(f"this transformers has no {family.name} that runs")
        model, ids = family.build(), prompt(context=150)
        plan, chunks = self.scores(Homer(model, None, HomerConfig(**(self.ALONE | {"max_chunk_len": 100}))), ids)
        (span,), scores = chunks[-1]
        torch.testing.assert_close(scores, self.expected(model, ids, span, plan.lead), atol=1e-3, rtol=1e-3)


def numbered(ids, units):
    """A document by the number of each token's unit."""
    return Document(ids, torch.tensor([at for at in range(len(units)) if not at or units[at] != units[at - 1]]))


def written(units):
    """A document of units of ids."""
    return numbered(
        torch.tensor([token for unit in units for token in unit]),
        torch.tensor([number for number, unit in enumerate(units) for _ in unit]),
    )


class TestWords:
    def test_are_found_however_they_are_written(self, words):
        found = Words(words).of(words("w7 w7, (W8) w9.", return_tensors="pt").input_ids[0])
        assert "w9" in Words(words).of(torch.tensor(words("w9 w10").input_ids))
        assert {"w7"} <= found.keys()

    def test_keep_their_capitals_and_their_neighbours_where_no_spaces_are(self):
        class Spelled:
            def decode(self, _ids):
                return "The USA's Äpfel, x_1: 張三拿傘"

        found = Words(Spelled()).of(torch.tensor([]))
        assert found == {word.lower(): word for word in ("The", "USA", "s", "Äpfel", "x_1", "張三", "三拿", "拿傘")}

    def test_runs_are_those_of_every_place_in_a_text(self):
        """As byte-level tokenizers write them: "Tom" and " Tom" are two ids, a line's end is one."""
        ids = {"Tom": [1, 2], " Tom": [3], "\nTom": [9, 1, 2], "tom": [4], " tom": [5], "\ntom": [9, 4], "\n": [9]}

        class Cut:
            unk_token_id = 0

            def __call__(self, texts, add_special_tokens):
                assert not add_special_tokens
                return type("Ids", (), {"input_ids": [ids.get(text, [0]) for text in texts]})

        assert Words(Cut()).runs(["Tom", "Ann"]) == [{(1, 2), (3,), (4,), (5,)}, set()]


class TestLinks:
    #          0: asked        1: noise  2: leads on   3: end        4: noise
    TEXT: ClassVar = [(11, 12, 50, 51), (13, 14, 15), (50, 51, 60, 61), (60, 61, 19), (13, 14, 18)]

    def links(self, words, units=TEXT, known=()):
        return Links(written(units), Words(words), torch.tensor(known, dtype=torch.long))

    def test_share_a_rare_word(self, words):
        assert run_steps(self.links(words).of([0])) == [2]
        assert run_steps(self.links(words).of([0, 2])) == [3]

    def test_what_the_question_knows_leads_nowhere(self, words):
        assert run_steps(self.links(words, known=[7, 50, 51]).of([0])) == []

    def test_common_words_are_no_links(self, words):
        assert run_steps(self.links(words, [(11, 12)] * 21).of([0])) == []
        assert run_steps(self.links(words, [(11, 12)] * 20 + [(13, 14)] * 2).of([0])) == list(range(1, 20))

    def test_those_that_share_more_and_rarer_words_come_first(self, words):
        units = [(20, 21, 22), (20, 30), (20, 31), (21, 32), (21, 22, 33), (40, 41)]
        assert run_steps(self.links(words, units).of([0])) == [4, 1, 2, 3]

    @pytest.mark.parametrize("runs", [[(1, 2), (3, 3)], [(2,), (1, 1, 3), (3, 1, 2, 0)]])
    def test_a_long_document_is_searched_block_by_block(self, runs, monkeypatch):
        ids = torch.randint(0, 4, (90,), generator=torch.Generator().manual_seed(0))
        units = torch.arange(90) // 7
        document = numbered(ids, units)
        expected = {
            (number, int(units[at]))
            for number, run in enumerate(runs)
            for at in range(91 - len(run))
            if tuple(ids[at : at + len(run)].tolist()) == run and units[at] == units[at + len(run) - 1]
        }
        assert len(expected) > 5
        assert set(chain.from_iterable(document.units_with(runs, 90))) == expected
        monkeypatch.setattr("homerlm.select.document.BLOCK", 8)
        assert set(chain.from_iterable(document.units_with(runs, 90))) == expected

    def test_what_is_seen_too_often_is_searched_for_no_further(self, monkeypatch):
        monkeypatch.setattr("homerlm.select.document.BLOCK", 4)
        document = written([(1, 5), (1, 6), (1, 7), (1, 8), (1, 9), (1, 5)])
        assert list(chain.from_iterable(document.units_with([(1,), (5,)], 2))) == [
            (0, 0),
            (0, 1),
            (1, 0),
            (0, 2),
            (0, 3),
            (1, 5),
        ]
        assert list(chain.from_iterable(document.units_with([], 2))) == []


class TestFollowing:
    """Which of the linked units the question asks for is given here: those with higher ids."""

    TEXT: ClassVar = [(20, 30), (30, 40, 70), (30, 50), (40, 60), (50, 61), (60, 80), (81, 82)]

    @pytest.fixture
    def follow(self, words, monkeypatch):
        asked = []

        def scoring(reading, context_ids, _scoring):
            asked.append((reading.prompt.suffix[0].tolist(), context_ids[0].tolist()))
            assert reading.plan.suffix_len == reading.prompt.suffix.shape[1]
            yield reading.plan.pause
            return context_ids.float()

        monkeypatch.setattr(Reading, "scoring", scoring)
        config = HomerConfig(**SIZES)
        method = Homer(llama(), words, config).method

        def of(units, sources, kept, room, best=0.0):
            asked.clear()
            document = written(units)
            prompt = PromptIds(torch.ones(1, P, dtype=torch.long), document.ids[None], torch.full((1, S), 90))
            reading = Reading(method.decoder, method.plan(*prompt.lengths), prompt, method.ranking)
            links = Links(document, Words(words), prompt.suffix[0])
            return run_steps(Following(reading, document, links, best).follow(sources, kept, room)), asked

        return of

    def test_leads_from_sentence_to_sentence_and_asks_with_what_it_has_reached(self, follow):
        found, asked = follow(self.TEXT, [0], [0], 20)
        assert found == [1, 2, 3, 4, 5]
        question = [90] * S
        assert asked[0] == ([20, 30, *question], [30, 40, 70, 30, 50])
        assert asked[1] == ([20, 30, 30, 40, 70, 30, 50, *question], [40, 60, 50, 61])

    def test_what_the_question_does_not_ask_for_is_left_out(self, follow):
        units = [(20, 31), (31, 6), (40, 41), (31, 91, 92)]
        assert follow(units, [0], [0], 20, best=100.0)[0] == [3]  # 26 and 124, of which 0.3 is between

    def test_is_scored_beside_what_is_kept_and_reads_no_more_than_a_reranking(self, follow):
        assert follow(self.TEXT, [0], [0, 6], 20)[1][0][1] == [30, 40, 70, 30, 50, 81, 82]
        many = [(20, 30), *((30, 31 + n) for n in range(15)), *((45 + n, 60 + n) for n in range(15))]
        read = [len(ids) for _, ids in follow(many, [0], [0], 100)[1]]
        assert read[0] == 30
        assert sum(read) <= 60 - P - S

    def test_what_is_kept_leads_on_but_is_not_counted_again(self, follow):
        assert follow(self.TEXT, [0], [0, 1, 2], 4)[0] == [3, 4]

    def test_what_does_not_fit_is_left_out(self, follow):
        assert follow(self.TEXT, [0], [0], 2)[0] == [2]

    def test_rounds_end(self, follow):
        chain_of_units = [(20 + n, 21 + n) for n in range(20)]
        assert follow(chain_of_units, [0], [0], 100)[0] == [1, 2, 3, 4]

    def test_a_sentence_without_a_word_leads_nowhere(self, follow):
        assert follow([(0,), (0, 1)], [0], [0], 20)[0] == []

    def test_no_links_no_question(self, follow):
        found, asked = follow([(20, 21), (22, 23)], [0], [0], 20)
        assert (found, asked) == ([], [])

    def test_the_cache_stays_within_its_target_and_in_order(self, words):
        document = torch.tensor([[token for unit in self.TEXT * 12 for token in (*unit, 11)]])
        ids = (prompt()[0], document, prompt()[2])
        homer = Homer(llama(), words, HomerConfig(**(SIZES | {"link_len": 8, "min_share": 1.0})))
        inside = homer.compress(*ids).token_indices[0, P:-S].tolist()
        assert inside == sorted(set(inside))
        assert len(inside) + P + S <= 40
