"""The sizes of a decoder, read off its config: what plans, costs and memory are computed from, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from homerlm.errors import UnsupportedModelError


@dataclass(frozen=True)
class DecoderShape:
    """limit: tokens it was made to read, RoPE scaling included; windows: of each layer in tokens, None where it sees
    everything before it; heads, kv_heads, head_dim: of the attention; hidden, intermediate: numbers per token between
    layers and inside the MLP (of all experts a token goes through); itemsize: bytes of a number; eager: whether its
    attention has sinks or soft caps, which fused kernels do not compute."""

    limit: int
    windows: tuple[int | None, ...]
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    itemsize: int
    eager: bool = False

    @classmethod
    def of(cls, config: Any, dtype: Any = None) -> DecoderShape:
        """Of a text config of transformers; numbers of `dtype`, or of the config's own, or of 2 bytes. Raises
        `UnsupportedModelError` for a config that does not say what it has to."""
        limit = getattr(config, "max_position_embeddings", None)
        heads = getattr(config, "num_attention_heads", None)
        if not limit or not heads:
            missing = "max_position_embeddings" if not limit else "num_attention_heads"
            raise UnsupportedModelError(f"{type(config).__name__} has no {missing}, so its lengths cannot be planned")
        dtype = dtype or getattr(config, "dtype", None)
        return cls(
            limit=limit,
            windows=tuple(window_of(config, layer) for layer in range(config.num_hidden_layers)),
            hidden=config.hidden_size,
            intermediate=_intermediate(config),
            heads=heads,
            kv_heads=_one(config, "num_key_value_heads") or heads,
            head_dim=_one(config, "head_dim") or config.hidden_size // heads,
            vocab=config.vocab_size,
            itemsize=getattr(dtype, "itemsize", 2),
            eager=getattr(config, "attn_logit_softcapping", None) is not None or config.model_type in _WITH_SINKS,
        )

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize

    @property
    def sight(self) -> int:
        """Longest chunk in tokens that some layer sees as a whole; the model's limit where one sees everything."""
        return self.limit if None in self.windows else min(self.limit, max(w for w in self.windows if w is not None))

    def layers_seeing(self, tokens: int) -> tuple[int, ...]:
        """The layers whose attention reaches over a chunk of so many tokens."""
        return tuple(i for i, window in enumerate(self.windows) if window is None or window >= tokens)


def window_of(config: Any, layer: int) -> int | None:
    """Sliding window of a layer in tokens, or None where it sees everything before it."""
    types: Any = getattr(config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _one(config: Any, name: str) -> Any:
    """A size of the config, or None; the largest where its layers differ."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers refuses to give one value for layers that differ
        each: Any = config.per_layer_config
        return max(getattr(each[layer], name) for layer in range(config.num_hidden_layers))


def _intermediate(config: Any) -> int:
    """Numbers per token inside the MLP: the dense one's, or all that the experts of one token have."""
    dense = _one(config, "intermediate_size") or 4 * config.hidden_size
    if isinstance(dense, list | tuple):
        dense = max(dense)
    each = next((n for name in _EXPERTS_PER_TOKEN if (n := getattr(config, name, None))), None)
    return max(dense, (getattr(config, "moe_intermediate_size", None) or dense) * each) if each else dense


_WITH_SINKS = ("gpt_oss", "granite_swa", "mimo_v2_flash")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k")
