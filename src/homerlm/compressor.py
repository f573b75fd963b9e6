"""A method on a model, in token ids: from a prompt to a compact context and on to new tokens."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import generation, prompt, storage
from homerlm.checks import checked_ids
from homerlm.config import Config, HomerConfig, MergeConfig
from homerlm.context import CompactContext, Origin
from homerlm.errors import ConfigError, InputError, NumericalError
from homerlm.executor import IN_PROCESS, Executor, LoadedModel
from homerlm.index.asking import Found, asking
from homerlm.index.building import Builder, Indexer, Reads, empty
from homerlm.index.index import Frame, Index
from homerlm.index.question import STAND_IN_LEN, stand_in
from homerlm.merge.method import Merge
from homerlm.method import Method
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity, check_evaluating, check_model, tokenizer_fingerprint
from homerlm.model.memory import out_of_memory_explained
from homerlm.model.support import verify_layer_loop
from homerlm.passes import Event, Lengths, Observer, Plan, run_steps
from homerlm.profiling.first_use import can_profile, profiled, with_known_profile
from homerlm.prompt import PromptIds
from homerlm.score.profile import Profile
from homerlm.select.method import Select
from homerlm.suffix import exchange_suffix

LATER_SHARE, LATER_LEN = 0.5, 4096  # what is kept for questions to come: of the limit, at most so many tokens
PROFILING_WAIT_S = 0.05
_profiling = threading.Lock()
_verified: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


class Compressor:
    """A method on one model, in token ids. `homerlm.Homer` adds text. Holds no state of any prompt; the model is used
    as it is and left as it was.

    Any number of threads may use one model, through one object or several, while its owner uses it too: each gets what
    it would get alone. `tokenizer` is needed for sentences to stay whole, and to measure a model's profile; `executor`
    reads the chunks, by default this process one after the other (`homerlm.scale` has others; the paper's tree stays
    here). Raises `UnsupportedModelError` for a model that cannot run HOMER, `InputError` for one in training mode and
    `ConfigError` for settings that do not fit it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: Config | None = None,
        executor: Executor | None = None,
    ) -> None:
        check_model(model)
        if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
            raise InputError(
                f"tokenizer is {type(tokenizer).__name__}; it must be a transformers tokenizer, the second of what "
                "`load_model(name)` gives"
            )
        if executor is not None and not callable(getattr(executor, "map", None)):
            raise InputError(f"executor is {type(executor).__name__}; it must have a method map (homerlm.executor)")
        if config is not None and not isinstance(config, HomerConfig | MergeConfig):
            raise InputError(f"config is {type(config).__name__}; it must be HomerConfig() or HomerConfig.paper()")
        if isinstance(config, MergeConfig) and executor not in (None, IN_PROCESS):
            raise ConfigError("executor cannot act with the paper's preset: one process reads a tree: leave it out")
        self.model = model
        self.tokenizer = tokenizer
        self.config: Config = with_known_profile(model, config or HomerConfig())
        self.decoder = Decoder(model)
        check_evaluating(model)
        self._loaded = LoadedModel(self.decoder, tokenizer)
        self.executor: Executor = executor or IN_PROCESS
        self.method: Method = self._method(self.config)
        if model not in _verified:
            verify_layer_loop(self.decoder)
            _verified.add(model)

    @property
    def limit(self) -> int:
        """Tokens the model was made to read, after RoPE scaling."""
        return self.decoder.shape.limit

    @property
    def lengths(self) -> Lengths:
        """Chunk and target length of a prompt whose affixes are short."""
        return self.method.lengths

    @property
    def keeps_keys(self) -> bool:
        """Whether documents can be read for questions to come (`read`): not with the paper's preset."""
        return isinstance(self.config, HomerConfig)

    def plan(self, prefix_len: int, context_len: int, suffix_len: int, neutral_len: int | None = None) -> Plan:
        """What a prompt of these lengths in tokens will run: passes, lengths, memory. neutral_len: of the neutral
        question's suffix; None for the one that `compress` takes by itself. Raises `ScheduleError` for a prompt that
        does not fit, `InputError` for numbers that are no lengths."""
        if neutral_len is None:
            neutral_len = 0 if self._neutral is None else self._neutral.shape[1]
        given = {"prefix_len": prefix_len, "context_len": context_len, "suffix_len": suffix_len}
        for name, value in (given | {"neutral_len": neutral_len}).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name} is {value!r}; it must be a whole number of tokens")
        return self.method.plan(prefix_len, context_len, suffix_len, neutral_len)

    def profile(self, *, observer: Observer | None = None) -> Profile | None:
        """The profile that the default method chooses by: the config's, the one that is known of this model, or else
        measured now, in the time of reading some 80,000 tokens, and kept for next time. None where none is asked for
        or none can be measured: without a fast tokenizer, or with HOMERLM_AUTO_PROFILE=0 in the environment."""
        run_steps(self._profiled(), observer)
        return self.config.profile if isinstance(self.config, HomerConfig) else None

    def compress(
        self,
        prefix_ids: Tensor,
        context_ids: Tensor,
        suffix_ids: Tensor,
        *,
        neutral_ids: Tensor | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> CompactContext:
        """Compress a prompt of ids (B, P), (B, C), (B, S), on any device, to at most `target_len` tokens.

        neutral_ids: (B, N) suffix of a question that asks for nothing, in the suffix's own format (`contrast`); None
        for that of the tokenizer's chat template. The first long document of an unknown model is preceded by the
        measurement of its `profile`. All rows of a batch have equal lengths, and each row's result is its own.
        `observer` is called after every step; once `cancel` is set, the work stops after the chunk at hand and raises
        `Cancelled`. Raises `InputError`, `ScheduleError`, `NumericalError`.
        """
        return run_steps(self.compressing(prefix_ids, context_ids, suffix_ids, neutral_ids), observer, cancel)

    @torch.no_grad()
    def compressing(
        self, prefix_ids: Tensor, context_ids: Tensor, suffix_ids: Tensor, neutral_ids: Tensor | None = None
    ) -> Generator[Event, None, CompactContext]:
        """`compress` step by step: events as parts of the prompt are done, and the context as the generator's value.
        Closing it stops the work."""
        check_evaluating(self.model)
        named = {"prefix_ids": prefix_ids, "context_ids": context_ids, "suffix_ids": suffix_ids}
        parts = self._checked(named)
        prefix, context, suffix = parts
        prompt_ids = PromptIds(prefix, context, suffix, self._neutral_for(neutral_ids, len(prefix)))
        plan = self.method.plan(*prompt_ids.lengths)
        if plan.prompt_len > plan.cache_len:
            yield from self._profiled()
            plan = self.method.plan(*prompt_ids.lengths)
        with out_of_memory_explained(f"compressing {plan.prompt_len} tokens", self._lower(plan)):
            return _finite((yield from self.method.compress(prompt_ids)))

    def focus(
        self, context: CompactContext | Index, suffix_ids: Tensor, neutral_ids: Tensor | None = None
    ) -> CompactContext:
        """What another question, suffix ids (B, S), needs of a document read before, as a context of its own.

        Of an index (one row): its tokens are scored by their keys, and the candidates are read with the question. Of a
        compressed document, made by `for_later`: costs a pass of the suffix over the context and a prefill of what is
        left, some hundred tokens. Where the settings know no reranking, the suffix is exchanged.
        """
        if isinstance(context, Index):
            return self.search(context, suffix_ids, neutral_ids).context
        return self._focus(context, suffix_ids, neutral_ids)

    def search(
        self,
        index: Index,
        suffix_ids: Tensor,
        neutral_ids: Tensor | None = None,
        *,
        prefix_ids: Tensor | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Found:
        """`focus` of an index, and how many tokens were read for it. neutral_ids, `observer` and `cancel` as in
        `compress`; prefix_ids: (1, P) that the answer's prompt opens with, default those the index was made with."""
        return run_steps(self._searching(index, suffix_ids, neutral_ids, prefix_ids), observer, cancel)

    @torch.no_grad()
    def _searching(
        self, index: Index, suffix_ids: Tensor, neutral_ids: Tensor | None, prefix_ids: Tensor | None = None
    ) -> Generator[Event, None, Found]:
        if not isinstance(index, Index):
            raise InputError(f"index is {type(index).__name__}; it must be an Index, as `read` makes it")
        self.check_context(index)
        method = self._finding()
        (suffix_ids,) = self._checked({"suffix_ids": suffix_ids}, rows=1)
        if prefix_ids is not None:
            (prefix_ids,) = self._checked({"prefix_ids": prefix_ids}, rows=1)
        found = yield from asking(method, index, suffix_ids, self._neutral_for(neutral_ids, 1), prefix_ids)
        _finite(found.context)
        return found

    @torch.no_grad()
    def index(
        self,
        prefix_ids: Tensor,
        context_ids: Tensor,
        *,
        neutral_ids: Tensor | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Index:
        """An index of a document of ids (1, C) that is read behind a prefix (1, P), for `focus` with the suffixes of
        questions to come. It holds no text. neutral_ids: as in `compress`. For text, see `read`."""
        prefix_ids, context_ids = self._checked({"prefix_ids": prefix_ids, "context_ids": context_ids}, rows=1)
        neutral_ids = self._neutral_for(neutral_ids, 1)
        neutral_len = 0 if neutral_ids is None else neutral_ids.shape[1]
        behind = context_ids[:, :STAND_IN_LEN] if self.tokenizer is None else stand_in(self.tokenizer)

        def frame(indexer: Indexer) -> Frame:
            return indexer.frame(prefix_ids, behind, neutral_len)

        def reads(builder: Builder) -> Iterable[Event]:
            return builder.ids("document", context_ids)

        return run_steps(self._indexing(reads, frame, None, None), observer, cancel)

    @torch.no_grad()
    def _focus(self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None) -> CompactContext:
        self.check_context(context)
        (suffix_ids,) = self._checked({"suffix_ids": suffix_ids}, rows=context.batch_size)
        neutral_ids = self._neutral_for(neutral_ids, context.batch_size)
        return _finite(self.method.ask_again(context, suffix_ids, neutral_ids))

    @torch.no_grad()
    def exchange_suffix(self, context: CompactContext, suffix_ids: Tensor) -> CompactContext:
        """The same compressed document with another suffix (B, S), that is another question: the old suffix's keys
        and values go, the new suffix runs through all layers over what is left. Costs a few tokens."""
        self._check_compact(context)
        (suffix_ids,) = self._checked({"suffix_ids": suffix_ids}, rows=context.batch_size)
        return exchange_suffix(self.decoder, context, suffix_ids)

    @torch.no_grad()
    def score(self, context: CompactContext, input_ids: Tensor) -> Tensor:
        """Logits (B, S, V) of a continuation (B, S) of the context, which stays as it was."""
        self._check_compact(context)
        (input_ids,) = self._checked({"input_ids": input_ids}, rows=context.batch_size)
        return generation.score(self.model, context, input_ids)

    @torch.no_grad()
    def generate(self, context: CompactContext, *, cancel: threading.Event | None = None, **settings: Any) -> Tensor:
        """New ids (B, n) after the context. Takes what transformers' `generate` takes: sampling, stopping, streamer.
        Once `cancel` is set, no further token is made and `Cancelled` is raised."""
        self._check_compact(context)
        generation.check_settings(self.model, settings)
        return generation.generate(self.model, context, cancel=cancel, **settings)

    def for_later(self, *, chosen_by: str = "both") -> Self:
        """This compressor for documents whose questions come later: the reranking, if its settings have one, is put
        off, surprisal chooses beside the suffix, and chunks and cache are half the model's limit, at most 4,096 tokens,
        unless their lengths are set. For a text that goes on, the suffix is all there is to go by:
        `chosen_by="attention"`."""
        if not isinstance(self.config, HomerConfig) or self.config.rerank == "never":
            return self
        length = min(int(self.limit * LATER_SHARE), LATER_LEN)
        config = replace(
            self.config,
            rerank="later",
            chosen_by=chosen_by,
            max_chunk_len=self.config.max_chunk_len or length,
            target_len=self.config.target_len or length,
        )
        return type(self)(self.model, self.tokenizer, config, self.executor)

    @torch.no_grad()
    def _indexing(
        self, reads: Reads, frame: Callable[[Indexer], Frame], into: Index | None, path: str | os.PathLike[str] | None
    ) -> Generator[Event, None, Index]:
        """Events of documents that are read into an index; its value is the index."""
        check_evaluating(self.model)
        if path is not None:
            storage.check_target(path)  # before the work
        yield from self._profiled()
        indexer = Indexer(self.decoder, self._finding())
        with (
            self.decoder.session(),
            out_of_memory_explained("reading into an index", "Lower chunk_batch or max_chunk_len"),
        ):
            made = frame(indexer)
            if into is not None:
                into.frame.check_same(made)
            before = into or empty(made, self.model.dtype)
            if path is None:
                return (yield from indexer.in_memory(before, reads))
            yield from indexer.to_file(Path(path), before, reads)
        return Index.load(path, self.model, check=False)  # its digest was taken, and its tokenizer is this one

    def _with(self, config: Config) -> Self:
        """This compressor with other settings, and with what is known of its model already."""
        other = copy(self)
        other.config = with_known_profile(self.model, config)
        other.method = self._method(other.config)
        return other

    def _finding(self) -> Select:
        """The default method as it finds tokens of an index, among all of them: by attention, and reranking at once if
        at all. Raises `ConfigError` for the paper's preset."""
        if not isinstance(self.config, HomerConfig):
            raise ConfigError("the paper's preset keeps no keys to find tokens by: read and ask with HomerConfig()")
        rerank = "never" if self.config.rerank == "never" else "now"
        config = replace(self.config, rerank=rerank, chosen_by="attention", prefilter=None)
        if config == self.config and isinstance(self.method, Select):
            return self.method
        method = self._method(config)
        assert isinstance(method, Select)
        return method

    def check_context(self, context: CompactContext | Index) -> None:
        """Raise `MismatchError` for a context or index that another model made, or this one before its weights changed,
        `InputError` for what is none, and for a model in training mode."""
        check_evaluating(self.model)
        if not isinstance(context, CompactContext | Index):
            raise InputError(f"context is {type(context).__name__}; it must be a CompactContext or an Index")
        context.check_model(ModelIdentity.of(self.model))

    def _check_compact(self, context: CompactContext) -> None:
        """`check_context`, and `InputError` for an index, of which no question has chosen anything yet."""
        self.check_context(context)
        if isinstance(context, Index):
            raise InputError(
                "context is an Index, which holds a whole document: ask it (`ask`), or go on from what a question "
                "needs of it, `focus(index, suffix_ids)`"
            )

    def _method(self, config: Config) -> Method:
        origin = partial(Origin.now, self.model, tokenizer_fingerprint(self.tokenizer), config.to_dict())
        if isinstance(config, MergeConfig):
            return Merge.on(self.decoder, config, origin)
        return Select.on(self._loaded, config, origin, self.executor)

    @cached_property
    def _neutral(self) -> Tensor | None:
        """(1, N) ids of the suffix to compare a question's with, where none is given."""
        if self.tokenizer is None or not isinstance(self.config, HomerConfig) or self.config.contrast == "none":
            return None
        return prompt.token_ids(self.tokenizer, prompt.neutral(self.tokenizer))

    def _neutral_for(self, given: Tensor | None, rows: int) -> Tensor | None:
        if given is not None:
            (given,) = self._checked({"neutral_ids": given}, rows=rows)
            return given
        return None if self._neutral is None else self._neutral.expand(rows, -1).to(self.decoder.device)

    def _profiled(self) -> Generator[Event, None, None]:
        """Events of the measurement of the model's profile, if it needs one; the config holds it afterwards."""
        if not can_profile(self.config, self.tokenizer):
            return
        while not _profiling.acquire(timeout=PROFILING_WAIT_S):  # its holder may be a generator of this very thread
            yield Event(0, 1, note="Waiting for the measurement of this model's heads")
        try:
            known = with_known_profile(self.model, self.config)
            if isinstance(known, HomerConfig) and known.profile is None:
                known = replace(known, profile=(yield from profiled(self.model, self.tokenizer)))
        finally:
            _profiling.release()
        self.config, self.method = known, self._method(known)

    @property
    def _vocab(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    def _lower(self, plan: Plan) -> str:
        longest = max(p.tokens for p in plan.passes)
        return (
            f"It runs chunks of {longest} tokens, {self.config.chunk_batch} at once, and keeps {plan.cache_len}: lower "
            "chunk_batch, max_chunk_len or target_len"
        )

    def _checked(self, parts: dict[str, Tensor], rows: int | None = None) -> list[Tensor]:
        return checked_ids(parts, self._vocab, self.decoder.device, rows)


def _finite(context: CompactContext) -> CompactContext:
    if torch.isfinite(context.logits).all():
        return context
    raise NumericalError(
        "the model gave NaN or infinite logits for this prompt: try dtype=bfloat16 or float32, or check its weights"
    )
