"""Models with random weights in published shapes: time and memory do not depend on what the weights are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from homerlm.errors import ConfigError
from homerlm.model.loading import load_config

FOLDER = Path(str(resources.files("homerlm.lab") / "shapes"))  # a folder with a config.json for each
SHAPES = tuple(sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir()))


def shape_config(name: str, layers: int | None = None) -> Any:
    """The config of a built-in shape, of a folder with a config.json or of a hub name, cut to its first `layers`.

    Raises `ConfigError` for a name that is none of these, or more layers than there are.
    """
    folder = FOLDER / name if name in SHAPES else Path(name).expanduser()
    if (folder / "config.json").is_file():
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
