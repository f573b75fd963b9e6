"""What stands before the replicas: each request is read, given to the replica that it belongs to, and answered with
what comes from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from homerlm.server import errors
from homerlm.server.errors import RETRY_AFTER_S, ApiError
from homerlm.server.keys import Keys
from homerlm.server.replicas.bridge import portable
from homerlm.server.replicas.routing import route_of
from homerlm.server.sse import event, plain_error, until_gone

Sent = Callable[[dict[str, Any], bytes, str], AsyncGenerator[Message, None]]
EVENTS = "text/event-stream"
RESPONSES, METRICS = "/v1/responses", "/metrics"


class Front:
    """An application that forwards. send: gives a request (scope, body, route) to a replica, whose messages come back;
    what it raises is told to the client, in the middle of a stream too; metrics: gives the numbers of all replicas. It
    stands behind a `Door`."""

    def __init__(self, keys: Keys, send: Sent, metrics: Callable[[], Awaitable[str]]) -> None:
        self._keys, self._send, self._metrics = keys, send, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"a connection of type {scope['type']} is none that this server answers")
        path: str = scope["path"]
        public = scope["method"] == "GET" and not path.startswith(("/v1/", METRICS))
        owner = "" if public else self._keys.owner(Headers(scope=scope).get("authorization"))
        if path == METRICS:
            await Response(await self._metrics(), media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
            return
        body = await _body(receive)
        route = await asyncio.to_thread(route_of, owner, path, body)
        answer = _Answer(path, send)
        work = answer.forward(self._send(portable(scope, scope["state"]["request_id"]), body, route))
        gone: Response | None = await until_gone(Request(scope, receive), work)
        if gone is not None and not answer.begun:
            await gone(scope, receive, send)


class _Answer:
    """An answer on its way to the client. begun: its status has been sent."""

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send = path, send
        self.begun, self._streams, self._events = False, False, 0

    async def forward(self, messages: AsyncGenerator[Message, None]) -> None:
        """Raises what the replica's loss is told as, where nothing of the answer has been sent."""
        try:
            async with aclosing(messages):
                async for message in messages:
                    await self._one(message)
        except Exception as error:
            told = errors.logged(error)
            if not self.begun:
                raise told from error
            if not self._streams:
                raise  # the connection ends in the middle: there is no other word for it
            await self._send({"type": "http.response.body", "body": self._event(told), "more_body": False})

    async def _one(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._streams = Headers(raw=message["headers"]).get("content-type", "").startswith(EVENTS)
        self._events += message.get("body", b"").count(b"data: ")
        await self._send(message)

    def _event(self, error: ApiError) -> bytes:
        """The end of a stream that breaks off, in its endpoint's own words."""
        if not self._path.startswith(RESPONSES):
            return b"".join(one.encode() for one in plain_error(error))
        facts = {"type": "error", "code": error.code, "message": error.message, "param": None}
        return event(facts | {"sequence_number": self._events}, "error").encode()


def lost() -> ApiError:
    """The error of a request whose replica has ended."""
    message = "The replica that was answering has ended; another one takes its place: send the request again."
    return ApiError(503, message, code="replica_lost", headers={"Retry-After": str(RETRY_AFTER_S)})


async def _body(receive: Receive) -> bytes:
    """Of a request; the door counts its bytes."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The request was broken off.", code="incomplete_request")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)
