"""Scores are made of the model's own attention weights, for every family: windows, sinks and soft caps included."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import families
from homerlm import Homer, HomerConfig
from homerlm.errors import ScheduleError
from homerlm.model import attention as model_attention
from homerlm.model.decoder import Decoder
from homerlm.model.shape import DecoderShape
from homerlm.score import attention as score_attention
from homerlm.score.attention import Attention
from homerlm.score.scores import SCORES
from homerlm.select.plan import SelectPlan, scoring
from tiny import llama

TOKENS, QUERIES = 61, 7
assert TOKENS > 2 * families.WINDOW


@pytest.fixture(scope="module", params=families.SUPPORTED, ids=lambda family: family.name)
def model(request):
    if not request.param.available():
        pytest.skip(f"this transformers has no {request.param.name} that runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param.build()


def ids(rows=1, seed=4):
    return torch.randint(3, families.VOCAB, (rows, TOKENS), generator=torch.Generator().manual_seed(seed))


def eager(model):
    """The same model, its attention the eager one, which gives its weights back."""
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


@torch.no_grad()
def test_probabilities_are_the_models_own(model):
    tokens = ids()
    expected = eager(model)(tokens, output_attentions=True, use_cache=False).attentions
    decoder, positions = Decoder(model), torch.arange(TOKENS)[None]
    with decoder.session():
        steps = list(decoder.steps(decoder.embed(tokens), positions, 0, len(decoder.layers)))
    assert len(expected) == len(steps)
    for step, weights in zip(steps, expected, strict=True):
        got = Attention.of(step.attended, QUERIES, positions, decoder.window(step.layer)).probabilities()
        if type(model).__name__ == "GraniteSWAForCausalLM":  # it reports its weights before its sinks scale the output
            got = got / got.sum(-1, keepdim=True)
        torch.testing.assert_close(got, weights[:, :, -QUERIES:], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_layers_in_blocks_of_queries_give_the_models_own_states(model, monkeypatch):
    """Windows, sinks and soft caps without a matrix of all pairs: here in blocks of 16 queries."""
    monkeypatch.setattr(model_attention, "BLOCK_BYTES", 1)
    tokens, decoder = ids(), Decoder(model)
    with decoder.session():
        hidden = decoder.run(decoder.embed(tokens), torch.arange(TOKENS)[None], 0, len(decoder.layers))
    expected = model(tokens, use_cache=False).logits
    torch.testing.assert_close(decoder.logits(hidden[:, -9:]), expected[:, -9:], rtol=1e-4, atol=1e-4)


def test_every_score_in_blocks_of_queries_is_the_same(monkeypatch):
    torch.manual_seed(0)
    whole = Attention(
        torch.randn(2, 6, 5, 4),
        torch.randn(2, 3, 11, 4),
        torch.arange(11).expand(2, -1),
        0.4,
        window=6,
        softcap=3.0,
        sinks=torch.randn(6),
        bias=torch.randn(13),
    )
    expected = {name: score(whole) for name, score in SCORES.items() if name != "random"}
    monkeypatch.setattr(score_attention, "BLOCK_BYTES", 4 * 2 * 6 * 11 * 2)
    assert [block.queries.shape[2] for block in whole.blocks()] == [2, 2, 1]
    for name, scores in expected.items():
        torch.testing.assert_close(SCORES[name](whole), scores)


def test_a_block_mask_is_its_part_of_the_whole():
    index = torch.arange(30)
    distance = index[:, None] - index
    for window in (None, 4, 9):
        whole = (distance >= 0) & (distance < (window or 99))
        for start, stop, first in ((0, 7, 0), (7, 20, 3), (28, 30, 25)):
            got = model_attention.block_mask(start, stop, first, window, torch.device("cpu"))[0, 0]
            assert torch.equal(got, whole[start:stop, first:stop])


class TestLayersThatDoNotSee:
    SHAPE = DecoderShape(8192, (), 64, 128, 4, 2, 16, 97, 2)

    def shape(self, *windows):
        return replace(self.SHAPE, windows=windows)

    @pytest.mark.parametrize(
        ("name", "expected"), [("middle", (5,)), ("upper_half", (5, 7, 9)), ("all", (1, 3, 5, 7, 9))]
    )
    def test_never_score(self, name, expected):
        config = HomerConfig(scoring_layers=name)
        assert scoring(config, self.shape(*[512, None] * 5), 2048).layers == expected

    def test_the_nearest_one_that_sees_takes_their_place(self):
        gemma = self.shape(*([512] * 5 + [None]) * 3)
        assert scoring(HomerConfig(), gemma, 2048).layers == (11,)
        assert scoring(HomerConfig(), gemma, 512).layers == (9, 10)

    def test_where_none_sees_all_chunks_are_cut_to_what_they_see(self):
        windowed = self.shape(*[1500] * 10)
        plan = SelectPlan.of(HomerConfig(), windowed, 10, 20_000, 20)
        assert max(p.tokens for p in plan.passes) <= 1500
        assert plan.reading.layers == (5,)
        with pytest.raises(ScheduleError, match="layers see is 1500"):
            SelectPlan.of(HomerConfig(), windowed, 800, 20_000, 800)

    @pytest.mark.parametrize("make", [HomerConfig, HomerConfig.paper], ids=["default", "paper"])
    def test_a_fact_beyond_the_window_is_kept_by_the_layer_that_sees_it(self, make):
        """Windows of 8 tokens everywhere but in one layer, whose keys match the question's at one far token."""
        model = llama(
            num_hidden_layers=4,
            layer_types=["sliding_attention"] * 4,
            sliding_window=8,
        )
        model.config.layer_types[2] = "full_attention"
        settings = {"max_chunk_len": 60, "target_len": 20, "score": "softmax", "scoring_queries": 1}
        if make == HomerConfig.paper:
            settings |= {"warmup_layers": 3}
        else:
            settings |= {"rerank": "never", "pooling": 1}
        homer = Homer(model, None, make(**settings))
        parts = [torch.randint(1, 97, (1, n), generator=torch.Generator().manual_seed(n)) for n in (3, 50, 4)]
        positions = torch.arange(57)[None]
        with torch.no_grad(), homer.decoder.session():
            tokens = torch.cat(parts, dim=1)
            step = list(homer.decoder.steps(homer.decoder.embed(tokens), positions, 0, 3))[2]
        query, keys = step.attended.queries[0, :, -1], step.attended.keys[0].repeat_interleave(2, 0)
        weights = torch.einsum("hd,hsd->hs", query, keys) * step.attended.scaling
        expected = sorted(weights.softmax(-1).amax(0)[3:53].topk(13).indices.tolist())
        context = homer.compress(*parts)
        assert (context.token_indices[0, 3:-4] - 3).tolist() == expected


def test_attention_without_a_mask_is_causal():
    """The oracle of the above, once by hand."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, 2, 6, 4) for _ in range(3))
    weights = Attention(query, key, torch.arange(6)[None], 0.5).probabilities()
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5)
    torch.testing.assert_close(weights @ value, expected)
