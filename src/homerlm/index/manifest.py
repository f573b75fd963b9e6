"""A collection: a folder of index files and the manifest of what is in them, which grows line by line. It may
be in a bucket (s3://bucket/corpus).

A file counts once its line is in the manifest. Both are complete or not there: files are put in place whole, and a last
line that was cut off is dropped when the manifest is opened to be written.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import CorruptFileError, InputError, MismatchError
from homerlm.index import buckets
from homerlm.index.buckets import Place, inside, is_url
from homerlm.index.index import Frame, Index
from homerlm.index.joined import join

NAME, LOCK = "manifest.jsonl", ".manifest.lock"
KIND, VERSION = "homerlm collection", 1


@dataclass(frozen=True)
class Member:
    """A document. sha256: of its content; path: where it came from; tokens: 0 where it could not be read, for a
    `reason`."""

    name: str
    path: str
    sha256: str
    tokens: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Shard:
    """A file of the folder, None where nothing could be read. first: place of its first document among all that were
    listed, by which the files of a collection are in order."""

    file: str | None
    first: int
    documents: tuple[Member, ...]
    failed: tuple[Member, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(document.tokens for document in self.documents)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        documents, failed = (tuple(Member(**one) for one in values[name]) for name in ("documents", "failed"))
        return cls(values["file"], int(values["first"]), documents, failed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass
class Manifest:
    """What a folder holds. frame: what its files have in common."""

    folder: Place
    frame: Frame
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Place) -> Manifest:
        """Raises `InputError` where there is none, `CorruptFileError`, or `MismatchError` for another version."""
        path = inside(folder, NAME)
        try:
            lines, _ = _lines(path, buckets.read_bytes(path))
        except OSError as error:
            raise InputError(
                f"{folder} holds no collection: {error.strerror} ({NAME}); make it with homer index"
            ) from error
        try:
            header = lines[0]
            if header["kind"] != KIND or header["version"] != VERSION:
                raise MismatchError(f"{path} is of version {header['version']}, this homerlm reads {VERSION}")
            return cls(folder, Frame.from_dict(header["frame"]), [Shard.from_dict(line) for line in lines[1:]])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CorruptFileError(f"{path} is damaged: {error!r}; copy it afresh or make the index again") from error

    @property
    def files(self) -> list[str]:
        """Names of the files, in order."""
        return [shard.file for shard in sorted(self.shards, key=lambda one: one.first) if shard.file is not None]

    @property
    def held(self) -> dict[str, str]:
        """The name of each document's content by its digest."""
        return {document.sha256: document.name for shard in self.shards for document in shard.documents}

    @property
    def failed(self) -> list[Member]:
        """Documents that could not be read, and were not since."""
        latest, held = {one.sha256: one for shard in self.shards for one in shard.failed}, self.held
        return [one for sha256, one in latest.items() if sha256 not in held]


class ManifestWriter:
    """The manifest of a folder, open for one process to add to. Raises `InputError` where another one does, or the
    folder cannot be written, `MismatchError` where it was made with other settings or another model."""

    def __init__(self, folder: Place, frame: Frame) -> None:
        self._file = _InBucket(folder) if is_url(folder) else _OnDisk(Path(folder))
        try:
            self.manifest = self._opened(folder, frame)
        except BaseException:
            self.close()
            raise

    def add(self, shard: Shard) -> None:
        """Count a file. It is on the disk, or in the bucket, when this returns."""
        self._file.append(shard.to_dict())
        self.manifest.shards.append(shard)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _opened(self, folder: Place, frame: Frame) -> Manifest:
        if not self._file.begin():
            self._file.append({"kind": KIND, "version": VERSION, "frame": frame.to_dict()})
        manifest = Manifest.read(folder)
        manifest.frame.check_same(frame)
        if difference := manifest.frame.origin.model.mismatch(frame.origin.model):
            raise MismatchError(f"{folder} belongs to another model, {difference}: load that one, or make it again")
        return manifest


class _OnDisk:
    """The lines of a manifest in a folder, which one process holds."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder} is being written by another homer index: wait for it, or choose another"
            ) from error
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error}; choose another folder") from error
        self._path = folder / NAME

    def begin(self) -> bool:
        """Leave whole lines only; whether there are any."""
        lines, whole = _lines(self._path, self._path.read_bytes()) if self._path.exists() else ([], 0)
        if lines:
            os.truncate(self._path, whole)
        else:
            self._path.write_bytes(b"")
        return bool(lines)

    def append(self, line: dict[str, Any]) -> None:
        try:
            with open(self._path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error}; free space") from error

    def close(self) -> None:
        self._lock.release()


class _InBucket:
    """The lines of a manifest in a bucket, written anew with each; who finds another one's lines there stops."""

    def __init__(self, folder: Place) -> None:
        self._place = inside(folder, NAME)
        self._state = buckets.state_of(self._place)
        self._content = buckets.read_bytes(self._place) if self._state else b""

    def begin(self) -> bool:
        """Whether there are lines."""
        return bool(_lines(self._place, self._content)[0])

    def append(self, line: dict[str, Any]) -> None:
        if buckets.state_of(self._place) != self._state:
            raise InputError(f"{self._place} is being written by another homer index: wait for it, or choose another")
        self._content += json.dumps(line).encode() + b"\n"
        buckets.write_bytes(self._place, self._content)
        self._state = buckets.state_of(self._place)

    def close(self) -> None:
        """Nothing is held."""


def is_collection(path: Place) -> bool:
    manifest = inside(path, NAME)
    return buckets.state_of(manifest) is not None if is_url(path) else os.path.isfile(manifest)


def load_collection(
    folder: Place,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    check: bool = True,
) -> Index:
    """All files of a collection as one index. Without `check` the files are not read through, for who scores them does
    that. Raises as `Index.load`, `InputError` for an empty collection."""
    manifest = Manifest.read(folder)
    if not manifest.files:
        raise InputError(f"{folder} holds no document yet: index some")
    return join([Index.load(inside(folder, file), model, tokenizer, check=check) for file in manifest.files])


def _lines(path: Place, content: bytes) -> tuple[list[Any], int]:
    """The JSON lines of a file's content but for a last one that was cut off, and the bytes of these."""
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()], len(whole)
    except ValueError as error:
        raise CorruptFileError(f"{path} is damaged: {error}; copy it afresh or make the index again") from error
