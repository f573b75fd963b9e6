"""The attention function that shows what a layer attends with, and the loan of a model to several callers at once.

Our function is registered with transformers' `AttentionInterface` and is the model's attention while a session is open.
It acts for the thread (context) that is `attending` alone: everybody else's forward gets the attention it would have
had.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
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

    def endings(self, fork: Fork) -> Iterator[Attended]:
        """What each ending of a forked sequence attended with, as if it had been alone."""
        for each in zip(*map(fork.endings, (self.queries, self.keys, self.values)), strict=True):
            queries, keys, values = each
            yield replace(self, queries=queries, keys=keys, values=values)


@dataclass(frozen=True)
class Fork:
    """A sequence with several endings that do not see each other. starts: of each, ascending; what comes before the
    first is common to all, and what follows it reaches up to the next one's start. Each has the positions that follow
    the common part."""

    starts: tuple[int, ...]

    @classmethod
    def of(cls, common: int, endings: Sequence[int]) -> Fork:
        """Of so many tokens in common, and in each ending."""
        return cls(tuple(accumulate(endings[:-1], initial=common)))

    @property
    def common(self) -> int:
        return self.starts[0]

    def spans(self, length: int) -> Iterator[tuple[int, int]]:
        """Where each ending of a sequence of so many tokens starts and stops."""
        return pairwise([*self.starts, length])

    def endings(self, states: Tensor) -> Iterator[Tensor]:
        """States (B, N, S, D) of the common part and one ending, for each."""
        (_, first), *others = self.spans(states.shape[2])
        yield states[:, :, :first]
        for start, stop in others:
            yield torch.cat([states[:, :, : self.common], states[:, :, start:stop]], dim=2)

    def moved(self, tokens: int) -> Fork:
        """With so many tokens fewer in common."""
        return Fork(tuple(start - tokens for start in self.starts))


Listener = Callable[[Attended], None]
Rows = Callable[[int], Sequence[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class _Caller:
    listener: Listener | None = None
    window: int | None = None
    masks: bool = True
    fork: Fork | None = None
    rows: Rows | None = None
    as_own: bool = False


_caller: ContextVar[_Caller | None] = ContextVar("homerlm_caller", default=None)


@contextmanager
def attending(
    listener: Listener | None = None, window: int | None = None, *, masks: bool = True, fork: Fork | None = None
) -> Iterator[None]:
    """Inside the block, this context's forwards go through our attention and show `listener` what they attend with.
    `window`: sliding window of causal attention that comes without a mask; masks: whether the model makes masks at
    all, which a forward that never reaches its attention does not need; fork: of a sequence with several endings."""
    with _calling(_Caller(listener, window, masks, fork)):
        yield


@contextmanager
def attending_by_rows(rows: Rows) -> Iterator[None]:
    """Inside the block, this context's forwards are of one token in each row of a batch, which attends to keys and
    values of its own, `rows(layer)`: (1, K, S, D) each, S differing by row. As in a forward of that row alone, it is
    the model's own attention that computes, without a mask. There may be fewer keys than rows in the batch: the last
    rows only fill it up."""
    with _calling(_Caller(masks=False, rows=rows)):
        yield


@contextmanager
def attending_as_own() -> Iterator[None]:
    """Inside the block, this context's forwards get the attention and the masks that they would have without us, but a
    token that sees everything the fast kernel, on a CPU in half precision."""
    with _calling(_Caller(as_own=True)):
        yield


@contextmanager
def _calling(caller: _Caller) -> Iterator[None]:
    token = _caller.set(caller)
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
        return _own(module)(module, query, key, value, attention_mask, **kwargs)
    if caller.as_own:
        own = _own(module)
        alone = query.shape[2] == 1 and attention_mask is None and own is sdpa_attention_forward
        return (_one_query if alone else own)(module, query, key, value, attention_mask, **kwargs)
    if caller.rows is not None:
        return _by_rows(caller.rows(module.layer_idx), module, query, kwargs), None  # type: ignore[arg-type]
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if caller.listener is not None:
        scaling = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        caller.listener(Attended(module.layer_idx, query, key, value, scaling, softcap, sinks))  # type: ignore[arg-type]
    kernel = sdpa_attention_forward if softcap is None and sinks is None else _eager
    if attention_mask is not None or query.shape[2] == 1:
        return kernel(module, query, key, value, attention_mask, **kwargs)
    run = _Causal(kernel, module, caller.window, kwargs)
    if caller.fork is None:
        return run.over(query, key, value), None
    return run.over_fork(caller.fork, query, key, value), None


def _own(module: nn.Module) -> Callable[..., Any]:
    """The attention that the module would have without us."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(_loans.own(module.config), _eager_of(module))


def _by_rows(rows: Sequence[tuple[Tensor, Tensor]], module: nn.Module, query: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """(B, 1, H, D): each row of queries (B, H, 1, D) over its own keys and values; those beyond the rows as the last
    one, since nobody reads them."""
    own, outputs = _own(module), []
    attend = _one_query if own is sdpa_attention_forward else own
    for row, (keys, values) in enumerate(rows):
        one = slice(row, row + 1)
        placed = {name: kwargs[name][one] for name in ("position_ids",) if kwargs.get(name) is not None}
        outputs.append(attend(module, query[one], keys, values, None, **(kwargs | placed))[0])
    return torch.cat([*outputs, *outputs[-1:] * (len(query) - len(rows))])


def _one_query(module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, mask: None, **kwargs: Any) -> Any:
    """`sdpa_attention_forward` for one token that sees everything. A CPU's kernel is several times as fast in half
    precision when it gets more than one query, with the same numbers: the query heads (B, H, 1, D) of a key-value head
    as so many tokens of it, or, where each has its own, the token twice."""
    groups, (batch, _, _, size) = query.shape[1] // keys.shape[1], query.shape
    if kwargs.get("position_bias") is not None or (groups == 1 and query.element_size() > 2):
        return sdpa_attention_forward(module, query, keys, values, mask, **kwargs)
    packed = query.reshape(batch, keys.shape[1], groups, size)
    packed = packed.expand(-1, -1, 2, -1) if groups == 1 else packed
    output, _ = sdpa_attention_forward(module, packed, keys, values, mask, **(kwargs | {"is_causal": False}))
    return output[:, :groups].transpose(1, 2).reshape(batch, 1, -1, values.shape[3]), None


@dataclass(frozen=True)
class _Causal:
    """Causal attention of a chunk with itself, in the kernel of one module. Outputs are (B, S, H, D)."""

    kernel: Callable[..., Any]
    module: nn.Module
    window: int | None
    kwargs: dict[str, Any]

    def over(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of all queries."""
        length = query.shape[2]
        if self.kernel is sdpa_attention_forward and length <= (self.window or length):
            return self.kernel(self.module, query, key, value, None, **self.kwargs)[0]
        return self._blocks(query, key, value, 0)

    def over_fork(self, fork: Fork, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of a sequence with several endings."""
        spans = fork.spans(query.shape[2])
        (keys, values), *others = zip(fork.endings(key), fork.endings(value), strict=True)
        outputs = [self.over(query[:, :, : next(spans)[1]], keys, values)]
        for (start, stop), (keys, values) in zip(spans, others, strict=True):
            outputs.append(self._blocks(query[:, :, start:stop], keys, values, fork.common))
        return torch.cat(outputs, dim=1)

    def _blocks(self, query: Tensor, key: Tensor, value: Tensor, before: int) -> Tensor:
        """Of queries that `before` keys come before, a block of them at a time over the keys they see, so that neither
        a mask nor logits of all pairs exist at once."""
        batch, heads, count, _ = query.shape
        length = key.shape[2]
        block = min(self.window or length, max(BLOCK_BYTES // (4 * batch * heads * length), 16))
        outputs = []
        for start in range(before, before + count, block):
            stop = min(start + block, before + count)
            first = 0 if self.window is None else max(start - self.window + 1, 0)
            mask = block_mask(start, stop, first, self.window, query.device)
            part = query[:, :, start - before : stop - before], key[:, :, first:stop], value[:, :, first:stop]
            outputs.append(self.kernel(self.module, *part, mask, **self.kwargs)[0])
        return torch.cat(outputs, dim=1)


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
    if (caller := _caller.get()) is not None and not caller.as_own:
        return sdpa_mask(*args, **kwargs) if caller.masks else None
    own = _loans.own(kwargs["config"]) if "config" in kwargs else "sdpa"
    return ALL_MASK_ATTENTION_FUNCTIONS[own](*args, **kwargs)
