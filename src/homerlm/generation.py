"""New tokens from a compact context, by the model's own forward and transformers' own `generate`.

Whatever is hooked belongs to the calling context (`ContextVar`), so that any number of threads may generate from one
model, and its owner's own forwards never notice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation import GenerationMode

from homerlm.checks import check_whole
from homerlm.context import CompactContext
from homerlm.errors import Cancelled, ConfigError
from homerlm.model.decoder import Decoder, hooked
from homerlm.model.one_token import one_token_forwards
from homerlm.passes import check_callbacks
from homerlm.sampling import refusals

Cancel = threading.Event


def score(model: PreTrainedModel, context: CompactContext, input_ids: Tensor) -> Tensor:
    """Logits (B, S, V) of continuation ids (B, S) at the positions after the context."""
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    positions = context.next_positions.to(input_ids.device)[:, None] + steps
    cache = context.to_cache()
    size = 1 if context.uneven else input_ids.shape[1]
    seen = context.attention_mask.to(input_ids.device)
    logits = []
    with _masks_that_fit(model, context):
        for ids, at in zip(input_ids.split(size, dim=1), positions.split(size, dim=1), strict=True):
            seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
            mask = {} if context.padding is None else {"attention_mask": seen}
            logits.append(model(input_ids=ids, past_key_values=cache, position_ids=at, **mask).logits)
    return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)


def generate(model: PreTrainedModel, context: CompactContext, *, cancel: Cancel | None = None, **settings: Any) -> Any:
    """New ids (B * num_return_sequences, n), through `model.generate`; its output object if it is asked for one.

    `generate` wants a token to start from, so it gets the context less its last token, and that token as its prompt's
    end. The step it makes of it is exchanged for what the compression computed, which keeps the paper's cache exact.
    Once `cancel` is set, no further token is made and `Cancelled` is raised.
    """
    check_callbacks(cancel)
    copies = _copies(model, settings)
    length = len(context)
    device = model.get_input_embeddings().weight.device
    settings |= _cache_settings(model, settings)
    if cancel is not None:
        settings["stopping_criteria"] = [*(settings.get("stopping_criteria") or ()), _Cancelling(cancel)]
    step = _FirstStep(context, context._cache(length - 1, copies), copies)
    with _first_step_from(model, step), _steps(model, context, copies, settings), refusals(lambda: step.begun):
        output = model.generate(
            input_ids=context.input_ids.to(device),
            attention_mask=context.attention_mask.to(device),
            position_ids=context.position_ids.to(device),
            past_key_values=step.cache,
            **settings,
        )
    if cancel is not None and cancel.is_set():
        raise Cancelled("stopped while writing the answer")
    if isinstance(output, Tensor):
        return output[:, length:]
    output.sequences = output.sequences[:, length:]
    return output


_OWN_ARGUMENTS = frozenset(
    [
        "logits_processor",
        "stopping_criteria",
        "prefix_allowed_tokens_fn",
        "synced_gpus",
        "assistant_model",
        "streamer",
        "generation_config",
        "use_model_defaults",
        "negative_prompt_ids",
        "negative_prompt_attention_mask",
        "custom_generate",
        "tokenizer",
        "assistant_tokenizer",
    ]
)
_GIVEN = frozenset(
    [
        "input_ids",
        "inputs",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "cache_implementation",
        "cache_config",
    ]
)
_DECODING = frozenset(
    [
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
        GenerationMode.ASSISTED_GENERATION,
    ]
)

_COUNTS = ("max_new_tokens", "num_beams", "num_return_sequences")
_CHECKS = {  # what `generate` makes of a number, which refuses a wrong one
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
}


def check_settings(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Raise `ConfigError` for a name that transformers' `generate` does not take, or a number out of its range, before
    any work is done."""
    _check_names(model, settings)
    if settings.get("use_cache", True) is not True:
        raise ConfigError("use_cache is set by homerlm: what was compressed is a cache: leave it out")
    if setting(model, settings, "assistant_early_exit"):
        raise ConfigError(
            "assistant_early_exit makes the model shorter for all its callers while one of them writes: leave it out, "
            "or guess with prompt_lookup_num_tokens or an assistant_model"
        )
    for name in _COUNTS:
        if settings.get(name) is not None:
            check_whole(name, settings[name], 1)
    if not settings.get("do_sample", model.generation_config.do_sample):
        return
    for name, check in _CHECKS.items():
        number = settings.get(name)
        if number in (None, 1) or (name == "top_k" and number == 0):  # takes nothing away
            continue
        try:
            check(number)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{name} is {number!r}, which transformers' generate refuses: {error}") from None


def check_together(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Raise `ConfigError` for settings that transformers' `generate` refuses together, before any work is done: it is
    called with a decoding loop that runs nothing."""
    if settings.get("custom_generate") is not None:
        return

    def loop(_model: Any, _ids: Tensor, *, generation_config: Any, **_given: Any) -> Any:
        return generation_config.get_generation_mode(settings.get("assistant_model"))

    asked = settings | _cache_settings(model, settings) | {"custom_generate": loop}
    if asked.get("tokenizer") is not None:  # which `generate` keeps from such a loop
        asked |= {"stop_strings": None, "token_healing": False}
    with refusals():
        if (streamer := settings.get("streamer")) is not None:
            asked["streamer"] = _Muted(streamer)
        first = torch.ones(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
        mode = model.generate(input_ids=first, **asked)
    if mode not in _DECODING:
        raise ConfigError(
            f"the settings ask for {mode.replace('_', ' ')}, which is no part of transformers any more: leave out what "
            "asks for it"
        )
    if streamer is not None and "beam" in mode:
        raise ConfigError("pieces of an answer cannot be had while beams compete for it: leave out num_beams")


class _Muted:
    """A streamer that is not told of anything. Raises `AttributeError` for what is none."""

    def __init__(self, streamer: Any) -> None:
        self.end, _ = streamer.end, streamer.put

    def put(self, ids: Tensor) -> None:
        """Nothing."""


def _cache_settings(model: PreTrainedModel, settings: dict[str, Any]) -> dict[str, Any]:
    """What has to be said against a generation config that asks for a cache of another kind, or for none."""
    own = settings.get("generation_config") or model.generation_config
    wanted = {"use_cache": True, "cache_implementation": None}
    return {name: value for name, value in wanted.items() if getattr(own, name, None) not in (None, value)}


def _check_names(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    for name in settings:
        if name in _GIVEN:
            raise ConfigError(f"{name} is set by homerlm from the compressed prompt: leave it out")
        if name not in _OWN_ARGUMENTS and not hasattr(model.generation_config, name):
            raise ConfigError(
                f"{name} is no setting of transformers' generate, nor an option of this method: check the spelling "
                "(max_new_tokens, do_sample, temperature, top_p, ...)"
            )


class _Cancelling(StoppingCriteria):
    def __init__(self, cancel: Cancel) -> None:
        self._cancel = cancel

    def __call__(self, input_ids: Tensor, scores: Any, **_kwargs: Any) -> Any:  # noqa: ARG002
        return torch.full((len(input_ids),), self._cancel.is_set(), dtype=torch.bool, device=input_ids.device)


def _copies(model: PreTrainedModel, settings: dict[str, Any]) -> int:
    """Number of cache rows that `generate` needs for each row of the context."""
    return max(setting(model, settings, name) or 1 for name in ("num_beams", "num_return_sequences"))


def _masks_that_fit(model: PreTrainedModel, context: CompactContext) -> AbstractContextManager[None]:
    """A model makes one mask for layers of all lengths. Uneven ones are read one token at a time, which needs none:
    it attends to all that its layer's cache holds, and our attention is given no mask."""
    return Decoder(model).watched(masks=False) if context.uneven else nullcontext()


def _steps(
    model: PreTrainedModel, context: CompactContext, copies: int, settings: dict[str, Any]
) -> AbstractContextManager[Any]:
    """For the forwards of one `generate` call: of one token in each row, unless a guess of several is looked at."""
    if context.uneven:
        return _masks_that_fit(model, context)
    guesses = any(setting(model, settings, name) for name in ("prompt_lookup_num_tokens", "assistant_model"))
    return nullcontext() if guesses else one_token_forwards(Decoder(model), context.batch_size * copies)


def setting(model: PreTrainedModel, settings: dict[str, Any], name: str) -> Any:
    """What `generate` takes for a setting, None for nothing."""
    config = settings.get("generation_config") or model.generation_config
    return settings.get(name) or getattr(config, name, None)


class _FirstStep:
    """What the first forward of one `generate` call yields in place of what it computes: the context's own logits and
    last keys and values.

    Assisted generation (`prompt_lookup_num_tokens`, `assistant_model`) begins with the whole prompt and its guesses,
    whatever a cache holds: what it does hold is cut off.
    """

    def __init__(self, context: CompactContext, cache: Cache, copies: int) -> None:
        self.cache = cache
        self._context, self._copies = context, copies
        self.begun = self.done = False

    def concerns(self, kwargs: dict[str, Any]) -> bool:
        """Whether a forward is one over the context: an assistant may be the same model, with a cache of its own."""
        return kwargs.get("past_key_values") is self.cache

    def cut(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        self.begun = True
        given, held = kwargs["input_ids"].shape[1], kwargs["past_key_values"].get_seq_length()
        names = ("input_ids", "position_ids") if given > held else ()
        return kwargs | {name: kwargs[name][:, held:] for name in names}

    def exchange(self, kwargs: dict[str, Any], output: Any) -> None:
        self.done = True
        context, copies = self._context, self._copies
        step = kwargs["input_ids"].shape[1]
        output.logits[:, -step] = context.logits.to(output.logits).repeat_interleave(copies, dim=0)
        cache: Cache = kwargs["past_key_values"]
        for layer, keys, values in zip(cache.layers, context.keys, context.values, strict=True):
            at = slice(layer.keys.shape[2] - step, layer.keys.shape[2] - step + 1)
            layer.keys[:, :, at] = keys[:, :, -1:].repeat_interleave(copies, dim=0)
            layer.values[:, :, at] = values[:, :, -1:].repeat_interleave(copies, dim=0)


_first_step: ContextVar[_FirstStep | None] = ContextVar("homerlm_first_step", default=None)


def _before_forward(_module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
    step = _first_step.get()
    if step is None or step.begun or kwargs is None or not step.concerns(kwargs):
        return None
    return args, step.cut(kwargs)


def _after_forward(_module: nn.Module, _args: tuple, *rest: Any) -> None:
    """torch may call this without the forward's arguments while another thread takes a hook of its own away."""
    step = _first_step.get()
    if step is not None and not step.done and len(rest) == 2 and step.concerns(rest[0]):
        step.exchange(*rest)


@contextmanager
def _first_step_from(model: PreTrainedModel, step: _FirstStep) -> Iterator[None]:
    """Inside the block, this context's first forward over the step's cache yields the compact context's own logits."""
    token = _first_step.set(step)
    try:
        with (
            hooked(model.register_forward_pre_hook, _before_forward, with_kwargs=True),
            hooked(model.register_forward_hook, _after_forward, with_kwargs=True),
        ):
            yield
    finally:
        _first_step.reset(token)
