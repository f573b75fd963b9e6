"""What the answer is read from, once the tree has run: three ways from the root chunk to a cache and logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from homerlm.context import CompactContext
from homerlm.errors import InputError
from homerlm.merge.chunk import Chunk
from homerlm.model.decoder import Decoder


@dataclass(frozen=True)
class Readout:
    """keys, values: per layer (B, K, S, D); position_ids: (B, S); logits: (B, V) for the token after them."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    position_ids: Tensor
    logits: Tensor


def merged(decoder: Decoder, root: Chunk, input_ids: Tensor) -> Readout:  # noqa: ARG001
    """The paper's (SPEC 8): the root's keys, values and last hidden state as they came out of the tree."""
    return Readout(root.keys, root.values, root.position_ids, decoder.logits(root.hidden[:, -1:])[:, -1])


def reencoded(decoder: Decoder, root: Chunk, input_ids: Tensor) -> Readout:
    """The suffix's averaged keys and values give way to the suffix run once more, over the compact cache, through all
    layers: averaged over the chunks it had seen each part of the document in one chunk of many."""
    keys, values = ([t[:, :, : -root.suffix_len] for t in part] for part in (root.keys, root.values))
    return _run_suffix(decoder, keys, values, root.position_ids, root.suffix_len, input_ids)


def exchange_suffix(decoder: Decoder, context: CompactContext, suffix_ids: Tensor) -> CompactContext:
    """The context with suffix ids (B, S) in place of its own, run over the kept prefix and document."""
    old, new = context.suffix_len, suffix_ids.shape[1]
    if len(suffix_ids) != context.batch_size or not new:
        raise InputError(
            f"suffix_ids is {tuple(suffix_ids.shape)}; it must be ({context.batch_size}, 1 or more tokens)"
        )
    if context.uneven:
        raise InputError(
            "the context's layers hold different numbers of tokens (refinement 'none'), so no new suffix can run over "
            "them: compress the document with the other suffix"
        )
    steps = torch.arange(new, device=context.position_ids.device).expand(context.batch_size, -1)

    def swap(kept: Tensor, tail: Tensor) -> Tensor:
        return torch.cat([kept[:, :-old], tail.to(kept.device)], dim=1)

    positions = swap(context.position_ids, context.position_ids[:, -old, None] + steps)
    input_ids = swap(context.input_ids, suffix_ids)
    keys, values = ([t[:, :, :-old] for t in part] for part in (context.keys, context.values))
    read = _run_suffix(decoder, keys, values, positions, new, input_ids)
    return replace(
        context,
        keys=read.keys,
        values=read.values,
        position_ids=positions,
        token_indices=swap(context.token_indices, context.prompt_len - old + steps),
        input_ids=input_ids,
        logits=read.logits,
        next_position=context.next_position - old + new,
        suffix_len=new,
        prompt_len=context.prompt_len - old + new,
    )


def _run_suffix(
    decoder: Decoder,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    position_ids: Tensor,
    suffix_len: int,
    input_ids: Tensor,
) -> Readout:
    """The last `suffix_len` of `input_ids` (B, S) through all layers, over the keys and values of those before."""
    cache = DynamicCache()  # not told of sliding windows: all layers keep all tokens, the model's masks do the rest
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key, value, layer)
    output = decoder.model(
        input_ids=input_ids[:, -suffix_len:].to(decoder.device),
        past_key_values=cache,
        position_ids=position_ids[:, -suffix_len:].to(decoder.device),
        use_cache=True,
        logits_to_keep=1,
    )
    states = [(layer.keys, layer.values) for layer in cache.layers]
    return Readout(tuple(k for k, _ in states), tuple(v for _, v in states), position_ids, output.logits[:, -1])


def recomputed(decoder: Decoder, root: Chunk, input_ids: Tensor) -> Readout:  # noqa: ARG001
    """The kept tokens run once, in order, as a fresh prompt at contiguous positions: the tree only chooses.

    Costs one prefill of the root's length; every kept token has then seen all others before it.
    """
    ids = input_ids.to(decoder.device)
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    with decoder.session():
        run = decoder.run(decoder.embed(ids), positions, 0, len(decoder.layers), keep_kv=True)
    return Readout(run.keys, run.values, positions, decoder.logits(run.hidden[:, -1:])[:, -1])


ReadoutFunction = Callable[[Decoder, Chunk, Tensor], Readout]
READOUT_FUNCTIONS: dict[str, ReadoutFunction] = {"merged": merged, "reencoded": reencoded, "recomputed": recomputed}
