"""The attention function that shows what a layer attends with, and the loan of a model to several callers at once.

Our function is registered with transformers' `AttentionInterface` and is the model's attention while a session is open.
It acts for the thread (context) that is `attending` alone: everybody else's forward gets the attention it would have
had.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from homerlm.passes import BLOCK_BYTES

ATTENTION_NAME = "homerlm"


@dataclass(frozen=True)
class Attended:
    """What the attention function was called with in one layer. queries: (B, H, Q, D), keys, values: (B, K, S, D),
    RoPE applied; scaling: factor on the logits; softcap: of the logits, or None; sinks: (H,) logits of the heads'
    attention sinks, or None."""

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    softcap: float | None
    sinks: Tensor | None


Listener = Callable[[Attended], None]


@dataclass(frozen=True)
class _Caller:
    listener: Listener | None
    window: int | None
    masks: bool


_caller: ContextVar[_Caller | None] = ContextVar("homerlm_caller", default=None)


@contextmanager
def attending(listener: Listener | None = None, window: int | None = None, *, masks: bool = True) -> Iterator[None]:
    """Inside the block, this context's forwards go through our attention and show `listener` what they attend with.
    `window`: sliding window of causal attention that comes without a mask; masks: whether the model makes masks at
    all, which a forward that never reaches its attention does not need."""
    token = _caller.set(_Caller(listener, window, masks))
    try:
        yield
    finally:
        _caller.reset(token)


class _Loans:
    """Which configs have our attention in place of their own, and for how many sessions."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: dict[int, tuple[int, str]] = {}  # by id of the config: sessions, its own implementation

    def begin(self, config: Any) -> None:
        with self._lock:
            sessions, own = self._open.get(id(config), (0, config._attn_implementation))
            if not sessions:
                AttentionInterface.register(ATTENTION_NAME, _attention)
                AttentionMaskInterface.register(ATTENTION_NAME, _mask)
                config._attn_implementation = ATTENTION_NAME
            self._open[id(config)] = sessions + 1, own

    def end(self, config: Any) -> None:
        with self._lock:
            sessions, own = self._open[id(config)]
            if sessions > 1:
                self._open[id(config)] = sessions - 1, own
                return
            config._attn_implementation = own
            del self._open[id(config)]

    def own(self, config: Any) -> str:
        """The config's own implementation, whether or not a session is open (it may end while a forward runs)."""
        _, own = self._open.get(id(config), (0, config._attn_implementation))
        return own


_loans = _Loans()


@contextmanager
def session(config: Any) -> Iterator[None]:
    """Our attention is the model's inside the block, for as many callers as there are; who is not `attending`
    does not notice."""
    _loans.begin(config)
    try:
        yield
    finally:
        _loans.end(config)


@torch.compiler.disable  # so that one compilation serves all layers, whose numbers differ
def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of the model's own kind; ours for those who are `attending`.

    query: (B, H, Q, D); key, value: (B, K, S, D).
    """
    caller = _caller.get()
    if caller is None:
        own = ALL_ATTENTION_FUNCTIONS.get_interface(_loans.own(module.config), _eager_of(module))
        return own(module, query, key, value, attention_mask, **kwargs)
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if caller.listener is not None:
        scaling = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        caller.listener(Attended(module.layer_idx, query, key, value, scaling, softcap, sinks))  # type: ignore[arg-type]
    plain, length = softcap is None and sinks is None, query.shape[2]
    kernel = sdpa_attention_forward if plain else _eager
    if attention_mask is None and length > 1 and not (plain and length <= (caller.window or length)):
        return _in_blocks(kernel, module, query, key, value, caller.window, kwargs)
    return kernel(module, query, key, value, attention_mask, **kwargs)


def _in_blocks(
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:
    """Causal attention of a chunk with itself, a block of queries at a time over the keys they see, so that neither a
    mask nor logits of all pairs exist at once."""
    batch, heads, length, _ = query.shape
    block = min(window or length, max(BLOCK_BYTES // (4 * batch * heads * length), 16))
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(start - window + 1, 0)
        mask = block_mask(start, stop, first, window, query.device)
        part = query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop]
        outputs.append(kernel(module, *part, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def block_mask(start: int, stop: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """(1, 1, stop - start, stop - first) True where the queries `[start, stop)` see the keys `[first, stop)`."""
    seen = torch.ones(stop - start, stop - first, dtype=torch.bool, device=device).tril(start - first)
    return (seen if window is None else seen.triu(start - first - window + 1))[None, None]


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The boolean mask as the number that eager attention adds to its logits."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~mask, torch.finfo(query.dtype).min
    )


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """The family's eager attention under a boolean mask."""
    return _eager_of(module)(module, query, key, value, _additive(mask, query), **kwargs)


def _eager_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the module's family."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", sdpa_attention_forward)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask for whoever asks: ours is a boolean one, everybody else's the one of their own attention."""
    if (caller := _caller.get()) is not None:
        return sdpa_mask(*args, **kwargs) if caller.masks else None
    own = _loans.own(kwargs["config"]) if "config" in kwargs else "sdpa"
    return ALL_MASK_ATTENTION_FUNCTIONS[own](*args, **kwargs)
