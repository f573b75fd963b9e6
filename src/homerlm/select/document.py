"""A document as the choice knows it: its tokens, and the sentences they are kept in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 1 << 14  # tokens that are searched at once
Run = tuple[int, ...]  # ids that follow each other


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Document:
    """Token ids (C,) of a document, or of several one after the other; they may lie in a mapped file and are looked at
    block by block.

    starts: (U,) the first token of each unit (sentence), which is kept or dropped as a whole; none where sentences are
    not known. texts: (D,) the first token of each document, of several.
    """

    ids: Tensor
    starts: Tensor = field(default_factory=_none)
    texts: Tensor = field(default_factory=_none)

    def at(self, places: Tensor) -> Tensor:
        """(n,) ids at `places` (n,), on their device."""
        return self.ids[places.to(self.ids.device)].long().to(places.device)

    def apart(self, places: Tensor) -> Tensor:
        """`places` (n,) moved so that those of two documents are never neighbours."""
        return places + torch.searchsorted(self.texts, places.cpu(), right=True).to(places.device)

    def units_of(self, places: Tensor) -> Tensor:
        """(n,) the number of the unit that the token at each of `places` (n,) is in."""
        return torch.searchsorted(self.starts, places.cpu(), right=True) - 1

    def span(self, unit: int) -> tuple[int, int]:
        """Tokens `[start, stop)` of a unit."""
        return int(self.starts[unit]), int(self.starts[unit + 1]) if unit + 1 < len(self.starts) else len(self.ids)

    def tokens_of(self, units: Iterable[int]) -> Tensor:
        """(n,) places of the units' tokens."""
        return torch.cat([_none(), *(torch.arange(*self.span(unit)) for unit in units)])

    def units_with(self, runs: Sequence[Run], most: int) -> Iterator[list[tuple[int, int]]]:
        """Which of the runs of ids stands in which unit: both their numbers, block by block. A run that more than
        `most` units were found for is looked for no further."""
        by_first: defaultdict[int, list[int]] = defaultdict(list)
        for number, run in enumerate(runs):
            by_first[run[0]].append(number)
        seen, longest = Counter[int](), max(map(len, runs), default=1)
        for start in range(0, len(self.ids) if runs else 0, BLOCK):
            block = self.ids[start : start + BLOCK + longest - 1].long()
            found = self._units_with(block, start, runs, by_first)
            yield found
            seen.update(number for number, _ in found)
            for number in {number for number, _ in found if seen[number] > most}:
                by_first[runs[number][0]].remove(number)

    def _units_with(
        self, block: Tensor, start: int, runs: Sequence[Run], by_first: Mapping[int, Sequence[int]]
    ) -> list[tuple[int, int]]:
        """Numbers of runs, of those by their first id, and of the units that they stand in, of runs that begin among
        the first `BLOCK` ids of a block."""
        firsts = torch.tensor([first for first, numbers in by_first.items() if numbers], dtype=torch.long)
        ids = block.tolist()
        found = {
            (number, start + at, start + at + len(runs[number]) - 1)
            for at in torch.isin(block[:BLOCK], firsts).nonzero()[:, 0].tolist()
            for number in by_first[ids[at]]
            if tuple(ids[at : at + len(runs[number])]) == runs[number]
        }
        number, first, last = torch.tensor(sorted(found), dtype=torch.long).view(-1, 3).T.contiguous()
        unit = self.units_of(first)
        inside = unit == self.units_of(last)
        return sorted(set(zip(number[inside].tolist(), unit[inside].tolist(), strict=True)))
