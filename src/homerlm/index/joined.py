"""Several indexes as one, without a copy of their keys."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from homerlm.errors import InputError, MismatchError
from homerlm.index.index import Index, Part
from homerlm.mapped import MappedFiles


class JoinedRows:
    """Rows of several tensors, one behind the other, as far as an index needs them: they are copied slice by slice,
    when they are asked for."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self.dtype = parts[0].dtype
        self.shape = (self._ends[-1], *parts[0].shape[1:])
        self.nbytes = sum(part.nbytes for part in parts)
        self.device = parts[0].device

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """`[start, stop)`, or those of the numbers (n,)."""
        if isinstance(rows, Tensor):
            return self._gathered(rows)
        start, stop, _ = rows.indices(len(self))
        inside = []
        for number in range(bisect_right(self._ends, start), len(self._ends)):
            part, first = self._parts[number], self._ends[number] - len(self._parts[number])
            if first >= stop:
                break
            inside.append(part[max(start - first, 0) : stop - first])
        return torch.cat(inside) if len(inside) > 1 else (inside or [self._parts[0][:0]])[0]

    def detach(self) -> JoinedRows:
        return self

    def _gathered(self, rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        numbers = torch.searchsorted(torch.tensor(self._ends), rows, right=True)
        for number in numbers.unique().tolist():
            part, own = self._parts[number], numbers == number
            found[own] = part[rows[own] - (self._ends[number] - len(part))]
        return found


def join(indexes: Sequence[Index], names: Sequence[str] | None = None) -> Index:
    """The documents of several indexes as one, which finds what an index that was made of all of them would. It can be
    asked and saved; to add documents to it, save it first. names: of all documents, where they are to be others.

    Raises `MismatchError` for indexes of different models or settings, `InputError` for none.
    """
    if not indexes:
        raise InputError("indexes is empty: give at least one")
    first = indexes[0]
    for other in indexes[1:]:
        _check_same(first, other)
    parts = _parts(indexes, names)
    if len(indexes) == 1:
        return replace(first, parts=parts)
    firsts = [0, *accumulate(map(len, indexes))][:-1]
    starts = {
        name: torch.cat([getattr(one, name) + by for one, by in zip(indexes, firsts, strict=True)])
        for name in ("chunks", "units")
    }
    rows = {name: JoinedRows([getattr(one, name) for one in indexes]) for name in first.tensors() if name not in starts}
    windows = MappedFiles([one.mapped for one in indexes if one.mapped is not None])
    files = [
        replace(file, first_token=file.first_token + by)
        for one, by in zip(indexes, firsts, strict=True)
        for file in one.files
    ]
    held = sum(file.tokens for file in files) == sum(map(len, indexes))
    return Index(
        first.frame,
        parts,
        **({"scales": None} | rows | starts),
        mapped=windows,
        files=tuple(files) if held else (),
    )


def _check_same(first: Index, other: Index) -> None:
    first.frame.check_same(other.frame)
    if difference := first.frame.origin.model.mismatch(other.frame.origin.model):
        raise MismatchError(f"the indexes belong to different models, {difference}")
    if first.keys.dtype != other.keys.dtype:
        raise MismatchError(f"the indexes hold {first.keys.dtype} and {other.keys.dtype}: read the documents alike")


def _parts(indexes: Sequence[Index], names: Sequence[str] | None) -> tuple[Part, ...]:
    found = [part for one in indexes for part in one.parts]
    named = [part.name for part in found] if names is None else list(names)
    if len(named) != len(found):
        raise InputError(f"names are {len(named)}, but the indexes hold {len(found)} documents: name each")
    parts, token, byte = [], 0, 0
    for part, name in zip(found, named, strict=True):
        parts.append(Part(name, token, part.tokens, byte, part.bytes))
        token, byte = token + part.tokens, byte + part.bytes
    return tuple(parts)
