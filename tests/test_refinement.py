"""What the layers below keep (table 4b): read off the cache's own values, and ranked once more with loops."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.errors import InputError
from homerlm.merge.chunk import Chunk
from homerlm.merge.refinement import REFINEMENTS, random
from homerlm.merge.tree import Tree
from test_merge import rotate
from tiny import HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB, llama

P, C, S = 4, 80, 5
SIZES = {"max_chunk_len": 30, "target_len": 24, "warmup_layers": 2, "score": "logit"}


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture
def ids():
    """No token twice, so that a layer's values tell which tokens it holds."""
    shuffled = torch.stack([torch.randperm(VOCAB, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    return shuffled[:, : P + C + S].split([P, C, S], dim=1)


def compress(model, ids, refinement, observer=None, **changes):
    homer = Homer(model, None, HomerConfig.paper(**(SIZES | changes), refinement=refinement))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return homer, homer.compress(*ids, observer=observer)


@torch.no_grad()
def first_layer(model, tokens, positions):
    """Queries (S, H, D), keys (S, K, D) and values (S, K, D) of layer 0 for tokens (S,)."""
    layer = model.model.layers[0]
    normed = layer.input_layernorm(model.model.embed_tokens(tokens))
    q, k, v = (getattr(layer.self_attn, f"{name}_proj")(normed).view(len(tokens), -1, HEAD_DIM) for name in "qkv")
    q, k = (torch.stack([rotate(x, at, model.config) for x, at in zip(t, positions, strict=True)]) for t in (q, k))
    return q, k, v


def held_by_first_layer(model, ids, context, row):
    """Indices in the prompt of the tokens that layer 0 holds: a value, and a key's norm, depend on the token alone."""
    whole = torch.cat(ids, dim=1)[row]
    _, keys, values = first_layer(model, whole, [0] * len(whole))
    distances = torch.cdist(context.values[0][row].transpose(0, 1).flatten(1), values.flatten(1))
    assert distances.amin(1).max() < 0.01  # of another token: around 1
    held = distances.argmin(1).tolist()
    torch.testing.assert_close(context.keys[0][row].norm(dim=-1), keys[held].norm(dim=-1).T, rtol=1e-4, atol=1e-5)
    return held


def lengths(node):
    """Tokens per layer after a node's reduction, where only its last layer loses any."""
    below = [a + b - P - S for a, b in zip(*map(lengths, node.children), strict=True)] if node.children else []
    return [*below, *[node.length] * (node.last_layer - node.first_layer - 1), node.target]


def test_the_refinement_decides_nothing_but_the_layers_below(model, ids):
    """Every choice, the last layer and the logits are the same: lower keys and values are not read inside the tree."""
    kept = {name: [] for name in REFINEMENTS}
    contexts = {
        name: compress(model, ids, name, lambda event, name=name: kept[name].append(event.kept.tolist()))[1]
        for name in REFINEMENTS
    }
    reference = contexts.pop("propagative")
    for name, context in contexts.items():
        assert kept[name] == kept["propagative"]
        assert torch.equal(context.token_indices, reference.token_indices)
        assert torch.equal(context.logits, reference.logits)
        assert torch.equal(context.keys[-1], reference.keys[-1])
        assert not torch.equal(context.keys[0], reference.keys[0])


def test_none_leaves_the_layers_below_as_they_are(model, ids):
    homer, context = compress(model, ids, "none")
    schedule = homer.plan(P, C, S).schedule
    expected = lengths(schedule.root)
    assert schedule.height == 2
    assert expected[0] == P + C + S
    assert len(set(expected)) == 4
    assert [keys.shape[2] for keys in context.keys] == [values.shape[2] for values in context.values] == expected
    for row in range(2):
        assert held_by_first_layer(model, ids, context, row) == list(range(P + C + S))


def test_random_keeps_as_many_and_the_affixes(model, ids):
    _, context = compress(model, ids, "random", pooling=3)
    assert {keys.shape[2] for keys in context.keys} == {len(context)} == {24}
    rows = [held_by_first_layer(model, ids, context, row) for row in range(2)]
    for held in rows:
        assert held == sorted(set(held))
        assert held[:P] == list(range(P))
        assert held[-S:] == list(range(P + C, P + C + S))
    assert rows[0] != rows[1]


def test_random_is_uniform():
    """Every context token is kept equally often, whatever the pooling, and by each layer for itself."""
    rows, length, kept = 1000, P + 35 + S, P + 15 + S
    tokens = torch.arange(length).expand(rows, -1)
    states = tokens[:, None, :, None].float()  # (B, 1, S, 1)
    chunk = Chunk(states[:, 0], tokens, tokens, P, S, keys=(states,) * 3, values=(states,) * 3)
    reduced = random(chunk, tokens[:, :kept], 5)
    for keys in reduced.keys[:2]:
        shares = keys.long().flatten().bincount(minlength=length)[P:-S] / rows
        deviation = (15 / 35 * 20 / 35 / rows) ** 0.5
        assert ((shares - 15 / 35).abs() < 5 * deviation).all()
    assert (reduced.keys[0] != reduced.keys[1]).any(dim=2).float().mean() > 0.99
    assert torch.equal(reduced.keys[2], states[:, :, :kept])


def test_per_layer_top_k_ranks_by_the_layers_own_scores(model, ids):
    """Layer 0 by hand: scored once, in its leaf, by the leaf's last query; ranked there and in every node above."""
    homer, context = compress(model, ids, "per_layer_top_k")
    schedule = homer.plan(P, C, S).schedule
    for row in range(2):
        whole = torch.cat(ids, dim=1)[row]
        score = {}
        for leaf in schedule.leaves:
            inside = list(range(P + leaf.context_start, P + leaf.context_stop))
            positions = [*range(P, P + len(inside)), schedule.next_position - 1]
            queries, keys, _ = first_layer(model, whole[[*inside, P + C + S - 1]], positions)
            logits = torch.einsum("hd,shd->sh", queries[-1], keys.repeat_interleave(HEADS // KV_HEADS, 1))
            score |= dict(zip(inside, (logits.amax(1) / HEAD_DIM**0.5).tolist(), strict=False))

        def keep(node, score=score):
            own = range(P + node.context_start, P + node.context_stop)
            tokens = [i for child in node.children for i in keep(child)] or own
            return sorted(sorted(tokens, key=lambda i: -score[i])[: node.target - P - S])

        expected = [*range(P), *keep(schedule.root), *range(P + C, P + C + S)]
        assert held_by_first_layer(model, ids, context, row) == expected
        assert expected != context.token_indices[row].tolist()


@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
def test_generates(model, ids, refinement, settings):
    homer, context = compress(model, ids, refinement)
    new = homer.generate(context, max_new_tokens=6, do_sample=False, eos_token_id=None, **settings)
    expected = context.logits.argmax(-1, keepdim=True)
    while not settings and expected.shape[1] < 6:
        expected = torch.cat([expected, homer.score(context, expected)[:, -1:].argmax(-1)], dim=1)
    assert new.shape == (2, 6)
    assert settings or new.tolist() == expected.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_uneven_layers_are_each_read_as_a_whole(ids, attention):
    """Two tokens after the context, by hand: each attends to all that each layer holds, and to those before it."""
    model = llama(attn_implementation=attention)
    homer, context = compress(model, ids, "none")
    tokens = torch.tensor([[7, 8], [9, 10]])
    got = homer.score(context, tokens)
    for row in range(2):
        cache = [
            [k[row].transpose(0, 1), v[row].transpose(0, 1)] for k, v in zip(context.keys, context.values, strict=True)
        ]
        for step, token in enumerate(tokens[row]):
            expected = next_logits(model, cache, token, context.next_position + step)
            torch.testing.assert_close(got[row, step], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def next_logits(model, cache, token, position):
    """(V,) after one token, attending to each layer's keys and values (S of the layer, K, D), which it joins."""
    hidden = model.model.embed_tokens(token)
    for layer, states in zip(model.model.layers, cache, strict=True):
        normed = layer.input_layernorm(hidden)
        q, k, v = (getattr(layer.self_attn, f"{name}_proj")(normed).view(-1, HEAD_DIM) for name in "qkv")
        states[0] = torch.cat([states[0], rotate(k, position, model.config)[None]])
        states[1] = torch.cat([states[1], v[None]])
        keys, values = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in states)
        weights = (torch.einsum("hd,shd->hs", rotate(q, position, model.config), keys) / HEAD_DIM**0.5).softmax(-1)
        hidden = hidden + layer.self_attn.o_proj(torch.einsum("hs,shd->hd", weights, values).flatten())
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


def test_what_uneven_layers_cannot_do_is_refused_by_name(model, ids, tmp_path):
    homer, context = compress(model, ids, "none")
    assert context.uneven
    with pytest.raises(InputError, match="different numbers of tokens"):
        context.save(tmp_path / "context")
    assert not (tmp_path / "context").exists()
    with pytest.raises(InputError, match="different numbers of tokens"):
        homer.exchange_suffix(context, ids[2])
    with pytest.raises(InputError, match="one token at a time"):
        model(torch.ones(2, 3, dtype=torch.long), past_key_values=context.to_cache())


def test_the_common_path_carries_no_scores_per_layer(model, ids, monkeypatch):
    carried = []
    reduce = Tree._reduce
    monkeypatch.setattr(Tree, "_reduce", lambda *a: carried.append(len(a[2].layer_scores)) or reduce(*a))
    for refinement in ("propagative", "none", "random"):
        compress(model, ids, refinement)
    assert set(carried) == {0}
    compress(model, ids, "per_layer_top_k")
    assert carried[-1] == LAYERS
