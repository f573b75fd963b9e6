"""RoPE scaling against the papers' formulas, read off the rotary embedding that a scaled model really has."""

import copy
import json
import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo3Config,
    Phi3Config,
)

from homerlm.errors import ConfigError
from homerlm.model.rope import METHODS, RopeScaling, rope_settings, scale_config

LIMIT = 4096
SIZES = {
    "vocab_size": 40,
    "hidden_size": 192,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": LIMIT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BY_TYPE = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}
PHI3 = {**SIZES, "num_key_value_heads": 1, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 1024}
# name: config, rotated dimensions (of 64 per head), base of the full-attention layers
FAMILIES = {
    "llama": (LlamaConfig(**SIZES, num_key_value_heads=1), 64, 10_000.0),
    "phi3": (Phi3Config(**PHI3), 48, 10_000.0),
    "gpt_neox": (GPTNeoXConfig(**SIZES, rotary_pct=0.5), 32, 10_000.0),
    "gemma3": (Gemma3TextConfig(**SIZES, **BY_TYPE, num_key_value_heads=1, head_dim=64), 64, 1_000_000.0),
    "olmo3": (Olmo3Config(**SIZES, **BY_TYPE, num_key_value_heads=1), 64, 500_000.0),
}


def theta(dim, base):
    """Rotation per token of each pair of dimensions: base ** (-2i / d)."""
    return torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)


def pi_oracle(dim, base, factor):
    return theta(dim, base) / factor, 1.0


def ntk_oracle(dim, base, factor):
    return theta(dim, base * factor ** (dim / (dim - 2))), 1.0


def yarn_gamma(dim, base):
    """The YaRN paper's ramp: 0 below 1 rotation within the trained length, 1 above 32, linear in between."""
    rotations = LIMIT * theta(dim, base) / (2 * math.pi)
    return ((rotations - 1) / (32 - 1)).clamp(0, 1)


def yarn_index_gamma(dim, base):
    """The ramp of the YaRN authors' code: 1 up to the last index with 32 rotations, 0 from the first with 1 on."""

    def index_with(rotations):
        return dim * math.log(LIMIT / (2 * math.pi * rotations)) / (2 * math.log(base))

    last_fast, first_slow = max(math.floor(index_with(32)), 0), min(math.ceil(index_with(1)), dim - 1)
    index = torch.arange(dim // 2, dtype=torch.float64)
    return 1 - ((index - last_fast) / (first_slow - last_fast)).clamp(0, 1)


def yarn_oracle(dim, base, factor, gamma=yarn_index_gamma):
    share = gamma(dim, base)
    return (1 - share) * theta(dim, base) / factor + share * theta(dim, base), 0.1 * math.log(factor) + 1


ORACLES = {"pi": pi_oracle, "ntk": ntk_oracle, "yarn": yarn_oracle}


def rotary_of(config, layer_type="full_attention"):
    """(inverse frequencies, attention scaling) of a model built from the config."""
    rotary = AutoModelForCausalLM.from_config(config).get_decoder().rotary_emb
    prefix = "" if hasattr(rotary, "inv_freq") else f"{layer_type}_"
    return getattr(rotary, f"{prefix}inv_freq").double(), getattr(rotary, f"{prefix}attention_scaling")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_model_rotates_by_the_papers_formula(family, method, factor):
    config, dim, base = FAMILIES[family]
    inverse, temperature = rotary_of(scale_config(config, RopeScaling(method, factor)))
    expected, expected_temperature = ORACLES[method](dim, base, factor)
    torch.testing.assert_close(inverse, expected, rtol=1e-5, atol=0)
    assert temperature == pytest.approx(expected_temperature, rel=1e-12)


@pytest.mark.parametrize("factor", [2, 16])
def test_yarn_equals_the_paper_outside_of_the_ramp_and_stays_between_inside(factor):
    config, dim, base = FAMILIES["llama"]
    inverse, _ = rotary_of(scale_config(config, RopeScaling("yarn", factor)))
    paper, _ = yarn_oracle(dim, base, factor, gamma=yarn_gamma)
    gamma = yarn_gamma(dim, base)
    flat = (gamma == 0) | (gamma == 1)
    assert 0 < flat.sum() < len(flat)
    torch.testing.assert_close(inverse[flat], paper[flat], rtol=1e-5, atol=0)
    plain = theta(dim, base)
    assert (inverse[~flat] < plain[~flat]).all()
    assert (inverse[~flat] > plain[~flat] / factor).all()


@pytest.mark.parametrize("family", ["gemma3", "olmo3"])
@pytest.mark.parametrize("method", METHODS)
def test_sliding_layers_keep_their_rope(family, method):
    config = FAMILIES[family][0]
    before = rotary_of(config, "sliding_attention")
    after = rotary_of(scale_config(config, RopeScaling(method, 4)), "sliding_attention")
    assert torch.equal(after[0], before[0])
    assert after[1] == before[1] == 1.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_limit_grows_and_the_original_config_is_untouched(family, method):
    config = FAMILIES[family][0]
    before = copy.deepcopy(config.to_dict())
    scaled = scale_config(config, RopeScaling(method, 2.5))
    assert scaled.max_position_embeddings == 10_240
    assert type(scaled) is type(config)
    assert config.to_dict() == before


def test_nested_config_is_scaled_in_its_text_part():
    config = Gemma3Config(text_config=FAMILIES["gemma3"][0].to_dict())
    scaled = scale_config(config, RopeScaling("yarn", 2))
    assert scaled.text_config.max_position_embeddings == 2 * LIMIT
    assert scaled.text_config.rope_parameters["full_attention"]["rope_type"] == "yarn"
    assert rope_settings(scaled) == rope_settings(scaled.text_config) != rope_settings(config)
    assert config.text_config.max_position_embeddings == LIMIT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_scaling_does_not_stack(family, method):
    config = scale_config(FAMILIES[family][0], RopeScaling(method, 2))
    with pytest.raises(ConfigError, match="already scaled"):
        scale_config(config, RopeScaling("yarn", 2))


def test_ntk_is_remembered_by_a_saved_config(tmp_path):
    scale_config(FAMILIES["llama"][0], RopeScaling("ntk", 2)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="ntk:2"):
        scale_config(LlamaConfig.from_pretrained(tmp_path), RopeScaling("pi", 2))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def test_foreign_scaling_is_refused_by_name():
    config = LlamaConfig(**SIZES, rope_parameters=LLAMA3)
    with pytest.raises(ConfigError, match="llama3"):
        scale_config(config, RopeScaling("pi", 2))


def test_config_without_rope_is_refused():
    with pytest.raises(ConfigError, match=r"GPT2Config \(gpt2\): no RoPE"):
        scale_config(GPT2Config(), RopeScaling("ntk", 2))


def test_ntk_needs_more_than_one_pair():
    config = LlamaConfig(**{**SIZES, "hidden_size": 6})
    with pytest.raises(ConfigError, match="2 rotated dimensions"):
        scale_config(config, RopeScaling("ntk", 2))


@pytest.mark.parametrize("text", ["yarn:2", "pi:16", "ntk:1.5"])
def test_parse_and_str_are_inverse(text):
    assert str(RopeScaling.parse(text)) == text
    assert RopeScaling.parse(str(RopeScaling.parse(text))) == RopeScaling.parse(text)


def test_parse_forgives_case_and_point_zero():
    assert str(RopeScaling.parse(" YaRN:2.0 ")) == "yarn:2"


@pytest.mark.parametrize("text", ["yarn", "yarn:", "yarn:two", "2", "", "linear:2", "yarn:1", "pi:0.5", "pi:-2"])
def test_parse_refuses(text):
    with pytest.raises(ConfigError, match="must be"):
        RopeScaling.parse(text)


@pytest.mark.parametrize("factor", [1, 0, -2, math.inf, math.nan, True, "2", None])
def test_factor_is_checked_when_built(factor):
    with pytest.raises(ConfigError, match=r"RopeScaling\.factor is .*above 1"):
        RopeScaling("pi", factor)


def test_scaling_is_frozen():
    with pytest.raises(FrozenInstanceError):
        RopeScaling("pi", 2).factor = 4


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_tell_every_scaling_apart_and_are_json(family):
    config = FAMILIES[family][0]
    configs = [config, *(scale_config(config, RopeScaling(method, f)) for method in METHODS for f in (2, 4))]
    settings = [rope_settings(each) for each in configs]
    assert len({json.dumps(each, sort_keys=True) for each in settings}) == 7
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("method", METHODS)
def test_settings_survive_building_a_model(method):
    scaled = scale_config(FAMILIES["phi3"][0], RopeScaling(method, 2))
    built = AutoModelForCausalLM.from_config(scaled).config
    assert json.dumps(rope_settings(built)) == json.dumps(rope_settings(scaled))


def test_settings_do_not_depend_on_the_order_of_keys():
    config = copy.deepcopy(FAMILIES["llama"][0])
    before = json.dumps(rope_settings(config))
    config.rope_parameters = dict(reversed(config.rope_parameters.items()))
    assert json.dumps(rope_settings(config)) == before
