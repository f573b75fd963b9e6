"""Vector stores' files searched before an answer is read from them: nothing but the results is what it sees."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from homerlm.conversation.answering import Meter, Progress
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.index.narrowed import narrowed
from homerlm.server.answering import in_time
from homerlm.server.found import known_index, text_of
from homerlm.server.searching import Hit, hits
from homerlm.server.state import Server
from homerlm.store.records import Member


@dataclass(frozen=True)
class Limited:
    """Files, how many results a search of them has at most, and the least score of each."""

    members: tuple[Member, ...]
    most: int
    least: float


@dataclass(frozen=True)
class Results:
    """What a search with limits found: the passages that an answer may be read from, and an index of nothing else for
    each file."""

    hits: tuple[Hit, ...]
    indexes: tuple[Index, ...]


class LimitedSearch:
    """A search under way. Its progress counts the tokens of the files."""

    def __init__(self, server: Server, limited: Sequence[Limited], question: str) -> None:
        self._server, self._limited, self._question = server, limited, question
        self._meter = Meter()

    async def run(self, tell: Callable[[Progress | Results], None]) -> None:
        """All of it; `tell` is given its progress, and last its results. Raises what the engine and the documents do,
        and `ApiError` where it takes longer than an answer may."""
        await in_time(self._server, self._run(tell))

    async def _run(self, tell: Callable[[Progress | Results], None]) -> None:
        indexes = await self._indexes(tell)
        found: list[Hit] = []
        for one in self._limited:
            files = [(member, indexes[member.id]) for member in one.members]
            found += await hits(
                self._server, files, self._question, one.most, one.least, lambda _: tell(self._meter.progress())
            )
        tell(Results(tuple(found), await _narrowed(indexes, found)))

    async def _indexes(self, tell: Callable[[Progress | Results], None]) -> dict[str, Index]:
        """By the files' ids. Those that gave way to others are read again."""
        server = self._server
        members = {member.id: member for one in self._limited for member in one.members}
        known = {id: await known_index(server, member) for id, member in members.items()}
        indexes = {id: index for id, index in known.items() if index is not None}
        gone = {id: await text_of(server, members[id].owner, id) for id in members if id not in indexes}
        lengths = await asyncio.to_thread(lambda: [server.reader.count(text) for _, text in gone.values()])
        self._meter.known = sum(map(len, indexes.values()))
        self._meter.total = self._meter.known + sum(lengths)
        tell(self._meter.progress())
        for id, (name, text) in gone.items():
            owner = members[id].owner
            read = server.documents.index(owner, name, text, lambda event: tell(self._meter.progress(event)))
            indexes[id], was_known = await read
            self._meter.add(len(indexes[id]), was_known)
        return indexes


async def _narrowed(indexes: dict[str, Index], found: Sequence[Hit]) -> tuple[Index, ...]:
    """Of nothing but what was found, one for each file."""
    spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for hit in found:
        spans[hit.member.id] += [(passage.start, passage.end) for passage in hit.cluster.passages]
    wholes = {id: join([indexes[id]], [id]) for id in spans}
    return tuple([await asyncio.to_thread(narrowed, wholes[id], places) for id, places in spans.items()])
