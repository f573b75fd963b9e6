"""The result of a compression: an ordinary, short KV cache with its positions (SPEC 8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class CompactContext:
    """A compressed prompt.

    keys, values: one (B, K, S, D) tensor per layer, RoPE applied; position_ids: (B, S) RoPE positions they carry;
    token_indices: (B, S) index in the original prompt of each kept token; input_ids: (B, S) their ids;
    logits: (B, V) for the next token, whose position is `next_position`. The first `prefix_len` and the last
    `suffix_len` tokens are the prompt's affixes, `prompt_len` the length of the whole prompt before compression.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    position_ids: Tensor
    token_indices: Tensor
    input_ids: Tensor
    logits: Tensor
    next_position: int
    prefix_len: int
    suffix_len: int
    prompt_len: int
    model_config: Any = field(repr=False)

    def __len__(self) -> int:
        return self.position_ids.shape[1]

    @property
    def batch_size(self) -> int:
        return self.position_ids.shape[0]

    @property
    def kv_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def to_cache(self) -> DynamicCache:
        """A transformers cache of this context, its own copy: generating with it leaves the context as it was.

        Feed the next token at `next_position`; where the model has sliding-window layers they keep their window.
        """
        return self._cache(len(self), copies=1)

    def _cache(self, length: int, copies: int) -> DynamicCache:
        """The first `length` tokens as a cache, each batch row `copies` times."""
        cache = DynamicCache(config=self.model_config)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            states = (t[:, :, :length].repeat_interleave(copies, dim=0) for t in (keys, values))
            cache.update(*states, layer)
        return cache
