"""The application served by uvicorn, from its first request to its orderly end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from homerlm.engine import Engine
from homerlm.server.settings import Settings
from homerlm.server.sse import END_S


class Running(uvicorn.Server):
    """A server that, told to end, takes no new work and lets running answers finish; those that have not by
    `closing_seconds` end with an error."""

    def __init__(
        self, app: FastAPI, settings: Settings, engine: Engine, *, on_start: Callable[[str], None] | None = None
    ) -> None:
        self._engine, self._seconds, self._on_start = engine, settings.closing_seconds, on_start
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.closing_seconds) + 2 * END_S,
                timeout_keep_alive=30,
            )
        )

    @property
    def address(self) -> str:
        """Where it answers, once it has started: the port is that of its socket."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_start is not None:
            self._on_start(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._close_later())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()

    async def _close_later(self) -> None:
        """End what still runs after a while. Before, an answer may take all steps that it needs: no other comes in."""
        await asyncio.sleep(self._seconds)
        await asyncio.shield(self._engine.close(0))
