"""A prompt that a model has read, and what it makes of a text after it: likelihoods, or the likeliest tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from homerlm.context import CompactContext
from homerlm.model.decoder import Decoder
from homerlm.model.one_token import one_token_forwards

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
class Prefill:
    """A prompt read into a cache: logits (B, V) of the next token, which stands at `position`. Text is run after it
    with at most `width` rows of logits at once; that changes the cache. compact: whether it was compressed, so that
    new tokens are made as homerlm makes them."""

    model: PreTrainedModel
    cache: Any
    logits: Tensor
    position: int
    width: int = SLICE
    compact: bool = False

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, input_ids: Tensor) -> Prefill:
        """Ids (B, S) read by the plain model."""
        made = cls(model, DynamicCache(config=model.config), torch.empty(0), 0)
        made.read(input_ids)
        return made

    @classmethod
    def after(cls, context: CompactContext, model: PreTrainedModel) -> Prefill:
        """A copy of a compressed prompt; an uneven one takes one token at a time."""
        width = 1 if context.uneven else SLICE
        return cls(model, context.to_cache(), context.logits, context.next_position, width, compact=not context.uneven)

    @property
    def kv_bytes(self) -> int:
        states = [states for layer in self.cache.layers for states in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in states)

    def read(self, input_ids: Tensor) -> None:
        """Run ids (B, S)."""
        self.logits = self._step(input_ids.to(self.model.device), 1)[:, -1]

    def score(self, input_ids: Tensor) -> Likelihood:
        """Of ids (1, S) that follow. The last of them is not run: what comes after it was not asked for, and it may
        stand beyond the model's limit."""
        ids = input_ids.to(self.model.device)
        parts = [_likelihood(self.logits, ids[0, :1])]
        for inputs, wanted in zip(ids[:, :-1].split(self.width, 1), ids[:, 1:].split(self.width, 1), strict=True):
            if inputs.shape[1]:
                parts.append(_likelihood(self._step(inputs, inputs.shape[1])[0], wanted[0]))
        return Likelihood(torch.cat([p.log_probs for p in parts]), torch.cat([p.greedy for p in parts]))

    def likeliest(self, count: int, step_done: Callable[[], None]) -> Tensor:
        """(B, count) tokens, each the likeliest; the end of the text is a token like any other. `step_done` is called
        when one is known."""
        tokens = [self.logits.argmax(-1, keepdim=True)]
        step_done()
        rows = len(self.logits)
        with one_token_forwards(Decoder(self.model), rows) if self.compact else nullcontext():
            for _ in range(count - 1):
                self.read(tokens[-1])
                tokens.append(self.logits.argmax(-1, keepdim=True))
                step_done()
        return torch.cat(tokens, dim=1)

    @torch.no_grad()
    def _step(self, input_ids: Tensor, keep: int) -> Tensor:
        stop = self.position + input_ids.shape[1]
        positions = torch.arange(self.position, stop, device=input_ids.device).expand(len(input_ids), -1)
        self.position = stop
        return self.model(
            input_ids=input_ids, past_key_values=self.cache, position_ids=positions, use_cache=True, logits_to_keep=keep
        ).logits


def _likelihood(logits: Tensor, ids: Tensor) -> Likelihood:
    """logits: (S, V), each row for the id beside it in ids: (S,)."""
    wanted = ids.to(logits.device)
    log_probs = logits.float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    return Likelihood(log_probs.cpu(), (logits.argmax(-1) == wanted).cpu())
