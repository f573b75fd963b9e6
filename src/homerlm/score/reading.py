"""A chunk between a question and a neutral one, and the scores of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.model.attention import Attended, Fork
from homerlm.model.decoder import Decoder
from homerlm.score.attention import Attention
from homerlm.score.heads import Scoring, joined
from homerlm.score.scores import Score


@dataclass(frozen=True)
class Chunk:
    """Tokens that run together. input_ids, position_ids: (B, S) of prefix, context, question and, behind the `fork`,
    the neutral question at the same positions; common: tokens of prefix and context."""

    input_ids: Tensor
    position_ids: Tensor
    common: int
    fork: Fork | None

    @classmethod
    def of(cls, prefix_ids: Tensor, context_ids: Tensor, suffix_ids: Tensor, neutral_ids: Tensor | None) -> Chunk:
        ids = torch.cat([prefix_ids, context_ids, suffix_ids], dim=1)
        common, length = ids.shape[1] - suffix_ids.shape[1], ids.shape[1]
        positions = torch.arange(length, device=ids.device)
        if neutral_ids is None:
            return cls(ids, positions.expand(len(ids), -1), common, None)
        ids = torch.cat([ids, neutral_ids.to(ids.device)], dim=1)
        positions = torch.cat([positions, torch.arange(neutral_ids.shape[1], device=ids.device) + common])
        return cls(ids, positions.expand(len(ids), -1), common, Fork((common, length)))

    def only(self, kept: Tensor) -> Chunk:
        """The chunk with those of its common tokens that are among `kept` (B, n), ascending; positions stay."""
        places, dropped = self._places(kept), self.common - kept.shape[1]
        fork = None if self.fork is None else self.fork.moved(dropped)
        return Chunk(self.input_ids.gather(1, places), self.position_ids.gather(1, places), kept.shape[1], fork)

    def states_of(self, kept: Tensor, hidden: Tensor) -> Tensor:
        """The states (B, S', E) of `only(kept)`, of those of the chunk, (B, S, E)."""
        places = self._places(kept).to(hidden.device)
        return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))

    def _places(self, kept: Tensor) -> Tensor:
        after = torch.arange(self.common, self.input_ids.shape[1], device=kept.device)
        return torch.cat([kept, after.expand(len(kept), -1)], dim=1)


class Scorer:
    """Sum over the scoring layers of what the last queries' attention gives to each token of a chunk, above what a
    neutral question's gives it. `total`: (B, common tokens)."""

    def __init__(self, decoder: Decoder, score: Score, scoring: Scoring, queries: int, chunk: Chunk) -> None:
        self.total: Tensor = torch.empty(0)
        self.score = score
        self._decoder, self._scoring, self._queries, self._chunk = decoder, scoring, queries, chunk

    def __call__(self, attended: Attended) -> None:
        if attended.layer in self._scoring.layers:
            self.add(attended.layer, self.of_layer(attended))

    def add(self, layer: int, scores: Tensor) -> None:
        """Count one layer's scores by head, (B, N, common tokens)."""
        new = joined(scores, self._scoring.of_layer(layer)).to(self._chunk.input_ids.device)
        self.total = self.total + new if self.total.numel() else new

    def by_head(self, attended: Attended, queries: int) -> Tensor:
        """(B, N, common tokens) scores by the scoring heads of a layer, from its last queries."""
        places = self._chunk.position_ids[:, : attended.keys.shape[2]]
        attention = Attention.of(attended, queries, places, self._decoder.window(attended.layer))
        if heads := self._scoring.of_layer(attended.layer):
            attention = attention.only([head.index for head in heads])
        return self.score.by_head(attention)[..., : self._chunk.common]

    def of_layer(self, attended: Attended) -> Tensor:
        """(B, N, common tokens) scores by head, above a neutral question's."""
        chunk = self._chunk
        if chunk.fork is None:
            return self.by_head(attended, self._queries)
        question, neutral = attended.endings(chunk.fork)
        neutral_len = chunk.input_ids.shape[1] - chunk.fork.starts[1]
        return self.score.above_neutral(self.by_head(question, self._queries), self.by_head(neutral, neutral_len))
