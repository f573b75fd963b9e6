"""A request to an application that runs elsewhere: its messages as a stream of values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from homerlm.server.ids import ROUTE

KEPT = ("type", "http_version", "method", "path", "raw_path", "query_string", "headers", "client", "server", "scheme")
AHEAD = 16  # messages that wait for whoever reads them


def portable(scope: Scope, request_id: str) -> dict[str, Any]:
    """What of a request's scope means the same in another process, with the id that it is known by."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    kept = {name: scope[name] for name in KEPT if name in scope}
    return kept | {"headers": [*headers, (b"x-request-id", request_id.encode())], "root_path": "", "asgi": {}}


async def answering(app: ASGIApp, scope: Scope, body: bytes, route: str) -> AsyncGenerator[Message, None]:
    """The messages of an application's answer to a request with a body. Leaving the generator is what a client that
    leaves is: the application is told, and ended. Raises what the application does."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    unread, left, room = [body], asyncio.Event(), asyncio.Semaphore(AHEAD)

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def put(message: Message) -> None:
        await room.acquire()
        messages.put_nowait(message)

    async def run() -> None:
        ROUTE.set(route)
        try:
            await app({**scope, "state": {}}, receive, put)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            room.release()
            yield message
        await running
    finally:
        left.set()
        running.cancel()
        with suppress(BaseException):
            await running
