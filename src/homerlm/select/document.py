"""A document as the choice knows it: its tokens, and the sentences they are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 1 << 14  # tokens that are searched at once


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

    def pairs_of(self, unit: int) -> Tensor:
        """(n,) the unit's pairs of neighbouring tokens, as a number each."""
        return pairs(self.ids[slice(*self.span(unit))])

    def units_with(self, wanted: Tensor) -> Iterator[list[tuple[int, int]]]:
        """Which of the pairs `wanted` (n,), ascending, stands in which unit: both their numbers, block by block."""
        for start in range(0, len(self.ids) - 1, BLOCK):
            found = pairs(self.ids[start : start + BLOCK + 1])
            number = torch.searchsorted(wanted, found).clamp(max=len(wanted) - 1)
            at = (wanted[number] == found).nonzero()[:, 0]
            unit = self.units_of(at + start)
            inside = unit == self.units_of(at + start + 1)
            yield [(pair, unit) for pair, unit in torch.stack([number[at], unit])[:, inside].unique(dim=1).T.tolist()]


def pairs(ids: Tensor) -> Tensor:
    """(C - 1,) the pairs of neighbouring ids (C,), as a number each."""
    ids = ids.long()
    return (ids[:-1] << 32) | ids[1:]
