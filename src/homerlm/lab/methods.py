"""The methods that an evaluation compares, named by one small grammar: `base[:setting=value,...][+scaling:factor]`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from homerlm.config import HomerConfig
from homerlm.errors import ConfigError
from homerlm.model.rope import METHODS as SCALINGS
from homerlm.model.rope import RopeScaling

PRESETS = ("homer", "homer-paper")
BASELINES = ("plain", "truncate", "streaming")
GRAMMAR = (
    "plain, truncate, streaming, homer or homer-paper, then settings if any (homer:target_len=2048,pooling=1; "
    "truncate:budget=1024), then a RoPE scaling if any (homer+yarn:2); pi:2 alone means plain+pi:2"
)


@dataclass(frozen=True)
class Method:
    """How a prompt is read. `str()` is what `parse` reads.

    base: `plain`, the model as it is; `truncate`, the prompt's head and tail; `streaming`, its first tokens and its
    last; `homer` and `homer-paper`, the two presets. settings: fields of `HomerConfig`, or `budget` in tokens for
    `truncate` and `streaming`.
    """

    base: str
    settings: tuple[tuple[str, Any], ...] = ()
    rope: RopeScaling | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Raises `ConfigError` with the grammar for anything else."""
        head, _, tail = text.strip().partition("+")
        if head.partition(":")[0] in SCALINGS and not tail:
            head, tail = "plain", head
        base, _, listed = head.partition(":")
        if base not in (*PRESETS, *BASELINES):
            raise ConfigError(f"method is {text!r}; it must be {GRAMMAR}")
        settings = tuple(_setting(base, item, text) for item in listed.split(",") if item)
        method = cls(base, settings, RopeScaling.parse(tail) if tail else None)
        if base in PRESETS:
            method.config()  # a value out of range is refused here, not after the model has been loaded
        return method

    @property
    def is_homer(self) -> bool:
        return self.base in PRESETS

    def config(self) -> HomerConfig:
        build = HomerConfig.paper if self.base == "homer-paper" else HomerConfig
        return build(**dict(self.settings))

    def __str__(self) -> str:
        listed = ",".join(f"{name}={value}" for name, value in self.settings)
        return self.base + (f":{listed}" if listed else "") + (f"+{self.rope}" if self.rope else "")


def _setting(base: str, item: str, text: str) -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    known = _CONFIG_FIELDS if base in PRESETS else {"budget": int} if base != "plain" else {}
    if not equals or name not in known:
        choices = ", ".join(known) or "none"
        raise ConfigError(f"method is {text!r}: {item!r} is not a setting of {base}; its settings are {choices}")
    try:
        return name, known[name](value)
    except ValueError:
        raise ConfigError(f"method is {text!r}: {name} is {value!r}; it must be a number") from None


_KINDS: dict[str, Any] = {"int": int, "float": float, "str": str}
_CONFIG_FIELDS = {
    field.name: _KINDS[str(field.type).partition(" ")[0]] for field in fields(HomerConfig) if "help" in field.metadata
}
