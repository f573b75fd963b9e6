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
    start = max(context.start, 1)  # nothing predicts the first token
    found = nats(decoder, hidden[:, start - 1 : context.stop - 1], input_ids[:, start : context.stop])
    found = torch.nn.functional.pad(found, (start - context.start, 0))
    return torch.nn.functional.avg_pool1d(
        found[:, None], NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2, count_include_pad=False
    )[:, 0]


def nats(decoder: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """Surprisal (B, n) float32 in nats of ids (B, n), after the final states (B, n, E) before each."""
    logits = decoder.head_for(hidden[:1, :1])
    most = max(LOGITS_SLICE // len(ids), 1)
    parts = zip(hidden.split(most, dim=1), ids.split(most, dim=1), strict=True)
    return torch.cat([_nats(logits(states), part) for states, part in parts], dim=1)


def ranks(scores: Tensor) -> Tensor:
    """Share (B, C) of the others that each token's score is above; equal ones in their order."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1) / scores.shape[1]


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """logits: (B, n, V), of the ids (B, n)."""
    return -logits.float().log_softmax(-1).gather(2, ids[..., None].to(logits.device))[..., 0].to(ids.device)
