"""A vector store searched: its files read with the query, and what was found ranked by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from homerlm.config import SELECT_TOKENS
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.selection import Excerpt, Selection
from homerlm.server.found import known_index, text_of
from homerlm.server.objects import Content, Result
from homerlm.server.state import Server
from homerlm.store.documents import OnEvent
from homerlm.store.records import Member

TOKENS_OF_RESULT = 100  # that are chosen for each result which is asked for
NEAR = 200  # characters: passages that are not further apart are one result


class RankingOptions(BaseModel):
    """score_threshold: the least score of a result, as a share of the best one's."""

    ranker: str | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)

    @property
    def least(self) -> float:
        return self.score_threshold or 0.0


@dataclass(frozen=True)
class Cluster:
    """Neighbouring passages of one file."""

    file: str
    passages: tuple[Excerpt, ...]

    @property
    def text(self) -> str:
        return " ".join(passage.text for passage in self.passages)


@dataclass(frozen=True)
class Hit:
    """What a search found in a file. score: 0 to 1, as a share of the best one's."""

    member: Member
    cluster: Cluster
    score: float


async def search(server: Server, members: Sequence[Member], query: str, most: int, least: float) -> list[Result]:
    """The results of `hits`. Files whose index gave way to others are read again."""
    files = [(member, await index_of(server, member)) for member in members]
    return [_result(hit) for hit in await hits(server, files, query, most, least)]


async def hits(
    server: Server,
    files: Sequence[tuple[Member, Index]],
    query: str,
    most: int,
    least: float,
    on_event: OnEvent | None = None,
) -> list[Hit]:
    """At most so many, the best first, of a score of at least `least`. on_event: is shown the events of the search.
    Raises what the engine does."""
    if not files:
        return []
    index = join([index for _, index in files], [member.id for member, _ in files])
    homer = server.engine.homer
    tokens = min(max(most * TOKENS_OF_RESULT, SELECT_TOKENS), homer.limit // 2)
    found = await server.documents.search([index], query, tokens, on_event)
    by_id = {member.id: member for member, _ in files}
    clusters = list(clustered(found, files[0][0].id))
    scores = await server.engine.run(homer.ranking(query, [cluster.text for cluster in clusters]), on_event)
    ranked = sorted(zip(scores, clusters, strict=True), key=lambda pair: -pair[0])
    return [Hit(by_id[cluster.file], cluster, score) for score, cluster in ranked[:most] if score >= least]


def clustered(found: Selection, only: str) -> Iterator[Cluster]:
    """The passages that were found, neighbours together. only: the file where there is but one, whose name the passages
    do not carry."""
    group: list[Excerpt] = []
    for passage in found.passages:
        if group and (passage.document != group[-1].document or passage.start - group[-1].end > NEAR):
            yield Cluster(group[0].document or only, tuple(group))
            group = []
        group.append(passage)
    if group:
        yield Cluster(group[0].document or only, tuple(group))


async def index_of(server: Server, member: Member) -> Index:
    """The index of a vector store's file, which is read again where it gave way to others."""
    known = await known_index(server, member)
    if known is not None:
        return known
    name, text = await text_of(server, member.owner, member.id)
    return (await server.documents.index(member.owner, name, text))[0]


def _result(hit: Hit) -> Result:
    member, passages = hit.member, hit.cluster.passages
    content = [Content(text=one.text, start=one.start, end=one.end) for one in passages]
    return Result(
        file_id=member.id, filename=member.name, score=hit.score, attributes=member.attributes, content=content
    )
