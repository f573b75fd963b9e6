"""The choice of tokens from numbers alone: candidates of a whole document, and what is left of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.config import HomerConfig
from homerlm.executor import LoadedModel
from homerlm.score.heads import early_len
from homerlm.score.neighbours import share_of_best, significance, top_tokens, unit_significance
from homerlm.score.sentences import Sentences
from homerlm.select.recap import recap


@dataclass(frozen=True)
class Ranking:
    """Settings of the choice. `sentences` are known where there is a tokenizer."""

    config: HomerConfig
    sentences: Sentences | None

    @classmethod
    def on(cls, model: LoadedModel, config: HomerConfig) -> Ranking:
        """By a model's sentences, where the settings have a use for them."""
        unused = config.unit == "neighbours" and not config.sentence_weight
        return cls(config, None if unused else model.sentences)

    def going_on(self, scores: Tensor, ids: Tensor, share: float) -> Tensor:
        """Ascending indices (B, n) of the share of a chunk's tokens, with early scores (B, C) and ids (B, C), that go
        on through its layers: those in the best units."""
        places = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        ranked = self._significance(scores, ids, places, self.config.candidate_pooling)
        return top_tokens(ranked, early_len(scores.shape[1], share))

    def candidates(
        self, scores: Tensor, ids: Tensor, places: Tensor, count: int, closeness: Tensor | None = None
    ) -> Tensor:
        """Ascending indices (B, count) of the best of a document's tokens, as `ranked` ranks them."""
        return top_tokens(self.ranked(scores, ids, places, closeness), count)

    def ranked(self, scores: Tensor, ids: Tensor, places: Tensor, closeness: Tensor | None = None) -> Tensor:
        """Significance (B, C) of a document's tokens, by scores (B, C), and by how close (B, C) they are to what is
        asked for, where sentences are embedded; ids, places: (B, C), theirs, and where in the document they are.
        Surprisal is an average over neighbours already."""
        if self.config.chosen_by != "attention":
            return scores
        share = self.config.neighbour_share
        return self._significance(scores, ids, places, self.config.candidate_pooling, share, closeness)

    def reranked(self, scores: Tensor, candidate_ids: Tensor, places: Tensor) -> Tensor:
        """Significance (C,) of the candidates, with scores (C,) of their reranking. candidate_ids, places: (C,) ids,
        and where in the document they are.

        In a chunk of its own a fact competes with what happens to be beside it; here it competes with the best of the
        whole document, which tells the fact that is asked for from others like it. Not in the paper
        (docs/experiments.md).
        """
        return self._significance(scores[None], candidate_ids[None], places[None], self.config.pooling)[0]

    def kept(self, ranked: Tensor, room: int) -> Tensor:
        """Ascending indices (n,) of the candidates, of significance (C,), that deserve a place: at most `room`, none
        below the `lowest`."""
        if not len(ranked):
            return torch.empty(0, dtype=torch.long, device=ranked.device)
        return top_tokens(ranked[None], min(room, int((ranked >= self.lowest(ranked)).sum())))[0]

    def lowest(self, ranked: Tensor) -> Tensor:
        """The significance () that a candidate needs, of those of all (C,): `min_share` of the highest."""
        return share_of_best(ranked.amax(), self.config.min_share)

    def recap(self, scores: Tensor, ids: Tensor, places: Tensor, room: int) -> list[int]:
        """Indices of the kept tokens, of scores, ids and places in the document (n,), that are repeated before the
        question, at most `room`."""
        return recap(scores.tolist(), self.units(ids[None], places[None])[0].tolist(), room)

    def leading(self, ranked: Tensor) -> Tensor:
        """Indices (n,) of the candidates that are at least half as significant as the best, the best first."""
        order = ranked.argsort(descending=True, stable=True)
        return order[ranked[order] >= ranked.amax() / 2]

    @property
    def whole_sentences(self) -> Sentences | None:
        """The sentences, where they are kept or dropped as a whole."""
        return self.sentences if self.config.unit == "sentence" else None

    def units(self, ids: Tensor, places: Tensor) -> Tensor:
        """(B, C) ascending numbers of the units that tokens of ids and places (B, C) are in: sentences, or runs of
        neighbours in the document."""
        if (sentences := self.whole_sentences) is not None:
            return sentences.units(ids, places)
        return torch.nn.functional.pad((places[:, 1:] != places[:, :-1] + 1).cumsum(1), (1, 0))

    def _significance(
        self,
        scores: Tensor,
        ids: Tensor,
        places: Tensor,
        pooling: int,
        neighbour_share: float = 0.0,
        closeness: Tensor | None = None,
    ) -> Tensor:
        if self.whole_sentences is not None:
            return unit_significance(scores, self.units(ids, places), places, neighbour_share, closeness)
        return significance(
            scores,
            ids,
            places,
            pooling=pooling,
            sentence_weight=self.config.sentence_weight,
            sentences=self.sentences,
        )
