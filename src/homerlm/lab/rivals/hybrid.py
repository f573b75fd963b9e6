"""Passages by BM25 and by the default method's heads together, their ranks fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import Homer
from homerlm.lab.rivals.passages import Span
from homerlm.lab.samples import Asked
from homerlm.score.bm25 import passage_scores
from homerlm.select.method import Select
from homerlm.select.reading import Reading

SMOOTHING = 60  # of reciprocal rank fusion, as it is usually taken


class FusedRanks:
    """A scorer of passages: the sum of 1 / (60 + rank) by BM25, where a word matches, and by the chunks' scores, a
    passage's being their sum by the root of its length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._homer = Homer(model, tokenizer)
        self._homer.profile()

    def __call__(self, asked: Asked, spans: Sequence[Span], texts: list[str]) -> np.ndarray:
        lexical, heads = passage_scores(texts, asked.question), self._by_heads(asked, spans)
        fused: np.ndarray = _reciprocal(heads) + np.where(lexical > 0, _reciprocal(lexical), 0)
        return fused

    @torch.no_grad()
    def _by_heads(self, asked: Asked, spans: Sequence[Span]) -> np.ndarray:
        method = self._homer.method
        assert isinstance(method, Select)
        reading = Reading(method.decoder, method.plan(*asked.lengths), asked, method.ranking)
        with method.decoder.session():
            scores = torch.cat([new.scores for _, new in reading.chunks()], dim=1)[0].cpu().numpy()
        sums = np.concatenate([[0.0], scores.cumsum()])
        return np.array([(sums[stop] - sums[start]) / np.sqrt(stop - start) for start, stop in spans])


def _reciprocal(scores: np.ndarray) -> np.ndarray:
    order = (-scores).argsort(kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(len(scores))
    return 1 / (SMOOTHING + ranks)
