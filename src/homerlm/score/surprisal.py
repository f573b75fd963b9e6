"""What a model could not have predicted: which tokens a document is kept for when its questions are not known yet.

A question known beforehand finds its own tokens. A neutral one finds those that look like answers, whatever they are
about; what a text says once and nothing else leads to is told better by the model's own surprise
(docs/experiments.md). Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.merge.schedule import Node
from homerlm.merge.tree import Selection
from homerlm.model.decoder import Decoder
from homerlm.score.scores import pool
from homerlm.score.votes import Votes

LEAD = 128  # context tokens before a chunk that it is read after, so that its beginning surprises no more than the rest
NEIGHBOURS = 31  # tokens that a token's surprisal is averaged over: a number's digits stand and fall together
SLICE = 64  # tokens whose logits exist at once: 40 MB in float32 over a vocabulary of 150k


@dataclass(frozen=True)
class Surprisal:
    """Scores the leaves of one prompt, ids (B, P), (B, C), (B, S), by the model alone; with `asking`, also by what the
    suffix attends to: what does a little of both is rarer than what does much of one."""

    decoder: Decoder
    prefix_ids: Tensor
    context_ids: Tensor
    suffix_ids: Tensor
    asking: Selection | None = None

    def __call__(self, leaf: Node) -> Tensor:
        """(B, S) float32, S the leaf's tokens, 0 for the affixes: nats, averaged over neighbours, or, with `asking`,
        the mean of two places among the leaf's tokens, 1 the first. To be called inside the decoder's session."""
        start = max(leaf.context_start - LEAD, 0)
        ids = torch.cat([self.prefix_ids, self.context_ids[:, start : leaf.context_stop], self.suffix_ids], dim=1)
        p, s = self.prefix_ids.shape[1], self.suffix_ids.shape[1]
        positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        votes = Votes(self.asking, positions, len(self.decoder.layers)) if self.asking else None
        hidden = self.decoder.run(
            self.decoder.embed(ids), positions, 0, len(self.decoder.layers), watch=votes.add if votes else None
        ).hidden
        context = slice(p + leaf.context_start - start, ids.shape[1] - s)
        scores = _smoothed(self._nats(ids, hidden, context))
        if votes is not None:
            assert self.asking is not None and votes.total is not None
            scores = (_place(scores) + _place(pool(votes.total[:, context], self.asking.pooling))) / 2
        return torch.nn.functional.pad(scores, (p, s))

    def _nats(self, ids: Tensor, hidden: Tensor, context: slice) -> Tensor:
        """(B, C) of the ids (B, S) in `context`, after final states (B, S, E)."""
        logits = self.decoder.head_for(hidden[:, :1])
        nats = torch.zeros(ids.shape, device=ids.device)
        for begin in range(max(context.start, 1), context.stop, SLICE):  # nothing predicts the first token
            stop = min(begin + SLICE, context.stop)
            nats[:, begin:stop] = _nats(logits(hidden[:, begin - 1 : stop - 1]), ids[:, begin:stop])
        return nats[:, context]


def _place(scores: Tensor) -> Tensor:
    """(B, C) share of the others that each token stands above; equal ones in their order."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1) / scores.shape[1]


def _smoothed(nats: Tensor) -> Tensor:
    """(B, C) mean over each token and its neighbours."""
    return torch.nn.functional.avg_pool1d(
        nats[:, None], NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2, count_include_pad=False
    )[:, 0]


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """logits: (B, n, V), of the ids (B, n)."""
    return -logits.float().log_softmax(-1).gather(2, ids[..., None].to(logits.device))[..., 0].to(ids.device)
