"""What a model could not have predicted: which tokens a document is kept for when its questions are not known yet.

A question known beforehand finds its own tokens. A neutral one finds those that look like answers, whatever they are
about; what a text says once and nothing else leads to is told better by the model's own surprise
(docs/experiments.md). Not in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homerlm.model.decoder import Decoder
from homerlm.passes import LOGITS_SLICE

NEIGHBOURS = 31  # tokens that a token's surprisal is averaged over: a number's digits stand and fall together


def surprisal(decoder: Decoder, input_ids: Tensor, hidden: Tensor, context: slice) -> Tensor:
    """Surprisal (B, C) float32 in nats of the ids (B, S) in `context`, averaged over neighbours, after final states
    (B, S, E)."""
    logits = decoder.head_for(hidden[:, :1])
    nats = torch.zeros(input_ids.shape, device=input_ids.device)
    for begin in range(max(context.start, 1), context.stop, LOGITS_SLICE):  # nothing predicts the first token
        stop = min(begin + LOGITS_SLICE, context.stop)
        nats[:, begin:stop] = _nats(logits(hidden[:, begin - 1 : stop - 1]), input_ids[:, begin:stop])
    return torch.nn.functional.avg_pool1d(
        nats[:, None, context], NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2, count_include_pad=False
    )[:, 0]


def ranks(scores: Tensor) -> Tensor:
    """Share (B, C) of the others that each token's score is above; equal ones in their order."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1) / scores.shape[1]


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """logits: (B, n, V), of the ids (B, n)."""
    return -logits.float().log_softmax(-1).gather(2, ids[..., None].to(logits.device))[..., 0].to(ids.device)
