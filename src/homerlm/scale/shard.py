"""One file of a collection: which documents are in it, and how it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from homerlm.errors import DocumentError, HomerError
from homerlm.homer import Homer
from homerlm.index.buckets import inside, written
from homerlm.index.index import Frame, Index
from homerlm.index.manifest import Member, Shard
from homerlm.passes import Event
from homerlm.scale.listing import Fields, Listed, text_of

TOKEN_BYTES = 4  # of text, about


@dataclass(frozen=True)
class Planned:
    """Documents of one file; first: place of the first one among all that are listed."""

    first: int
    documents: tuple[Listed, ...]

    @property
    def bytes(self) -> int:
        return sum(document.bytes for document in self.documents)


def planned(documents: Iterable[tuple[int, Listed]], tokens: int) -> Iterator[Planned]:
    """Neighbours, with their places, of about so many tokens together, or one of more. What is held already does not
    change how the others are grouped, if it is dropped afterwards (`without`)."""
    group: list[tuple[int, Listed]] = []
    size = 0
    for place, document in documents:
        if group and size + document.bytes > tokens * TOKEN_BYTES:
            yield Planned(group[0][0], tuple(one for _, one in group))
            group, size = [], 0
        group.append((place, document))
        size += document.bytes
    if group:
        yield Planned(group[0][0], tuple(one for _, one in group))


def without(shards: Iterable[Planned], held: Iterable[str]) -> list[Planned]:
    """Less the documents of these digests."""
    known = set(held)
    left = (Planned(one.first, tuple(d for d in one.documents if d.sha256 not in known)) for one in shards)
    return [one for one in left if one.documents]


@dataclass(frozen=True)
class ShardWriting:
    """How the files of a collection are written. frame: of all of them."""

    folder: str
    frame: dict[str, Any]
    fields: Fields
    int8: bool
    chat: bool | None
    password: str | None = None

    def write(self, homer: Homer, shard: Planned) -> Generator[Event, None, Shard]:
        """Events of the documents that are read; the value is what the manifest says of the file. A file of the same
        documents that is there and whole is taken as it is: its writer was stopped before it could be counted."""
        name = self.name_of(shard.documents)
        place = inside(self.folder, name)
        if (found := self._found(homer, place, name, shard)) is not None:
            return found
        failed: list[Member] = []
        texts = self._texts(shard.documents, failed)
        with written(place) as path:
            index = yield from homer.reading(texts, path=path, int8=self.int8, chat=self.chat)
        Frame.from_dict(self.frame).check_same(index.frame)
        if not index.parts:  # its file is none that counts
            return Shard(None, shard.first, (), tuple(failed))
        missing = {member.sha256 for member in failed}
        read = [document for document in shard.documents if document.sha256 not in missing]
        return Shard(name, shard.first, _members(read, index), tuple(failed))

    def name_of(self, documents: Sequence[Listed]) -> str:
        """A file's name, which follows from what is in it and how it is made."""
        facts = json.dumps([self.frame, [[one.name, one.sha256] for one in documents]])
        return f"shard-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.homer"

    def _texts(self, documents: Sequence[Listed], failed: list[Member]) -> Iterator[tuple[str, str]]:
        for document in documents:
            try:
                text = text_of(document, self.fields, self.password)
            except DocumentError as error:
                failed.append(Member(document.name, document.path, document.sha256, reason=str(error)))
            else:
                yield document.name, text

    def _found(self, homer: Homer, place: str, name: str, shard: Planned) -> Shard | None:
        try:
            index = Index.load(place, homer.model, homer.tokenizer)
        except HomerError:
            return None
        if list(index.names) != [document.name for document in shard.documents]:
            return None
        return Shard(name, shard.first, _members(shard.documents, index))


def _members(documents: Sequence[Listed], index: Index) -> tuple[Member, ...]:
    return tuple(
        Member(document.name, document.path, document.sha256, part.tokens)
        for document, part in zip(documents, index.parts, strict=True)
    )
