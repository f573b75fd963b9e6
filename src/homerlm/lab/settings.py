"""Settings from text. A stand-in for `homerlm.config.parse_settings`, which takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from homerlm.config import HomerConfig
from homerlm.errors import ConfigError

_PRESETS: dict[str, Any] = {"default": HomerConfig, "paper": HomerConfig.paper}
_TYPES = {field.name: str(field.type).partition(" ")[0] for field in fields(HomerConfig) if "help" in field.metadata}


def parse_settings(preset: str, settings: Mapping[str, str]) -> HomerConfig:
    """A preset's config with these settings. Raises `ConfigError` for an unknown preset, name or value."""
    if preset not in _PRESETS:
        raise ConfigError(f"preset is {preset!r}; it must be one of {', '.join(_PRESETS)}")
    return _PRESETS[preset](**{name: _value(name, text) for name, text in settings.items()})


def _value(name: str, text: str) -> Any:
    if name not in _TYPES:
        raise ConfigError(f"{name!r} is not a setting; the settings are {', '.join(_TYPES)}")
    kind, expected = {"int": (int, "a whole number"), "float": (float, "a number")}.get(_TYPES[name], (str, ""))
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; it must be {expected}") from None
