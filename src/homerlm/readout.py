"""What the answer is read from, once the tree has run: three ways from the root chunk to a cache and logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from homerlm.adapter import Decoder
from homerlm.chunk import Chunk


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
    suffix_len = root.suffix_len
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(root.keys, root.values, strict=True)):
        cache.update(keys[:, :, :-suffix_len], values[:, :, :-suffix_len], layer)
    output = decoder.model(
        input_ids=input_ids[:, -suffix_len:].to(decoder.device),
        past_key_values=cache,
        position_ids=root.position_ids[:, -suffix_len:].to(decoder.device),
        use_cache=True,
        logits_to_keep=1,
    )
    keys = tuple(layer.keys for layer in cache.layers)
    values = tuple(layer.values for layer in cache.layers)
    return Readout(keys, values, root.position_ids, output.logits[:, -1])


def recomputed(decoder: Decoder, root: Chunk, input_ids: Tensor) -> Readout:  # noqa: ARG001
    """The kept tokens run once, in order, as a fresh prompt at contiguous positions: the tree only chooses.

    Costs one prefill of the root's length; every kept token has then seen all others before it.
    """
    ids = input_ids.to(decoder.device)
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    with decoder.session():
        run = decoder.run(decoder.embed(ids), positions, 0, len(decoder.layers), queries=1, keep_kv=True)
    return Readout(run.keys, run.values, positions, decoder.logits(run.hidden[:, -1:])[:, -1])


ReadoutFunction = Callable[[Decoder, Chunk, Tensor], Readout]
READOUT_FUNCTIONS: dict[str, ReadoutFunction] = {"merged": merged, "reencoded": reencoded, "recomputed": recomputed}
