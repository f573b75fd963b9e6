"""Sentences that chosen ones lead to: those that share a rare word with them which the question does not know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log

RARE = 3  # units of a document that a rare pair of tokens stands in, at most
ROUNDS = 4  # what is linked leads on
EACH_ROUND = 3  # units
SOURCES = 4  # of the chosen units, the first ones

Pair = tuple[int, int]


class Links:
    """A document's units by the rare pairs of neighbouring tokens in them: a name is seldom one token. ids, units: (C,)
    lists, the tokens and the unit of each; known: the question's ids, whose pairs lead nowhere."""

    def __init__(self, ids: Sequence[int], units: Sequence[int], known: Sequence[int]) -> None:
        asked = set(pairwise(known))
        places: defaultdict[Pair, set[int]] = defaultdict(set)
        for pair, (unit, following) in zip(pairwise(ids), pairwise(units), strict=True):
            if unit == following and pair not in asked:
                places[pair].add(unit)
        self._sizes = Counter(units)
        self._rare = {pair: at for pair, at in places.items() if 1 < len(at) <= RARE}
        self._pairs: defaultdict[int, list[Pair]] = defaultdict(list)
        for pair, at in self._rare.items():
            for unit in at:
                self._pairs[unit].append(pair)

    def of(self, chosen: Iterable[int]) -> list[int]:
        """Other units that share rare pairs with the chosen ones, the strongest link first: the sum of what each pair
        tells, in nats."""
        chosen, total = set(chosen), len(self._sizes)
        strength: defaultdict[int, float] = defaultdict(float)
        for pair in {pair for unit in chosen for pair in self._pairs[unit]}:
            for unit in self._rare[pair] - chosen:
                strength[unit] += log(total / len(self._rare[pair]))
        return sorted(strength, key=lambda unit: (-strength[unit], unit))

    def follow(self, sources: Sequence[int], kept: Iterable[int], room: int) -> list[int]:
        """Units that lead on from the sources, round by round, none of the `kept` ones, of at most `room` tokens."""
        reached, kept, found = set(sources[:SOURCES]), set(kept), []
        for _ in range(ROUNDS):
            new = self.of(reached)[:EACH_ROUND]
            for unit in new:
                if unit not in kept and self._sizes[unit] <= room:
                    found.append(unit)
                    room -= self._sizes[unit]
            if not new:
                break
            reached.update(new)
        return sorted(found)
