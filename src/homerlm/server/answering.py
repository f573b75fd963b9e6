"""A conversation answered within the server's limits, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from homerlm.conversation import answering as conversation
from homerlm.conversation.answering import Asked, Limits, Progress, Step, Usage
from homerlm.server.errors import ApiError
from homerlm.server.state import Server
from homerlm.writing import Writing

__all__ = ["Asked", "Progress", "Step", "Usage", "answering", "in_time"]

T = TypeVar("T")


async def answering(
    server: Server, owner: str, asked: Asked, writing: Writing, spent: float = 0.0
) -> AsyncGenerator[Step, None]:
    """The steps of `homerlm.conversation.answering`. spent: seconds of the request's time that are over. Leaving the
    generator stops the work. Raises what the engine and the documents do, and `ApiError` for a prompt that is too long
    or takes too long."""
    settings = server.settings
    limits = Limits(
        settings.max_new_tokens,
        settings.request_seconds - spent,
        lambda tokens: server.check_tokens(tokens, "prompt", "messages"),
    )
    try:
        async with aclosing(conversation.answering(server.documents, owner, asked, writing, limits)) as steps:
            async for step in steps:
                if isinstance(step, Usage):
                    _count(server, step)
                yield step
    except TimeoutError:
        raise _too_long() from None


async def in_time(server: Server, work: Awaitable[T]) -> T:
    """The value of work that has the time of an answer, and is cancelled at its end. Raises `ApiError` where it takes
    longer."""
    try:
        async with asyncio.timeout(server.settings.request_seconds):
            return await work
    except TimeoutError:
        raise _too_long() from None


def _too_long() -> ApiError:
    return ApiError(504, "The answer took longer than this server allows.", code="timeout")


def _count(server: Server, usage: Usage) -> None:
    for kind in ("prompt", "cached", "read", "kept", "completion"):
        server.metrics.tokens.labels(kind).inc(getattr(usage, kind))
