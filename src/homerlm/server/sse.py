"""Answers as server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from homerlm.server.errors import ApiError, logged

T = TypeVar("T")
Events = AsyncGenerator[ServerSentEvent, None]
OnError = Callable[[ApiError], list[ServerSentEvent]]
DONE = ServerSentEvent(data="[DONE]", sep="\n")
FIRST_WAIT_S = 0.5  # so long the status waits for an error
END_S = 3  # for the last events, once the engine has ended the work
DESCRIBED: dict[int | str, dict[str, Any]] = {  # of endpoints that stream, for the OpenAPI document
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
GONE = 499  # the status of a request whose client left before its answer, which only the log sees


def event(data: dict[str, Any], name: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(data, ensure_ascii=False), event=name, sep="\n")


def plain_error(error: ApiError) -> list[ServerSentEvent]:
    """How chat and completions tell of an error in the middle of a stream."""
    return [event(error.body())]


async def streamed(events: Events, *, ping: float, grace: float, on_error: OnError = plain_error) -> Response:
    """A response of events. What goes wrong before the first of them, or in the first half second, is an HTTP error,
    later an event. ping: seconds between signs of life; grace: that the stream gets when the server ends."""
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait([first], timeout=FIRST_WAIT_S)
        if first.done():
            first.result()
    except BaseException:
        await _stop(first, events)
        raise
    whole = _all(first, events, on_error)
    return EventSourceResponse(whole, ping=ping, sep="\n", shutdown_grace_period=grace + END_S)


async def until_gone(request: Request, work: Awaitable[T]) -> T | Response:
    """The value of work, which is cancelled if the request's client leaves first."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=GONE)
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.wait([task, left])


async def _all(first: asyncio.Future[ServerSentEvent], events: Events, on_error: OnError) -> Events:
    try:
        yield await first
        async with aclosing(events):
            async for one in events:
                yield one
    except StopAsyncIteration:
        return
    except Exception as error:
        for one in on_error(logged(error)):
            yield one
    finally:
        await _stop(first, events)


async def _stop(first: asyncio.Future[ServerSentEvent], events: Events) -> None:
    """End what makes the events: the wait for the first of them, and the rest."""
    if not first.done():
        first.cancel()
        with suppress(BaseException):
            await first
    await events.aclose()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
