"""The most significant passages once more, right before the question: what is read last is read best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby


def recap(scores: Sequence[float], places: Sequence[int], room: int) -> list[int]:
    """Indices of the most significant passages' tokens, `room` at most, by rising significance, so that the best one
    is next to the question. scores, places: of the kept tokens, and where in the document they are.

    A passage is a run of tokens that are neighbours in the document, or the best `room` of them. The best passage
    always comes, others while they fit as a whole: half a number misleads. Not in the paper (docs/experiments.md).
    """
    if room <= 0 or not places:
        return []
    passages = _passages(scores, places, room)
    fitting = [total for total in accumulate(map(len, passages)) if total <= room]
    return [i for passage in reversed(passages[: len(fitting)]) for i in passage]


def _passages(scores: Sequence[float], places: Sequence[int], room: int) -> list[list[int]]:
    """Indices of each run of neighbouring `places`, at most `room` of them, the most significant run first."""
    order = range(len(places))
    runs = [[i for i, _ in run] for _, run in groupby(zip(order, places, strict=True), key=lambda at: at[1] - at[0])]
    runs.sort(key=lambda run: max(scores[i] for i in run), reverse=True)
    return [_densest(run, scores, room) for run in runs]


def _densest(run: list[int], scores: Sequence[float], width: int) -> list[int]:
    """The `width` neighbours of a run that have the highest scores together, or all of a shorter one."""
    width = min(width, len(run))
    sums = [0.0, *accumulate(scores[i] for i in run)]
    start = max(range(len(run) - width + 1), key=lambda at: sums[at + width] - sums[at])
    return run[start : start + width]
