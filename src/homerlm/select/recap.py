"""The leading units once more, right before the question: what is read last, and often, is read best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, takewhile

from homerlm.score.neighbours import share_of_best

LEADING = 0.7  # of the highest score, that a unit reaches to lead
ROUNDS = 3  # of the leading units, at most


def recap(scores: Sequence[float], units: Sequence[int], room: int) -> list[int]:
    """Indices of the leading units' tokens, `room` at most, by rising score, so that the best one is next to the
    question, and over and over: up to `ROUNDS` times while all of them fit. scores, units: of the kept tokens, and the
    ascending number of the unit (sentence, or run of neighbours) that each is in.

    A unit counts as much as its best token. The best one always comes, or the best `room` tokens of it; others that
    reach `LEADING` of its score come while they fit as a whole: half a number misleads. One fact that was asked for so
    stands alone and often, where of several each comes once. Not in the paper (docs/experiments.md).
    """
    if room <= 0 or not units:
        return []
    leading = _leading(scores, units, room)
    fitting = [total for total in accumulate(map(len, leading)) if total <= room]
    once = [i for unit in reversed(leading[: len(fitting)]) for i in unit]
    return once * min(ROUNDS, room // len(once))


def _leading(scores: Sequence[float], units: Sequence[int], room: int) -> list[list[int]]:
    """Indices of each leading unit, at most `room` of them, the best unit first."""
    groups = [list(group) for _, group in groupby(range(len(units)), key=units.__getitem__)]
    best = sorted(((max(scores[i] for i in group), group) for group in groups), key=lambda unit: -unit[0])
    least = share_of_best(best[0][0], LEADING)
    return [_densest(group, scores, room) for _, group in takewhile(lambda unit: unit[0] >= least, best)]


def _densest(unit: list[int], scores: Sequence[float], width: int) -> list[int]:
    """The `width` neighbours in a unit that have the highest scores together, or all of a shorter one."""
    width = min(width, len(unit))
    sums = [0.0, *accumulate(scores[i] for i in unit)]
    start = max(range(len(unit) - width + 1), key=lambda at: sums[at + width] - sums[at])
    return unit[start : start + width]
