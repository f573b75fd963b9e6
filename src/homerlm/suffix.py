"""A suffix run over a compact cache: the same document with another question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from homerlm.context import CompactContext
from homerlm.errors import InputError
from homerlm.model.decoder import Decoder


@dataclass(frozen=True)
class CacheState:
    """keys, values: per layer (B, K, S, D); position_ids: (B, S); logits: (B, V) for the token after them."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    position_ids: Tensor
    logits: Tensor


def run_suffix(
    decoder: Decoder,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    position_ids: Tensor,
    suffix_ids: Tensor,
) -> CacheState:
    """Suffix ids (B, S) through all layers, over the keys and values (B, K, N, D) of what comes before them.
    position_ids: (B, N + S) of both."""
    cache = DynamicCache()  # not told of sliding windows: all layers keep all tokens, the model's masks do the rest
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key, value, layer)
    output = decoder.model(
        input_ids=suffix_ids.to(decoder.device),
        past_key_values=cache,
        position_ids=position_ids[:, -suffix_ids.shape[1] :].to(decoder.device),
        use_cache=True,
        logits_to_keep=1,
    )
    states = [(layer.keys, layer.values) for layer in cache.layers]
    return CacheState(tuple(k for k, _ in states), tuple(v for _, v in states), position_ids, output.logits[:, -1])


def exchange_suffix(decoder: Decoder, context: CompactContext, suffix_ids: Tensor) -> CompactContext:
    """The context with checked suffix ids (B, S) in place of its own, run over the kept prefix and document. Raises
    `InputError` for an uneven context."""
    if context.uneven:
        raise InputError(
            "the context's layers hold different numbers of tokens (refinement 'none'), so no new suffix can run over "
            "them: compress the document with the other suffix"
        )
    if context.padding is None:
        return _exchanged(decoder, context, suffix_ids)
    rows = [_exchanged(decoder, context.row(i), suffix_ids[i : i + 1]) for i in range(len(suffix_ids))]
    return CompactContext.stack(rows)


def _exchanged(decoder: Decoder, context: CompactContext, suffix_ids: Tensor) -> CompactContext:
    old, new = context.suffix_len, suffix_ids.shape[1]
    steps = torch.arange(new, device=context.position_ids.device).expand(context.batch_size, -1)

    def swap(kept: Tensor, tail: Tensor) -> Tensor:
        return torch.cat([kept[:, :-old], tail.to(kept.device)], dim=1)

    positions = swap(context.position_ids, context.position_ids[:, -old, None] + steps)
    keys, values = ([t[:, :, :-old] for t in part] for part in (context.keys, context.values))
    state = run_suffix(decoder, keys, values, positions, suffix_ids)
    return replace(
        context,
        keys=state.keys,
        values=state.values,
        position_ids=positions,
        token_indices=swap(context.token_indices, context.prompt_len - old + steps),
        input_ids=swap(context.input_ids, suffix_ids),
        logits=state.logits,
        suffix_len=new,
        prompt_len=context.prompt_len - old + new,
    )
