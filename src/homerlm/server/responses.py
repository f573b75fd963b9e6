"""`/v1/responses`: answers that can be gone on from, to text and to files in vector stores."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from homerlm import prompt
from homerlm.conversation.messages import SYSTEM, Message
from homerlm.server.answering import Asked
from homerlm.server.answers import remembering
from homerlm.server.errors import ApiError
from homerlm.server.file_search import Searched
from homerlm.server.input_items import conversation, known, unknown
from homerlm.server.objects import Order
from homerlm.server.parameters import unsupported
from homerlm.server.remembered import Remembered
from homerlm.server.response_body import ResponseBody, response_json
from homerlm.server.response_events import Making
from homerlm.server.sse import DESCRIBED, streamed, until_gone
from homerlm.server.state import Owner, Server, Shared

router = APIRouter(prefix="/v1", tags=["Responses"])
ANSWER_ROOM = 512  # tokens that a prompt which must not be shortened leaves for its answer, at least


@router.post("/responses", response_model=None, responses=DESCRIBED)
async def respond(request: Request, body: ResponseBody, owner: Owner, server: Shared) -> Response:
    """Answer text, and files of vector stores; what is longer than the model's target is read as documents."""
    writing = body.checked()
    response = response_json(body, server.check_model(body.model))
    messages = await conversation(server, owner, body)
    searched = await Searched.of(server, owner, body.searches)
    asked, question = await asyncio.to_thread(_asked, server, body, messages, searched)
    items = tuple(body.listed())

    def remember(made: dict[str, Any]) -> None:
        if body.store is not False:
            answer = Message("assistant", (made["output"][-1]["content"][0]["text"],))
            server.memory.put(owner, Remembered(made, (*messages, answer), items))

    making = Making(body, response, searched if body.searches else None, question[:500], remember)
    steps = searched.answering(server, owner, asked, question, writing)
    if body.store is not False:
        steps = remembering(server, owner, response["id"], steps)
    if body.stream:
        settings = server.settings
        return await streamed(
            making.events(steps),
            ping=settings.ping_seconds,
            grace=settings.closing_seconds,
            on_error=making.failed,
        )
    made = await until_gone(request, making.whole(steps))
    return made if isinstance(made, Response) else JSONResponse(made)


@router.get("/responses/{id}")
def response(id: str, owner: Owner, server: Shared, stream: bool = False) -> dict[str, Any]:
    if stream:
        raise unsupported("stream", "a response that was written as one object: leave it out")
    return known(server, owner, id).response


@router.delete("/responses/{id}")
def delete_response(id: str, owner: Owner, server: Shared) -> dict[str, Any]:
    server.kept.remove(owner, id)
    if not server.memory.remove(owner, id):
        raise unknown(id)
    return {"id": id, "object": "response", "deleted": True}


@router.get("/responses/{id}/input_items")
def input_items(
    id: str,
    owner: Owner,
    server: Shared,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """What a response was an answer to, without what came before it."""
    items = list(known(server, owner, id).items)
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    rest = items if after is None else items[ids.index(after) + 1 :] if after in ids else []
    page = rest[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(rest) > limit}


def _asked(server: Server, body: ResponseBody, messages: list[Message], searched: Searched) -> tuple[Asked, str]:
    """What is to be answered, and its question alone."""
    given = [Message(SYSTEM, (body.instructions,)), *messages] if body.instructions else messages
    reader = server.reader
    if body.truncation == "disabled":
        reader = replace(reader, room=max(server.engine.homer.limit - ANSWER_ROOM, server.room))
    found = reader.read(given, has_documents=bool(searched.files))
    if body.truncation == "disabled" and found.documents:
        message = (
            f"The input is longer than the {reader.room:,} tokens that the model reads as they are, and truncation is "
            "disabled: set it to auto, and the model reads all of it but answers from what the question needs."
        )
        raise ApiError(400, message, code="context_length_exceeded", param="input")
    affixes, neutral = found.affixes(reader.tokenizer), prompt.neutral(reader.tokenizer)
    turn, start = found.place or (-1, 0)
    question = found.turns[turn][1][start:].strip()
    return Asked(affixes, neutral, (*searched.documents, *found.documents), searched.indexes), question
