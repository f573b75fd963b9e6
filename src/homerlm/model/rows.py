"""Sequences of different lengths in one forward: each row keeps its own keys and values and attends to them alone.

Nothing is padded and nothing is masked, rows come and go without a copy of the others, and what a row's attention
computes does not depend on who is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

ROOM = 256  # tokens by which a row's buffers grow


class RowLayer:
    """Keys and values of one row in one layer, buffers (1, K, room, D) with a place for each new token.

    window: of a sliding-window layer, in tokens, or None. The given keys and values (1, K, S, D) are copied.
    """

    def __init__(self, keys: Tensor, values: Tensor, window: int | None) -> None:
        self._window = window
        self._keys, self._values = keys, values
        self._before = keys.shape[2]  # tokens in the buffers before the first new one
        self._grow(self._before)

    def put(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values (1, K, 1, D) of new token `number`, 0 for the first; what it attends to. A number
        may be written again, as after a forward that failed."""
        end = self._before + number
        if end == self._keys.shape[2]:
            self._grow(end)
            end = self._before + number
        self._keys[:, :, end : end + 1] = keys
        self._values[:, :, end : end + 1] = values
        seen = slice(self._first(end + 1, self._window), end + 1)
        return self._keys[:, :, seen], self._values[:, :, seen]

    def _grow(self, end: int) -> None:
        """Buffers with more room, for the tokens `[0, end)` that a next one can see."""
        first = self._first(end, None if self._window is None else self._window - 1)
        self._keys, self._values = (_with_room(part[:, :, first:end]) for part in (self._keys, self._values))
        self._before -= first

    @staticmethod
    def _first(end: int, count: int | None) -> int:
        return 0 if count is None else max(end - count, 0)


class RowsCache(Cache):
    """The rows of one forward as a transformers cache. rows: of each row, its layers; numbers: of each row's new token,
    how many came before it."""

    def __init__(self, rows: Sequence[Sequence[RowLayer]], numbers: Sequence[int], length: int) -> None:
        layers = [_Layer(list(each), numbers, length) for each in zip(*rows, strict=True)]
        super().__init__(layers=list(layers))
        self._rows = layers

    def attended(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values that each row's token attends to, its own included."""
        return self._rows[layer].attended


class _Layer(DynamicLayer):
    def __init__(self, rows: Sequence[RowLayer], numbers: Sequence[int], length: int) -> None:
        super().__init__()
        self._rows, self._numbers, self._length = rows, numbers, length
        self.attended: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, 1, D) of the new tokens; they themselves, since rows attend by `attended`. What only
        fills up the batch, behind the rows, is left out."""
        new = zip(self._rows, self._numbers, key_states.split(1), value_states.split(1), strict=False)
        self.attended = [row.put(number, keys, values) for row, number, keys, values in new]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0


def _with_room(states: Tensor) -> Tensor:
    """The states (1, K, S, D) at the beginning of a longer buffer."""
    batch, heads, length, size = states.shape
    buffer = torch.empty(batch, heads, length + ROOM, size, dtype=states.dtype, device=states.device)
    buffer[:, :, :length] = states
    return buffer
