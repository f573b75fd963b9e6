"""`/v1/chat/completions`: conversations of any length."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from homerlm import prompt
from homerlm.server.answering import Asked, answering
from homerlm.server.answers import remembering
from homerlm.server.parameters import MOST_LOGPROBS, Generation, refuse_format, refuse_tools, unsupported
from homerlm.server.parts import ChatMessage, read_messages
from homerlm.server.sse import DESCRIBED, streamed, until_gone
from homerlm.server.state import Owner, Server, Shared
from homerlm.server.writing_out import Frame, Whole, chunks, token_probabilities, usage_json, whole
from homerlm.writing import Piece, Writing

router = APIRouter(prefix="/v1", tags=["Chat"])


class ChatBody(Generation):
    """What this server reads of a request; other fields are ignored."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None

    def checked(self) -> Writing:
        """How the answer is to be written. Raises `ApiError` for what would change it and is not done here."""
        self.refuse()
        refuse_tools(self.tool_choice)
        refuse_tools(self.function_call)
        refuse_format(self.response_format, "response_format")
        if self.audio is not None or any(kind != "text" for kind in self.modalities or ()):
            raise unsupported("modalities", "text: leave it out")
        if self.web_search_options is not None:
            raise unsupported("web_search_options", "what its model and the documents say: leave it out")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        most = self.max_completion_tokens or self.max_tokens
        return self.writing(most, stop=tuple(self.stop or ()), seed=self.seed, logprobs=logprobs)


@router.post("/chat/completions", response_model=None, responses=DESCRIBED)
async def chat(request: Request, body: ChatBody, owner: Owner, server: Shared) -> Response | dict[str, Any]:
    """Answer a conversation. What is longer than the model's target is read as documents."""
    writing = body.checked()
    frame = Frame(
        "chat.completion.chunk" if body.stream else "chat.completion", server.check_model(body.model), "chatcmpl"
    )
    asked = await _asked(server, owner, body)
    steps = remembering(server, owner, frame.name, answering(server, owner, asked, writing))
    if body.stream:
        settings = server.settings
        opening = [_choice({"role": "assistant", "content": ""}, None, None)]
        events = chunks(body, frame, steps, lambda piece: _delta(server, body, piece), opening)
        return await streamed(events, ping=settings.ping_seconds, grace=settings.closing_seconds)
    made = await until_gone(request, whole(steps))
    return made if isinstance(made, Response) else JSONResponse(_completion(server, body, frame, made))


async def _asked(server: Server, owner: str, body: ChatBody) -> Asked:
    messages = await read_messages(server, owner, body.messages, "messages")
    conversation = await asyncio.to_thread(server.reader.read, messages)
    tokenizer = server.reader.tokenizer
    return Asked(conversation.affixes(tokenizer), prompt.neutral(tokenizer), conversation.documents)


def _delta(server: Server, body: ChatBody, piece: Piece | None) -> list[dict[str, Any]]:
    if piece is None:
        return [_choice({}, None, None)]
    delta = {"content": piece.text} if piece.text else {}
    probabilities = {"content": list(token_probabilities(server, piece))} if body.logprobs else None
    return [_choice(delta, piece.finish, probabilities)]


def _choice(delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _completion(server: Server, body: ChatBody, frame: Frame, made: Whole) -> dict[str, Any]:
    logprobs = None
    if body.logprobs:
        logprobs = {"content": [one for piece in made.pieces for one in token_probabilities(server, piece)]}
    message = {"role": "assistant", "content": made.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": made.finish}
    return frame.object(choices=[choice], usage=usage_json(made.usage))
