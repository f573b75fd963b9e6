"""New tokens from a compact context, by the model's own forward and transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from homerlm.context import CompactContext
from homerlm.errors import InputError
from homerlm.model.decoder import Decoder


def score(model: PreTrainedModel, context: CompactContext, input_ids: Tensor) -> Tensor:
    """Logits (B, S, V) of continuation ids (B, S) at the positions after the context."""
    if input_ids.dim() != 2 or len(input_ids) != context.batch_size:
        raise InputError(f"input_ids is {tuple(input_ids.shape)}; it must be ({context.batch_size}, tokens)")
    start = context.next_position
    positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
    cache = context.to_cache()
    step = 1 if context.uneven else input_ids.shape[1]
    with _masks_that_fit(model, context):
        steps = zip(input_ids.split(step, dim=1), positions.split(step, dim=1), strict=True)
        logits = [model(input_ids=ids, past_key_values=cache, position_ids=at).logits for ids, at in steps]
    return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)


def generate(model: PreTrainedModel, context: CompactContext, **settings: Any) -> Any:
    """New ids (B * num_return_sequences, n), through `model.generate`; its output object if it is asked for one.

    `generate` wants a token to start from, so it gets the context less its last token, and that token as its prompt's
    end. The step it makes of it is exchanged for what the compression computed, which keeps the paper's cache exact.
    """
    copies = _copies(model, settings)
    length = len(context)
    device = model.get_input_embeddings().weight.device
    with _first_step_from(model, context, copies), _masks_that_fit(model, context):
        output = model.generate(
            input_ids=context.input_ids.to(device),
            attention_mask=torch.ones_like(context.input_ids, device=device),
            position_ids=context.position_ids.to(device),
            past_key_values=context._cache(length - 1, copies),
            **settings,
        )
    if isinstance(output, Tensor):
        return output[:, length:]
    output.sequences = output.sequences[:, length:]
    return output


def _copies(model: PreTrainedModel, settings: dict[str, Any]) -> int:
    """How many cache rows `generate` needs for each row of the context."""
    config = settings.get("generation_config") or model.generation_config
    wanted = (settings.get(name) or getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences"))
    return max(wanted)


def _masks_that_fit(model: PreTrainedModel, context: CompactContext) -> AbstractContextManager[None]:
    """A model makes one mask for layers of all lengths. Uneven ones are read one token at a time, which needs none:
    it attends to all that its layer's cache holds, and our attention is given no mask."""
    return Decoder(model).session() if context.uneven else nullcontext()


@contextmanager
def _first_step_from(model: PreTrainedModel, context: CompactContext, copies: int) -> Iterator[None]:
    """Inside the block, the model's first forward yields the context's own logits and last keys and values.

    Assisted generation (`prompt_lookup_num_tokens`, `assistant_model`) begins with the whole prompt and its guesses,
    whatever a cache holds: what it does hold is cut off.
    """

    def cut(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        first.remove()
        given, held = kwargs["input_ids"].shape[1], kwargs["past_key_values"].get_seq_length()
        names = ("input_ids", "position_ids") if given > held else ()
        return args, kwargs | {name: kwargs[name][:, held:] for name in names}

    def exchange(_module: nn.Module, _args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        last.remove()
        step = kwargs["input_ids"].shape[1]
        output.logits[:, -step] = context.logits.to(output.logits).repeat_interleave(copies, dim=0)
        cache: Cache = kwargs["past_key_values"]
        for layer, keys, values in zip(cache.layers, context.keys, context.values, strict=True):
            at = slice(layer.keys.shape[2] - step, layer.keys.shape[2] - step + 1)
            layer.keys[:, :, at] = keys[:, :, -1:].repeat_interleave(copies, dim=0)
            layer.values[:, :, at] = values[:, :, -1:].repeat_interleave(copies, dim=0)
        return output

    first = model.register_forward_pre_hook(cut, with_kwargs=True)
    last = model.register_forward_hook(exchange, with_kwargs=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()
