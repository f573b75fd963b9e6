"""How an answer is to be written, and its text as it becomes certain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase, TextStreamer

from homerlm.checks import check_whole
from homerlm.errors import ConfigError

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Writing:
    """Settings of one answer. temperature 0: the likeliest token each time; top_p: share of the probability that is
    drawn from; stop: texts that end the answer, and are not part of it; seed: of the drawing, None for a new one each
    time; logprobs: how many of the likeliest tokens are listed with every token, None for no probabilities.

    Raises `ConfigError` for values outside their range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None

    @classmethod
    def of(cls, **settings: Any) -> Writing:
        """Raises `ConfigError` for a name that is no setting."""
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ConfigError(f"{name} is no setting of an answer: they are {', '.join(names)}")
        return cls(**settings)

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0)
        if self.seed is not None:
            check_whole("seed", self.seed, -(2**63), 2**63 - 1)
        if not _is_number(self.temperature) or self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature!r}; it must be a finite number of at least 0")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p!r}; it must be above 0 and at most 1")
        if not isinstance(self.stop, list | tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}; it must be a tuple of texts, none of them empty")


@dataclass(frozen=True)
class TokenChoice:
    """A token that was written: its natural logarithm of probability, before temperature and top_p, and the likeliest
    tokens instead of it, (id, logarithm), best first."""

    id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer: text that is certain, without half characters and without a part of a stop text.

    tokens: written since the piece before, so that an answer's pieces add up to all of its new tokens, the ending one
    included; finish: in the last piece, "stop" where the model or a stop text ended the answer, "length" at
    `max_new_tokens`; ids: of those tokens; choices: of those tokens, where `Writing.logprobs` asks for them.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    ids: tuple[int, ...] = ()
    choices: tuple[TokenChoice, ...] = ()


class CertainText:
    """Text of tokens that come one by one, handed on as soon as nothing that follows can change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._characters = _Characters(tokenizer) if tokenizer.is_fast else _Words(tokenizer)
        self._stop = tuple(stop)
        self._held = ""

    def add(self, token: int) -> tuple[str, bool]:
        """New certain text, and whether a stop text ended the answer."""
        return self._cut(self._characters.add(token))

    def end(self) -> tuple[str, bool]:
        """The rest, once no token follows."""
        text, stopped = self._cut(self._characters.end())
        rest, self._held = self._held, ""
        return text + ("" if stopped else rest), stopped

    def _cut(self, new: str) -> tuple[str, bool]:
        self._held += new
        found = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            certain, self._held = self._held[: min(found)], ""
            return certain, True
        keep = _beginning_of(self._held, self._stop)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain, False


class _Characters:
    """Whole characters of a fast tokenizer's tokens, special ones left out."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._core = tokenizer, tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        self._ids.append(token)
        new = self._stream.step(self._core, token) or ""
        self._given += new
        return new

    def end(self) -> str:
        """What the tokens end in that is no whole character."""
        whole = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        return whole[len(self._given) :] if whole.startswith(self._given) else ""


class _Words(TextStreamer):
    """The same, word by word, of a tokenizer that is not a fast one."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._new = ""

    def add(self, token: int) -> str:
        self.put(torch.tensor([token]))
        return self._taken()

    def end(self) -> str:
        super().end()
        return self._taken()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        self._new += text

    def _taken(self) -> str:
        new, self._new = self._new, ""
        return new


def _beginning_of(text: str, stop: Sequence[str]) -> int:
    """How many of the text's last characters may be the beginning of a stop text."""
    longest = max((len(one) for one in stop), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(one.startswith(text[-count:]) for one in stop):
            return count
    return 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
