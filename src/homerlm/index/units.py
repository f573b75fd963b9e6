"""The significance of an index's units, summed block by block, and the tokens of the best."""

from __future__ import annotations

import torch
from torch import Tensor

from homerlm.score.neighbours import best_beside


class UnitScores:
    """The significance of units that begin at `starts` (U,) of so many tokens: as `unit_significance`, with one number
    for each unit instead of each token."""

    def __init__(self, starts: Tensor, tokens: int) -> None:
        self.starts = starts
        self.sizes = torch.diff(starts, append=torch.tensor([tokens]))
        self.sums = torch.zeros(len(starts), dtype=torch.float64)  # so that the order of the blocks makes no difference

    def add(self, first: int, scores: Tensor) -> None:
        """Scores (C,) of the tokens from `first` on."""
        places = torch.arange(first, first + len(scores))
        self.sums.index_add_(0, torch.searchsorted(self.starts, places, right=True) - 1, scores.double())


def significance_of(sums: Tensor, sizes: Tensor, joined: Tensor, share: float) -> Tensor:
    """(U,) of units that follow each other, whose tokens, of which there are `sizes` (U,), have scores of these `sums`
    (U,). joined: (U,), whether a unit begins where the one before it ends; share: as for `unit_significance`."""
    scores = sums.float() / sizes.sqrt()
    return scores + share * best_beside(scores, joined)


def best_units(significance: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Indices (n,) of the best of some units, of significance and sizes (U,), the best first, as many as have `count`
    tokens. Ties go to the earlier unit."""
    order = significance.argsort(descending=True, stable=True)
    filled = sizes[order].cumsum(0)
    return order[: int(torch.searchsorted(filled, torch.tensor(count))) + 1]


def tokens_of(starts: Tensor, sizes: Tensor, count: int) -> Tensor:
    """(count,) ascending: the tokens of units that begin at `starts` (n,), of which the last is cut."""
    inside = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return (starts.repeat_interleave(sizes) + inside)[:count].sort().values
