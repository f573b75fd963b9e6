"""Sentences that chosen ones lead to: those that share a rare word with them which the question does not know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from math import log

import torch

from homerlm.select.document import Document, pairs

RARE = 3  # units of a document that a rare pair of tokens stands in, at most
ROUNDS = 4  # what is linked leads on
EACH_ROUND = 3  # units
SOURCES = 4  # of the chosen units, the first ones


class Links:
    """A document's units by the rare pairs of neighbouring tokens in them: a name is seldom one token. known: ids of
    the question, whose pairs lead nowhere."""

    def __init__(self, document: Document, known: Sequence[int]) -> None:
        self._document = document
        self._known = set(pairs(torch.tensor(known)).tolist())
        self._places: dict[int, set[int]] = {}  # of each pair that was searched for: units
        self._pairs: dict[int, set[int]] = {}  # of each unit that was asked for

    def of(self, chosen: Iterable[int]) -> Generator[None, None, list[int]]:
        """Other units that share rare pairs with the chosen ones, the strongest link first: the sum of what each pair
        tells, in nats. Pauses after each block of the document."""
        chosen = set(chosen)
        yield from self._search(chosen)
        strength: defaultdict[int, float] = defaultdict(float)
        for pair in sorted(set[int]().union(*(self._pairs[unit] for unit in chosen))):
            places = self._places[pair]
            for unit in places - chosen if len(places) <= RARE else ():
                strength[unit] += log(len(self._document.starts) / len(places))
        return sorted(strength, key=lambda unit: (-strength[unit], unit))

    def follow(self, sources: Sequence[int], kept: Iterable[int], room: int) -> Generator[None, None, list[int]]:
        """Units that lead on from the sources, round by round, none of the `kept` ones, of at most `room` tokens.
        Pauses as `of`."""
        reached, kept, found = set(sources[:SOURCES]), set(kept), []
        for _ in range(ROUNDS):
            new = (yield from self.of(reached))[:EACH_ROUND]
            for unit in new:
                start, stop = self._document.span(unit)
                if unit not in kept and stop - start <= room:
                    found.append(unit)
                    room -= stop - start
            if not new:
                break
            reached.update(new)
        return sorted(found)

    def _search(self, units: Iterable[int]) -> Generator[None, None, None]:
        """Find out where else the pairs of these units stand."""
        for unit in set(units) - self._pairs.keys():
            self._pairs[unit] = set(self._document.pairs_of(unit).tolist()) - self._known
        new = sorted(set[int]().union(*(self._pairs[unit] for unit in units)) - self._places.keys())
        if new:
            self._places.update({pair: set() for pair in new})
            for found in self._document.units_with(torch.tensor(new)):
                for number, unit in found:
                    self._places[new[number]].add(unit)
                yield
