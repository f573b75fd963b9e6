"""`/v1/answers/{id}/kept`: what of its documents an answer was written from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter

from homerlm.answer import Prepared
from homerlm.index.index import Index
from homerlm.selection import Selection
from homerlm.server.answering import Step
from homerlm.server.errors import ApiError
from homerlm.server.state import Owner, Server, Shared

router = APIRouter(prefix="/v1/answers", tags=["Documents"])


async def remembering(
    server: Server, owner: str, id: str, steps: AsyncGenerator[Step, None]
) -> AsyncGenerator[Step, None]:
    """An answer's steps, and what it was written from kept under its id."""
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Prepared):
                server.kept.put(owner, id, step)
            yield step


@router.get("/{id}/kept")
async def kept(owner: Owner, server: Shared, id: str, text: bool = True) -> dict[str, Any]:
    """The passages of each document that an answer (its id) was written from, as characters `[start, end)`, and the
    documents' texts unless `text=false`. Answers are remembered while the server runs, the last few hundred."""
    found = server.kept.get(owner, id)
    if found is None:
        message = "No answer of this id is remembered here, or it was written without long documents."
        raise ApiError(404, message, code="not_found", param="id")
    return {"id": id, "object": "answer.kept", **await asyncio.to_thread(_documents, *found, text)}


def _documents(index: Index, kept_tokens: Sequence[int], with_text: bool) -> dict[str, Any]:
    selection = Selection.of_index(index, "", kept_tokens, 0)
    documents = []
    for part in index.parts:
        own = [one for one in selection.passages if one.document in (part.name, None)]
        passages = [{"start": one.start, "end": one.end, "text": one.text} for one in own]
        text = {"text": index.text_of(part)} if with_text else {}
        documents.append({"name": part.name, "tokens": part.tokens, **text, "passages": passages})
    return {"tokens": selection.tokens, "document_tokens": selection.document_tokens, "documents": documents}
