"""What is kept of a token: its keys in the heads that will look for it, as one row of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.config import HomerConfig
from homerlm.model.attention import Attended
from homerlm.model.decoder import Decoder
from homerlm.model.shape import DecoderShape
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Scoring
from homerlm.select.plan import scoring, usable

LEVELS = 127  # of an int8 on each side of zero


def indexing(config: HomerConfig, shape: DecoderShape, tokens: int) -> Scoring:
    """What scores the tokens of an index whose chunks have so many: the profile's heads for it that see all of them,
    else what scores chunks that are read with their question."""
    profile, seeing = config.profile, shape.layers_seeing(tokens)
    if profile is not None and profile.above_chance and (found := Scoring.by_heads(profile.indexing, seeing)):
        return found
    return scoring(config, shape, tokens)


def embedding(config: HomerConfig, shape: DecoderShape) -> Embedding | None:
    """How an index's units are embedded: as the profile says."""
    return None if config.profile is None else usable(config, shape, config.profile.indexing_embedding)


def kept_heads(scoring: Scoring, layer: int, group: int, kv_heads: int) -> Sequence[int]:
    """The key-value heads of a layer whose keys are kept: those that the scoring heads use, or all where none are
    named. group: query heads that share one."""
    return sorted({head.index // group for head in scoring.of_layer(layer)}) or range(kv_heads)


@dataclass(frozen=True)
class Slot:
    """A part of the row: the key of `size` numbers that one key-value head of one layer has of the token."""

    layer: int
    head: int
    size: int


@dataclass(frozen=True)
class KeyLayout:
    """What a row holds, in order, for the heads of a scoring; group: query heads that share a key-value head."""

    scoring: Scoring
    slots: tuple[Slot, ...]
    group: int

    @classmethod
    def of(cls, decoder: Decoder, scoring: Scoring) -> KeyLayout:
        """Sizes as the model's layers have them, seen on one token. To be called inside the decoder's session."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)
        slots: list[Slot] = []
        group = 1
        for step in decoder.steps(decoder.embed(ids), ids, 0, scoring.last + 1, finish=False):
            if step.layer in scoring.layers:
                _, shared, _, size = step.attended.keys.shape
                group = step.attended.queries.shape[1] // shared
                slots += [Slot(step.layer, head, size) for head in kept_heads(scoring, step.layer, group, shared)]
        return cls(scoring, tuple(slots), group)

    @property
    def width(self) -> int:
        return sum(slot.size for slot in self.slots)

    def rows(self, attended: Sequence[Attended], start: int, stop: int) -> Tensor:
        """(B, C, width) of the tokens `[start, stop)`, from what each of the scoring layers attended with."""
        keys = {one.layer: one.keys for one in attended}
        return torch.cat([keys[slot.layer][:, slot.head, start:stop] for slot in self.slots], dim=-1)

    def of_layer(self, rows: Tensor, layer: int) -> Tensor:
        """(B, N, C, D) keys of one layer out of rows (B, C, width): one for each of the scoring heads, or, where none
        are named, for each key-value head."""
        parts = {(slot.layer, slot.head): part for slot, part in zip(self.slots, self.split(rows), strict=True)}
        heads = self.scoring.of_layer(layer)
        wanted = [head.index // self.group for head in heads] or [s.head for s in self.slots if s.layer == layer]
        return torch.stack([parts[layer, head] for head in wanted], dim=1)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Each slot's (..., C, D) of rows (..., C, width)."""
        return rows.split([slot.size for slot in self.slots], dim=-1)

    def to_int8(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (C, width) as int8, and the scale (C, slots) float16 of each key in them."""
        scales = torch.stack([part.float().abs().amax(-1) for part in self.split(rows)], dim=-1) / LEVELS
        scales = scales.clamp(min=torch.finfo(torch.float16).tiny).half()
        return (rows.float() / self._spread(scales)).round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scales

    def from_int8(self, rows: Tensor, scales: Tensor) -> Tensor:
        """float32 rows (C, width)."""
        return rows.float() * self._spread(scales)

    def _spread(self, scales: Tensor) -> Tensor:
        sizes = torch.tensor([slot.size for slot in self.slots], device=scales.device)
        return scales.float().repeat_interleave(sizes, dim=-1)
