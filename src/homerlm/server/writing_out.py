"""Answers as chat and completions write them: ids, usage, progress, probabilities of tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from homerlm.server.answering import Progress, Step, Usage
from homerlm.server.ids import token
from homerlm.server.parameters import Generation
from homerlm.server.sse import DONE, Events, event
from homerlm.server.state import Server
from homerlm.writing import Finish, Piece


@dataclass(frozen=True)
class Frame:
    """What every object of one answer begins with."""

    kind: str
    model: str
    prefix: str
    id: str = field(default_factory=lambda: token(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """The answer's id, as clients know it."""
        return f"{self.prefix}-{self.id}"

    def object(self, **more: Any) -> dict[str, Any]:
        names = {"id": self.name, "object": self.kind, "created": self.created, "model": self.model}
        return {**names, "system_fingerprint": None, **more}


@dataclass
class Whole:
    """An answer that was written."""

    text: str
    finish: Finish
    pieces: list[Piece]
    usage: Usage


async def whole(steps: AsyncGenerator[Step, None]) -> Whole:
    """All of an answer, waited for."""
    pieces: list[Piece] = []
    usage = None
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Piece):
                pieces.append(step)
            elif isinstance(step, Usage):
                usage = step
    assert usage is not None and pieces and pieces[-1].finish is not None
    return Whole("".join(piece.text for piece in pieces), pieces[-1].finish, pieces, usage)


async def chunks(
    body: Generation, frame: Frame, steps: AsyncGenerator[Step, None], choices: Any, opening: list[dict[str, Any]]
) -> Events:
    """Events of an answer. choices: makes a piece's choices; opening: those of the first event, none for no such."""
    beside: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    opened = not opening
    async with aclosing(steps):
        async for step in steps:
            if not opened:
                yield event(frame.object(choices=opening, **beside))
                opened = True
            if isinstance(step, Progress) and body.return_progress:
                yield event(frame.object(choices=choices(None), **beside, prompt_progress=progress_json(step)))
            elif isinstance(step, Piece) and (step.text or step.finish or step.choices):
                yield event(frame.object(choices=choices(step), **beside))
            elif isinstance(step, Usage) and body.wants_usage:
                yield event(frame.object(choices=[], usage=usage_json(step)))
    yield DONE


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        "homer": homer_json(usage),
    }


def homer_json(usage: Usage) -> dict[str, Any]:
    return {"read": usage.read, "kept": usage.kept, "seconds": round(usage.seconds, 3)}


def progress_json(progress: Progress) -> dict[str, Any]:
    """As llama.cpp's server writes it."""
    return {
        "total": progress.total,
        "cache": progress.cache,
        "processed": progress.processed,
        "time_ms": round(1000 * progress.seconds),
    }


def token_probabilities(server: Server, piece: Piece) -> Iterator[dict[str, Any]]:
    """Each token of a piece that is text, with its logarithm of probability and the likeliest instead of it."""
    tokenizer: Any = server.reader.tokenizer
    special = set(tokenizer.all_special_ids)
    for choice in piece.choices:
        if choice.id not in special:
            likeliest = [_token(tokenizer, id, logprob) for id, logprob in choice.likeliest]
            yield {**_token(tokenizer, choice.id, choice.logprob), "top_logprobs": likeliest}


def _token(tokenizer: Any, id: int, logprob: float) -> dict[str, Any]:
    text = str(tokenizer.decode([id]))
    bytes = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": bytes}
