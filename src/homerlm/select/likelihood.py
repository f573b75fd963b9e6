"""The question asked behind each of the best sentences: which of them make it likely, for the choice and for the cut.

Not in the paper (docs/experiments.md)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.passes import Event
from homerlm.score.neighbours import best_beside, log_share_above, top_tokens
from homerlm.select.reading import Reading

CHOICE_WEIGHT = 1.0  # of the likelihood's rank, beside the rank of what was read (docs/experiments.md)
CUT_WEIGHT = 0.2  # of it at the cut, beside what the reranking finds


@dataclass(frozen=True)
class Candidates:
    """places: (B, n) ascending, where in the document they are; above: (B, n) logarithms of the share of what the
    question was asked behind that makes it likelier than the sentence of each does, None where it was not asked."""

    places: Tensor
    above: Tensor | None = None

    def row(self, row: int) -> Candidates:
        """Of one row, without its dimension."""
        return Candidates(self.places[row], None if self.above is None else self.above[row])

    def weighted(self, scores: Tensor) -> Tensor:
        """Scores (n,) of one row's, those of likely sentences raised."""
        if self.above is None:
            return scores
        weight = torch.exp(-CUT_WEIGHT * self.above.to(scores.device))
        return torch.where(scores > 0, scores * weight, scores / weight)


def likely(reading: Reading, ranked: Tensor, places: Tensor, count: int) -> Generator[Event, None, Candidates]:
    """The best (B, count) of the context, at places (B, C) and of significance (B, C), by that and by how likely the
    question is right behind each sentence: a reading's, with its pauses."""
    rows = []
    for row, one in enumerate(ranked):
        rows.append((yield from _row(reading.of_row(row), one, places[row])))
    by_ranks, above = (torch.stack(parts) for parts in zip(*rows, strict=True))
    best = top_tokens(by_ranks, count)
    return Candidates(places.gather(1, best), above.gather(1, best))


def _row(reading: Reading, ranked: Tensor, places: Tensor) -> Generator[Event, None, tuple[Tensor, Tensor]]:
    """Of one row's tokens (C,): significance by both ranks, and the logarithms of the shares above them. A sentence
    gains a share of what the better one beside it has above the mean, as it does of the significance."""
    ids = reading.context_ids
    units = reading.ranking.units(ids, places[None])[0]
    sizes = units.bincount()
    first = sizes.cumsum(0) - sizes
    by_unit = ranked[first]
    order = by_unit.argsort(descending=True, stable=True)
    asked = reading.asked
    best = order[(sizes[order] + len(asked)).cumsum(0) <= reading.plan.asked_len]
    texts = ids[0].split(sizes.tolist())
    likelihoods = (yield from reading.likelihoods([texts[unit] for unit in best.tolist()], asked)).to(ids.device)
    whole = torch.zeros(len(sizes), device=ids.device)
    whole[best] = likelihoods - likelihoods.mean()
    joined = torch.nn.functional.pad(places[first[1:]] == places[first[1:] - 1] + 1, (1, 0))
    whole += reading.plan.config.neighbour_share * best_beside(whole, joined)
    above = torch.zeros_like(whole)
    above[best] = log_share_above(whole[best], sizes[best])
    return -(log_share_above(by_unit, sizes) + CHOICE_WEIGHT * above)[units], above[units]
