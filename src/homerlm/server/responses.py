"""`/v1/responses`: answers that can be gone on from, to text and to files in vector stores."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from homerlm import prompt
from homerlm.conversation.messages import SYSTEM, Message
from homerlm.server.answering import Asked, answering
from homerlm.server.errors import ApiError
from homerlm.server.file_search import Searched
from homerlm.server.parts import read_messages
from homerlm.server.remembered import Remembered
from homerlm.server.response_body import ResponseBody, response_json
from homerlm.server.response_events import Making
from homerlm.server.sse import streamed, until_gone
from homerlm.server.state import Owner, Server, Shared

router = APIRouter(prefix="/v1", tags=["Responses"])
ANSWER_ROOM = 512  # tokens that a prompt which must not be shortened leaves for its answer, at least


@router.post("/responses", response_model=None)
async def respond(request: Request, body: ResponseBody, owner: Owner, server: Shared) -> Response:
    """Answer text, and files of vector stores; what is longer than the model's target is read as documents."""
    writing = body.checked()
    response = response_json(body, server.check_model(body.model))
    messages = await _conversation(server, owner, body)
    stores = body.vector_stores
    found = await Searched.of(server, owner, stores) if stores else None
    asked = await asyncio.to_thread(_asked, server, body, messages, found)
    items = tuple(body.items())

    def remember(made: dict[str, Any]) -> None:
        if body.store is not False:
            answer = Message("assistant", (made["output"][-1]["content"][0]["text"],))
            server.memory.put(owner, Remembered(made, (*messages, answer), items))

    making = Making(body, response, found, messages[-1].text[:500], remember)
    steps = answering(server, owner, asked, writing)
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
def response(id: str, owner: Owner, server: Shared) -> dict[str, Any]:
    return _known(server, owner, id).response


@router.delete("/responses/{id}")
def delete_response(id: str, owner: Owner, server: Shared) -> dict[str, Any]:
    if not server.memory.remove(owner, id):
        raise _unknown(id)
    return {"id": id, "object": "response", "deleted": True}


@router.get("/responses/{id}/input_items")
def input_items(id: str, owner: Owner, server: Shared) -> dict[str, Any]:
    """What a response was an answer to, without what came before it."""
    items = list(reversed(_known(server, owner, id).items))
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": items, **ends, "has_more": False}


async def _conversation(server: Server, owner: str, body: ResponseBody) -> list[Message]:
    """All messages up to now but the instructions, which are not carried over."""
    before: tuple[Message, ...] = ()
    if body.previous_response_id is not None:
        before = _known(server, owner, body.previous_response_id, "previous_response_id").messages
    return [*before, *await read_messages(server, owner, body.messages(), "input")]


def _asked(server: Server, body: ResponseBody, messages: list[Message], found: Searched | None) -> Asked:
    given = [Message(SYSTEM, (body.instructions,)), *messages] if body.instructions else messages
    reader = server.reader
    if body.truncation == "disabled":
        reader = replace(reader, room=max(server.engine.homer.limit - ANSWER_ROOM, server.room))
    conversation = reader.read(given, has_documents=found is not None and bool(found.files))
    if body.truncation == "disabled" and conversation.documents:
        message = (
            f"The input is longer than the {reader.room:,} tokens that the model reads as they are, and truncation is "
            "disabled: set it to auto, and the model reads all of it but answers from what the question needs."
        )
        raise ApiError(400, message, code="context_length_exceeded", param="input")
    affixes, neutral = conversation.affixes(reader.tokenizer), prompt.neutral(reader.tokenizer)
    if found is None:
        return Asked(affixes, neutral, conversation.documents)
    return Asked(affixes, neutral, (*found.documents, *conversation.documents), found.indexes)


def _known(server: Server, owner: str, id: str, param: str | None = None) -> Remembered:
    found = server.memory.get(owner, id)
    if found is None:
        raise _unknown(id, param)
    return found


def _unknown(id: str, param: str | None = None) -> ApiError:
    code = "previous_response_not_found" if param else "not_found"
    return ApiError(400 if param else 404, f"Response with id '{id[:100]}' not found.", code=code, param=param)
