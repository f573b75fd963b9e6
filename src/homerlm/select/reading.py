"""Scores of a document's tokens, chunk by chunk, and of the candidates side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.model.attention import Attended
from homerlm.model.decoder import Decoder
from homerlm.score.attention import Attention
from homerlm.score.neighbours import pool
from homerlm.score.scores import SCORES, Score
from homerlm.score.surprisal import ranks, surprisal
from homerlm.select.plan import SelectPlan

Span = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """One prompt, ids (B, P), (B, C), (B, S), under its plan. To be used inside the decoder's session."""

    decoder: Decoder
    plan: SelectPlan
    prefix_ids: Tensor
    context_ids: Tensor
    suffix_ids: Tensor

    def chunks(self) -> Iterator[tuple[list[Span], Tensor]]:
        """Groups of neighbouring spans and the scores (B, C') of their context tokens, in the document's order."""
        for group in self.plan.span_groups():
            if self.plan.config.chosen_by == "attention":
                yield group, self._by_attention(group)
            else:
                yield group, self._by_surprisal(group[0])

    def score(self, input_ids: Tensor) -> Tensor:
        """Scores (B, S) of a prompt of ids (B, S) that is read as one chunk: the sum over the scoring layers."""
        scorer = Scorer.of(self.decoder, self.plan)
        positions = _positions(input_ids)
        last = self.plan.scoring_layers[-1] + 1
        for step in self.decoder.steps(self.decoder.embed(input_ids), positions, 0, last, finish=False):
            scorer(step.attended, positions)
        return scorer.total

    def _by_attention(self, group: list[Span]) -> Tensor:
        ids = torch.cat([self._ids(start, stop) for start, stop in group])
        scores = self.score(ids)[:, self.plan.prefix_len : ids.shape[1] - self.plan.suffix_len]
        return torch.cat(scores.split(len(self.prefix_ids)), dim=1)

    def _by_surprisal(self, span: Span) -> Tensor:
        """Nats that the model could not have predicted, averaged over neighbours; where attention counts too, the mean
        of two ranks among the chunk's tokens: what does a little of both is rarer than what does much of one."""
        plan, (start, stop) = self.plan, span
        first = max(start - plan.lead, 0)
        ids = self._ids(first, stop)
        positions, scorer = _positions(ids), Scorer.of(self.decoder, plan)
        hidden = self.decoder.embed(ids)
        for step in self.decoder.steps(hidden, positions, 0, len(self.decoder.layers)):
            assert step.hidden is not None
            hidden = step.hidden
            if plan.by_attention:
                scorer(step.attended, positions)
        context = slice(plan.prefix_len + start - first, ids.shape[1] - plan.suffix_len)
        scores = surprisal(self.decoder, ids, hidden, context)
        if not plan.by_attention:
            return scores
        attention = pool(scorer.total[:, context], plan.config.candidate_pooling)
        return (ranks(scores) + ranks(attention)) / 2

    def _ids(self, start: int, stop: int) -> Tensor:
        return torch.cat([self.prefix_ids, self.context_ids[:, start:stop], self.suffix_ids], dim=1)


class Scorer:
    """Sum over the scoring layers of what the last queries' attention gives to each token. `total`: (B, S)."""

    def __init__(self, decoder: Decoder, score: Score, queries: int, layers: tuple[int, ...]) -> None:
        self.total: Tensor = torch.empty(0)
        self._decoder, self._score, self._queries, self._layers = decoder, score, queries, layers

    @classmethod
    def of(cls, decoder: Decoder, plan: SelectPlan) -> Scorer:
        return cls(decoder, SCORES[plan.config.score], plan.queries, plan.scoring_layers)

    def __call__(self, attended: Attended, position_ids: Tensor) -> None:
        if attended.layer not in self._layers:
            return
        window = self._decoder.window(attended.layer)
        new = self._score(Attention.of(attended, self._queries, position_ids, window)).to(position_ids.device)
        self.total = self.total + new if self.total.numel() else new


def _positions(input_ids: Tensor) -> Tensor:
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
