"""`/v1/documents`: what was read, of whichever model, and what of it an answer to a question is read from."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from homerlm import page, prompt
from homerlm.answer import Prepared
from homerlm.index.index import Index
from homerlm.selection import Selection
from homerlm.server.answering import in_time
from homerlm.server.errors import ApiError
from homerlm.server.objects import Deleted, Listed, Order, Page
from homerlm.server.sse import until_gone
from homerlm.server.state import Owner, Server, Shared
from homerlm.store.records import StoredDocument
from homerlm.trace import LevelTrace, kept_indices

router = APIRouter(tags=["Documents"])
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; sandbox allow-scripts"
)


class DocumentObject(Listed):
    """A text that was read. sha256: of its UTF-8; usable: whether the model that runs here can be asked about it."""

    id: str
    object: Literal["document"] = "document"
    name: str
    sha256: str
    model: str
    usable: bool
    bytes: int
    tokens: int
    created_at: int
    last_used_at: int
    expires_at: int | None

    @classmethod
    def of(cls, stored: StoredDocument, maker: str) -> Self:
        return cls(
            id=stored.id,
            name=stored.name,
            sha256=stored.sha256,
            model=stored.model,
            usable=stored.maker == maker,
            bytes=stored.bytes,
            tokens=stored.tokens,
            created_at=int(stored.created),
            last_used_at=int(stored.used),
            expires_at=None if stored.expires is None else int(stored.expires),
        )


class KeptPassage(BaseModel):
    """Characters `[start, end)` of the document's text."""

    start: int
    end: int
    text: str


class KeptObject(BaseModel):
    """What of a document an answer to a question is read from. tokens: of the passages; tokens_read: that the model
    read for the question."""

    object: Literal["document.kept"] = "document.kept"
    document: str
    name: str
    question: str
    tokens: int
    document_tokens: int
    tokens_read: int
    passages: list[KeptPassage]


@router.get("/v1/documents")
async def documents(
    owner: Owner,
    server: Shared,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Order = "desc",
    after: str | None = None,
    sha256: str | None = None,
) -> Page[DocumentObject]:
    """The documents of the caller's key, those of other models included. sha256: only those of this text."""
    maker = await server.documents.maker()
    found = await asyncio.to_thread(server.documents.store.documents, owner)
    listed = [DocumentObject.of(one, maker) for one in found if sha256 in (None, one.sha256)]
    if order == "desc":
        listed.reverse()
    if after is not None:
        ids = [one.id for one in listed]
        listed = listed[ids.index(after) + 1 :] if after in ids else []
    return Page[DocumentObject].of(listed[:limit], len(listed) > limit)


@router.get("/v1/documents/{document_id}")
async def document(document_id: str, owner: Owner, server: Shared) -> DocumentObject:
    """What is known of a document."""
    return DocumentObject.of(await _stored(server, owner, document_id), await server.documents.maker())


@router.delete("/v1/documents/{document_id}")
async def delete(document_id: str, owner: Owner, server: Shared) -> Deleted:
    """Forget a document; its text is read anew where it is given again."""
    if not await asyncio.to_thread(server.documents.store.remove_document, owner, document_id):
        raise _missing(document_id)
    return Deleted(id=document_id, object="document.deleted")


@router.get(
    "/v1/documents/{document_id}/kept",
    response_model=KeptObject,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def kept(
    request: Request,
    document_id: str,
    owner: Owner,
    server: Shared,
    question: Annotated[str, Query(min_length=1, max_length=100_000)],
) -> KeptObject | Response:
    """What an answer to a question about a document is read from, found now: as JSON, or, where HTML is accepted first,
    as a page of the whole document."""
    found = _kept(server, owner, document_id, question, _wants_page(request))
    return await until_gone(request, in_time(server, found))


async def _kept(server: Server, owner: str, id: str, question: str, as_page: bool) -> KeptObject | Response:
    stored = await _stored(server, owner, id)
    index = await server.documents.open(owner, id)
    if index is None:
        raise _missing(id)
    trace, started = LevelTrace(), time.perf_counter()
    prepared = await _prepared(server, index, question, trace)
    seconds = time.perf_counter() - started
    if as_page:
        return await asyncio.to_thread(_page, server, index, stored.name, question, prepared, trace, seconds)
    return await asyncio.to_thread(_json, index, stored, question, prepared)


async def _prepared(server: Server, index: Index, question: str, trace: LevelTrace) -> Prepared:
    homer = server.engine.homer
    assert homer.tokenizer is not None  # the engine refuses a Homer without one
    affixes = prompt.affixes(homer.tokenizer, question, chat=index.frame.chat)
    neutral = prompt.neutral(homer.tokenizer, chat=index.frame.chat)
    return await server.engine.run(homer.preparing(index, affixes, neutral), trace)


def _json(index: Index, stored: StoredDocument, question: str, prepared: Prepared) -> KeptObject:
    found = Selection.of_index(index, question, kept_indices(prepared.context), prepared.tokens_read)
    return KeptObject(
        document=stored.id,
        name=stored.name,
        question=question,
        tokens=found.tokens,
        document_tokens=found.document_tokens,
        tokens_read=found.tokens_read,
        passages=[KeptPassage(start=one.start, end=one.end, text=one.text) for one in found.passages],
    )


def _page(
    server: Server, index: Index, name: str, question: str, prepared: Prepared, trace: LevelTrace, seconds: float
) -> Response:
    shown = page.Kept(prepared.context, seconds, server.engine.homer.limit)
    text = index.text_of(index.parts[0])
    html = page.render_index(index.spans[:, 0].tolist(), text, name, question, shown, trace)
    return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})


async def _stored(server: Server, owner: str, id: str) -> StoredDocument:
    found = await asyncio.to_thread(server.documents.store.document, owner, id)
    if found is None:
        raise _missing(id)
    return found


def _missing(id: str) -> ApiError:
    return ApiError(404, f"No such document: {id[:100]}", code="not_found", param="document_id")


def _wants_page(request: Request) -> bool:
    """Whether HTML stands in the Accept header before JSON."""
    accepted = [part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
    return next((kind == "text/html" for kind in accepted if kind in ("text/html", "application/json")), False)
