"""Files of vector stores, read in the background."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request

from homerlm.errors import Busy, DocumentError, HomerError, Stopped, Unreachable
from homerlm.server.errors import logged
from homerlm.server.found import text_of
from homerlm.server.state import Server
from homerlm.store.documents import sha256_of
from homerlm.store.folder import runs as process_runs
from homerlm.store.folder import this_process
from homerlm.store.records import Member

AT_ONCE = 2  # files that are read beside the answers
BUSY_SECONDS, CLEARING_SECONDS = 2.0, 600.0
CLAIM_SECONDS = 30.0  # without a sign of the server that reads a file, until another one may
_log = logging.getLogger("homerlm.server")


class Indexing:
    """The background work of one server; what it has not done when the server ends is done after the next start."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._holder = f"{this_process()}/{secrets.token_hex(4)}"

    def start(self, members: list[Member]) -> None:
        """Read files that were added to vector stores."""
        for member in members:
            key = member.vector_store, member.id
            self.stop(*key)
            task = self._tasks[key] = asyncio.create_task(self._read(member))
            task.add_done_callback(partial(self._ended, key))

    def stop(self, store: str | None = None, file: str | None = None) -> None:
        """End the reading for a vector store, of a file, or of a file for a vector store."""
        for key, task in list(self._tasks.items()):
            if store in (None, key[0]) and file in (None, key[1]):
                task.cancel()

    async def resume(self) -> None:
        """Go on with what an earlier server has not finished."""
        unfinished = await asyncio.to_thread(self._server.documents.store.vector_stores.unfinished)
        self.start([member for member in unfinished if (member.vector_store, member.id) not in self._tasks])

    async def clear(self) -> None:
        """Remove what has expired, again and again."""
        while True:
            await asyncio.sleep(CLEARING_SECONDS)
            documents = self._server.documents
            with suppress(Unreachable):
                await asyncio.to_thread(documents.store.gc, documents.in_use)

    async def close(self) -> None:
        """End all of it; files that were not read stay as they are."""
        tasks = list(self._tasks.values())
        self.stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, member: Member) -> None:
        while True:
            try:
                return await self._try_to_read(member)
            except Unreachable:
                await asyncio.sleep(BUSY_SECONDS)

    async def _try_to_read(self, member: Member) -> None:
        documents = self._server.documents
        try:
            async with self._claimed(member) as wanted, self._places:
                if not wanted:
                    return
                name, text = await text_of(self._server, member.owner, member.id)
                index = await self._index(member, name, text)
            if await asyncio.to_thread(documents.store.file, member.owner, member.id) is None:
                await asyncio.to_thread(documents.store.forget_text, member.owner, sha256_of(text))
            facts: dict[str, Any] = {"sha256": sha256_of(text), "bytes": index.nbytes}
            await asyncio.to_thread(documents.store.vector_stores.finish, member, "completed", **facts)
        except (Stopped, Unreachable, asyncio.CancelledError):
            raise
        except Exception as error:
            known = isinstance(error, HomerError)
            message = str(error) if known else logged(error).message
            code = "invalid_file" if isinstance(error, DocumentError) else "server_error"
            await asyncio.to_thread(
                documents.store.vector_stores.finish, member, "failed", error_code=code, error=message[:1000]
            )

    @asynccontextmanager
    async def _claimed(self, member: Member) -> AsyncGenerator[bool, None]:
        """Waits until no other server reads the file. False where it has been read then, or is not to be read."""
        stores = self._server.documents.store.vector_stores

        async def claim() -> bool:
            return await asyncio.to_thread(stores.claim, member, self._holder, CLAIM_SECONDS, _runs)

        while not await claim():
            await asyncio.sleep(CLAIM_SECONDS / 3)
        keeping = asyncio.create_task(_again_and_again(claim))
        try:
            now = await asyncio.to_thread(stores.member, member.vector_store, member.id)
            yield now is not None and (now.status, now.created) == ("in_progress", member.created)
        finally:
            keeping.cancel()
            await asyncio.shield(asyncio.to_thread(stores.release, member, self._holder))

    async def _index(self, member: Member, name: str, text: str) -> Any:
        while True:
            try:
                return (await self._server.documents.index(member.owner, name, text))[0]
            except Busy:
                await asyncio.sleep(BUSY_SECONDS)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Stopped):
            _log.error("a file of a vector store was not read: %s", type(error).__name__)


def _runs(holder: str) -> bool:
    return process_runs(holder.rpartition("/")[0])


async def _again_and_again(claim: Callable[[], Awaitable[bool]]) -> None:
    while True:
        await asyncio.sleep(CLAIM_SECONDS / 3)
        await claim()


def indexing_of(app: FastAPI) -> Indexing:
    """The background work of an app's server."""
    if not hasattr(app.state, "indexing"):
        app.state.indexing = Indexing(app.state.server)
    found: Indexing = app.state.indexing
    return found


async def _indexing(request: Request) -> Indexing:
    return indexing_of(request.app)


Indexed = Annotated[Indexing, Depends(_indexing)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Of the server: what was left undone is gone on with, and what has expired is cleared."""
    indexing = indexing_of(app)
    await indexing.resume()
    clearing = asyncio.create_task(indexing.clear())
    yield
    clearing.cancel()
    await indexing.close()
