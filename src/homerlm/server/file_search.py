"""The tool `file_search` of responses: vector stores that an answer is read from, and the passages it was given."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from homerlm.answer import Prepared
from homerlm.conversation.telling import told
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.selection import Excerpt, Selection
from homerlm.server.answering import Asked, Step, answering
from homerlm.server.filters import Filter, check
from homerlm.server.found import known_index, missing_store, text_of
from homerlm.server.limited_search import Limited, LimitedSearch, Results
from homerlm.server.parameters import Body, Words
from homerlm.server.searching import Hit, RankingOptions
from homerlm.server.state import Server
from homerlm.store.records import Member
from homerlm.trace import kept_indices
from homerlm.writing import Writing

MOST_RESULTS, USUAL_RESULTS = 50, 20  # as OpenAI has it


class FileSearch(Body):
    """The tool, as a request sets it. Without a number or a score nothing but the question limits what is read."""

    vector_store_ids: list[Words] = Field(default_factory=list, max_length=64)
    max_num_results: int | None = Field(None, ge=1, le=MOST_RESULTS)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None

    @property
    def least(self) -> float:
        """Score that a result has at least."""
        return 0.0 if self.ranking_options is None else self.ranking_options.least

    @property
    def limited(self) -> bool:
        return self.max_num_results is not None or self.least > 0


@dataclass(frozen=True)
class Searched:
    """Vector stores that an answer is read from. files: theirs that pass the filters, by id; indexes: of those that
    were read, documents: id and text of those that have to be read again; limited: files that are searched first.
    Ids are the names of the documents."""

    files: dict[str, Member]
    indexes: tuple[Index, ...] = ()
    documents: tuple[tuple[str, str], ...] = ()
    limited: tuple[Limited, ...] = ()
    id: str = field(default_factory=lambda: f"fs_{secrets.token_hex(12)}")

    @classmethod
    async def of(cls, server: Server, owner: str, tools: Sequence[FileSearch]) -> Searched:
        """Raises `ApiError` for a vector store that the owner has not, `DocumentError` for a file that cannot be read
        again."""
        files: dict[str, Member] = {}
        indexes: list[Index] = []
        documents: list[tuple[str, str]] = []
        limited = []
        for tool in tools:
            check(tool.filters, "tools")
            found = await _members(server, owner, tool)
            new = {member.id: member for member in found if member.id not in files}
            files |= new
            if tool.limited:
                limited.append(Limited(tuple(new.values()), tool.max_num_results or USUAL_RESULTS, tool.least))
                continue
            for member in new.values():
                known = await known_index(server, member)
                if known is None:
                    documents.append((member.id, (await text_of(server, owner, member.id))[1]))
                else:
                    indexes.append(join([known], [member.id]))
        return cls(files, tuple(indexes), tuple(documents), tuple(limited))

    async def answering(
        self, server: Server, owner: str, asked: Asked, question: str, writing: Writing
    ) -> AsyncGenerator[Step | Results, None]:
        """The steps of an answer, behind what was found for it where there are limits."""
        started = time.perf_counter()
        if self.limited and question.strip():
            async with aclosing(told(LimitedSearch(server, self.limited, question).run)) as searching:
                async for found in searching:
                    if isinstance(found, Results):
                        asked = replace(asked, indexes=(*asked.indexes, *found.indexes))
                    yield found
        spent = time.perf_counter() - started
        async with aclosing(answering(server, owner, asked, writing, spent)) as steps:
            async for step in steps:
                yield step

    def passages(self, prepared: Prepared) -> list[tuple[str, Excerpt]]:
        """What of the files an answer was given: a file's id and a passage each."""
        if not isinstance(prepared.source, Index):
            return []
        found = Selection.of_index(prepared.source, "", kept_indices(prepared.context), 0).passages
        first = prepared.source.names[0]
        named = [(passage.document or first, passage) for passage in found]
        return [(id, passage) for id, passage in named if id in self.files]

    def call(self, queries: Sequence[str], status: str, results: list[dict[str, Any]] | None) -> dict[str, Any]:
        """The output item. results: None where the client has not asked for them."""
        facts = {"id": self.id, "type": "file_search_call", "status": status, "queries": list(queries)}
        return {**facts, "results": results}

    def results(self, found: Results | None, passages: Sequence[tuple[str, Excerpt]]) -> list[dict[str, Any]]:
        """For the output item: what a search with limits found, and the passages of files without."""
        listed = [] if found is None else [_hit_json(hit) for hit in found.hits]
        limited = {member.id for one in self.limited for member in one.members}
        return listed + [self._result(id, passage) for id, passage in passages if id not in limited]

    def citations(self, passages: Sequence[tuple[str, Excerpt]], at: int) -> list[dict[str, Any]]:
        """Annotations of an answer of `at` characters: every passage that it was given, with its characters
        `[start, end)` of the file's text."""
        return [
            {
                "type": "file_citation",
                "file_id": id,
                "filename": self.files[id].name,
                "index": at,
                "homer": {"start": passage.start, "end": passage.end},
            }
            for id, passage in passages
        ]

    def _result(self, id: str, passage: Excerpt) -> dict[str, Any]:
        return _result_json(self.files[id], passage.text, None, passage.start, passage.end)


async def _members(server: Server, owner: str, tool: FileSearch) -> list[Member]:
    """The files that were read and pass a tool's filters."""
    stores = server.documents.store.vector_stores
    members: list[Member] = []
    for id in dict.fromkeys(tool.vector_store_ids):
        found = await asyncio.to_thread(stores.get, owner, id)
        if found is None or found.has_expired(time.time()):
            raise missing_store(id, "vector_store_ids")
        members += (await asyncio.to_thread(stores.members, id, status="completed"))[0]
    return [one for one in members if tool.filters is None or tool.filters.matches(one.attributes)]


def _hit_json(hit: Hit) -> dict[str, Any]:
    passages = hit.cluster.passages
    return _result_json(hit.member, hit.cluster.text, hit.score, passages[0].start, passages[-1].end)


def _result_json(member: Member, text: str, score: float | None, start: int, end: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"file_id": member.id, "filename": member.name, "text": text}
    place = {"start": start, "end": end}
    return {**facts, "attributes": member.attributes, "score": score, "homer": place}
