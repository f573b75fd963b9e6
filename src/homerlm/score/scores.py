"""Which tokens matter: scores of a chunk's tokens from what its last layer attends to, and the choice (SPEC 4).

A score takes an `Attention` and returns one float32 tensor (B, S), higher for tokens to keep. A new one is a function
and a row in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Attention:
    """What a chunk's last queries see at one layer.

    queries: (B, H, Q, D), RoPE applied, of the chunk's last Q tokens; keys: (B, K, S, D), RoPE applied;
    position_ids: (B, S); scaling: the model's factor on the logits, 1/sqrt(D) in the paper's models;
    bias: (distances,) float32 expected logit at each distance (see calibration), or None.
    """

    queries: Tensor
    keys: Tensor
    position_ids: Tensor
    scaling: float
    bias: Tensor | None = None

    def logits(self) -> Tensor:
        """(B, H, Q, S) float32 attention logits before any mask."""
        b, h, q, d = self.queries.shape
        grouped = self.queries.float().reshape(b, self.keys.shape[1], -1, d)  # (B, K, H/K * Q, D)
        scores = grouped @ self.keys.float().transpose(-1, -2)
        return (scores * self.scaling).view(b, h, q, -1)

    def distances(self) -> Tensor:
        """(B, Q, S) position of each query minus position of each key, at least 0."""
        queries = self.position_ids[:, -self.queries.shape[2] :]
        return (queries[:, :, None] - self.position_ids[:, None, :]).clamp(min=0)


Score = Callable[[Attention], Tensor]


def logit(attention: Attention) -> Tensor:
    """Maximum over heads of the raw logit, mean over queries: "attention without calibration" of table 4a."""
    return attention.logits().amax(1).mean(1)


def calibrated_logit(attention: Attention) -> Tensor:
    """The paper's score (section 3.2): maximum over heads, minus what a token at that distance usually gets.

    With more than one query the calibrated logits are averaged over them.
    """
    assert attention.bias is not None
    distances = attention.distances()
    bias = attention.bias.to(distances.device)[distances]
    return (attention.logits().amax(1) - bias).mean(1)


def softmax(attention: Attention) -> Tensor:
    """Attention probability, mean over queries, maximum over heads. Needs no calibration: the softmax already
    discounts what a head gives to every token."""
    return _probabilities(attention).mean(2).amax(1)


def peak_softmax(attention: Attention) -> Tensor:
    """Attention probability, maximum over queries and heads: one word of the question with a match is enough."""
    return _probabilities(attention).amax(dim=(1, 2))


def mean_square(attention: Attention) -> Tensor:
    """Square of the attention probability's maximum over heads, mean over queries: several words of the question that
    find a match count for more than one, a strong match for more than many weak ones (docs/experiments.md)."""
    return _probabilities(attention).amax(1).square().mean(1)


def random(attention: Attention) -> Tensor:
    """Uniform noise from torch's global generator: the floor of table 4a."""
    return torch.rand(attention.position_ids.shape, device=attention.position_ids.device)


def _probabilities(attention: Attention) -> Tensor:
    """(B, H, Q, S) float32 causal attention probabilities of the queries."""
    logits = attention.logits()
    q, s = logits.shape[-2:]
    future = torch.ones(q, s, dtype=torch.bool, device=logits.device).triu(s - q + 1)
    return logits.masked_fill(future, float("-inf")).softmax(-1)


SCORES: dict[str, Score] = {
    "calibrated_logit": calibrated_logit,
    "logit": logit,
    "softmax": softmax,
    "peak_softmax": peak_softmax,
    "mean_square": mean_square,
    "random": random,
}
CALIBRATED_SCORES = frozenset({"calibrated_logit"})


def pool(scores: Tensor, width: int) -> Tensor:
    """Maximum over `width` neighbours (odd) of scores (B, S), so that numbers and names survive or go as a whole."""
    if width == 1 or scores.shape[1] == 0:
        return scores
    return torch.nn.functional.max_pool1d(scores[:, None], width, stride=1, padding=width // 2)[:, 0]


def pool_within(scores: Tensor, groups: Tensor, reach: int) -> Tensor:
    """Maximum over the neighbours of scores (B, S) that are at most `reach` away and of the same group (B, S)."""
    width, pad = 2 * reach + 1, torch.nn.functional.pad
    around = pad(scores, (reach, reach)).unfold(1, width, 1)  # (B, S, width)
    same = pad(groups, (reach, reach), value=-1).unfold(1, width, 1) == groups[..., None]
    return around.masked_fill(~same, float("-inf")).amax(-1)


def keep_most_significant(worth: Tensor, prefix_len: int, suffix_len: int, count: int) -> Tensor:
    """Ascending indices (B, count) of the tokens to keep of a chunk, whose context tokens are worth (B, C).

    The affixes always stay: only the context is ranked. Ties go to the earlier token.
    """
    batch, context_len = worth.shape
    ranked = worth.argsort(dim=1, descending=True, stable=True)[:, : count - prefix_len - suffix_len]
    kept = ranked.sort(dim=1).values + prefix_len
    ends = torch.arange(prefix_len + context_len + suffix_len, device=worth.device).expand(batch, -1)
    return torch.cat([ends[:, :prefix_len], kept, ends[:, prefix_len + context_len :]], dim=1)
