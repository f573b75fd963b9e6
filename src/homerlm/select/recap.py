"""The most significant passages once more, right before the question: what is read last is read best."""

from __future__ import annotations

from itertools import accumulate, groupby

import torch

from homerlm.merge.chunk import Chunk


def with_recap(chunk: Chunk, room: int) -> Chunk:
    """The scored chunk with its most significant context passages, `room` tokens at most, repeated in front of the
    suffix by rising significance, so that the best one is next to the question.

    A passage is a run of tokens that are neighbours in the document, or the best `room` of them. The best passage
    always comes, others while they fit as a whole: half a number misleads. Rows of a batch repeat as many tokens as
    the row that repeats most. Not in the paper (docs/experiments.md).
    """
    p, s, length = chunk.prefix_len, chunk.suffix_len, len(chunk)
    if room <= 0 or length == p + s:
        return chunk
    assert chunk.scores is not None
    scores, places = (t[:, p : length - s].tolist() for t in (chunk.scores, chunk.token_indices))
    rows = [_passages(*row, room) for row in zip(scores, places, strict=True)]
    count = max(_fitting(passages, room) for passages in rows)
    device = chunk.position_ids.device
    again = torch.tensor([_rising(passages, row, count) for passages, row in zip(rows, scores, strict=True)]) + p
    whole = torch.arange(length, device=device).expand(len(rows), -1)
    return chunk.select(torch.cat([whole[:, : length - s], again.to(device), whole[:, length - s :]], dim=1))


def _passages(scores: list[float], places: list[int], room: int) -> list[list[int]]:
    """Indices of each run of neighbouring `places`, at most `room` of them, the most significant run first."""
    order = range(len(places))
    runs = [[i for i, _ in run] for _, run in groupby(zip(order, places, strict=True), key=lambda at: at[1] - at[0])]
    runs.sort(key=lambda run: max(scores[i] for i in run), reverse=True)
    return [_densest(run, scores, room) for run in runs]


def _densest(run: list[int], scores: list[float], width: int) -> list[int]:
    """The `width` neighbours of a run that have the highest scores together, or all of a shorter one."""
    width = min(width, len(run))
    sums = [0.0, *accumulate(scores[i] for i in run)]
    start = max(range(len(run) - width + 1), key=lambda at: sums[at + width] - sums[at])
    return run[start : start + width]


def _fitting(passages: list[list[int]], room: int) -> int:
    """Tokens of the first passages that fit into `room` as a whole."""
    return max(total for total in accumulate(map(len, passages)) if total <= room)


def _rising(passages: list[list[int]], scores: list[float], count: int) -> list[int]:
    """The first `count` tokens of the passages, the last passage cut if it must be, the best passage last."""
    chosen: list[list[int]] = []
    for passage in passages:
        if left := count - sum(map(len, chosen)):
            chosen.append(_densest(passage, scores, left))
    return [i for passage in reversed(chosen) for i in passage]
