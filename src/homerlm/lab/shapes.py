"""Models with random weights in published shapes: time and memory do not depend on what the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from homerlm.errors import ConfigError
from homerlm.model.loading import load_config

_LLAMA_2 = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def _llama_2_7b() -> Any:
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        **_LLAMA_2,
    )


def _llama_2_13b() -> Any:
    return LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        **_LLAMA_2,
    )


def _llama_3_8b() -> Any:
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )


def _qwen2_5_7b() -> Any:
    return Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )


SHAPES = {
    "llama-2-7b": _llama_2_7b,
    "llama-2-13b": _llama_2_13b,
    "llama-3-8b": _llama_3_8b,
    "qwen2.5-7b": _qwen2_5_7b,
}


def shape_config(name: str, layers: int | None = None) -> Any:
    """The config of a built-in shape, of a folder with a config.json or of a hub name, cut to its first `layers`.

    Raises `ConfigError` for a name that is none of these, or more layers than there are.
    """
    if name in SHAPES:
        config = SHAPES[name]()
    elif (folder := Path(name).expanduser()).is_dir() and (folder / "config.json").is_file():
        config = AutoConfig.from_pretrained(str(folder)).get_text_config(decoder=True)
    elif "/" in name and not folder.exists() and not name.startswith((".", "/", "~")):
        config = load_config(name)
    else:
        raise ConfigError(
            f"random is {name!r}; it must be one of {', '.join(SHAPES)}, a folder with a config.json, or a hub name"
        )
    if layers is None:
        return config
    if not 1 <= layers <= config.num_hidden_layers:
        raise ConfigError(f"layers is {layers}; it must be between 1 and the {config.num_hidden_layers} of {name}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def random_model(config: Any, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model of `config` with random weights, made in its dtype on its device: at no time is there a second copy.

    Its modules are made without storage; transformers' own initialisation then fills weights, norms and the rotary
    embedding's frequencies in place.
    """
    torch.manual_seed(seed)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device=device)
    model.init_weights()
    return model.requires_grad_(False).eval()
