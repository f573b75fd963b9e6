"""What a token's score does for the tokens around it, and the choice of those that stay."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from homerlm.score.sentences import Sentences

SENTENCE_REACH = 63  # tokens on each side of a match that its sentence can bring along
CLOSENESS_WEIGHT = 0.5  # of what a unit is about, beside what the heads find (docs/experiments.md)
_BLOCK = 1 << 14  # tokens whose neighbours are laid side by side at once
_Score = TypeVar("_Score", float, Tensor)


def pool(scores: Tensor, width: int) -> Tensor:
    """Maximum over `width` neighbours (odd) of scores (B, S), so that numbers and names survive or go as a whole."""
    if width == 1 or scores.shape[1] == 0:
        return scores
    return torch.nn.functional.max_pool1d(scores[:, None], width, stride=1, padding=width // 2)[:, 0]


def pool_within(scores: Tensor, groups: Tensor, reach: int) -> Tensor:
    """Maximum over the neighbours of scores (B, S) that are at most `reach` away and of the same group (B, S)."""
    width, pad = 2 * reach + 1, torch.nn.functional.pad
    scores, groups = pad(scores, (reach, reach)), pad(groups, (reach, reach), value=-1)
    parts = []
    for start in range(0, scores.shape[1] - 2 * reach, _BLOCK):
        stop = min(start + _BLOCK + 2 * reach, scores.shape[1])
        around = scores[:, start:stop].unfold(1, width, 1)  # (B, at most _BLOCK, width)
        group = groups[:, start:stop]
        same = group.unfold(1, width, 1) == group[:, reach : group.shape[1] - reach, None]
        parts.append(around.masked_fill(~same, float("-inf")).amax(-1))
    return torch.cat(parts, dim=1) if parts else scores[:, :0]


def significance(
    scores: Tensor,
    input_ids: Tensor,
    places: Tensor,
    *,
    pooling: int,
    sentence_weight: float,
    sentences: Sentences | None,
) -> Tensor:
    """Significance (B, C) of tokens with scores (B, C): for themselves, for their neighbours (the maximum over
    `pooling` of them) and, by `sentence_weight`, for the rest of their sentence, which begins with a match and ends
    with what it is about. input_ids, places: (B, C), the tokens' ids and where in the document they are."""
    pooled = pool(scores, pooling)
    if sentences is None or not sentence_weight or not scores.shape[1]:
        return pooled
    numbers = sentences.number(input_ids, places)
    rest = sentence_weight * pool_within(scores, numbers, SENTENCE_REACH)
    return torch.where(rest > 0, pooled.maximum(rest), pooled)  # part of a logit below 0 would be more than it


def unit_scores(scores: Tensor, units: Tensor) -> Tensor:
    """Scores (B, U) of units that tokens with scores (B, C) are in, numbered (B, C): their sum by the square root of
    the unit's length, between a sum, which favours long sentences, and a mean, which favours short ones."""
    return _unit_sums(scores, units) / _unit_sizes(units).clamp(min=1).sqrt()


def unit_significance(
    scores: Tensor, units: Tensor, places: Tensor, share: float = 0.0, closeness: Tensor | None = None
) -> Tensor:
    """Significance (B, C) of tokens with scores (B, C) in units numbered (B, C): their unit's score, and a share of
    that of the better of the units right beside it; with how close (B, C) they are to what is asked for, by the ranks
    of both. places: (B, C), where in the document the tokens are."""
    if not scores.shape[1]:
        return scores
    touches = (units[:, 1:] != units[:, :-1]) & (places[:, 1:] == places[:, :-1] + 1)
    by_unit = unit_scores(scores, units)
    joined = torch.zeros_like(by_unit).scatter_add_(1, units[:, 1:], touches.to(by_unit.dtype))
    whole = by_unit + share * best_beside(by_unit, joined > 0)
    if closeness is not None:
        whole = by_both_ranks(whole, unit_means(closeness, units), _unit_sizes(units))
    return whole.gather(1, units)


def unit_means(values: Tensor, units: Tensor) -> Tensor:
    """(B, U) of units that tokens with values (B, C) are in, numbered (B, C)."""
    return _unit_sums(values, units) / _unit_sizes(units).clamp(min=1)


def _unit_sizes(units: Tensor) -> Tensor:
    """(B, U) tokens of each unit, none where another row has more units."""
    return _unit_sums(torch.ones(units.shape, device=units.device), units)


def _unit_sums(values: Tensor, units: Tensor) -> Tensor:
    return torch.zeros(len(values), int(units.max()) + 1, device=values.device).scatter_add_(1, units, values)


def tokens_before(scores: Tensor, sizes: Tensor) -> Tensor:
    """(..., U) how many tokens are in what ranks before each of some units, of scores and sizes (..., U). Of equals the
    earlier comes first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = sizes.expand_as(order).gather(-1, order)
    return torch.empty_like(ranked).scatter_(-1, order, ranked.cumsum(-1) - ranked)


def better_of(first: Tensor, second: Tensor, sizes: Tensor) -> Tensor:
    """(..., U) a score of units that takes two scores (..., U) in turn: by whichever ranks one higher, counted in
    tokens, of which each has `sizes` (..., U). It needs no more of a large text than what is best by each."""
    return -torch.minimum(tokens_before(first, sizes), tokens_before(second, sizes))


def by_both_ranks(scores: Tensor, closeness: Tensor, sizes: Tensor) -> Tensor:
    """(..., U) a score of units of so many tokens, sizes (..., U), by two others (..., U): the logarithms of the shares
    of the text that rank above them, that of the closeness at `CLOSENESS_WEIGHT`. So a unit that leads by one stays,
    and one that is near the top by both comes before those that are by one alone, which `better_of` cannot tell."""
    by_scores, by_closeness = (log_share_above(each, sizes) for each in (scores, closeness))
    return -(by_scores + CLOSENESS_WEIGHT * by_closeness)


def log_share_above(scores: Tensor, sizes: Tensor) -> Tensor:
    """(..., U) of units of scores and sizes (..., U): the share of the text that ranks above their middle."""
    above = tokens_before(scores, sizes) + sizes / 2
    return (above / sizes.sum(-1, keepdim=True)).log()


def best_beside(scores: Tensor, joined: Tensor) -> Tensor:
    """(..., U) of units that follow each other, with scores (..., U): the score of the better of the two beside each,
    none below 0. joined: (..., U), whether a unit begins where the one before it ends."""
    around = torch.nn.functional.pad(scores.clamp(min=0), (1, 1))
    before, after = around[..., :-2] * joined, around[..., 2:] * torch.nn.functional.pad(joined[..., 1:], (0, 1))
    return before.maximum(after)


def share_of_best(best: _Score, share: float) -> _Score:
    """The score that is a share of the best one; of scores that can be negative, as far below it."""
    return best - (1 - share) * abs(best)


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """Ascending indices (B, count) of the highest scores (B, C); ties go to the earlier token."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def keep_most_significant(scores: Tensor, prefix_len: int, suffix_len: int, count: int) -> Tensor:
    """Ascending indices (B, count) of the tokens to keep of a chunk whose context tokens have scores (B, C).

    The affixes always stay: only the context is ranked. Ties go to the earlier token.
    """
    batch, context_len = scores.shape
    room = count - prefix_len - suffix_len
    assert 0 <= room <= context_len, (count, prefix_len, suffix_len, context_len)
    kept = top_tokens(scores, room) + prefix_len
    ends = torch.arange(prefix_len + context_len + suffix_len, device=scores.device).expand(batch, -1)
    return torch.cat([ends[:, :prefix_len], kept, ends[:, prefix_len + context_len :]], dim=1)
