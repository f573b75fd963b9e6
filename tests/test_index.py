"""The index: every token of a document, found again by the keys it had when it was read, without the question."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.index.asking import Search, Units
from homerlm.index.question import Question
from homerlm.score.heads import Head
from homerlm.score.neighbours import top_tokens, unit_significance
from homerlm.score.profile import Profile
from homerlm.select.plan import even_spans
from tiny import VOCAB, llama

SIZES = {"max_chunk_len": 60, "target_len": 40, "pooling": 3, "recap_len": 0}
P, S, N = 4, 5, 3
HEADS = (Head(2, 1), Head(2, 5, 2.0), Head(4, 0))


def ids_of(seed, *lengths):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, VOCAB, (1, n), generator=generator) for n in lengths)


@pytest.fixture(scope="module")
def model():
    model = llama(attn_implementation="eager")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 60  # heads that tell tokens apart
    return model


@pytest.fixture(scope="module")
def profile(model):
    from homerlm.model.identity import ModelIdentity

    return Profile(HEADS[:1], HEADS[1:], HEADS, 0.1, ModelIdentity.of(model))


def homer_of(model, **changes):
    return Homer(model, None, HomerConfig(**(SIZES | changes)))


@torch.no_grad()
def literal_scores(model, index, prefix, document, suffix, neutral, heads):
    """(T,) from the model's own projections: a question behind the stand-in, over each chunk's keys."""
    layers = model.model.layers
    chunk_len, behind = index.frame.chunk_len, torch.tensor([index.frame.stand_in])
    group = 2

    def states(ids, positions):
        """{layer: (queries, keys)} with RoPE, from the hidden states before each layer."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        output = model.model(ids, position_ids=positions, output_hidden_states=True)
        found = {}
        for layer in {head.layer for head in heads}:
            block = layers[layer]
            normed = block.input_layernorm(output.hidden_states[layer])
            shape = (*normed.shape[:2], -1, 12)
            q, k = (
                proj(normed).view(shape).transpose(1, 2) for proj in (block.self_attn.q_proj, block.self_attn.k_proj)
            )
            cos, sin = model.model.rotary_emb(normed, positions)
            found[layer] = apply_rotary_pos_emb(q, k, cos, sin)
        return found

    n = behind.shape[1]
    at = P + max(chunk_len, n)

    def asked(ending):
        ids = torch.cat([prefix, behind, ending], dim=1)
        places = [*range(P), *range(at - n, at), *range(at, at + ending.shape[1])]
        return states(ids, torch.tensor([places]))

    question, nothing = asked(suffix), None if neutral is None else asked(neutral)
    total = []
    for start, stop in even_spans(document.shape[1], chunk_len):
        chunk = torch.cat([prefix, document[:, start:stop]], dim=1)
        seen = states(chunk, torch.arange(chunk.shape[1])[None])
        scores = torch.zeros(stop - start)
        for head in heads:
            shared = head.index // group

            def peak(ending, count, head=head, shared=shared, seen=seen, width=stop - start):
                queries, own = ending[head.layer][0][0, head.index, -count:], ending[head.layer][1][0, shared, -count:]
                keys = torch.cat([seen[head.layer][1][0, shared], own])
                logits = queries @ keys.T / 12**0.5
                causal = torch.ones(count, len(keys), dtype=torch.bool).tril(len(keys) - count)
                weights = logits.masked_fill(~causal, float("-inf")).softmax(-1)
                return weights.amax(0)[P : P + width]

            score = peak(question, suffix.shape[1])
            if nothing is not None:
                contrast = score - 1.5 * peak(nothing, neutral.shape[1])
                score = torch.maximum(contrast, 0.01 * score)
            scores += head.weight * score
        total.append(scores)
    return torch.cat(total)


def search_of(homer, index, suffix, neutral=None):
    prefix, behind = (torch.tensor([part]) for part in (index.frame.prefix, index.frame.stand_in))
    question = Question(prefix, behind, suffix, neutral, suffix.shape[1], index.frame.chunk_len)
    with homer.decoder.session(), torch.no_grad():
        return Search(homer.method, index, question.ask(homer.decoder, index.frame.layout.scoring.layers))


@pytest.mark.parametrize("length", [20, 49, 301])
@pytest.mark.parametrize("contrast", [True, False])
def test_scores_are_those_of_a_literal_question_over_literal_keys(model, profile, length, contrast):
    prefix, document, suffix, neutral = ids_of(1, P, length, S, N)
    homer = homer_of(model, profile=profile)
    index = homer.index(prefix, document, neutral_ids=neutral)
    search = search_of(homer, index, suffix, neutral if contrast else None)
    with torch.no_grad():
        got = torch.cat([search.scores(*block) for block in index.blocks])
    expected = literal_scores(model, index, prefix, document, suffix, neutral if contrast else None, HEADS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert got.std() > 1e-3


class TestAsked:
    """The whole way from an index to what is read, against the same from the parts."""

    def literal(self, model, homer, index, prefix, document, suffix, neutral):
        """Indices in the prompt of what stays: candidates by literal scores, then as asked at once of them alone."""
        scores = literal_scores(model, index, prefix, document, suffix, neutral, HEADS)
        places = torch.arange(document.shape[1])[None]
        ranked = homer.method.ranking._significance(scores[None], document, places, 7)
        kept = top_tokens(ranked, 60 - P - S)[0]
        return kept, homer.compress(prefix, document[:, kept], suffix, neutral_ids=neutral)

    @pytest.mark.parametrize("length", [120, 301])
    def test_asked_later_equals_a_literal_question_and_a_reranking_of_its_candidates(self, model, profile, length):
        prefix, document, suffix, neutral = ids_of(1, P, length, S, N)
        homer = homer_of(model, profile=profile)
        index = homer.index(prefix, document, neutral_ids=neutral)
        kept, expected = self.literal(model, homer, index, prefix, document, suffix, neutral)
        found = homer.search(index, suffix, neutral)
        inside = found.context.token_indices[0, P:-S] - P
        assert torch.equal(found.context.input_ids, expected.input_ids)
        assert torch.equal(inside, kept[expected.token_indices[0, P:-S] - P])
        torch.testing.assert_close(found.context.logits, expected.logits)
        assert found.context.prompt_len == P + length + S
        assert found.context.token_indices[0, -S:].tolist() == list(range(P + length, P + length + S))
        assert found.tokens_read == S + len(kept)
        assert torch.equal(homer.focus(index, suffix, neutral).input_ids, expected.input_ids)

    def test_what_fits_is_read_as_it_is(self, model, profile):
        prefix, document, suffix = ids_of(1, P, 20, S)
        homer = homer_of(model, profile=profile)
        context = homer.focus(homer.index(prefix, document), suffix)
        assert torch.equal(context.logits, homer.compress(prefix, document, suffix).logits)

    @pytest.mark.parametrize(
        "changes", [{"rerank": "never"}, {"rerank": "later"}, {"scoring_queries": 2}, {"chunk_batch": 3}]
    )
    def test_other_settings(self, model, profile, changes):
        prefix, document, suffix = ids_of(1, P, 301, S)
        homer = homer_of(model, profile=profile, **changes)
        context = homer.focus(homer.index(prefix, document), suffix)
        assert P + S < len(context) <= 40

    def test_questions_get_different_tokens_and_leave_the_index_as_it_was(self, model, profile):
        prefix, document = ids_of(1, P, 301)
        homer = homer_of(model, profile=profile)
        index = homer.index(prefix, document)
        before = index.keys.clone()
        contexts = [homer.focus(index, ids_of(seed, S)[0]) for seed in (3, 4)]
        assert contexts[0].token_indices.tolist() != contexts[1].token_indices.tolist()
        assert torch.equal(index.keys, before)
        again = homer.focus(index, ids_of(3, S)[0])
        assert torch.equal(again.logits, contexts[0].logits)


def test_units_are_ranked_as_their_tokens_would_be():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (40,), generator=generator)
    units = torch.arange(40).repeat_interleave(sizes)
    scores = torch.randint(0, 4, (len(units),), generator=generator).float()  # with ties
    starts = sizes.cumsum(0) - sizes
    for cut in (1, 7, 50, len(units)):
        found = Units(starts, len(units))
        for start in range(0, len(units), 13):
            found.add(start, scores[start : start + 13])
        expected = top_tokens(unit_significance(scores[None], units[None]), cut)[0]
        assert found.best(cut).tolist() == expected.tolist()
