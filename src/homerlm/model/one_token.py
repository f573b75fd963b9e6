"""Forwards of one new token on a CPU, nearer to the time in which its memory is read once.

What a new token costs there is not arithmetic: oneDNN rearranges a matrix before it multiplies a single row with it,
and torch's attention kernel has a slow way for single queries in half precision. Both can be gone around; the first by
a switch of the whole process alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from homerlm.model import attention
from homerlm.model.decoder import Decoder

_lock = threading.Lock()
_may_switch = False
_without: list[bool] = []  # oneDNN's switch as it was, for each block that has it off


def let_onednn_be_switched() -> None:
    """Allow `one_token_forwards` to turn oneDNN off inside its block. That is a setting of the whole process, in which
    other threads' large products would take many times as long, so it is for programs that run one model at a time
    (`homer` makes it) and never made by importing."""
    global _may_switch
    _may_switch = True


def one_token_forwards(decoder: Decoder, rows: int) -> AbstractContextManager[Any]:
    """For a block in which this context's forwards of the model are of one new token in each of `rows` rows. Others
    are right too, but slow.

    On a CPU in half precision attention takes the fast kernel for them, with the same numbers; for a single row,
    products go around oneDNN where the process allows it. Elsewhere, and for a compiled model, nothing changes.
    """
    model = decoder.model
    if decoder.device.type != "cpu" or model.dtype.itemsize > 2 or decoder.compiled:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(decoder.session())
    stack.enter_context(attention.attending_as_own())
    if rows == 1 and _may_switch:
        stack.enter_context(_without_onednn())
    return stack


@contextmanager
def _without_onednn() -> Iterator[None]:
    switch = torch.backends.mkldnn
    with _lock:
        _without.append(switch.enabled)
        switch.enabled = False
    try:
        yield
    finally:
        with _lock:
            before = _without.pop()
            switch.enabled = before
