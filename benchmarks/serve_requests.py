"""Requests of every kind that needs the model, and their answers as one text each, streamed or not."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx

from homerlm.lab.corpora import python_documentation

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ENDS = ("response.completed", "response.incomplete")
KINDS = ("chat", "drawn chat", "completion", "response", "document", "response to a document")
LONG = "long document"
TOPICS = ("lists", "files", "threads", "numbers", "text", "dates", "errors", "modules", "sockets", "tests")


@dataclass(frozen=True)
class Ask:
    """A request whose answer is one text. number: of this kind; characters: of its document, where it has one."""

    kind: str
    number: int
    new_tokens: int
    characters: int

    @property
    def path(self) -> str:
        return COMPLETIONS if self.kind == "completion" else RESPONSES if "response" in self.kind else CHAT

    def body(self, *, stream: bool) -> dict[str, Any]:
        most = "max_output_tokens" if self.path == RESPONSES else "max_tokens"
        body: dict[str, Any] = {most: self.new_tokens, "stream": stream}
        if self.path == COMPLETIONS:
            return {**body, "prompt": self.text}
        if self.path == RESPONSES:
            return {**body, "input": self.text}
        drawn = {"temperature": 1.0, "seed": self.number} if self.kind == "drawn chat" else {}
        return {**body, **drawn, "messages": [{"role": "user", "content": self.text}]}

    @property
    def text(self) -> str:
        topic = TOPICS[self.number % len(TOPICS)]
        if "document" in self.kind:
            return f"{document(self.number, self.characters)}\n\nWhat does it say about {topic}?"
        if self.kind == "completion":
            return f"Number {self.number}. About {topic} there is much to say, for example"
        return f"Question {self.number}: tell me something about {topic} in Python."


def document(number: int, characters: int) -> str:
    """A part of Python's documentation of its own for every number."""
    text = python_documentation()
    start = random.Random(number).randrange(len(text) - characters)
    return f"Document {number}.\n{text[start : start + characters]}"


async def answer(http: httpx.AsyncClient, ask: Ask, *, stream: bool) -> str:
    """The whole answer. Raises `httpx.HTTPStatusError` for an error, `RuntimeError` for a stream without an end."""
    if stream:
        return "".join([piece async for piece in pieces(http, ask)])
    got = await http.post(ask.path, json=ask.body(stream=False))
    got.raise_for_status()
    return _text(got.json())


async def pieces(http: httpx.AsyncClient, ask: Ask) -> AsyncGenerator[str, None]:
    """Pieces of a streamed answer, as they come. Raises as `answer` does."""
    ended = False
    async with http.stream("POST", ask.path, json=ask.body(stream=True)) as got:
        if got.is_error:
            await got.aread()
            got.raise_for_status()
        async for line in got.aiter_lines():
            data = line.removeprefix("data: ")
            if data == line or not data:
                continue
            event = {} if data == "[DONE]" else json.loads(data)
            ended = ended or data == "[DONE]" or event.get("type") in ENDS
            if text := _delta(event):
                yield text
    if not ended:
        raise RuntimeError(f"the stream of {ask} has no end")


def _text(answered: dict[str, Any]) -> str:
    if "output" in answered:
        return str(answered["output"][-1]["content"][0]["text"])
    choice = answered["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def _delta(event: dict[str, Any]) -> str:
    if event.get("error"):
        raise RuntimeError(f"a stream ended with {event['error']}")
    if event.get("type") == "response.output_text.delta":
        return str(event["delta"])
    choice = (event.get("choices") or [{}])[0]
    return choice.get("delta", {}).get("content") or choice.get("text") or ""
