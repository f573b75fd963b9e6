"""The methods that are compared, named by one small grammar: `base[:setting=value,...][+scaling:factor]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homerlm.config import Config, parse_settings, parse_values
from homerlm.errors import ConfigError
from homerlm.lab.rivals.choosers import RIVALS
from homerlm.model.rope import METHODS as SCALINGS
from homerlm.model.rope import RopeScaling

PRESETS = {"homer": "default", "homer-paper": "paper"}
SETTINGS: dict[str, dict[str, type]] = {  # of the other methods
    "plain": {},
    "truncate": {"budget": int},
    "streaming": {"budget": int},
    **{name: {"budget": int, **rival.settings} for name, rival in RIVALS.items()},
}
GRAMMAR = (
    f"{', '.join(SETTINGS)}, homer or homer-paper, then settings if any (homer:target_len=2048,pooling=1; "
    "bm25:budget=1024,passage=64), then a RoPE scaling if any (homer+yarn:2); pi:2 alone means plain+pi:2"
)
_BETWEEN = re.compile(r"\s+|,(?!\w+=)")  # what follows a comma is a method, or another setting of the last one


@dataclass(frozen=True)
class Method:
    """How a prompt is read. `str()` is what `parse` reads.

    base: `plain`, the model as it is; `truncate`, the prompt's head and tail; `streaming`, its first tokens and its
    last; a rival, what it chooses; `homer` and `homer-paper`, the two presets. settings: the preset's own; `budget`,
    the tokens of the prompt that is read in the end; a rival's.
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
        if base not in (*PRESETS, *SETTINGS):
            raise ConfigError(f"method is {text!r}; it must be {GRAMMAR}")
        given = dict(item.partition("=")[::2] for item in listed.split(",") if item)
        try:
            settings = _settings(base, given)
        except ConfigError as error:
            raise ConfigError(f"method is {text!r}: {error}") from None
        return cls(base, settings, RopeScaling.parse(tail) if tail else None)

    @property
    def is_homer(self) -> bool:
        return self.base in PRESETS

    def config(self) -> Config:
        return parse_settings(PRESETS[self.base], {name: str(value) for name, value in self.settings})

    def __str__(self) -> str:
        listed = ",".join(f"{name}={value}" for name, value in self.settings)
        return self.base + (f":{listed}" if listed else "") + (f"+{self.rope}" if self.rope else "")


def _settings(base: str, given: dict[str, str]) -> tuple[tuple[str, Any], ...]:
    """Checked here, not after the model has been loaded."""
    if base in PRESETS:
        config = parse_settings(PRESETS[base], given)
        return tuple((name, getattr(config, name)) for name in given)
    known, values = SETTINGS[base], parse_values(given, SETTINGS[base])
    for name, value in values.items():
        if name not in known or not value or (known[name] is int and value < 1):
            choices = ", ".join(f"{name}={'TOKENS' if kind is int else 'FOLDER'}" for name, kind in known.items())
            raise ConfigError(f"{name}={value} is not a setting of {base}; it has {choices or 'none'}")
    if "path" in known and "path" not in values:
        raise ConfigError(f"{base} needs the folder of its model: {base}:path=FOLDER")
    return tuple(values.items())


def parse_methods(given: Sequence[str]) -> list[Method]:
    """The methods of `--methods`, each once; raises `ConfigError` with the grammar for others."""
    names = [name for item in given for name in _BETWEEN.split(item)]
    return [Method.parse(name) for name in dict.fromkeys(names) if name]
