"""`/v1/completions`: text of any length that the model goes on with."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from homerlm import prompt
from homerlm.conversation.messages import name_of
from homerlm.conversation.splitting import Split, split
from homerlm.server.answering import Asked, answering
from homerlm.server.answers import remembering
from homerlm.server.errors import ApiError
from homerlm.server.parameters import MOST_LOGPROBS, Generation, Words, unsupported
from homerlm.server.sse import DESCRIBED, streamed, until_gone
from homerlm.server.state import Owner, Server, Shared
from homerlm.server.writing_out import Frame, Whole, chunks, token_probabilities, usage_json, whole
from homerlm.writing import Piece, Writing

router = APIRouter(prefix="/v1", tags=["Completions"])
TAIL_TOKENS = 128  # that stay verbatim where a text's end is no paragraph, line or sentence of its own
TAIL_SHARE = 8  # of the room, one part in so many is for them at most
USUAL_TOKENS = 16  # of an answer, as OpenAI has it


class CompletionBody(Generation):
    """What this server reads of a request; other fields are ignored."""

    prompt: Words | list[Words] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None
    suffix: Words | None = None
    best_of: int | None = Field(None, ge=1)

    def checked(self) -> Writing:
        """How the text goes on. Raises `ApiError` for what would change that and is not done here."""
        self.refuse()
        for name in ("echo", "suffix"):
            if getattr(self, name):
                raise unsupported(name, "what follows the prompt: leave it out")
        if (self.best_of or 1) > 1:
            raise unsupported("best_of", "its first answer: leave it out")
        most = self.max_tokens or USUAL_TOKENS
        return self.writing(most, stop=tuple(self.stop or ()), seed=self.seed, logprobs=self.logprobs)

    @property
    def text(self) -> str:
        """The prompt. Raises `ApiError` for several, or for ids of tokens."""
        given = self.prompt[0] if isinstance(self.prompt, list) and len(self.prompt) == 1 else self.prompt
        if not isinstance(given, str):
            message = "prompt must be one text here: send several in requests of their own, and no ids of tokens."
            raise ApiError(400, message, code="unsupported_value", param="prompt")
        if not given:
            raise ApiError(400, "prompt is empty: send a text to go on with.", code="invalid_value", param="prompt")
        return given


@router.post("/completions", response_model=None, responses=DESCRIBED)
async def complete(request: Request, body: CompletionBody, owner: Owner, server: Shared) -> Response:
    """Go on with a text. What is longer than the model's target is read as a document, but for its ends."""
    writing, text = body.checked(), body.text
    frame = Frame("text_completion", server.check_model(body.model), "cmpl")
    asked = await asyncio.to_thread(_asked, server, text)
    steps = remembering(server, owner, frame.name, answering(server, owner, asked, writing))
    if body.stream:
        settings = server.settings
        events = chunks(body, frame, steps, lambda piece: _choices(server, body, piece), [])
        return await streamed(events, ping=settings.ping_seconds, grace=settings.closing_seconds)
    made = await until_gone(request, whole(steps))
    return made if isinstance(made, Response) else JSONResponse(_completion(server, body, frame, made))


def _asked(server: Server, text: str) -> Asked:
    tokenizer, reader = server.reader.tokenizer, server.reader
    neutral = prompt.neutral(tokenizer, chat=False)
    if not reader.longer(text, server.room):
        return Asked(prompt.running_text(tokenizer, "", text), neutral)
    found = split(text, reader.count, server.room)
    if not found.tail:
        found = _cut(server, found)
    affixes = prompt.running_text(tokenizer, f"{found.head}\n\n" if found.head else "", f"\n\n{found.tail}")
    return Asked(affixes, neutral, ((name_of(found.document), found.document),))


def _cut(server: Server, found: Split) -> Split:
    """With the document's last tokens as its tail."""
    tail = min(TAIL_TOKENS, server.room // TAIL_SHARE)
    at = prompt.token_spans(server.reader.tokenizer, found.document)[-tail:][0][0]
    return Split(found.head, found.document[:at], found.document[at:])


def _choices(server: Server, body: CompletionBody, piece: Piece | None) -> list[dict[str, Any]]:
    if piece is None:
        return [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}]
    logprobs = None if body.logprobs is None else _logprobs(server, [piece])
    return [{"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}]


def _completion(server: Server, body: CompletionBody, frame: Frame, made: Whole) -> dict[str, Any]:
    logprobs = None if body.logprobs is None else _logprobs(server, made.pieces)
    choice = {"index": 0, "text": made.text, "logprobs": logprobs, "finish_reason": made.finish}
    return frame.object(choices=[choice], usage=usage_json(made.usage))


def _logprobs(server: Server, pieces: list[Piece]) -> dict[str, Any]:
    """In the older form: a list for each kind of number."""
    every = [one for piece in pieces for one in token_probabilities(server, piece)]
    offsets = [0, *accumulate(len(one["token"]) for one in every)][:-1]
    return {
        "tokens": [one["token"] for one in every],
        "token_logprobs": [one["logprob"] for one in every],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in every],
        "text_offset": offsets,
    }
