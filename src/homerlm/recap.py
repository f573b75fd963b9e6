"""The most significant passages once more, right before the question: what is read last is read best."""

from __future__ import annotations

from itertools import groupby

import torch

from homerlm.chunk import Chunk
from homerlm.significance import keep_most_significant, pool


def with_recap(chunk: Chunk, count: int, pooling: int) -> Chunk:
    """The scored chunk with its `count` most significant context tokens repeated in front of the suffix.

    Neighbours in the document stay together as a passage, in their order; the passages stand by rising significance,
    so that the best one is next to the question. Not in the paper (docs/experiments.md).
    """
    p, s, length = chunk.prefix_len, chunk.suffix_len, len(chunk)
    count = min(count, length - p - s)
    if count <= 0:
        return chunk
    assert chunk.scores is not None
    chosen = keep_most_significant(chunk.scores, p, s, p + s + count, pooling)[:, p : p + count]
    heights = pool(chunk.scores[:, p : length - s], pooling).gather(1, chosen - p)
    places = chunk.token_indices.gather(1, chosen)
    rows = [_by_rising_height(*row) for row in zip(chosen.tolist(), places.tolist(), heights.tolist(), strict=True)]
    whole = torch.arange(length, device=chosen.device).expand(len(rows), -1)
    again = torch.tensor(rows, device=chosen.device)
    return chunk.select(torch.cat([whole[:, : length - s], again, whole[:, length - s :]], dim=1))


def _by_rising_height(tokens: list[int], places: list[int], heights: list[float]) -> list[int]:
    """The tokens, each run of neighbouring `places` together, the runs by their highest height."""
    order = range(len(tokens))
    runs = [[i for i, _ in run] for _, run in groupby(zip(order, places, strict=True), key=lambda at: at[1] - at[0])]
    runs.sort(key=lambda run: max(heights[i] for i in run))
    return [tokens[i] for run in runs for i in run]
