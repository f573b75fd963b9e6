"""The leading units once more, right before the question: what is read last, and often, is read best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby

from homerlm.score.neighbours import share_of_best

LEADING = 0.7  # of the highest score: a unit below it does not lead
BESIDE = 0.5  # of the highest score, that a unit reaches to come along where more than one leads
ROUNDS = 3  # of a unit that leads alone, at most


def recap(scores: Sequence[float], units: Sequence[int], room: int) -> list[int]:
    """Indices of the leading units' tokens, `room` at most. scores, units: of the kept tokens, and the ascending number
    of the unit (sentence, or run of neighbours) that each is in; a unit counts as much as its best token.

    One that leads alone comes up to `ROUNDS` times while it fits, or its best `room` tokens once. Where others reach
    `LEADING` of its score, several facts may be asked for: all units that reach `BESIDE` come once, the best first
    while they fit as a whole (half a number misleads), in the document's order: what is repeated more often than
    others would be the answer alone. Not in the paper (docs/experiments.md).
    """
    if room <= 0 or not units:
        return []
    best, *others = _by_best_token(scores, units)
    first = _densest(best[1], scores, room)
    if not others or others[0][0] < share_of_best(best[0], LEADING):
        return first * min(ROUNDS, room // len(first))
    least = share_of_best(best[0], BESIDE)
    beside = [unit for score, unit in others if score >= least]
    totals = accumulate(map(len, beside), initial=len(first))
    fitting = sum(total <= room for total in totals) - 1
    return [i for unit in sorted([first, *beside[:fitting]]) for i in unit]


def _by_best_token(scores: Sequence[float], units: Sequence[int]) -> list[tuple[float, list[int]]]:
    """The highest score and the indices of each unit, the best unit first."""
    groups = [list(group) for _, group in groupby(range(len(units)), key=units.__getitem__)]
    return sorted(((max(scores[i] for i in group), group) for group in groups), key=lambda unit: -unit[0])


def _densest(unit: list[int], scores: Sequence[float], width: int) -> list[int]:
    """The `width` neighbours in a unit that have the highest scores together, or all of a shorter one."""
    width = min(width, len(unit))
    sums = [0.0, *accumulate(scores[i] for i in unit)]
    start = max(range(len(unit) - width + 1), key=lambda at: sums[at + width] - sums[at])
    return unit[start : start + width]
