"""Everything that knows transformers' internals: a decoder driven layer by layer through its own modules.

Nothing of the model is replaced. What has to be seen or exchanged inside its forward is done by hooks and an attention
function (`homerlm.model.attention`) that belong to the calling context and are deaf to everybody else's forwards.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from homerlm.errors import UnsupportedModelError
from homerlm.model import attention
from homerlm.model.attention import Attended, Fork
from homerlm.model.shape import DecoderShape, window_of
from homerlm.model.support import refuse_unsupported

_captured: ContextVar[list[Tensor] | None] = ContextVar("homerlm_captured", default=None)
_final_states: ContextVar[Tensor | None] = ContextVar("homerlm_final_states", default=None)
_hooking = threading.Lock()  # torch's dicts of hooks are not made for changes from several threads


@dataclass(frozen=True)
class LayerStep:
    """A layer has run. hidden: (B, S, E) after it, or None where it stopped at its attention; attended: its queries,
    keys and values."""

    hidden: Tensor | None
    attended: Attended

    @property
    def layer(self) -> int:
        return self.attended.layer


class Decoder:
    """A causal language model of transformers as a stack of layers that can be run a range at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_unsupported(model)
        self.model = model
        self.base: Any = model.get_decoder()
        self.config: Any = self.base.config
        self.layers: nn.ModuleList = self.base.layers
        self.norm: nn.Module = _final_norm(self.base)
        self._bare_head: bool | None = None  # whether norm and head are all that makes logits; None: not known yet
        self._rotary_by_type = "layer_type" in inspect.signature(self.base.rotary_emb.forward).parameters

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def compiled(self) -> bool:
        """Whether `torch.compile` has the layers."""
        return any(layer._compiled_call_impl is not None for layer in self.layers)

    @property
    def rope_follows_length(self) -> bool:
        """Whether the frequencies of RoPE depend on the highest position of a forward, that of another row included."""
        kinds = getattr(self.base.rotary_emb, "rope_type", "default")
        each = kinds.values() if isinstance(kinds, dict) else [kinds]
        return any("dynamic" in kind or kind == "longrope" for kind in each)

    @cached_property
    def shape(self) -> DecoderShape:
        return DecoderShape.of(self.config, self.model.dtype)

    def session(self) -> AbstractContextManager[None]:
        """Our attention is lent to the model inside this block. Any number of sessions may be open at once."""
        return attention.session(self.config)

    @contextmanager
    def watched(self, listener: attention.Listener | None = None, *, masks: bool = True) -> Iterator[None]:
        """This context's own forwards of the model show `listener` what every layer attends with, cached keys
        included. Without `masks` each must be of one token, which then attends to all that the cache holds."""
        with self.session(), attention.attending(listener, masks=masks):
            yield

    def window(self, index: int) -> int | None:
        """Sliding window of a layer in tokens, or None where it sees everything before it."""
        return window_of(self.config, index)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, S, E): what the model feeds to its first layer for these ids, its own scaling included."""
        captured: list[Tensor] = []
        token = _captured.set(captured)
        hook = hooked(self.layers[0].register_forward_pre_hook, _capture, with_kwargs=True, prepend=True)
        try:
            with hook, self.eager(), attention.attending(masks=False):
                self.base(input_ids=input_ids.to(self.device), use_cache=False)
        except _FirstLayerReached:
            pass
        finally:
            _captured.reset(token)
        return captured[0]

    def steps(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        first: int,
        last: int,
        *,
        finish: bool = True,
        fork: Fork | None = None,
    ) -> Iterator[LayerStep]:
        """Layers `[first, last)` one by one, with causal attention in index order and RoPE at `position_ids`
        (docs/method.md, "Running a chunk").

        hidden: (B, S, E); position_ids: (B, S). With `finish=False` the last layer stops once its queries and keys are
        known, and its step has no hidden state. `fork`: of tokens with several endings, blind to each other. To be
        called inside `session()`.
        """
        rotary = self._rotary(hidden, position_ids)
        for index in range(first, last):
            stop = not finish and index == last - 1 and not hasattr(self.layers[index], "_hf_hook")
            step = self._step(index, hidden, position_ids, rotary, stop, fork)
            if step.hidden is not None:
                hidden = step.hidden
            yield step

    def run(self, hidden: Tensor, position_ids: Tensor, first: int, last: int) -> Tensor:
        """The hidden state (B, S, E) after layers `[first, last)`."""
        for step in self.steps(hidden, position_ids, first, last):
            assert step.hidden is not None
            hidden = step.hidden
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, n, V) logits of final hidden states (B, n, E), through the model's own norm, head and scalings.

        The first time the model runs on stand-in tokens whose final state is exchanged for ours in front of the norm,
        so that whatever a family does to its logits is done here too; that costs one decoding step. Where its norm and
        head alone give the very same, they do so from then on.
        """
        if self._bare_head:
            return self._norm_and_head(hidden)
        logits = self._by_stand_ins(hidden)
        if self._bare_head is None:
            alone = self._norm_and_head(hidden)
            self._bare_head = alone.dtype == logits.dtype and torch.equal(alone, logits)
        return logits

    def head_for(self, hidden: Tensor) -> Callable[[Tensor], Tensor]:
        """What gives the logits of many tokens' final states: the model's norm and head alone, where on `hidden`
        (B, 1, E) that is all the model does; else `logits`, which runs every layer once more."""
        self.logits(hidden)
        return self._norm_and_head if self._bare_head else self.logits

    def _norm_and_head(self, hidden: Tensor) -> Tensor:
        head: nn.Module = self.model.get_output_embeddings()
        return head(self.norm(hidden))

    def _by_stand_ins(self, hidden: Tensor) -> Tensor:
        token = _final_states.set(hidden)
        try:
            with hooked(self.norm.register_forward_pre_hook, _exchange), self.eager():
                ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
                return self.model(input_ids=ids, use_cache=False).logits
        finally:
            _final_states.reset(token)

    def _step(
        self, index: int, hidden: Tensor, position_ids: Tensor, rotary: Any, stop: bool, fork: Fork | None
    ) -> LayerStep:
        seen: list[Attended] = []

        def listen(attended: Attended) -> None:
            seen.append(attended)
            if stop:
                raise _EnoughSeen

        layer_type = self.config.layer_types[index] if self._rotary_by_type else None
        output: Any = None
        with attention.attending(listen, self.window(index), fork=fork), suppress(_EnoughSeen):
            output = self.layers[index](
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                past_key_values=None,
                use_cache=False,
                position_embeddings=rotary[layer_type],
            )
        if not seen:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {index} ({type(self.layers[index]).__name__}) does not go through "
                "transformers' attention interface, so its keys cannot be seen"
            )
        return LayerStep(output[0] if isinstance(output, tuple) else output, seen[-1])

    def _rotary(self, hidden: Tensor, position_ids: Tensor) -> dict[str | None, Any]:
        if not self._rotary_by_type:
            return {None: self.base.rotary_emb(hidden, position_ids)}
        types = dict.fromkeys(self.config.layer_types)
        return {kind: self.base.rotary_emb(hidden, position_ids, kind) for kind in types}

    def eager(self) -> AbstractContextManager[None]:
        """For a forward with our hooks in it, which `torch.compile` would otherwise compile by itself. Acts on the
        whole process, so only where the model is compiled."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()


class _FirstLayerReached(Exception):
    """Raised by our own hook to leave the model's forward once the embeddings are known."""


class _EnoughSeen(Exception):
    """Raised by our listener to leave a layer once its queries and keys are known."""


def _capture(_module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
    """A hook of the first layer: what it is given goes to the context that asked for it. torch may call it without
    `kwargs` while another thread takes a hook of its own away."""
    captured = _captured.get()
    if captured is not None and (args or kwargs):
        captured.append(args[0] if args else (kwargs or {})["hidden_states"])
        raise _FirstLayerReached


def _exchange(_module: nn.Module, args: tuple) -> tuple | None:
    """A hook of the final norm: the states of the context that has some, in place of what its forward computed."""
    states = _final_states.get()
    return None if states is None else (states, *args[1:])


@contextmanager
def hooked(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Iterator[None]:
    """A hook that is there inside the block. It must be deaf to other contexts' forwards."""
    with _hooking:
        handle = register(hook, **options)
    try:
        yield
    finally:
        with _hooking:
            handle.remove()


def _final_norm(base: nn.Module) -> nn.Module:
    for name in ("norm", "final_layernorm", "final_layer_norm"):
        if isinstance(module := getattr(base, name, None), nn.Module):
            return module
    raise UnsupportedModelError(f"{type(base).__name__}: no final norm found after its layers")
