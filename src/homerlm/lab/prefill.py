"""What is measured of a method: how it reads a prompt, and the cache that new tokens then come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from homerlm.context import CompactContext
from homerlm.errors import ConfigError
from homerlm.homer import Homer
from homerlm.lab.flops import Compression, Counted, Shape, plain_flops
from homerlm.lab.methods import Method
from homerlm.prompt import PromptIds
from homerlm.score.calibration import Calibration
from homerlm.score.scores import CALIBRATED_SCORES

AFFIX_LEN = 30  # tokens of the prefix, and of the suffix: an instruction and a question


@dataclass(frozen=True, eq=False)
class Prefilled:
    """A prompt that has been read. logits: (B, V) of the next token, whose position is `next_position`; kept: tokens
    of the cache when it was read."""

    cache: Any
    logits: Tensor
    next_position: int
    kept: int

    @property
    def kv_bytes(self) -> int:
        layers = self.cache.layers
        return sum(states.numel() * states.element_size() for layer in layers for states in (layer.keys, layer.values))


class Subject(Protocol):
    """A method bound to a model."""

    @property
    def model(self) -> PreTrainedModel: ...

    def prefill(self, prompt: PromptIds) -> Prefilled: ...

    def counted(self, shape: Shape, prompt: PromptIds, kept: int) -> Counted:
        """Of one row's prefill."""

    def chunk_len(self, prompt: PromptIds) -> int:
        """The most tokens that run at once."""


def subject_for(method: Method, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Subject:
    """Raises `HomerError` for a method that is not measured, or does not fit the model. Without a tokenizer no sentence
    is known, so none is kept whole."""
    if method.is_homer:
        return HomerSubject(model, Homer(model, tokenizer, _calibrated(method, model)))
    if method.base != "plain":
        raise ConfigError(f"method is {method}; the benchmark measures plain, homer and homer-paper")
    return PlainSubject(model)


def _calibrated(method: Method, model: PreTrainedModel) -> Any:
    """The method's config; a calibration of zeros stands for the model's own, where the score wants one. It decides
    which tokens are kept, not how many, and costs the same."""
    config = method.config()
    if config.score not in CALIBRATED_SCORES:
        return config
    text: Any = model.config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    longest = config.resolve(text.max_position_embeddings, layers).max_chunk_len
    return replace(config, calibration=Calibration(torch.zeros(layers, longest)))


@dataclass(frozen=True)
class PlainSubject:
    """The model as it is. Beyond its limit too: its answers are worthless there, its time and memory are not."""

    model: PreTrainedModel

    @torch.no_grad()
    def prefill(self, prompt: PromptIds) -> Prefilled:
        ids = torch.cat([prompt.prefix, prompt.context, prompt.suffix], dim=1).to(self.model.device)
        cache = DynamicCache(config=self.model.config)
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Prefilled(cache, output.logits[:, -1], ids.shape[1], ids.shape[1])

    def counted(self, shape: Shape, prompt: PromptIds, kept: int) -> Counted:  # noqa: ARG002
        tokens = self.chunk_len(prompt)
        return Counted(plain_flops(shape, tokens), tokens * shape.layers * shape.kv_bytes)

    def chunk_len(self, prompt: PromptIds) -> int:
        return sum(part.shape[1] for part in (prompt.prefix, prompt.context, prompt.suffix))


@dataclass(frozen=True)
class HomerSubject:
    model: PreTrainedModel
    homer: Homer

    @torch.no_grad()
    def prefill(self, prompt: PromptIds) -> Prefilled:
        context: CompactContext = self.homer.compress(prompt.prefix, prompt.context, prompt.suffix)
        return Prefilled(context.to_cache(), context.logits, context.next_position, len(context))

    def counted(self, shape: Shape, prompt: PromptIds, kept: int) -> Counted:
        schedule = self.homer.plan(prompt.prefix.shape[1], prompt.context.shape[1], prompt.suffix.shape[1])
        work = Compression(shape, self.homer.config, self.homer.lengths, schedule, kept)
        return Counted(
            work.flops(), work.kv_tokens() * shape.kv_bytes, bound_bytes=schedule.kv_bound_tokens() * shape.kv_bytes
        )

    def chunk_len(self, prompt: PromptIds) -> int:
        schedule = self.homer.plan(prompt.prefix.shape[1], prompt.context.shape[1], prompt.suffix.shape[1])
        return max(node.length for node in schedule.root.walk())


def random_prompt(vocab: int, length: int, batch: int, seed: int = 0) -> PromptIds:
    """Random ids, every row its own, `length` tokens with the affixes."""
    if length < 3 * AFFIX_LEN:
        raise ConfigError(f"length is {length}; it must be at least {3 * AFFIX_LEN} tokens")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (batch, length), generator=generator)
    return PromptIds(*ids.split([AFFIX_LEN, length - 2 * AFFIX_LEN, AFFIX_LEN], dim=1))


def greedy_steps(model: PreTrainedModel, read: Prefilled, count: int, step_done: Callable[[], None]) -> Tensor:
    """(B, count) tokens, each the likeliest; the end of the text is a token like any other. `step_done` is called when
    one is known."""
    tokens = [read.logits.argmax(-1, keepdim=True)]
    step_done()
    for step in range(count - 1):
        logits = _next_logits(model, read.cache, tokens[-1], read.next_position + step)
        tokens.append(logits.argmax(-1, keepdim=True))
        step_done()
    return torch.cat(tokens, dim=1)


@torch.no_grad()
def _next_logits(model: PreTrainedModel, cache: Any, token: Tensor, position: int) -> Tensor:
    positions = torch.full_like(token, position)
    output = model(input_ids=token, past_key_values=cache, position_ids=positions, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1]
