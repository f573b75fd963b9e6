"""Which attention heads of a model score a document's tokens, and what the score of each counts for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homerlm.errors import CorruptFileError


@dataclass(frozen=True, order=True)
class Head:
    """One attention head; weight: what its score counts for."""

    layer: int
    index: int
    weight: float = 1.0

    @classmethod
    def from_json(cls, value: Any) -> Head:
        """Of `[layer, index, weight]`; raises `CorruptFileError`."""
        try:
            layer, index, weight = value
            return cls(int(layer), int(index), float(weight))
        except (TypeError, ValueError):
            raise CorruptFileError(f"a head is {str(value)[:100]}; it must be [layer, index, weight]") from None

    def __str__(self) -> str:
        return f"{self.layer}.{self.index}" + (f" x{self.weight:g}" if self.weight != 1 else "")


@dataclass(frozen=True)
class Scoring:
    """The layers that score a chunk, ascending, and their heads. No `heads`: the maximum over all of a layer's heads
    counts."""

    layers: tuple[int, ...]
    heads: tuple[Head, ...] = ()

    @classmethod
    def of(cls, heads: Iterable[Head]) -> Scoring:
        """By these heads."""
        chosen = tuple(sorted(heads))
        return cls(tuple(dict.fromkeys(head.layer for head in chosen)), chosen)

    @classmethod
    def by_heads(cls, heads: Iterable[Head], layers: Sequence[int]) -> Scoring | None:
        """By those of the heads that are in `layers`; None without any."""
        chosen = [head for head in heads if head.layer in layers]
        return cls.of(chosen) if chosen else None

    @property
    def last(self) -> int:
        return self.layers[-1]

    def of_layer(self, layer: int) -> tuple[Head, ...]:
        return tuple(head for head in self.heads if head.layer == layer)

    def __str__(self) -> str:
        if self.heads:
            return f"heads {', '.join(map(str, self.heads))}"
        return f"layers {', '.join(map(str, self.layers))}"


def layers_run(scoring: Scoring, depth: int | None) -> int:
    """Layers that run for a scoring, and for sentence embeddings after so many. The last one stops after its queries
    and keys, unless its states are wanted."""
    return max(scoring.last + 1, depth or 0)


@dataclass(frozen=True)
class Early:
    """What lets tokens leave a chunk part of the way up its layers. Above `layer`, the last of these heads', only the
    `share` of a chunk's context tokens runs whose sentences score best by them; lost: share of facts that the reading
    heads would have found and this drops, on texts that chose nothing."""

    heads: tuple[Head, ...]
    share: float
    lost: float

    @property
    def layer(self) -> int:
        return max(head.layer for head in self.heads)

    @classmethod
    def from_json(cls, value: Any) -> Early:
        """The inverse of `to_json`; raises `CorruptFileError`."""
        try:
            heads = tuple(map(Head.from_json, value["heads"]))
            return cls(heads, float(value["share"]), float(value["lost"]))
        except (KeyError, TypeError, ValueError):
            raise CorruptFileError(f"early is {str(value)[:100]}; it must have heads, share and lost") from None

    def to_json(self) -> dict[str, Any]:
        heads = [[head.layer, head.index, head.weight] for head in self.heads]
        return {"heads": heads, "share": self.share, "lost": self.lost}


def early_len(context_len: int, share: float) -> int:
    """Context tokens of a chunk that go on where a share of them does."""
    return math.ceil(context_len * share)


def joined(scores: Tensor, heads: Sequence[Head]) -> Tensor:
    """(B, S) of the scores (B, N, S) of some heads: their weighted sum, or the maximum where none are named, or where
    the score has joined them already."""
    if len(heads) != scores.shape[1]:
        return scores.amax(1)
    weights = torch.tensor([head.weight for head in heads], device=scores.device)
    return (scores * weights[:, None]).sum(1)
