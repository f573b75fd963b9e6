"""RoPE scaling, the paper's three ways to stretch a model's context limit: PI, NTK-aware and YaRN.

A scaling is written into a copy of the transformers config, and transformers' own rotary embedding does the rest.
HOMER's lengths follow the scaled limit, so the copy's `max_position_embeddings` grows by the factor too.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

from homerlm.errors import ConfigError

Method = Literal["pi", "ntk", "yarn"]
METHODS: tuple[str, ...] = get_args(Method)

_MARK = "homerlm_rope_scaling"  # tells a config scaled here from a plain one: NTK leaves no other trace
_SETTINGS = (
    "rope_parameters",
    "rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
)


@dataclass(frozen=True)
class RopeScaling:
    """How far and by which method the context limit is stretched; `str()` is what `parse` reads, e.g. `yarn:2`."""

    method: Method
    factor: float

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown method or a factor that is not a finite number above 1."""
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ConfigError(
                f"RopeScaling.method is {self.method!r}; it must be one of {', '.join(METHODS)}. "
                "Write for example RopeScaling('yarn', 2)"
            )
        is_number = isinstance(self.factor, int | float) and not isinstance(self.factor, bool)
        if not is_number or not 1 < self.factor < math.inf:
            raise ConfigError(
                f"RopeScaling.factor is {self.factor!r}; it must be a finite number above 1 (the paper uses 2, 4, 8 "
                "and 16). For an unscaled model leave the scaling out"
            )

    @classmethod
    def parse(cls, text: str) -> RopeScaling:
        """Read `method:factor`, as in `pi:2`, `ntk:4`, `yarn:1.5`; raises `ConfigError`."""
        try:
            method, _, factor = text.strip().lower().partition(":")
            number = float(factor)
        except (ValueError, TypeError, AttributeError):
            raise ConfigError(
                f"RoPE scaling is {text!r}; it must be a method ({', '.join(METHODS)}), a colon and a factor above 1. "
                "Write for example yarn:2"
            ) from None
        return cls(method, number)  # type: ignore[arg-type]  # the method is checked by __post_init__

    def __str__(self) -> str:
        return f"{self.method}:{int(self.factor) if self.factor == int(self.factor) else self.factor}"


def scale_config(config: PreTrainedConfig, scaling: RopeScaling) -> PreTrainedConfig:
    """A deep copy of `config` with the scaling applied and its context limit multiplied by the factor.

    Families with one RoPE per layer type are scaled in their full-attention layers only: a sliding layer never looks
    further back than its window. A Phi-3 scaled by PI or YaRN runs, but transformers refuses to save its config.
    Raises `ConfigError` if there is no RoPE, or if it is already scaled.
    """
    scaled = copy.deepcopy(config)
    text: Any = scaled.get_text_config(decoder=True)
    per_layer_type, rope = _unscaled_rope(text, scaling)
    limit = text.max_position_embeddings
    if scaling.method == "pi":
        rope = {**rope, "rope_type": "linear", "factor": scaling.factor}
    elif scaling.method == "ntk":
        rope = {**rope, "rope_theta": _ntk_base(rope, _rotary_dim(text, rope), scaling.factor)}
    else:
        rope = {**rope, **_yarn(scaling.factor, limit)}
        if hasattr(text, "original_max_position_embeddings"):  # Phi-3 and kin: this one would win over the dict's
            text.original_max_position_embeddings = limit
    text.rope_parameters = {**text.rope_parameters, "full_attention": rope} if per_layer_type else rope
    text.max_position_embeddings = round(limit * scaling.factor)
    setattr(text, _MARK, str(scaling))
    return scaled


def rope_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The RoPE parameters in force, as JSON-able values: part of the identity of a saved file."""
    text = config.get_text_config(decoder=True)
    found = {name: getattr(text, name) for name in _SETTINGS if getattr(text, name, None) is not None}
    return json.loads(json.dumps(found, sort_keys=True, default=float))


def _ntk_base(rope: dict[str, Any], dim: int, factor: float) -> float:
    """NTK-aware with a fixed factor: the slowest rotation is slowed by exactly `factor`, the fastest not at all."""
    return rope["rope_theta"] * factor ** (dim / (dim - 2))


def _yarn(factor: float, limit: int) -> dict[str, Any]:
    """YaRN with its authors' constants; the attention factor is left to transformers: 0.1 ln(factor) + 1.

    Departure from the YaRN paper, shared with its authors' code: between beta_slow and beta_fast rotations the ramp
    is linear in the index of the dimension, not in the number of rotations. Both agree outside of the ramp.
    """
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": limit,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }


def _rotary_dim(text: Any, rope: dict[str, Any]) -> int:
    """How many of a head's dimensions are rotated."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if dim <= 2:
        raise ConfigError(f"NTK scaling needs more than 2 rotated dimensions per head, this model has {dim}; use pi")
    return dim


def _unscaled_rope(text: Any, scaling: RopeScaling) -> tuple[bool, dict[str, Any]]:
    """Whether RoPE differs by layer type, and the plain parameters (of full attention, if so) that can be scaled."""
    name = f"{type(text).__name__} ({text.model_type})"
    every: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    per_layer_type = any(isinstance(value, dict) for value in every.values())
    rope = every.get("full_attention") if per_layer_type else every
    if not rope or rope.get("rope_theta") is None or not getattr(text, "max_position_embeddings", None):
        where = "in its full-attention layers" if per_layer_type else "(its config has no rope_parameters)"
        raise ConfigError(f"RoPE scaling {scaling} cannot be applied to {name}: no RoPE {where}. Leave the scaling out")
    rope_type = rope.get("rope_type", "default")
    before = getattr(text, _MARK, None) or (rope_type if rope_type != "default" else None)
    if before is not None:
        raise ConfigError(
            f"RoPE scaling {scaling} cannot be applied to {name}: its RoPE is already scaled ({before}), and scalings "
            "do not stack. Leave the scaling out, or start from the unscaled model"
        )
    return per_layer_type, rope
