"""`/v1/rerank`: passages in the order in which they fit a query, by the scores that documents are read by."""

from __future__ import annotations

import asyncio
import secrets
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from homerlm.server.answering import in_time
from homerlm.server.errors import ApiError
from homerlm.server.sse import until_gone
from homerlm.server.state import Owner, Server, Shared

router = APIRouter(tags=["Rerank"])


class Passage(BaseModel):
    """A text to rank."""

    text: str


Passages = Annotated[list[str | Passage], Field(min_length=1, max_length=10_000)]


class Rerank(BaseModel):
    """Passages (`documents`, or `passages`) and a query."""

    model: str | None = None
    query: str
    documents: Passages | None = None
    passages: Passages | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None

    @property
    def texts(self) -> list[str]:
        """Raises `ApiError` where there are none, or two kinds."""
        given = [one for one in (self.documents, self.passages) if one is not None]
        if len(given) != 1:
            raise ApiError(400, "Give either documents or passages.", code="invalid_value", param="documents")
        return [one if isinstance(one, str) else one.text for one in given[0]]


class Ranked(BaseModel):
    """index: of the passage in the request; relevance_score: 0 to 1, as a share of the best one's."""

    index: int
    relevance_score: float
    document: Passage | None = None


class Tokens(BaseModel):
    """Tokens of query and passages."""

    prompt_tokens: int
    total_tokens: int


class Ranking(BaseModel):
    """The best passages first."""

    id: str
    object: Literal["rerank"] = "rerank"
    model: str
    results: list[Ranked]
    usage: Tokens


@router.post("/v1/rerank", response_model=Ranking, response_model_exclude_none=True)
async def rerank(request: Request, given: Rerank, _owner: Owner, server: Shared) -> Ranking | Response:
    """Rank passages by a query. Equal scores keep the request's order."""
    return await until_gone(request, in_time(server, _ranking(server, given)))


async def _ranking(server: Server, given: Rerank) -> Ranking:
    model, texts = server.check_model(given.model), given.texts
    if not given.query.strip():
        raise ApiError(400, "The query is empty.", code="invalid_value", param="query")
    tokens = await asyncio.to_thread(lambda: sum(map(server.reader.count, [given.query, *texts])))
    server.check_tokens(tokens, "request", "documents")
    scores = await server.engine.run(server.engine.homer.ranking(given.query, texts))
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: given.top_n]
    results = [
        Ranked(
            index=at, relevance_score=scores[at], document=Passage(text=texts[at]) if given.return_documents else None
        )
        for at in order
    ]
    usage = Tokens(prompt_tokens=tokens, total_tokens=tokens)
    return Ranking(id=f"rerank-{secrets.token_hex(12)}", model=model, results=results, usage=usage)
