"""The next token of one answer, chosen as transformers' `generate` would choose it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from homerlm.context import CompactContext
from homerlm.errors import ConfigError
from homerlm.writing import TokenChoice, Writing


class Sampler:
    """Chooses the tokens of one answer. The model's generation config says what else changes its logits (a penalty of
    repetitions, suppressed tokens) and which tokens end an answer (`ends`).

    `top_k` is that of the generation config, or off: transformers' own default of 50 would contradict `top_p` 1.
    """

    def __init__(self, model: PreTrainedModel, context: CompactContext, writing: Writing) -> None:
        self._writing = writing
        self._device = context.logits.device
        self._ids = context.input_ids.to(self._device)
        config, self._processors = _generation(model, self._ids, writing)
        self.ends = ends_of(config)
        self._random: torch.Generator | None = None
        if writing.temperature > 0:
            self._random = torch.Generator(self._device)
            self._random.seed() if writing.seed is None else self._random.manual_seed(writing.seed)

    def choose(self, logits: Tensor) -> TokenChoice:
        """A token by its logits (1, V). Raises `RuntimeError` where they are no numbers."""
        logits = logits.to(device=self._device, dtype=torch.float32, copy=True)
        scores = self._processors(self._ids, logits)
        if self._random is None:
            token = scores.argmax(dim=-1)
        else:
            token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._random)[0]
        self._ids = torch.cat([self._ids, token[None]], dim=1)
        return self._described(logits, int(token))

    def _described(self, logits: Tensor, token: int) -> TokenChoice:
        if (count := self._writing.logprobs) is None:
            return TokenChoice(token, 0.0)
        logprobs = logits[0].log_softmax(dim=-1)
        best = logprobs.topk(min(count, len(logprobs)))
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenChoice(token, float(logprobs[token]), likeliest)


@contextmanager
def refusals(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What transformers' `generate` raises before its first forward, that is for its settings, as `ConfigError`."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, NotImplementedError, OSError) as error:
        if begun():
            raise
        raise ConfigError(f"transformers' generate refuses these settings: {error}") from error


def ends_of(config: Any) -> frozenset[int]:
    """The tokens that end an answer, by a generation config."""
    ends = config.eos_token_id
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)


def _generation(model: PreTrainedModel, ids: Tensor, writing: Writing) -> tuple[Any, LogitsProcessorList]:
    """The generation config and logits processors with which `generate` would write after ids (1, S). It hands them to
    a decoding loop of ours, which runs nothing."""

    def loop(_model: Any, input_ids: Tensor, **given: Any) -> tuple[Any, LogitsProcessorList]:  # noqa: ARG001
        return given["generation_config"], given["logits_processor"]

    settings: dict[str, Any] = {"do_sample": False}
    if writing.temperature > 0:
        top_k = getattr(model.generation_config, "top_k", None) or 0
        settings = {"do_sample": True, "temperature": writing.temperature, "top_p": writing.top_p, "top_k": top_k}
    one = {"num_return_sequences": 1, "max_new_tokens": writing.max_new_tokens, "custom_generate": loop}
    with refusals():
        made: Any = model.generate(input_ids=ids, **one, **settings)
    return made
