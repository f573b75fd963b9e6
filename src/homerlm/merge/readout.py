"""What the answer is read from once the tree has run (docs/method.md, "Using the result")."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from homerlm.merge.chunk import Chunk
from homerlm.model.decoder import Decoder
from homerlm.suffix import CacheState, run_suffix

Readout = Callable[[Decoder, Chunk, Tensor], CacheState]


def merged(decoder: Decoder, root: Chunk, input_ids: Tensor) -> CacheState:  # noqa: ARG001
    """The paper's: the root's keys, values and last hidden state as they came out of the tree."""
    return CacheState(root.keys, root.values, root.position_ids, decoder.logits(root.hidden[:, -1:])[:, -1])


def reencoded(decoder: Decoder, root: Chunk, input_ids: Tensor) -> CacheState:
    """The suffix's averaged keys and values give way to the suffix run once more, over the compact cache, through all
    layers: averaged over the chunks it had seen each part of the document in one chunk of many."""
    suffix = root.suffix_len
    keys, values = ([t[:, :, :-suffix] for t in part] for part in (root.keys, root.values))
    return run_suffix(decoder, keys, values, root.position_ids, input_ids[:, -suffix:])


READOUTS: dict[str, Readout] = {"merged": merged, "reencoded": reencoded}
