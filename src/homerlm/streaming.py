"""An answer's pieces for an event loop, which goes on with other tasks meanwhile."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from homerlm.answer import Answer, Asking
from homerlm.engine import Engine
from homerlm.model.memory import PeakMemory
from homerlm.passes import Observer
from homerlm.writing import Writing


class AsyncAnswerStream(AsyncIterator[str]):
    """`AnswerStream` for `async for`. Cancelling who waits for a piece, `aclose()` and leaving an `async with` block
    stop the work within one chunk or token. `answer`: the whole record once the stream has ended, None before."""

    def __init__(self, engine: Engine, asking: Asking, writing: Writing, observer: Observer | None = None) -> None:
        self.answer: Answer | None = None
        self._engine, self._asking, self._writing, self._observer = engine, asking, writing, observer
        self._steps = asking.preparing()
        self._pieces = self._written()

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Stop the work; what is left of it ends before its next step."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def _written(self) -> AsyncGenerator[str, None]:
        texts: list[str] = []
        ids: list[int] = []
        with PeakMemory(self._engine.homer.model) as peak:
            started = time.perf_counter()
            prepared = await self._engine.run(self._steps, self._observer)
            compressed = time.perf_counter()
            async with aclosing(self._engine.write(prepared.context, self._writing)) as pieces:
                async for piece in pieces:
                    ids += piece.ids
                    texts.append(piece.text)
                    if piece.text:
                        yield piece.text
            finished = time.perf_counter()
        seconds = compressed - started, finished - compressed
        self.answer = self._asking.record(prepared, "".join(texts), ids, seconds, peak.bytes)
