"""The tree walk against a slow, literal one, and what it must not depend on: batching, history, failures."""

import weakref
from dataclasses import replace

import pytest
import torch

from homerlm import Calibration, Homer, HomerConfig
from homerlm.merge.tree import Tree
from tiny import LAYERS, LIMIT, llama, prompt

SIZES = {"max_chunk_len": 30, "target_len": 24, "warmup_layers": 2}
CONFIGS = {
    "default": HomerConfig(max_chunk_len=30, target_len=24, pooling=3, recap_len=4),
    "reencoded": HomerConfig.paper(**SIZES, score="mean_square", scoring_queries=5, pooling=3, readout="reencoded"),
    "paper": HomerConfig.paper(**SIZES, calibration=Calibration(torch.randn(LAYERS, LIMIT) / 10)),
}


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def same(a, b, **tolerance):
    torch.testing.assert_close(a.token_indices, b.token_indices)
    torch.testing.assert_close(a.position_ids, b.position_ids)
    for got, expected in zip((*a.keys, *a.values, a.logits), (*b.keys, *b.values, b.logits), strict=True):
        torch.testing.assert_close(got, expected, **tolerance)


def breadth_first(model, ids, bias, schedule):
    """HOMER as docs/method.md reads, with loops over tokens and no code of the package but the plan: level by level,
    chunks as lists of (index, position, hidden, keys, values) tokens. Batch of one, the paper's settings."""
    p, s = schedule.prefix_len, schedule.suffix_len
    whole = torch.cat(ids, dim=1)[0]
    nodes = {(n.height, n.index): n for n in schedule.root.walk()}
    level = []
    for leaf in schedule.leaves:
        inside = range(p + leaf.context_start, p + leaf.context_stop)
        indices = [*range(p), *inside, *range(len(whole) - s, len(whole))]
        positions = [*range(p + len(inside)), *range(schedule.suffix_start, schedule.next_position)]
        hidden = model.model.embed_tokens(whole[indices])
        level.append([[i, q, h, [], []] for i, q, h in zip(indices, positions, hidden, strict=True)])
    for height in range(schedule.height + 1):
        level = [literal_node(model, chunk, nodes[height, i], p, s, bias) for i, chunk in enumerate(level)]
        if height < schedule.height:
            level = [literal_merge(a, b, p, s) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def literal_node(model, chunk, node, p, s, bias):
    config = model.config
    for index in range(node.first_layer, node.last_layer):
        layer = model.model.layers[index]
        hidden = torch.stack([token[2] for token in chunk])
        normed = layer.input_layernorm(hidden)
        heads = {
            name: getattr(layer.self_attn, f"{name}_proj")(normed).view(len(chunk), -1, config.head_dim)
            for name in "qkv"
        }
        queries, keys = (
            torch.stack([rotate(x, t[1], config) for x, t in zip(heads[n], chunk, strict=True)]) for n in "qk"
        )
        groups = config.num_attention_heads // config.num_key_value_heads
        logits = torch.einsum("qhd,khd->hqk", queries, keys.repeat_interleave(groups, 1)) / config.head_dim**0.5
        weights = logits.masked_fill(torch.ones(len(chunk), len(chunk)).triu(1).bool(), -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, heads["v"].repeat_interleave(groups, 1)).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        for token, h, k, v in zip(chunk, hidden, keys, heads["v"], strict=True):
            token[2] = h
            token[3].append(k)
            token[4].append(v)
    last = chunk[-1][1]
    significance = [
        logits[:, -1, i].max() - bias[node.last_layer - 1, last - chunk[i][1]] for i in range(p, len(chunk) - s)
    ]
    ranked = sorted(range(p, len(chunk) - s), key=lambda i: float(significance[i - p]))
    dropped = set(ranked[: len(chunk) - node.target])
    return [token for i, token in enumerate(chunk) if i not in dropped]


def rotate(x, position, config):
    half = config.head_dim // 2
    angle = position / 10000.0 ** (torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def literal_merge(left, right, p, s):
    def mean(a, b):
        pairs = [[(x + y) / 2 for x, y in zip(a[i], b[i], strict=True)] for i in (3, 4)]
        return [a[0], a[1], (a[2] + b[2]) / 2, *pairs]

    def affix(at):
        return [mean(a, b) for a, b in zip(left[at], right[at], strict=True)]

    return affix(slice(0, p)) + left[p : len(left) - s] + right[p : len(right) - s] + affix(slice(-s, None))


@pytest.mark.parametrize("context", [20, 45, 71, 150])
@torch.no_grad()
def test_equals_a_literal_breadth_first_walk(model, context):
    ids, config = prompt(context=context), CONFIGS["paper"]
    homer = Homer(model, None, config)
    got = homer.compress(*ids)
    tokens = breadth_first(model, ids, config.calibration.bias, homer.plan(4, context, 5).schedule)
    assert got.token_indices[0].tolist() == [token[0] for token in tokens]
    assert got.position_ids[0].tolist() == [token[1] for token in tokens]
    for layer in range(LAYERS):
        for states, part in ((got.keys, 3), (got.values, 4)):
            expected = torch.stack([token[part][layer] for token in tokens], dim=1)
            torch.testing.assert_close(states[layer][0], expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_batch_equal_single_runs(model, config):
    homer, ids = Homer(model, None, config), prompt(batch=3)
    together = homer.compress(*ids)
    for row in range(3):
        alone = homer.compress(*(part[row : row + 1] for part in ids))
        same(together.row(row), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_batch", [2, 3, 16])
def test_chunk_batches_change_nothing(model, config, chunk_batch):
    ids = prompt(batch=2, context=151)
    one = Homer(model, None, config).compress(*ids)
    many = Homer(model, None, replace(config, chunk_batch=chunk_batch)).compress(*ids)
    same(many, one, rtol=1e-4, atol=1e-5)


def test_no_state_between_prompts(model, config):
    homer, first, second = Homer(model, None, config), prompt(seed=1), prompt(seed=2, context=80)
    expected = Homer(model, None, config).compress(*second)
    a = homer.compress(*first)
    b = homer.compress(*second)
    same(b, expected, rtol=0, atol=0)
    again = homer.compress(*first)  # the two interleaved: neither context has moved
    same(again, a, rtol=0, atol=0)
    same(b, expected, rtol=0, atol=0)


def test_scoring_leaves_the_context_as_it_was(model, config):
    homer = Homer(model, None, config)
    context = homer.compress(*prompt())
    before = [t.clone() for t in (*context.keys, *context.values)]
    first = homer.score(context, torch.tensor([[5, 6, 7]]))
    homer.generate(context, max_new_tokens=4, do_sample=False)
    cache = context.to_cache()
    cache.layers[0].keys.zero_()
    assert all(torch.equal(a, b) for a, b in zip((*context.keys, *context.values), before, strict=True))
    assert torch.equal(homer.score(context, torch.tensor([[5, 6, 7]])), first)


def test_greedy_generation_equals_greedy_scoring(model, config):
    homer = Homer(model, None, config)
    context = homer.compress(*prompt())
    new = homer.generate(context, max_new_tokens=6, do_sample=False)[0].tolist()
    expected = [int(context.logits.argmax())]
    while len(expected) < 6:
        expected.append(int(homer.score(context, torch.tensor([expected]))[0, -1].argmax()))
    assert new == expected


def test_an_exchanged_suffix_is_the_same_as_asking_it(model):
    """Where nothing is dropped, the exchanged suffix must give what compressing with it gives."""
    homer = Homer(model, None, HomerConfig(max_chunk_len=200, target_len=200))
    prefix, context, suffix = prompt()
    other = prompt(seed=9, suffix=8)[2]
    exchanged = homer.exchange_suffix(homer.compress(prefix, context, suffix), other)
    same(exchanged, homer.compress(prefix, context, other), rtol=1e-4, atol=1e-5)
    assert exchanged.next_position == 4 + 150 + 8


@pytest.mark.parametrize("leaves", [2, 8, 32])
def test_chunks_alive_are_bounded_by_the_height(model, monkeypatch, leaves):
    """What is alive when a node is done: itself, and a reduced left sibling for every right turn on the way to it."""
    chunks, alive = [], []

    def reduce(tree, node, chunk, original=Tree._reduce):
        chunks.append(weakref.ref(result := original(tree, node, chunk)))
        del chunk
        alive.append((node, sum(ref() is not None for ref in chunks)))
        return result

    monkeypatch.setattr(Tree, "_reduce", reduce)
    config = HomerConfig.paper(max_chunk_len=20, target_len=20, warmup_layers=1, score="logit")
    homer, ids = Homer(model, None, config), prompt(context=leaves * 11)
    homer.compress(*ids)
    height = homer.plan(4, leaves * 11, 5).height
    assert 2**height == leaves
    assert len(alive) == 2 * leaves - 1
    assert all(count == node.index.bit_count() + 1 for node, count in alive)
    assert max(count for _, count in alive) == height + 1


def test_a_failure_inside_leaves_the_model_as_it_was(model, config):
    homer, ids = Homer(model, None, config), prompt()
    plain = model(ids[1]).logits

    def fail(event):
        if event.level == 1 and event.read > 60:
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        homer.compress(*ids, observer=fail)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids[1]).logits, plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
