"""Work, items and values as bytes that travel: pickled, with every tensor as its bare numbers."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

_INT32 = torch.iinfo(torch.int32)


def pack(value: Any) -> bytes:
    """Tensors travel from whichever device to the CPU, as they are; int64 numbers that fit as int32."""
    buffer = io.BytesIO()
    _Packer(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    return pickle.loads(data)


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        plain = value.detach().cpu().contiguous()
        sent = plain
        if plain.dtype == torch.int64 and plain.numel():
            low, high = plain.aminmax()
            if low >= _INT32.min and high <= _INT32.max:
                sent = plain.to(torch.int32)
        numbers = sent.reshape(-1).view(torch.uint8).numpy().tobytes()
        return _tensor, (numbers, sent.dtype, tuple(plain.shape), plain.dtype)


def _tensor(numbers: bytes, sent: torch.dtype, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not numbers:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=sent).view(shape).to(dtype)
