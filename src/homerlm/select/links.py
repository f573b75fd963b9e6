"""Sentences that chosen ones lead to: they share a rare word with them that the question does not know, and the model's
heads find them when the chosen ones are a part of the question. Not in the paper."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from math import log

from torch import Tensor

from homerlm.passes import Event, pausing
from homerlm.select.document import Document
from homerlm.select.reading import Reading
from homerlm.select.words import Words

RARE = 20  # units of a document that a rare word stands in, at most
ROUNDS = 4  # what is linked leads on
EACH_ROUND = 6  # units, at most
SOURCES = 4  # of the chosen units, the first ones
SHARE = 0.3  # of the best unit's significance, what one that it leads to needs
ASKING = 128  # tokens of chosen units that become a part of the question, at most


class Links:
    """A document's units by the rare words in them. known: ids (n,) of the question, whose words lead nowhere."""

    def __init__(self, document: Document, words: Words, known: Tensor) -> None:
        self._document, self._words = document, words
        self._known = words.of(known).keys()
        self._places: dict[str, set[int]] = {}  # of each word that was searched for: units
        self._of_unit: dict[int, set[str]] = {}  # words of each unit that was asked for

    def of(self, chosen: Iterable[int]) -> Generator[None, None, list[int]]:
        """Other units that share rare words with the chosen ones, the strongest link first: the sum of what each word
        tells, in nats. Pauses after each block of the document."""
        chosen = set(chosen)
        yield from self._search(chosen)
        strength: defaultdict[int, float] = defaultdict(float)
        for word in sorted(set[str]().union(*(self._of_unit[unit] for unit in chosen))):
            places = self._places[word]
            for unit in places - chosen if len(places) <= RARE else ():
                strength[unit] += log(len(self._document.starts) / len(places))
        return sorted(strength, key=lambda unit: (-strength[unit], unit))

    def _search(self, units: Iterable[int]) -> Generator[None, None, None]:
        """Find out where else the words of these units stand."""
        new: dict[str, str] = {}
        for unit in set(units) - self._of_unit.keys():
            found = self._words.of(self._document.ids[slice(*self._document.span(unit))])
            self._of_unit[unit] = found.keys() - self._known
            new |= {word: found[word] for word in self._of_unit[unit] - self._places.keys()}
        self._places.update({word: set() for word in new})
        runs = {run: word for word, written in zip(new, self._words.runs(new.values()), strict=True) for run in written}
        of_run = list(runs.values())
        for places in self._document.units_with(list(runs), RARE):
            for number, unit in places:
                self._places[of_run[number]].add(unit)
            yield


@dataclass(frozen=True)
class Following:
    """What a document's best units lead to, round by round: in each, those that are reached are put before the
    question, and the units that they are linked to are read and scored by it, beside what is kept anyway.

    reading: of one row; to be used inside the decoder's session. best: the significance of the best unit.
    """

    reading: Reading
    document: Document
    links: Links
    best: float

    def follow(self, sources: Sequence[int], kept: Iterable[int], room: int) -> Generator[Event, None, list[int]]:
        """Units that lead on from the sources, none of the `kept` ones, of at most `room` tokens, ascending. All rounds
        together read no more than a reranking does. Pauses between blocks of the document and between passes."""
        plan, reached, found = self.reading.plan, list(sources[:SOURCES]), list[int]()
        known = dict.fromkeys(kept)
        others = [unit for unit in known if unit not in sources]
        left = plan.candidate_room
        for _ in range(ROUNDS):
            linked = yield from pausing(self.links.of(reached), plan.pause)
            reading = self.reading.asking(self.document.at(self._tokens(self._fitting(reached, ASKING))))
            read = self._fitting(dict.fromkeys([*linked, *others]), min(left, reading.plan.candidate_room))
            left -= self._size(read)
            asked_for = yield from self._asked_for(reading, read, set(linked) & set(read))
            new = self._fitting((unit for unit in asked_for if unit not in known), room - self._size(found))
            if not new and known.keys().isdisjoint(asked_for):
                break
            found += new
            reached += asked_for
        return sorted(found)

    def _asked_for(
        self, reading: Reading, read: Iterable[int], linked: Iterable[int]
    ) -> Generator[Event, None, list[int]]:
        """The linked ones of the units that are read, those that the question asks for, the best first."""
        if not linked:
            return []
        places = self._tokens(read)
        ids = self.document.at(places)
        scores = yield from reading.scoring(ids[None].to(reading.decoder.device), reading.plan.reranking)
        ranked = reading.ranking.reranked(scores[0].cpu(), ids, self.document.apart(places))
        of_unit = dict(zip(self.document.units_of(places).tolist(), ranked.tolist(), strict=True))
        asked_for = [unit for unit in linked if of_unit[unit] > SHARE * self.best]
        return sorted(asked_for, key=lambda unit: (-of_unit[unit], unit))[:EACH_ROUND]

    def _fitting(self, units: Iterable[int], room: int) -> list[int]:
        """Those of the units that fit into `room` tokens, the first ones first."""
        found: list[int] = []
        for unit in units:
            size = self._size([unit])
            if size <= room:
                found.append(unit)
                room -= size
        return found

    def _size(self, units: Iterable[int]) -> int:
        return sum(stop - start for start, stop in map(self.document.span, units))

    def _tokens(self, units: Iterable[int]) -> Tensor:
        """(n,) places of the units' tokens, in the document's order."""
        return self.document.tokens_of(sorted(units))
