"""The compressor: a model, its tokenizer and a config, from a prompt to a compact context and on to new tokens."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import generation
from homerlm.answer import Answer, ask, ask_stream, read
from homerlm.config import HomerConfig, Lengths
from homerlm.context import CompactContext, Origin
from homerlm.errors import ConfigError, InputError, NumericalError
from homerlm.merge.readout import READOUT_FUNCTIONS, exchange_suffix
from homerlm.merge.refinement import REFINEMENTS
from homerlm.merge.schedule import Schedule
from homerlm.merge.tree import Event, Observer, Selection, Tree
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity, tokenizer_fingerprint
from homerlm.model.memory import out_of_memory_explained
from homerlm.model.support import verify_layer_loop
from homerlm.prompt import NEUTRAL_QUESTION
from homerlm.score.calibration import Calibration
from homerlm.score.scores import CALIBRATED_SCORES, SCORES
from homerlm.score.sentences import Sentences
from homerlm.score.surprisal import Surprisal
from homerlm.select.rerank import SecondLook, focus

MIDDLE_END = 0.6  # of the layers: where those that match the question's words to the text end (docs/experiments.md)
LATER_SHARE = 0.5  # of the limit: what of a document must be kept where no question chooses (docs/experiments.md)
_verified: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


class Homer:
    """HOMER on one model. Holds no state of any prompt; the model is used as it is and left as it was.

    `tokenizer` is needed for text (`ask`), and for sentences to stay whole (`sentence_weight`). Raises
    `UnsupportedModelError` for a model that cannot run HOMER and `ConfigError` for settings that do not fit it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: HomerConfig | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config or HomerConfig()
        self.decoder = Decoder(model)
        self.lengths: Lengths = self.config.resolve(self.limit, len(self.decoder.layers))
        self._bias = self._calibration_bias()
        self._tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        if model not in _verified:
            verify_layer_loop(self.decoder)
            _verified.add(model)

    @property
    def limit(self) -> int:
        """Tokens the model was made to read, after RoPE scaling."""
        return self.decoder.config.max_position_embeddings

    def plan(self, prefix_len: int, context_len: int, suffix_len: int) -> Schedule:
        """The tree for a prompt of these lengths in tokens."""
        return self.lengths.schedule(prefix_len, context_len, suffix_len, len(self.decoder.layers))

    @torch.no_grad()
    def compress(
        self, prefix_ids: Tensor, context_ids: Tensor, suffix_ids: Tensor, *, observer: Observer | None = None
    ) -> CompactContext:
        """Compress a prompt of ids (B, P), (B, C), (B, S), on any device, to at most `target_len` tokens.

        All rows of a batch have equal lengths; compress prompts of other lengths by themselves. `observer` is called
        after every node (progress, what was dropped where). Raises `InputError`, `ScheduleError`, `NumericalError`.
        """
        named = {"prefix_ids": prefix_ids, "context_ids": context_ids, "suffix_ids": suffix_ids}
        prefix_ids, context_ids, suffix_ids = self._checked(named)
        schedule = self.plan(prefix_ids.shape[1], context_ids.shape[1], suffix_ids.shape[1])
        config = self.config
        selection = self._selection(schedule.suffix_len)
        generous = self._generous(selection)
        surprisal = None
        if config.by_surprisal(schedule):
            asking = generous if config.chosen_by == "both" else None
            surprisal = Surprisal(self.decoder, prefix_ids, context_ids, suffix_ids, asking)
            generous = replace(generous, pooling=1, sentence_weight=0.0)  # neighbours count in surprisal as it is
        tree = Tree(
            self.decoder,
            schedule,
            prefix_ids,
            context_ids,
            suffix_ids,
            generous,
            keep_kv=config.readout != "recomputed",
            leaf_batch=config.leaf_batch,
            leaf_scores=surprisal,
            observer=observer,
        )
        with out_of_memory_explained(f"compressing {schedule.prompt_len} tokens", _lower(schedule, config)):
            with self.decoder.session():
                root = tree.run()
                if self.lengths.looks_again(schedule):
                    look, candidates = self._second_look(selection), tree.ids_of(root)
                    root = look.cut(look.judge(self.decoder, root, candidates), candidates)
                    if observer is not None:
                        observer(Event(schedule, schedule.root, root.token_indices, look=2))
                    root = look.recap(root)
            input_ids = tree.ids_of(root)
            state = READOUT_FUNCTIONS[config.readout](self.decoder, root, input_ids)
        return _finite(
            CompactContext(
                keys=state.keys,
                values=state.values,
                position_ids=state.position_ids,
                token_indices=root.token_indices,
                input_ids=input_ids,
                logits=state.logits,
                next_position=int(state.position_ids[0, -1]) + 1,
                prefix_len=schedule.prefix_len,
                suffix_len=schedule.suffix_len,
                prompt_len=schedule.prompt_len,
                model_config=self.decoder.config,
                origin=Origin(ModelIdentity.of(self.model), self._tokenizer_fingerprint, config.to_dict()),
            )
        )

    @torch.no_grad()
    def focus(self, context: CompactContext, suffix_ids: Tensor) -> CompactContext:
        """What another question, suffix ids (B, S), needs of a document compressed before, as a context of its own.

        Made for documents compressed with `second_look="later"`. Costs a pass of the suffix over the context and a
        prefill of what is left, some hundred tokens. Where the settings know no second look, the suffix is exchanged.
        """
        (suffix_ids,) = self._checked({"suffix_ids": suffix_ids})
        if self.lengths.second_look == "never":
            return self.exchange_suffix(context, suffix_ids)
        look = self._second_look(self._selection(suffix_ids.shape[1]))
        return _finite(focus(self.decoder, context, suffix_ids, look))

    @torch.no_grad()
    def exchange_suffix(self, context: CompactContext, suffix_ids: Tensor) -> CompactContext:
        """The same compressed document with another suffix (B, S), that is another question: the old suffix's keys
        and values go, the new suffix runs through all layers over what is left. Costs a few tokens."""
        return exchange_suffix(self.decoder, context, self._checked({"suffix_ids": suffix_ids})[0])

    @torch.no_grad()
    def score(self, context: CompactContext, input_ids: Tensor) -> Tensor:
        """Logits (B, S, V) of a continuation (B, S) of the context, which stays as it was."""
        return generation.score(self.model, context, input_ids.to(self.decoder.device))

    @torch.no_grad()
    def generate(self, context: CompactContext, **settings: Any) -> Tensor:
        """New ids (B, n) after the context. Takes what transformers' `generate` takes: sampling, stopping, streamer."""
        return generation.generate(self.model, context, **settings)

    def for_later(self, *, chosen_by: str = "both") -> Homer:
        """This compressor for documents whose questions come later: the second look, if its settings have one, is put
        off, surprisal chooses beside the suffix, and chunks and cache are at least half the model's limit, unless their
        lengths are set. For a text that goes on the suffix is all there is to go by: `chosen_by="attention"`."""
        if self.lengths.second_look == "never":
            return self
        shares = {name: max(getattr(self.config, name), LATER_SHARE) for name in ("chunk_share", "target_share")}
        config = replace(self.config, second_look="later", chosen_by=chosen_by, **shares)
        return type(self)(self.model, self.tokenizer, config)

    def read(self, document: str, question: str = NEUTRAL_QUESTION, **options: Any) -> CompactContext:
        """Compress a text once, to ask it more than one question with `ask`. See `homerlm.answer.read`."""
        return read(self, document, question, **options)

    def ask(self, document: str | CompactContext, question: str, **options: Any) -> Answer:
        """Answer a question about a text, or about one compressed before. See `homerlm.answer.ask` for the options."""
        return ask(self, document, question, **options)

    def ask_stream(self, document: str | CompactContext, question: str, **options: Any) -> Generator[str, None, Answer]:
        """`ask` as a generator of the answer's pieces, whose return value is the `Answer`."""
        return ask_stream(self, document, question, **options)

    def _selection(self, suffix_len: int) -> Selection:
        config = self.config
        return Selection(
            SCORES[config.score],
            min(config.scoring_queries or suffix_len, suffix_len),
            config.pooling,
            config.sentence_weight,
            self._sentences,
            self._bias,
            voters=voting_layers(config.voters, len(self.decoder.layers), self.lengths.warmup_layers),
            refine=REFINEMENTS[config.refinement],
        )

    def _generous(self, selection: Selection) -> Selection:
        """Before a second look a candidate brings twice as many neighbours along as after it."""
        if self.lengths.second_look == "never":
            return selection
        return replace(selection, pooling=2 * selection.pooling + 1)

    def _second_look(self, selection: Selection) -> SecondLook:
        return SecondLook(selection, self.lengths.target_len, self.config.floor, self.config.recap_len)

    @cached_property
    def _sentences(self) -> Sentences | None:
        if self.tokenizer is None or not self.config.sentence_weight:
            return None
        return Sentences(self.tokenizer, self._vocab, self.decoder.device)

    @property
    def _vocab(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    def _calibration_bias(self) -> Tensor | None:
        if self.config.score not in CALIBRATED_SCORES:
            return None
        calibration = self.config.calibration
        if calibration is not None:
            calibration.check(self.model)
        elif (calibration := Calibration.bundled(self.model)) is None:
            raise ConfigError(
                f"score {self.config.score!r} needs a calibration of this model: make one with `homer calibrate` or "
                "Calibration.measure, and pass it as calibration=..., or use score='softmax', which needs none"
            )
        distances, longest = calibration.bias.shape[1], self.lengths.max_chunk_len
        if distances < longest:
            raise ConfigError(
                f"the calibration covers distances below {distances}, but chunks may hold {longest} tokens: "
                f"lower max_chunk_len to {distances}, or calibrate with a longer length"
            )
        return calibration.bias

    def _checked(self, parts: dict[str, Tensor]) -> list[Tensor]:
        """The three id tensors on the model's device, or `InputError` naming the one that is wrong."""
        vocab = self._vocab
        for name, ids in parts.items():
            if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.long, torch.int32):
                found = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
                raise InputError(f"{name} is {found}; it must be a LongTensor of shape (batch, tokens)")
            if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocab):
                raise InputError(
                    f"{name} holds ids from {int(ids.min())} to {int(ids.max())}; the model knows 0 to {vocab - 1}: "
                    "was it made by another tokenizer?"
                )
        rows = {name: len(ids) for name, ids in parts.items()}
        if len(set(rows.values())) > 1 or 0 in rows.values():
            raise InputError(f"batch sizes differ or are zero: {rows}; every row needs its prefix, context and suffix")
        return [ids.long().to(self.decoder.device) for ids in parts.values()]


def _finite(context: CompactContext) -> CompactContext:
    if torch.isfinite(context.logits).all():
        return context
    raise NumericalError(
        "the model gave NaN or infinite logits for this prompt: try dtype=bfloat16 or float32, or check its weights"
    )


def voting_layers(voters: str, layers: int, warmup_layers: int) -> range | None:
    """The layers whose scores count, of a model with `layers`; None for a chunk's last layer alone."""
    starts = {"middle_layers": layers // 2, "upper_half": layers // 2, "all_layers": warmup_layers}
    if voters not in starts:
        return None
    start = starts[voters]
    stop = max(round(layers * MIDDLE_END), start + 1) if voters == "middle_layers" else layers
    return range(start, stop)


def _lower(schedule: Schedule, config: HomerConfig) -> str:
    longest = max(node.length for node in schedule.root.walk())
    return (
        f"It runs chunks of {longest} tokens, {config.leaf_batch} at once, and keeps {schedule.root.target}: "
        "lower leaf_batch, max_chunk_len or target_len"
    )
