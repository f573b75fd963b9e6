"""How likely a model finds a given text, read piece by piece over a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from homerlm.context import CompactContext

SLICE = 1024  # tokens scored at once: their logits over a vocabulary of 150k take 600 MB in float32


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of ids: log_probs (S,) float32 in nats; greedy (S,) bool, whether each was the likeliest."""

    log_probs: Tensor
    greedy: Tensor

    @property
    def total(self) -> float:
        return self.log_probs.sum().item()


@dataclass
class CacheSteps:
    """Text run through a model over its cache, from `position` on, with at most `width` rows of logits at once."""

    model: PreTrainedModel
    cache: Any
    position: int
    width: int = SLICE

    @classmethod
    def after(cls, context: CompactContext, model: PreTrainedModel) -> CacheSteps:
        """Over a copy of a compressed prompt; an uneven one takes one token at a time."""
        return cls(model, context.to_cache(), context.next_position, 1 if context.uneven else SLICE)

    @torch.no_grad()
    def read(self, input_ids: Tensor) -> Tensor:
        """Run ids (1, S) and give the logits (1, V) after the last."""
        return self._step(input_ids.to(self.model.device), 1)[:, -1]

    @torch.no_grad()
    def score(self, logits: Tensor, input_ids: Tensor) -> Likelihood:
        """Of ids (1, S) that follow `logits` (1, V), which stand for the token before them. The last of them is not
        run: what comes after it was not asked for, and it may stand beyond the model's limit."""
        ids = input_ids.to(self.model.device)
        parts = [_likelihood(logits, ids[0, :1])]
        for inputs, wanted in zip(ids[:, :-1].split(self.width, 1), ids[:, 1:].split(self.width, 1), strict=True):
            if inputs.shape[1]:
                parts.append(_likelihood(self._step(inputs, inputs.shape[1])[0], wanted[0]))
        return Likelihood(torch.cat([p.log_probs for p in parts]), torch.cat([p.greedy for p in parts]))

    def _step(self, input_ids: Tensor, keep: int) -> Tensor:
        stop = self.position + input_ids.shape[1]
        positions = torch.arange(self.position, stop, device=input_ids.device)[None]
        self.position = stop
        return self.model(
            input_ids=input_ids, past_key_values=self.cache, position_ids=positions, use_cache=True, logits_to_keep=keep
        ).logits


def _likelihood(logits: Tensor, ids: Tensor) -> Likelihood:
    """logits: (S, V), each row for the id beside it in ids: (S,)."""
    wanted = ids.to(logits.device)
    log_probs = logits.float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    return Likelihood(log_probs.cpu(), (logits.argmax(-1) == wanted).cpu())
