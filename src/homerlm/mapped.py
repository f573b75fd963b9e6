"""Files of `storage`'s format that are too large for memory: written block by block, mapped when they are read.

The same safetensors with the same metadata, and as complete when they are put in place. Tensors stand in the order in
which they are given, largest numbers first; the digest is taken in that order, over what is in the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from torch import Tensor

from homerlm import storage
from homerlm.errors import CorruptFileError, InputError
from homerlm.passes import Aside

BLOCK_BYTES = 1 << 24
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "I32": torch.int32,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_UNKNOWN = "0" * 64  # stands in the header until the digest is known


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor. blocks: gives their bytes in order, a few MB at a time."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Any]]

    @classmethod
    def of(cls, tensor: Tensor, read: Callable[[], None] = lambda: None) -> Rows:
        """Of a tensor. `read` is called after each block."""
        tensor = tensor.detach()

        def blocks() -> Iterator[Any]:
            step = max(BLOCK_BYTES * len(tensor) // max(tensor.nbytes, 1), 1)
            for start in range(0, len(tensor), step):
                yield _bytes(tensor[start : start + step])
                read()

        return cls(tensor.dtype, tuple(tensor.shape), blocks)


class Spool:
    """Tensors that grow row by row, in files without a name beside the one that they are for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._rows: dict[str, Tensor] = {}  # one of each kind, for its dtype and shape
        self._counts: dict[str, int] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Rows (n, ...) behind those of this name that came before. Raises `InputError` where the disk is full."""
        rows = rows.detach()
        try:
            if name not in self._files:
                self._files[name] = TemporaryFile(dir=self._folder)  # noqa: SIM115 (close)
                self._rows[name], self._counts[name] = rows[:0].cpu(), 0
            self._files[name].write(_bytes(rows))
        except OSError as error:
            raise InputError(f"{self._folder} cannot be written to: {error}; free space, or choose another") from error
        self._counts[name] += len(rows)

    def rows(self) -> dict[str, Rows]:
        """All of them by name."""
        return {name: self._of(name) for name in self._files}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _of(self, name: str) -> Rows:
        file, like = self._files[name], self._rows[name]

        def blocks() -> Iterator[bytes]:
            file.seek(0)
            while block := file.read(BLOCK_BYTES):
                yield block

        return Rows(like.dtype, (self._counts[name], *like.shape[1:]), blocks)


def writing(
    path: str | os.PathLike[str],
    *,
    kind: str,
    version: int,
    tensors: Mapping[str, Sequence[Rows]],
    metadata: dict[str, Any],
) -> Iterator[Aside[None] | None]:
    """Save tensors, each given in one or several parts of its rows, with a pause after each block, and one in which all
    of it reaches the disk; a file already there is replaced as a whole, or, on any failure and where the iterator is
    closed, kept. Raises as `storage.write`."""
    text = storage.to_json(metadata, kind)
    order = sorted(tensors, key=lambda name: -tensors[name][0].dtype.itemsize)
    layout: dict[str, Any] = {}
    at = 0
    for name in order:
        first = tensors[name][0]
        shape = [sum(rows.shape[0] for rows in tensors[name]), *first.shape[1:]]
        stop = at + math.prod(shape) * first.dtype.itemsize
        layout[name] = {"dtype": _CODES[first.dtype], "shape": shape, "data_offsets": [at, stop]}
        at = stop

    def header(digest: str) -> bytes:
        named = {"kind": kind, "version": str(version), "metadata": text, "sha256": digest}
        content = json.dumps({"__metadata__": named, **layout}).encode()
        content += b" " * (-len(content) % 8)  # numbers begin where their size divides the place
        return len(content).to_bytes(8, "little") + content

    sha = _begun(kind, str(version), text, layout)
    with storage.replacing(path) as temporary, open(temporary, "rb+") as file:
        file.write(header(_UNKNOWN))
        for name in order:
            for rows in tensors[name]:
                for block in rows.blocks():
                    sha.update(block)
                    file.write(block)
                    yield None
        file.seek(0)
        file.write(header(sha.hexdigest()))
        file.flush()
        synced = Aside(partial(os.fsync, file.fileno()))
        yield synced
        synced.value()


class Mapped:
    """The tensors of a file, windows on it: nothing of them is in memory but what is read."""

    def __init__(self, path: Path, layout: Mapping[str, Any], start: int) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory it could write to
        self.tensors = {name: self._tensor(facts, start) for name, facts in layout.items()}

    def forget(self) -> None:
        """Give the memory of what was read back; it is read anew from the file when it is needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _tensor(self, facts: Any, start: int) -> Tensor:
        dtype, shape, (begin, stop) = DTYPES[facts["dtype"]], facts["shape"], facts["data_offsets"]
        if begin == stop:
            return torch.empty(shape, dtype=dtype)
        count = (stop - begin) // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start + begin).view(shape)


class MappedFiles:
    """Several of them that are used as one."""

    def __init__(self, files: Sequence[Mapped | MappedFiles]) -> None:
        self._files = files

    def forget(self) -> None:
        """Give memory back, of all of them."""
        for file in self._files:
            file.forget()


def read(path: str | os.PathLike[str], *, kind: str, version: int, check: bool = True) -> tuple[Mapped, dict[str, Any]]:
    """Tensors and metadata of a file of this kind and version, after its digest was checked, a block at a time, unless
    left out. Raises as `storage.read`."""
    path = Path(path)
    header = storage.header_of(path, kind, version)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        layout = json.loads(file.read(length))
        del layout["__metadata__"]
        if unknown := {facts["dtype"] for facts in layout.values()} - set(DTYPES):
            raise CorruptFileError(f"{path}: its tensors have dtypes {sorted(unknown)}; make the file again")
        layout = dict(sorted(layout.items(), key=lambda item: tuple(item[1]["data_offsets"])))
        sha = _begun(kind, header["version"], header["metadata"], layout)
        while check and (block := file.read(BLOCK_BYTES)):
            sha.update(block)
    if check and sha.hexdigest() != header["sha256"]:
        raise storage.corrupt(path, kind, "its content does not match its SHA-256 digest")
    return Mapped(path, layout, 8 + length), storage.metadata_of(path, kind, header)


def _begun(kind: str, version: str, text: str, layout: Mapping[str, Any]) -> Any:
    """The digest of all but the tensors' bytes."""
    facts = [[name, facts["dtype"], facts["shape"]] for name, facts in layout.items()]
    return hashlib.sha256(json.dumps([kind, version, text, facts]).encode())


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
