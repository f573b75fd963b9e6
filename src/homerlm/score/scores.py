"""Scores of a chunk's tokens from what one layer attends to (docs/method.md, "Token reduction").

A score is a function of some queries' `Attention` that returns one float32 tensor (B, N, S), N heads or 1, higher for
tokens to keep, and a word on how the queries are joined. A new one is a function and a row in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from homerlm.score.attention import Attention

LEAST_SHARE = 0.01
NEUTRAL_WEIGHT = 1.5  # of a neutral question's scores, which are taken off (docs/experiments.md)


@dataclass(frozen=True)
class Score:
    """of_queries: (B, N, S) of a block of queries, their sum or their maximum; joined: what becomes of all of them;
    shares: whether scores are attention weights, at least 0.
    Called, it gives the scores (B, S), their maximum over N."""

    of_queries: Callable[[Attention], Tensor]
    joined: Literal["mean", "max"] = "mean"
    calibrated: bool = False
    shares: bool = True

    def __call__(self, attention: Attention) -> Tensor:
        return self.by_head(attention).amax(1)

    def by_head(self, attention: Attention) -> Tensor:
        """(B, N, S) float32 scores, a block of queries at a time."""
        parts = (self.of_queries(block) for block in attention.blocks())
        total = reduce(torch.maximum if self.joined == "max" else torch.add, parts)
        return total if self.joined == "max" else total / attention.queries.shape[2]

    def above_neutral(self, asked: Tensor, usual: Tensor) -> Tensor:
        """(B, N, S) what a question's scores (B, N, S) are above those of a neutral question over the same tokens: what
        every question attends to tells nothing about this one (docs/experiments.md). Attention weights keep a small
        share of themselves at least, which ranks the tokens that no question stands out at."""
        contrast = asked - NEUTRAL_WEIGHT * usual
        return torch.maximum(contrast, LEAST_SHARE * asked) if self.shares else contrast


def logit(attention: Attention) -> Tensor:
    """Maximum over heads of the raw logit, mean over queries: "attention without calibration" of table 4a."""
    return attention.logits().amax(1).sum(1, keepdim=True)


def calibrated_logit(attention: Attention) -> Tensor:
    """The paper's score (section 3.2): maximum over heads, minus what a token at that distance usually gets.

    With more than one query the calibrated logits are averaged over them.
    """
    assert attention.bias is not None
    distances = attention.distances()
    bias = attention.bias.to(distances.device)[distances]
    return (attention.logits().amax(1) - bias).sum(1, keepdim=True)


def softmax(attention: Attention) -> Tensor:
    """Attention weight, mean over queries, maximum over heads. Needs no calibration: the softmax already discounts
    what a head gives to every token."""
    return attention.probabilities().sum(2)


def peak_softmax(attention: Attention) -> Tensor:
    """Attention weight, maximum over queries and heads: one word of the question with a match is enough."""
    return attention.probabilities().amax(2)


def mean_square(attention: Attention) -> Tensor:
    """Square of the attention weight's maximum over heads, mean over queries: several words of the question that find
    a match count for more than one, a strong match for more than many weak ones (docs/experiments.md)."""
    return attention.probabilities().amax(1).square().sum(1, keepdim=True)


def random(attention: Attention) -> Tensor:
    """Uniform noise from torch's global generator: the baseline of table 4a."""
    return torch.rand(attention.position_ids.shape, device=attention.position_ids.device)[:, None]


SCORES: dict[str, Score] = {
    "calibrated_logit": Score(calibrated_logit, calibrated=True, shares=False),
    "logit": Score(logit, shares=False),
    "softmax": Score(softmax),
    "peak_softmax": Score(peak_softmax, joined="max"),
    "mean_square": Score(mean_square),
    "random": Score(random, joined="max"),
}
