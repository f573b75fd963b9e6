"""The choice of few heads from what all heads gave to planted facts, in numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from homerlm.score.heads import Early, Head

CANDIDATES = 32  # heads that are looked at together: those that find most by themselves
MOST_HEADS = 8
COUNTS = (1, 2, 4, MOST_HEADS)
SHALLOW = 0.08  # of the loss: what a choice may lose for running fewer layers
EARLY_SHARES = (0.2, 0.3, 0.5)  # of a chunk's tokens that go on above the early heads
MOST_LOST = 0.015  # share of the facts that may be lost by that: one of 84
LEAST_SAVED = 0.1  # of a chunk's layers and tokens
DEPTH_PRICE = 0.02  # of a text: how much fewer tokens must be above the fact if all layers run that would not otherwise
SMALLEST_SHARE = 0.003  # of a text: a sentence of one in 300 tokens


@dataclass(frozen=True)
class Found:
    """What the heads gave to the units (sentences) of N texts. scores: (N, H, U), 0 where a text has fewer units;
    sizes: (N, U) tokens; asked: (N, U) True for units of the fact asked for; layers: (H,) of each head."""

    scores: Tensor
    sizes: Tensor
    asked: Tensor
    layers: Tensor

    @cached_property
    def alone(self) -> Tensor:
        """(H,) loss of each head by itself."""
        return loss(self.share_above(self.scores))

    def scored_by(self, heads: Sequence[Head]) -> Tensor:
        """(N, 1, U) of the units by some heads."""
        layers = self.layers.tolist()
        parts = [head.weight * self.scores[:, [layers.index(head.layer) + head.index]] for head in heads]
        return torch.stack(parts).sum(0)

    def of(self, texts: Sequence[int]) -> Found:
        chosen = list(texts)
        return Found(self.scores[chosen], self.sizes[chosen], self.asked[chosen], self.layers)

    def share_above(self, scores: Tensor) -> Tensor:
        """(N, K) share of each text's tokens in units that score above the worst unit of the fact, by scores
        (N, K, U); of equals, half."""
        worst = scores.masked_fill(~self.asked[:, None], float("inf")).amin(-1, keepdim=True)
        above = (scores > worst) + 0.5 * ((scores == worst) & ~self.asked[:, None])
        return (above * self.sizes[:, None]).sum(-1) / self.sizes.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Choice:
    """heads: with weights; shares: (N,) share above the fact in each text, where the heads were chosen on others."""

    heads: tuple[Head, ...]
    shares: Tensor

    @property
    def loss(self) -> float:
        return float(loss(self.shares[:, None]))


def loss(shares: Tensor) -> Tensor:
    """(K,) of the shares (N, K) above the facts: the logarithm's mean, in which a fact that comes second is much worse
    than one that comes first, and the mean, in which a fact that is lost counts as such."""
    return (shares + SMALLEST_SHARE).log10().mean(0) + 2 * shares.mean(0)


def choose_early(found: Found, reading: Choice, per_layer: int) -> Early | None:
    """What lets the most tokens leave a chunk before its last reading head, and loses few facts that the reading would
    have among as many tokens: tried at every depth, graded on texts that did not choose. None where nothing does."""
    last = max(head.layer for head in reading.heads)
    ways: list[tuple[float, float, Early]] = []
    for depth in sorted({int(layer) for layer in found.layers.unique() if layer < last}):
        for _, choice in _graded(found, _halves(found), depth, per_layer):
            for share in EARLY_SHARES:
                lost = float(((choice.shares > share) & (reading.shares <= share)).float().mean())
                run = depth + 1 + share * (last - depth)
                ways.append((run, choice.loss, Early(choice.heads, share, round(lost, 4))))
    fitting = [way for way in ways if way[2].lost <= MOST_LOST and way[0] <= (1 - LEAST_SAVED) * (last + 1)]
    return min(fitting, key=lambda way: way[:2])[2] if fitting else None


def choose_depth(
    about: Found, found: Found, heads: Sequence[Head], layers: int, joined: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[int, float] | None:
    """After how many layers of so many a sentence's embedding finds most beside some heads, and the mean share of a
    text above the fact by both, as `joined` makes one score (N, D, U) of two and the units' sizes. None where it brings
    nothing.

    Layers that would not run without it have their price; of those that run anyway the last is taken that is within a
    standard error of the best, since states of lower ones are of words, which heads find. found: what the heads gave;
    about: the units' closeness to what is asked for after each number of layers, in the place of heads.
    """
    run, by_heads = max(head.layer for head in heads) + 1, found.scored_by(heads)
    shares = about.share_above(joined(by_heads.expand_as(about.scores), about.scores, about.sizes[:, None]))
    costs = shares.mean(0) + DEPTH_PRICE * (about.layers - run + 1).clamp(min=0) / layers
    best = int(costs.argmin())
    if about.layers[best] < run:
        more = shares - shares[:, [best]]
        about_as_good = more.mean(0) <= more.std(0) / len(more) ** 0.5
        best = max(n for n in range(len(costs)) if about.layers[n] < run and about_as_good[n])
    brings = float(costs[best]) < float(about.share_above(by_heads).mean())
    return (best, float(shares[:, best].mean())) if brings else None


def choose(found: Found, per_layer: int) -> tuple[Choice, Choice]:
    """The heads for reading and for reranking. Every depth and number of heads is tried on half of the texts and
    graded on the other; for the reranking the best one counts, for reading the shallowest that is not much worse."""
    parts = _halves(found)
    tried = {
        (depth, count): choice
        for depth in sorted({int(layer) for layer in found.layers.unique()})
        for count, choice in _graded(found, parts, depth, per_layer)
    }
    best = min(tried.values(), key=lambda choice: choice.loss)
    shallow = min(
        (depth, choice.loss, count) for (depth, count), choice in tried.items() if choice.loss <= best.loss + SHALLOW
    )
    return tried[shallow[0], shallow[2]], best


def _halves(found: Found) -> list[tuple[Found, Found, list[int]]]:
    """Twice: texts to choose on, others to grade on, and which these are."""
    halves = [[i for i in range(len(found.scores)) if i // 2 % 2 == half] for half in (0, 1)]
    return [(found.of(own), found.of(other), other) for own, other in (halves, halves[::-1])]


def _graded(
    found: Found, parts: Sequence[tuple[Found, Found, list[int]]], depth: int, per_layer: int
) -> Iterator[tuple[int, Choice]]:
    """For each number of heads, those of the layers up to `depth`, chosen on all texts; graded by choices on half of
    them. parts: the texts to choose on, the others to grade on, and which these are."""
    picked, on_half = greedy(found, depth, MOST_HEADS), [greedy(own, depth, MOST_HEADS) for own, _, _ in parts]
    for count in COUNTS:
        shares = torch.empty(len(found.scores))
        for (_, graded, other), picks in zip(parts, on_half, strict=True):
            shares[other] = graded.share_above(graded.scores[:, picks[:count]].sum(1, keepdim=True))[:, 0]
        times = Counter(picked[:count])
        heads = (Head(int(found.layers[h]), h % per_layer, float(n)) for h, n in times.items())
        yield count, Choice(tuple(sorted(heads)), shares)


def greedy(found: Found, depth: int, count: int) -> list[int]:
    """Indices of heads, each the one that adds most to those before it; one that is taken twice counts double."""
    alone = found.alone.masked_fill(found.layers > depth, float("inf"))
    allowed = int((found.layers <= depth).sum())
    near = alone.argsort()[: min(CANDIDATES, allowed)]
    picked: list[int] = []
    together = torch.zeros_like(found.scores[:, :1])
    for _ in range(count):
        losses = loss(found.share_above(found.scores[:, near] + together))
        picked.append(int(near[losses.argmin()]))
        together = found.scores[:, picked].sum(1, keepdim=True)
    return picked
