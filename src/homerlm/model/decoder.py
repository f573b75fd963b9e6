"""Everything that knows transformers' internals: a decoder driven layer by layer through its own modules.

The queries and keys are seen by an attention function of ours, registered with transformers' `AttentionInterface` and
switched on only inside `Decoder.session()`. The model is otherwise used as it is, and left as it was.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from homerlm.errors import UnsupportedModelError
from homerlm.model.support import refuse_unsupported

ATTENTION_NAME = "homerlm"


# Called with a layer's index, queries (B, H, S, D) and keys (B, K, S, D), RoPE applied, and logit scaling.
Watch = Callable[[int, Tensor, Tensor, float], None]


@dataclass(frozen=True)
class _Seen:
    """What the attention function was called with in one layer."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float


_recorder: ContextVar[Callable[[_Seen], None] | None] = ContextVar("homerlm_recorder", default=None)


class _Tape:
    """Holds what was seen of the layer that has just run."""

    def __init__(self) -> None:
        self.seen: _Seen | None = None
        self.leave = False  # the layer's output is not needed: leave it once its queries and keys are known

    def record(self, seen: _Seen) -> None:
        self.seen = seen
        if self.leave:
            raise _EnoughSeen


@dataclass(frozen=True)
class LayerRun:
    """Hidden state (B, S, E) after some layers, and keys and values (B, K, S, D) of each of them if they are kept."""

    hidden: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Decoder:
    """A causal language model of transformers as a stack of layers that can be run a range at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_unsupported(model)
        self.model = model
        self.base: Any = model.get_decoder()
        self.config: Any = self.base.config
        self.layers: nn.ModuleList = self.base.layers
        self.norm: nn.Module = _final_norm(self.base)
        self._rotary_by_type = "layer_type" in inspect.signature(self.base.rotary_emb.forward).parameters

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @contextmanager
    def session(self) -> Iterator[None]:
        """Attention goes through `_recording_attention` inside this block, and as before after it."""
        AttentionInterface.register(ATTENTION_NAME, _recording_attention)
        AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
        before = self.config._attn_implementation
        self.config._attn_implementation = ATTENTION_NAME
        try:
            yield
        finally:
            self.config._attn_implementation = before

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """The model's own forward inside this block shows every layer's queries and keys, cached ones included."""
        with self.session(), _recording(lambda seen: watch(seen.layer, seen.query, seen.key, seen.scaling)):
            yield

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, S, E): what the model feeds to its first layer for these ids, its own scaling included."""
        captured: dict[str, Tensor] = {}

        def stop(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            captured["hidden"] = args[0] if args else kwargs["hidden_states"]
            raise _FirstLayerReached

        hook = self.layers[0].register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            with _uncompiled():
                self.base(input_ids=input_ids.to(self.device), use_cache=False)
        except _FirstLayerReached:
            pass
        finally:
            hook.remove()
        return captured["hidden"]

    def run(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        first: int,
        last: int,
        *,
        keep_kv: bool = False,
        watch: Watch | None = None,
        finish: bool = True,
    ) -> LayerRun:
        """Layers `[first, last)` with causal attention in index order and RoPE at `position_ids` (SPEC 3).

        hidden: (B, S, E); position_ids: (B, S). With `finish=False` the last layer is left once `watch` can see its
        queries and keys: the hidden state given back is then empty (B, S, 0). To be called inside `session()`.
        """
        tape = _Tape()
        keys: list[Tensor] = []
        values: list[Tensor] = []
        rotary = self._rotary(hidden, position_ids)
        masks: dict[int | None, Tensor | None] = {}
        with _recording(tape.record):
            for index in range(first, last):
                tape.leave = not finish and index == last - 1 and not hasattr(self.layers[index], "_hf_hook")
                hidden, seen = self._layer(index, hidden, position_ids, rotary, masks, tape)
                if keep_kv:
                    keys.append(seen.key)
                    values.append(seen.value)
                if watch is not None:
                    watch(index, seen.query, seen.key, seen.scaling)
        if not finish:
            hidden = hidden.new_empty(*hidden.shape[:2], 0)
        return LayerRun(hidden, tuple(keys), tuple(values))

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, n, V) logits of final hidden states (B, n, E), through the model's own norm, head and scalings.

        The model runs on stand-in tokens whose final state is exchanged for ours in front of the norm, so that
        whatever a family does to its logits is done here too. Costs one decoding step.
        """
        hook = self.norm.register_forward_pre_hook(lambda _module, args: (hidden, *args[1:]))
        try:
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
            with _uncompiled():
                return self.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()

    def head_for(self, hidden: Tensor) -> Callable[[Tensor], Tensor]:
        """What gives the logits of many tokens' final states: the model's norm and head alone, where on `hidden`
        (B, 1, E) that is all the model does; else `logits`, which runs every layer once more."""
        head = self.model.get_output_embeddings()
        bare = torch.equal(self.logits(hidden), head(self.norm(hidden)))
        return (lambda states: head(self.norm(states))) if bare else self.logits

    def window(self, index: int) -> int | None:
        """Sliding window of a layer in tokens, or None where it sees everything before it."""
        types = getattr(self.config, "layer_types", None)
        if types is not None and types[index] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def _layer(
        self,
        index: int,
        hidden: Tensor,
        position_ids: Tensor,
        rotary: Any,
        masks: dict[int | None, Tensor | None],
        tape: _Tape,
    ) -> tuple[Tensor, _Seen]:
        window = self.window(index)
        if window not in masks:
            masks[window] = _window_mask(hidden.shape[1], window, hidden.device)
        tape.seen = None
        layer_type = self.config.layer_types[index] if self._rotary_by_type else None
        try:
            output = self.layers[index](
                hidden,
                attention_mask=masks[window],
                position_ids=position_ids,
                past_key_values=None,
                use_cache=False,
                position_embeddings=rotary[layer_type],
            )
        except _EnoughSeen:
            output = hidden
        if tape.seen is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {index} ({type(self.layers[index]).__name__}) does not go through "
                "transformers' attention interface, so its keys cannot be seen"
            )
        return output[0] if isinstance(output, tuple) else output, tape.seen

    def _rotary(self, hidden: Tensor, position_ids: Tensor) -> dict[str | None, Any]:
        if not self._rotary_by_type:
            return {None: self.base.rotary_emb(hidden, position_ids)}
        types = dict.fromkeys(self.config.layer_types)
        return {kind: self.base.rotary_emb(hidden, position_ids, kind) for kind in types}


class _FirstLayerReached(Exception):
    """Raised by our own hook to leave the model's forward once the embeddings are known."""


class _EnoughSeen(Exception):
    """Raised by our attention function to leave a layer once its queries and keys are known."""


@contextmanager
def _recording(record: Callable[[_Seen], None]) -> Iterator[None]:
    """Inside the block the attention function hands what it sees to `record`."""
    token = _recorder.set(record)
    try:
        yield
    finally:
        _recorder.reset(token)


def _uncompiled() -> AbstractContextManager[None]:
    """For a forward with our hooks in it, which `torch.compile` would otherwise compile by itself."""
    return torch.compiler.set_stance("force_eager")


@torch.compiler.disable  # so that one compilation serves all layers, whose numbers differ
def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """SDPA, showing what it was called with to whoever records. query: (B, H, S, D); key, value: (B, K, S, D)."""
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (record := _recorder.get()) is not None:
        record(_Seen(module.layer_idx, query, key, value, scaling))  # type: ignore[arg-type]
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, _additive_mask(attention_mask, query), **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(1, 1, S, S) mask, True where attended; None (plain causal, nothing materialised) if the window never bites."""
    if window is None or length <= window:
        return None
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def _additive_mask(mask: Tensor | None, query: Tensor) -> Tensor:
    length = query.shape[2]
    allowed = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() if mask is None else mask
    return torch.zeros(allowed.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~allowed, torch.finfo(query.dtype).min
    )


def _final_norm(base: nn.Module) -> nn.Module:
    for name in ("norm", "final_layernorm", "final_layer_norm"):
        if isinstance(module := getattr(base, name, None), nn.Module):
            return module
    raise UnsupportedModelError(f"{type(base).__name__}: no final norm found after its layers")
