"""A collection: a folder of index files and the manifest of what is in them, which grows line by line.

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

    folder: Path
    frame: Frame
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises `InputError` where there is none, `CorruptFileError`, or `MismatchError` for another version."""
        path = folder / NAME
        try:
            lines, _ = _lines(path)
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

    def __init__(self, folder: Path, frame: Frame) -> None:
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
        self.path = folder / NAME
        try:
            self.manifest = self._opened(folder, frame)
        except BaseException:
            self.close()
            raise

    def add(self, shard: Shard) -> None:
        """Count a file. It is on the disk when this returns."""
        self._append(shard.to_dict())
        self.manifest.shards.append(shard)

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _opened(self, folder: Path, frame: Frame) -> Manifest:
        lines, whole = _lines(self.path) if self.path.exists() else ([], 0)
        if lines:
            os.truncate(self.path, whole)
        else:
            self.path.write_bytes(b"")
            self._append({"kind": KIND, "version": VERSION, "frame": frame.to_dict()})
        manifest = Manifest.read(folder)
        manifest.frame.check_same(frame)
        if difference := manifest.frame.origin.model.mismatch(frame.origin.model):
            raise MismatchError(f"{folder} belongs to another model, {difference}")
        return manifest

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}; free space") from error


def is_collection(path: str | os.PathLike[str]) -> bool:
    return (Path(path) / NAME).is_file()


def load_collection(
    folder: str | os.PathLike[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    check: bool = True,
) -> Index:
    """All files of a collection as one index. Without `check` the files are not read through, for who scores them does
    that. Raises as `Index.load`, `InputError` for an empty collection."""
    manifest = Manifest.read(Path(folder))
    if not manifest.files:
        raise InputError(f"{folder} holds no document yet: index some")
    return join([Index.load(manifest.folder / file, model, tokenizer, check=check) for file in manifest.files])


def _lines(path: Path) -> tuple[list[Any], int]:
    """The JSON lines of a file but for a last one that was cut off, and the bytes of these."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()], len(whole)
    except ValueError as error:
        raise CorruptFileError(f"{path} is damaged: {error}; copy it afresh or make the index again") from error
