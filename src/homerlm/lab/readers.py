"""A method bound to a model: from a prompt's ids to a reading that can be continued, judged and asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.config import MergeConfig
from homerlm.context import CompactContext
from homerlm.errors import ConfigError, MismatchError
from homerlm.homer import Homer
from homerlm.index.index import Index
from homerlm.lab.likelihood import Prefill
from homerlm.lab.methods import Method
from homerlm.lab.rivals.choosers import RIVALS, Chooser
from homerlm.lab.samples import Asked
from homerlm.score.calibration import Calibration
from homerlm.score.scores import SCORES

SINKS = 4  # StreamingLLM's: the first tokens of a prompt, which attention leans on
BUDGET = 1024  # of a rival, as HOMER's target_len
CLIPPED_SHARE = {"ntk": 0.75, "yarn": 0.75}  # of the scaled limit, where a prompt is clipped

# What a prompt is read for: its question, or to go on with its text.
Use = Literal["answer", "go on"]
# Indices (kept,) of the prompt's tokens that are read, when so many new ones are to follow.
Keep = Callable[[Asked, int], Tensor]


def reader_for(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibrations: Sequence[Path] = (),
) -> Reader:
    """The reader of a method, on a model that was loaded with the method's RoPE scaling. Without a tokenizer no
    sentence is known, so none is kept whole.

    `calibrations`: files of which the model's own is taken, for scores that need one. Raises `HomerError` for a method
    that does not fit the model.
    """
    if method.is_homer:
        config = method.config()
        if isinstance(config, MergeConfig) and SCORES[config.score].calibrated:
            config = replace(config, calibration=_own_calibration(calibrations, model))
        homer = Homer(model, tokenizer, config)
        homer.profile()  # before anything is timed
        return HomerReader(homer)
    settings = dict(method.settings)
    budget = settings.pop("budget", None)
    if method.base == "plain":
        return PlainReader(model)
    if method.base in RIVALS:
        if tokenizer is None:
            raise ConfigError(f"{method} chooses by the words of a text: random ids have none")
        return RivalReader(model, chosen_by(RIVALS[method.base].make(model, tokenizer, **settings), budget or BUDGET))
    limit = model.config.get_text_config(decoder=True).max_position_embeddings
    share = CLIPPED_SHARE.get(method.rope.method, 1.0) if method.rope else 1.0
    return PlainReader(model, ends(budget or int(limit * share), SINKS if method.base == "streaming" else None))


def _own_calibration(paths: Sequence[Path], model: PreTrainedModel) -> Calibration | None:
    for path in paths:
        try:
            return Calibration.load(path, model)
        except MismatchError:  # another model's, or another scaling's
            continue
    return None


@dataclass(frozen=True)
class HomerReader:
    homer: Homer

    @property
    def model(self) -> PreTrainedModel:
        return self.homer.model

    @cached_property
    def going_on(self) -> Homer:
        """For texts that go on, which ask nothing."""
        return self.homer.for_later(chosen_by="attention")

    def read(self, prompt: Asked, room: int, use: Use = "answer") -> HomerReading:  # noqa: ARG002
        """`room`: how many tokens are to follow the prompt."""
        homer = self.homer if use == "answer" else self.going_on
        context = homer.compress(prompt.prefix, prompt.context, prompt.suffix, neutral_ids=prompt.neutral)
        return HomerReading(self.homer, context, prompt.neutral)

    def read_for_later(self, prompt: Asked, room: int) -> IndexReading:
        """The document for questions to come, of which the prompt's own, a neutral one, tells nothing: an index; with
        the paper's preset, which keeps none, the compressed document."""
        if not self.homer.keeps_keys:
            return self.read(prompt, room)
        index = self.homer.index(prompt.prefix, prompt.context, neutral_ids=prompt.neutral)
        return IndexReading(self.homer, index, prompt.neutral)


@dataclass(frozen=True)
class IndexReading:
    """An index, or what was compressed, to be asked."""

    homer: Homer
    source: Index | CompactContext
    neutral_ids: Tensor | None = None

    def ask_again(self, suffix_ids: Tensor) -> HomerReading:
        """The document with another question, suffix ids (1, S)."""
        context = self.homer.focus(self.source, suffix_ids, self.neutral_ids)
        return HomerReading(self.homer, context, self.neutral_ids)


@dataclass(frozen=True)
class HomerReading(IndexReading):
    source: CompactContext

    @property
    def token_indices(self) -> Tensor:
        """(tokens,): the prompt's tokens that are left."""
        return self.source.token_indices[0]

    def prefill(self) -> Prefill:
        """The prompt's cache, to be used once."""
        return Prefill.after(self.source, self.homer.model)

    def generate(self, max_new_tokens: int) -> list[int]:
        """Greedy continuation ids, without what ends them."""
        return self.homer.generate(self.source, max_new_tokens=max_new_tokens, do_sample=False)[0].tolist()


def everything(prompt: Asked, _room: int) -> Tensor:
    return torch.arange(sum(prompt.lengths[:3]))


def ends(budget: int, sinks: int | None = None) -> Keep:
    """The first and last tokens of a prompt that has more than `budget`, half and half, or `sinks` first and the most
    recent ones; no less than its affixes come to."""

    def keep(prompt: Asked, room: int) -> Tensor:
        prefix, _, suffix, *_ = prompt.lengths
        everywhere = everything(prompt, room)
        if len(everywhere) + room <= budget:
            return everywhere
        kept = max(budget - room, prefix + suffix)
        head = min(kept // 2 if sinks is None else sinks, kept)
        return torch.cat([everywhere[:head], everywhere[len(everywhere) - (kept - head) :]])

    return keep


def chosen_by(choose: Chooser, budget: int) -> Keep:
    """What a rival chooses of the document, in its order between the prompt's affixes: at most `budget` tokens."""

    def keep(prompt: Asked, room: int) -> Tensor:
        prefix, context, suffix, *_ = prompt.lengths
        if budget <= prefix + suffix:
            raise ConfigError(
                f"budget is {budget}; instruction and question alone have {prefix + suffix} tokens: raise it"
            )
        spans = [(start + prefix, stop + prefix) for start, stop in choose(prompt, budget - prefix - suffix)]
        everywhere = everything(prompt, room)
        return torch.cat([everywhere[slice(*span)] for span in ((0, prefix), *spans, (prefix + context, None))])

    return keep


@dataclass(frozen=True)
class PlainReader:
    """The model as it is, on the prompt's tokens that are kept. These are read anew, at contiguous positions."""

    model: PreTrainedModel
    keep: Keep = everything

    def read(self, prompt: Asked, room: int, use: Use = "answer") -> PlainReading:  # noqa: ARG002
        kept = self.keep(prompt, room)
        ids = torch.cat([prompt.prefix, prompt.context, prompt.suffix], dim=1)
        suffix_len = prompt.suffix.shape[1]
        return PlainReading(self.model, ids[:, kept].to(self.model.device), kept, suffix_len, ids.shape[1])

    read_for_later = read


class RivalReader(PlainReader):
    """The model on what a rival chooses. Such a one keeps the whole text, and chooses when it is asked."""


@dataclass(frozen=True)
class PlainReading:
    """Nothing has run yet: the model reads its prompt (B, tokens) when it is asked for something."""

    model: PreTrainedModel
    input_ids: Tensor
    token_indices: Tensor
    suffix_len: int
    prompt_len: int

    def prefill(self) -> Prefill:
        return Prefill.of(self.model, self.input_ids)

    @torch.no_grad()
    def generate(self, max_new_tokens: int) -> list[int]:
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        mask = torch.ones_like(self.input_ids)
        output: Any = self.model.generate(self.input_ids, attention_mask=mask, **settings)
        return output[0, self.input_ids.shape[1] :].tolist()

    def ask_again(self, suffix_ids: Tensor) -> PlainReading:
        body, new = self.input_ids.shape[1] - self.suffix_len, suffix_ids.shape[1]
        length = self.prompt_len - self.suffix_len
        ids = torch.cat([self.input_ids[:, :body], suffix_ids.to(self.input_ids.device)], dim=1)
        kept = torch.cat([self.token_indices[:body], torch.arange(new) + length])
        return PlainReading(self.model, ids, kept, new, length + new)


Reader = HomerReader | PlainReader
Reading = HomerReading | PlainReading
