"""The `model_args` of the harness's model `homer` (`homerlm.lab.lm_eval`): names and types."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from homerlm.config import HomerConfig
from homerlm.errors import ConfigError
from homerlm.homer import Homer
from homerlm.model.loading import load_model
from homerlm.score.calibration import Calibration

PRESETS: dict[str, Any] = {"default": HomerConfig, "paper": HomerConfig.paper}
SETTINGS = {field.name: str(field.type) for field in fields(HomerConfig) if field.name != "calibration"}
LOADING = ("rope", "dtype", "revision", "trust_remote_code")
OWN = ("prefix_tokens", "suffix_tokens", "rolling_window", "max_gen_toks")
OTHERS = ("pretrained", "device", "device_map", "preset", "calibration")
IGNORED = ("batch_size", "max_batch_size")  # the harness always passes them; prompts are compressed one at a time


def from_model_args(args: dict[str, Any]) -> tuple[Homer, dict[str, int]]:
    """The compressor, and the numbers that are the harness model's own. Values may be texts.

    Raises `ConfigError` for an unknown name or a wrong value, before the model is loaded, and what loading raises.
    """
    accepted = (*OTHERS, *LOADING, *OWN, *SETTINGS)
    if unknown := [name for name in args if name not in (*accepted, *IGNORED)]:
        raise ConfigError(f"model_args has {', '.join(unknown)}; the model homer takes {', '.join(accepted)}")
    own = {name: _parsed(name, "int", args[name]) for name in OWN if args.get(name) is not None}
    return _open(args), own


def _open(args: dict[str, Any]) -> Homer:
    """The settings are checked before the model is loaded."""
    preset = args.get("preset", "default")
    if preset not in PRESETS:
        raise ConfigError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    settings = {name: _parsed(name, kind, args[name]) for name, kind in SETTINGS.items() if name in args}
    config = PRESETS[preset](**settings)
    loading = {name: args[name] for name in LOADING if args.get(name) is not None}
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    loading["device_map"] = str(args.get("device_map") or args.get("device") or best)
    model, tokenizer = load_model(args.get("pretrained"), **loading)
    if (path := args.get("calibration")) is not None:
        config = replace(config, calibration=Calibration.load(path, model))
    return Homer(model, tokenizer, config)


def _parsed(name: str, kind: str, value: Any) -> Any:
    """A value as the field's type; the range is the field's own affair."""
    number: Any = {"int": int, "float": float}.get(kind.partition(" ")[0])
    if number is None or (value is None and "None" in kind) or not isinstance(value, str | None):
        return value
    try:
        return number(value)
    except (TypeError, ValueError):
        expected = "a whole number" if number is int else "a number"
        raise ConfigError(f"{name} is {value!r}; it must be {expected}") from None
