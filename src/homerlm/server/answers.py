"""`/v1/answers/{id}/kept`: what of its documents an answer was written from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter

from homerlm.answer import Prepared
from homerlm.index.index import Index
from homerlm.server.errors import ApiError
from homerlm.server.kept_answers import KeptAnswer, KeptDocument
from homerlm.server.state import Owner, Server, Shared

T = TypeVar("T")
router = APIRouter(prefix="/v1/answers", tags=["Documents"])


async def remembering(server: Server, owner: str, id: str, steps: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """An answer's steps, and what it was written from kept under its id."""
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Prepared):
                answer = await asyncio.to_thread(KeptAnswer.of, step)
                if answer is not None:
                    server.kept.put(owner, id, answer)
            yield step


@router.get("/{id}/kept")
async def kept(owner: Owner, server: Shared, id: str, text: bool = True) -> dict[str, Any]:
    """The passages of each document that an answer (its id) was written from, as characters `[start, end)`, and the
    documents' texts unless `text=false`. Answers are remembered while the server runs, the last few hundred; 410 where
    a document has gone since."""
    found = server.kept.get(owner, id)
    if found is None:
        message = "No answer of this id is remembered here, or it was written without long documents."
        raise ApiError(404, message, code="not_found", param="id")
    indexes = {one.sha256: await server.documents.known(owner, one.sha256) for one in found.documents}
    facts = {"id": id, "object": "answer.kept", "tokens": found.tokens, "document_tokens": found.document_tokens}
    shown = [await asyncio.to_thread(_shown, one, indexes[one.sha256], text) for one in found.documents]
    return {**facts, "documents": shown}


def _shown(document: KeptDocument, index: Index | None, with_text: bool) -> dict[str, Any]:
    """Raises `ApiError` 410 where there is no index any more."""
    if index is None:
        message = f"The document {document.name[:100]} has gone from here since: send it again, and ask anew."
        raise ApiError(410, message, code="document_gone", param="id")
    if not (document.spans or with_text):
        return {"name": document.name, "tokens": document.tokens, "passages": []}
    whole = index.text_of(index.parts[0])
    passages = [{"start": start, "end": end, "text": whole[start:end]} for start, end in document.spans]
    text = {"text": whole} if with_text else {}
    return {"name": document.name, "tokens": document.tokens, **text, "passages": passages}
