"""The attention weights of a chunk's last queries, equal to those that the model itself computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homerlm.model.attention import Attended
from homerlm.passes import BLOCK_BYTES


@dataclass(frozen=True)
class Attention:
    """What some queries of a chunk see at one layer.

    queries: (B, H, Q, D), RoPE applied; keys: (B, K, S, D), RoPE applied; position_ids: (B, S), the keys'; scaling: the
    model's factor on the logits, 1/sqrt(D) in the paper's models; first_query: index of the first query among the keys
    (default: the queries are the last ones); window: sliding window of the layer in tokens, or None; softcap: of the
    logits, or None; sinks: (H,) logits of the attention sinks, or None; bias: (distances,) float32 expected logit at
    each distance (see calibration), or None.
    """

    queries: Tensor
    keys: Tensor
    position_ids: Tensor
    scaling: float
    first_query: int | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def of(
        cls, attended: Attended, queries: int, position_ids: Tensor, window: int | None, bias: Tensor | None = None
    ) -> Attention:
        """The last `queries` of what a layer attended with; position_ids: (B, S) of its keys."""
        asking = attended.queries[:, :, attended.queries.shape[2] - queries :]
        places = position_ids.to(attended.keys.device)
        return cls(
            asking,
            attended.keys,
            places,
            attended.scaling,
            window=window,
            softcap=attended.softcap,
            sinks=attended.sinks,
            bias=bias,
        )

    def only(self, heads: Sequence[int]) -> Attention:
        """Of some query heads alone, each with a copy of its keys."""
        group = self.queries.shape[1] // self.keys.shape[1]
        chosen = list(heads)
        return replace(
            self,
            queries=self.queries[:, chosen],
            keys=self.keys[:, [head // group for head in chosen]],
            sinks=None if self.sinks is None else self.sinks[chosen],
        )

    @property
    def start(self) -> int:
        """Index of the first query among the keys."""
        return self.keys.shape[2] - self.queries.shape[2] if self.first_query is None else self.first_query

    def blocks(self) -> Iterator[Attention]:
        """The same queries a few at a time, so that their logits take at most `BLOCK_BYTES`."""
        batch, heads, count, _ = self.queries.shape
        size = max(BLOCK_BYTES // (4 * batch * heads * self.keys.shape[2]), 1)
        if size >= count:
            yield self
            return
        for begin in range(0, count, size):
            yield replace(self, queries=self.queries[:, :, begin : begin + size], first_query=self.start + begin)

    def logits(self) -> Tensor:
        """(B, H, Q, S) float32 attention logits before any mask, soft cap included."""
        b, h, q, d = self.queries.shape
        grouped = self.queries.float().reshape(b, self.keys.shape[1], -1, d)  # (B, K, H/K * Q, D)
        logits = (grouped @ self.keys.float().transpose(-1, -2)).mul_(self.scaling).view(b, h, q, -1)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def probabilities(self) -> Tensor:
        """(B, H, Q, S) float32 attention weights: causal, within the window, less what the sinks take."""
        logits = self.logits()
        q, s = logits.shape[-2:]
        hidden = torch.ones(q, s, dtype=torch.bool, device=logits.device).triu(self.start + 1)
        if self.window is not None:
            hidden |= torch.ones_like(hidden).tril(self.start - self.window)
        logits = logits.masked_fill_(hidden, float("-inf"))
        if self.sinks is None:
            return logits.softmax(-1)
        sinks = self.sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        return torch.cat([logits, sinks.to(logits.device)], dim=-1).softmax(-1)[..., :-1]

    def distances(self) -> Tensor:
        """(B, Q, S) position of each query minus position of each key, at least 0."""
        queries = self.position_ids[:, self.start : self.start + self.queries.shape[2]]
        return (queries[:, :, None] - self.position_ids[:, None, :]).clamp(min=0)
