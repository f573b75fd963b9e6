"""What a model could not have predicted: which tokens a document is kept for when its questions are not known yet.

A question known beforehand finds its own tokens. A neutral one finds those that look like answers, whatever they are
about; what a text says once and nothing else leads to is told better by the model's own surprise
(docs/experiments.md). Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.adapter import Decoder
from homerlm.schedule import Node

LEAD = 128  # context tokens before a chunk that it is read after, so that its beginning surprises no more than the rest
NEIGHBOURS = 31  # tokens that a token's surprisal is averaged over: a number's digits stand and fall together
SLICE = 64  # tokens whose logits exist at once: 40 MB in float32 over a vocabulary of 150k


@dataclass(frozen=True)
class Surprisal:
    """Scores the leaves of one prompt, ids (B, P), (B, C), by the model alone: the suffix has no part in it."""

    decoder: Decoder
    prefix_ids: Tensor
    context_ids: Tensor
    suffix_len: int

    def __call__(self, leaf: Node) -> Tensor:
        """(B, S) float32, S the leaf's tokens: nats, averaged over neighbours; 0 for the affixes. To be called inside
        the decoder's session."""
        start = max(leaf.context_start - LEAD, 0)
        ids = torch.cat([self.prefix_ids, self.context_ids[:, start : leaf.context_stop]], dim=1)
        p, length = self.prefix_ids.shape[1], ids.shape[1]
        positions = torch.arange(length, device=ids.device).expand(len(ids), -1)
        hidden = self.decoder.run(self.decoder.embed(ids), positions, 0, len(self.decoder.layers)).hidden
        logits = self.decoder.head_for(hidden[:, :1])
        nats = torch.zeros(ids.shape, device=ids.device)
        first = p + leaf.context_start - start
        for begin in range(max(first, 1), length, SLICE):  # nothing predicts the first token
            stop = min(begin + SLICE, length)
            nats[:, begin:stop] = _nats(logits(hidden[:, begin - 1 : stop - 1]), ids[:, begin:stop])
        return torch.nn.functional.pad(_smoothed(nats[:, first:]), (p, self.suffix_len))


def _smoothed(nats: Tensor) -> Tensor:
    """(B, C) mean over each token and its neighbours."""
    return torch.nn.functional.avg_pool1d(
        nats[:, None], NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2, count_include_pad=False
    )[:, 0]


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """logits: (B, n, V), of the ids (B, n)."""
    return -logits.float().log_softmax(-1).gather(2, ids[..., None].to(logits.device))[..., 0].to(ids.device)
