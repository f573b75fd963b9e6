"""Numbers and token ids as they come from a caller."""

from __future__ import annotations

import torch
from torch import Tensor

from homerlm.errors import ConfigError, InputError


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise `ConfigError` for a setting that is no whole number of at least `least`, or more than `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        above = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}{above}")


def checked_ids(parts: dict[str, Tensor], vocab: int, device: torch.device, rows: int | None = None) -> list[Tensor]:
    """The id tensors (B, tokens), by name, as long on a device; `rows`: how many each must have, and a token at least.
    Raises `InputError` naming the one that is wrong."""
    for name, ids in parts.items():
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.long, torch.int32):
            found = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
            raise InputError(f"{name} is {found}; it must be a LongTensor of shape (batch, tokens)")
        if ids.layout != torch.strided or ids.is_meta:
            kind = "meta" if ids.is_meta else str(ids.layout)
            raise InputError(f"{name} is a {kind} tensor; it must be a dense one that holds its ids")
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocab):
            raise InputError(
                f"{name} holds ids from {int(ids.min())} to {int(ids.max())}; the model knows 0 to {vocab - 1}: "
                "was it made by another tokenizer?"
            )
        if rows is not None and (len(ids) != rows or not ids.shape[1]):
            raise InputError(f"{name} is {tuple(ids.shape)}; it must be ({rows}, 1 or more tokens)")
    counts = {name: len(ids) for name, ids in parts.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise InputError(f"batch sizes differ or are zero: {counts}; every row needs its prefix, context and suffix")
    return [ids.long().to(device) for ids in parts.values()]
