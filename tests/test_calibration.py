"""Calibration: the mean maximum logit by distance, whose it is, and where it is refused."""

import pytest
import torch

from homerlm import Calibration, Homer, HomerConfig
from homerlm.errors import ConfigError, CorruptFileError, InputError, MismatchError
from homerlm.model.rope import RopeScaling, scale_config
from tiny import LAYERS, LIMIT, llama, prompt
from words import tokenizer_of

LENGTH = 20


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(97)


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(0)
    return " ".join(f"w{i}" for i in torch.randint(0, 90, (61,), generator=generator).tolist())


@pytest.fixture(scope="module")
def calibration(model, tokenizer, text):
    return Calibration.measure(model, tokenizer, [text], length=LENGTH, segments=3)


@torch.no_grad()
def literal(model, ids, queries):
    """(L, distances): from the model's own hidden states and projections, one distance at a time."""
    rotary = model.model.rotary_emb
    states = model(ids, output_hidden_states=True).hidden_states
    cos, sin = rotary(states[0], torch.arange(ids.shape[1])[None])
    d = model.config.head_dim

    def rotated(x):
        x = x.view(ids.shape[1], -1, d)
        half = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], dim=-1)
        return x * cos[0, :, None] + half * sin[0, :, None]

    rows = []
    for layer, hidden in zip(model.model.layers, states, strict=False):
        normed = layer.input_layernorm(hidden)[0]
        q, k = rotated(layer.self_attn.q_proj(normed)), rotated(layer.self_attn.k_proj(normed))
        group = q.shape[1] // k.shape[1]
        found = [[] for _ in range(ids.shape[1])]
        for at in range(ids.shape[1] - queries, ids.shape[1]):
            for key in range(at + 1):
                logits = [(q[at, h] @ k[key, h // group]) / d**0.5 for h in range(q.shape[1])]
                found[at - key].append(max(logits))
        rows.append(torch.stack([torch.stack(values).mean() for values in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("queries", [1, 4])
def test_equals_loops_over_the_models_own_projections(model, tokenizer, text, queries):
    got = Calibration.measure(model, tokenizer, [text], length=LENGTH, segments=3, queries=queries)
    ids = tokenizer(text, return_tensors="pt").input_ids
    starts = [0, 20, 41]
    expected = torch.stack([literal(model, ids[:, s : s + LENGTH], queries) for s in starts]).mean(0)
    torch.testing.assert_close(got.bias, expected, rtol=1e-4, atol=1e-5)
    assert got.notes["segments"] == 3


def test_survives_a_file_and_is_used(model, calibration, tmp_path):
    calibration.save(tmp_path / "c")
    loaded = Calibration.load(tmp_path / "c", model)
    assert torch.equal(loaded.bias, calibration.bias)
    assert loaded.model == calibration.model
    config = {"max_chunk_len": LENGTH, "target_len": LENGTH}
    kept = [
        Homer(model, None, HomerConfig.paper(calibration=c, **config)).compress(*prompt()).token_indices
        for c in (loaded, Calibration(torch.zeros(LAYERS, LIMIT)))
    ]
    assert not torch.equal(*kept)


def test_refused_for_another_model_or_scaling(calibration, tmp_path):
    calibration.save(tmp_path / "c")
    with pytest.raises(MismatchError, match=calibration.model.weights):
        Calibration.load(tmp_path / "c", llama(seed=5))
    scaled = llama()
    twin = type(scaled)(scale_config(scaled.config, RopeScaling("yarn", 2))).eval()
    twin.load_state_dict(scaled.state_dict())
    with pytest.raises(MismatchError, match="yarn"):
        Calibration.load(tmp_path / "c", twin)
    with pytest.raises(MismatchError, match="another model"):
        Homer(llama(seed=5), None, HomerConfig.paper(calibration=calibration))


def test_too_little_text_or_nonsense_is_refused(model, tokenizer):
    with pytest.raises(InputError, match="3 tokens of text"):
        Calibration.measure(model, tokenizer, ["w1 w2 w3"], length=LENGTH)
    with pytest.raises(ConfigError, match="queries is 30"):
        Calibration.measure(model, tokenizer, ["w1 " * 50], length=LENGTH, queries=30)
    with pytest.raises(ConfigError, match="NaN"):
        Calibration(torch.full((2, 3), torch.nan))
    with pytest.raises(ConfigError, match=r"\(5,\)"):
        Calibration(torch.zeros(5))


def test_a_score_without_its_calibration_is_refused(model):
    with pytest.raises(ConfigError, match="homer calibrate"):
        Homer(model, None, HomerConfig.paper())


def test_distances_must_cover_a_chunk(model):
    with pytest.raises(ConfigError, match="covers distances below 20"):
        Homer(model, None, HomerConfig.paper(max_chunk_len=21, calibration=Calibration(torch.zeros(LAYERS, 20))))


def test_layers_must_be_the_models(model):
    with pytest.raises(MismatchError, match="has 3 layers, the model given has 10"):
        Homer(model, None, HomerConfig.paper(calibration=Calibration(torch.zeros(3, LIMIT))))


def test_a_damaged_file_is_refused(model, calibration, tmp_path):
    calibration.save(tmp_path / "c")
    data = bytearray((tmp_path / "c").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(CorruptFileError):
        Calibration.load(tmp_path / "c", model)
