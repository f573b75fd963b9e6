"""A request to an application that runs elsewhere: its messages as a stream of values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from homerlm.conversation.telling import told
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
    unread, left, room = [body], asyncio.Event(), asyncio.Semaphore(AHEAD)

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def run(tell: Callable[[Message], None]) -> None:
        async def put(message: Message) -> None:
            await room.acquire()
            tell(message)

        ROUTE.set(route)
        await app({**scope, "state": {}}, receive, put)

    async with aclosing(told(run)) as messages:
        try:
            async for message in messages:
                room.release()
                yield message
        finally:
            left.set()
