"""The tool `file_search` of responses: vector stores that an answer is read from, and the passages it was given."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from homerlm.answer import Prepared
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.selection import Excerpt, Selection
from homerlm.server.found import known_index, missing_store, text_of
from homerlm.server.state import Server
from homerlm.store.records import Member
from homerlm.trace import kept_indices


@dataclass(frozen=True)
class Searched:
    """Vector stores that an answer is read from. files: names of their files by id; indexes: of those that were read,
    documents: id and text of those that have to be read again. Ids are the names of the documents."""

    files: dict[str, str]
    indexes: tuple[Index, ...] = ()
    documents: tuple[tuple[str, str], ...] = ()
    id: str = field(default_factory=lambda: f"fs_{secrets.token_hex(12)}")

    @classmethod
    async def of(cls, server: Server, owner: str, ids: Sequence[str]) -> Searched:
        """Raises `ApiError` for a vector store that the owner has not, `DocumentError` for a file that cannot be read
        again."""
        members = [member for id in ids for member in await _members(server, owner, id)]
        indexes, documents = [], []
        for member in {member.id: member for member in members}.values():
            known = await known_index(server, member)
            if known is None:
                documents.append((member.id, (await text_of(server, owner, member.id))[1]))
            else:
                indexes.append(join([known], [member.id]))
        return cls({member.id: member.name for member in members}, tuple(indexes), tuple(documents))

    def passages(self, prepared: Prepared) -> list[tuple[str, Excerpt]]:
        """What of the files an answer was given: a file's id and a passage each."""
        if not isinstance(prepared.source, Index):
            return []
        found = Selection.of_index(prepared.source, "", kept_indices(prepared.context), 0).passages
        first = prepared.source.names[0]
        named = [(passage.document or first, passage) for passage in found]
        return [(id, passage) for id, passage in named if id in self.files]

    def call(self, queries: Sequence[str], status: str, results: list[tuple[str, Excerpt]] | None) -> dict[str, Any]:
        """The output item. results: None where the client has not asked for them."""
        found = None if results is None else [self._result(id, passage) for id, passage in results]
        return {
            "id": self.id,
            "type": "file_search_call",
            "status": status,
            "queries": list(queries),
            "results": found,
        }

    def citations(self, passages: Sequence[tuple[str, Excerpt]], at: int) -> list[dict[str, Any]]:
        """Annotations of an answer of `at` characters: every passage that it was given, with its characters
        `[start, end)` of the file's text."""
        return [
            {
                "type": "file_citation",
                "file_id": id,
                "filename": self.files[id],
                "index": at,
                "homer": {"start": passage.start, "end": passage.end},
            }
            for id, passage in passages
        ]

    def _result(self, id: str, passage: Excerpt) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "file_id": id,
            "filename": self.files[id],
            "text": passage.text,
            "attributes": {},
            "score": None,
        }
        return {**facts, "homer": {"start": passage.start, "end": passage.end}}


async def _members(server: Server, owner: str, id: str) -> list[Member]:
    """A vector store's files that were read."""
    stores = server.documents.store.vector_stores
    found = await asyncio.to_thread(stores.get, owner, id)
    if found is None or found.has_expired(time.time()):
        raise missing_store(id, "vector_store_ids")
    return (await asyncio.to_thread(lambda: stores.members(id, status="completed")))[0]
