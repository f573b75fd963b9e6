"""Which attention heads of a model score a document's tokens, and what the score of each counts for."""

from __future__ import annotations

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
    def by_heads(cls, heads: Iterable[Head], layers: Sequence[int]) -> Scoring | None:
        """By those of the heads that are in `layers`; None without any."""
        chosen = tuple(sorted(head for head in heads if head.layer in layers))
        return cls(tuple(dict.fromkeys(head.layer for head in chosen)), chosen) if chosen else None

    @property
    def last(self) -> int:
        return self.layers[-1]

    def of_layer(self, layer: int) -> tuple[Head, ...]:
        return tuple(head for head in self.heads if head.layer == layer)

    def __str__(self) -> str:
        if self.heads:
            return f"heads {', '.join(map(str, self.heads))}"
        return f"layers {', '.join(map(str, self.layers))}"


def joined(scores: Tensor, heads: Sequence[Head]) -> Tensor:
    """(B, S) of the scores (B, N, S) of some heads: their weighted sum, or the maximum where none are named, or where
    the score has joined them already."""
    if len(heads) != scores.shape[1]:
        return scores.amax(1)
    weights = torch.tensor([head.weight for head in heads], device=scores.device)
    return (scores * weights[:, None]).sum(1)
