"""What the layers below keep when a chunk is reduced at its last layer (paper section 3.2, table 4b).

The last layer's choice decides which hidden states, and so which tokens of its own, live on. A refinement carries a
choice to the layers below: it takes the chunk, that choice (B, n) and the width over which scores are pooled, and
returns the reduced chunk. A new one is a function and a row in `REFINEMENTS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from homerlm.merge.chunk import Chunk
from homerlm.score.neighbours import keep_most_significant, pool

Refinement = Callable[[Chunk, Tensor, int], Chunk]


def propagative(chunk: Chunk, keep: Tensor, pooling: int) -> Chunk:  # noqa: ARG001
    """The paper's: every layer keeps the same tokens."""
    return chunk.select(keep)


def none(chunk: Chunk, keep: Tensor, pooling: int) -> Chunk:  # noqa: ARG001
    """The layers below keep all they hold, so that they end up longer than the last."""
    return chunk.select(keep, below=[None] * (len(chunk.keys) - 1))


def random(chunk: Chunk, keep: Tensor, pooling: int) -> Chunk:  # noqa: ARG001
    """Every layer below keeps as many tokens, drawn for itself from torch's global generator."""
    noise = (torch.rand(chunk.position_ids.shape, device=keep.device) for _ in chunk.keys[:-1])
    return chunk.select(keep, below=[_most_significant(chunk, scores, keep, 1) for scores in noise])


def per_layer_top_k(chunk: Chunk, keep: Tensor, pooling: int) -> Chunk:
    """Every layer below keeps as many tokens, the most significant of its own by what it scored when it ran."""
    return chunk.select(keep, below=[_most_significant(chunk, s, keep, pooling) for s in chunk.layer_scores[:-1]])


def _most_significant(chunk: Chunk, scores: Tensor, keep: Tensor, pooling: int) -> Tensor:
    """Indices (B, n) by scores (B, S), as many as in `keep` (B, n)."""
    p, s = chunk.prefix_len, chunk.suffix_len
    return keep_most_significant(pool(scores[:, p : scores.shape[1] - s], pooling), p, s, keep.shape[1])


REFINEMENTS: dict[str, Refinement] = {
    "propagative": propagative,
    "none": none,
    "random": random,
    "per_layer_top_k": per_layer_top_k,
}
