"""What every request passes before it is read: its id, its size, where it comes from; and what is noted after it."""

from __future__ import annotations

import logging
import re
import secrets
import time
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homerlm.errors import Busy
from homerlm.server.errors import ApiError, logged, response
from homerlm.server.keys import Keys
from homerlm.server.metrics import Metrics
from homerlm.server.settings import Settings, is_loopback

UPLOADS = "/v1/files"
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_log = logging.getLogger("homerlm.server")


class Door:
    """The outermost part of the server, but for what lets web pages read its answers. Who is let in is served to the
    end: requests that need the model are refused here, where `streams` and `waiting` are taken, and never in their
    middle. Nothing that a request holds is written to the log."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._local_only = is_loopback(settings.host) and not keys
        self._inside, self._most = 0, settings.streams + settings.waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the protocol drops what is not to be sent
            scope = {**scope, "method": "GET"}
        visit, counts = _Visit(scope, send), _needs_model(scope)
        self._inside += counts
        self.metrics.running.inc()
        try:
            self._check(Headers(scope=scope))
            if counts and self._inside > self._most:
                raise Busy(f"{self._most} requests are being answered or wait already: try again later")
            await self.app(scope, self._limited(scope, receive), visit.send)
        except Exception as error:
            told = logged(error)
            if not visit.status:
                await response(told)(scope, receive, visit.send)
        finally:
            self._inside -= counts
            self.metrics.running.dec()
            visit.note(self.metrics)

    def _check(self, headers: Headers) -> None:
        """Raise `ApiError` for a request that a web page of somebody else has made, which no key would stop, and for a
        compressed one."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(
                415, "Bodies are read as they come here: send yours without Content-Encoding.", code="encoding"
            )
        if self._local_only and not is_loopback(_host(headers.get("host", ""))):
            raise ApiError(403, "This server answers at this machine's own addresses only.", code="wrong_host")
        origin = headers.get("origin")
        if origin is None or origin in self.settings.cors_origin or "*" in self.settings.cors_origin:
            return
        if _parts(origin).netloc != headers.get("host"):
            raise ApiError(403, "Web pages of this origin may not call this server.", code="wrong_origin")

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        most = self.settings.max_body_bytes
        if scope["path"].rstrip("/") == UPLOADS:
            most = max(most, self.settings.max_upload_bytes + (1 << 20))  # what stands around the file
        refused = HTTPException(413, f"The request is too large: this server takes {most:,} bytes at most.")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > most:
            raise ApiError(413, str(refused.detail), code="request_too_large")
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise refused
            return message

        return limited


class _Visit:
    """One request on its way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        self.scope, self._send = scope, send
        self.started, self.status = time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = self.id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers.setdefault("X-Content-Type-Options", "nosniff")
        await self._send(message)

    def note(self, metrics: Metrics) -> None:
        seconds = time.perf_counter() - self.started
        route = getattr(self.scope.get("route"), "path", "other")
        status, method = self.status or 499, self.scope["method"]
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        _log.info("%s %s %s %d %.3f s", self.id, method, route, status, seconds)


def _needs_model(scope: Scope) -> bool:
    """Whether a request may need the model, or a parser of files."""
    return bool(scope["method"] == "POST" or scope["path"].endswith("/kept"))


def _host(header: str) -> str:
    """A Host header without its port."""
    return (_parts(f"//{header}").hostname or "") if header else "localhost"


def _parts(address: str) -> SplitResult:
    """Those of an address; nothing but empty ones where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
