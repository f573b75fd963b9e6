"""One model for many callers of an event loop: documents are read step by step, answers written between the steps.

A single thread uses the model. It takes a step of one reader, then a step of all running answers, then one of the next
reader; so a long document delays an answer by one chunk at most.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from homerlm.context import CompactContext
from homerlm.decoding import Decoding, Row
from homerlm.errors import Busy, InputError, Stopped
from homerlm.passes import Event
from homerlm.writing import Piece, Writing

if TYPE_CHECKING:
    from homerlm.homer import Homer

__all__ = ["Engine", "Piece", "Writing"]

T = TypeVar("T")


class _Caller:
    """The event loop that waits for a piece of work."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.cancelled = False

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a function in the loop; nothing where the loop is gone."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


class _Job(_Caller, Generic[T]):
    """A generator of steps whose value is awaited, with the context variables of the one who started it."""

    def __init__(self, steps: Generator[Event, None, T], on_event: Callable[[Event], None] | None) -> None:
        super().__init__()
        self.steps, self._on_event = steps, on_event
        self._variables = contextvars.copy_context()
        self.result: asyncio.Future[T] = self._loop.create_future()

    def step(self) -> bool:
        """Whether another step is to come."""
        try:
            event = self._variables.run(next, self.steps)
        except StopIteration as done:
            self.call(self._settle, done.value, None)
            return False
        except BaseException as error:
            self.call(self._settle, None, error)
            return False
        if self._on_event is not None:
            self.call(self._show, event)
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Close the generator before its next step."""
        try:
            self._variables.run(self.steps.close)
        except BaseException as own:
            error = error or own
        if error is not None:
            self.call(self._settle, None, error)

    def _show(self, event: Event) -> None:
        if self._on_event is not None and not self.result.done():
            self._on_event(event)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)


class _Stream(_Caller):
    """An answer that is written for a caller. row: None while it waits for its turn."""

    def __init__(self, context: CompactContext, writing: Writing) -> None:
        super().__init__()
        self.context, self.writing = context, writing
        self.row: Row | None = None
        self.pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

    def give(self, piece: Piece | BaseException) -> None:
        self.call(self.pieces.put_nowait, piece)


class Engine:
    """What runs on one model: `run` for reading, `write` for answers. streams: answers that are written at once;
    waiting: readers, and answers that wait for their turn, above which new work is refused (`Busy`)."""

    def __init__(self, homer: Homer, *, waiting: int = 64, streams: int = 32) -> None:
        if homer.tokenizer is None:
            raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer) to write text")
        self.homer = homer
        self._waiting, self._most_streams = waiting, streams
        self._decoding = Decoding(homer.model, homer.tokenizer)
        self._changed = threading.Condition()
        self._jobs: deque[_Job[Any]] = deque()
        self._queued: deque[_Stream] = deque()
        self._streams: list[_Stream] = []
        self._closing = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="homerlm-model", daemon=True)
        self._thread.start()

    async def run(self, steps: Generator[Event, None, T], on_event: Callable[[Event], None] | None = None) -> T:
        """The value of steps, which run on the model's thread; every event is shown to `on_event` in the event loop.
        Cancelling the task closes the generator before its next step. Raises `Busy`, `Stopped`, or the steps' error."""
        job = _Job(steps, on_event)
        self._admit(job, self._jobs)
        try:
            return await job.result
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    def write(self, context: CompactContext, writing: Writing) -> AsyncGenerator[Piece, None]:
        """Pieces of an answer after a context; the last one has a `finish`. Leaving the generator takes the answer out
        of the work. Raises `Busy` or `Stopped` at once, before the first piece is asked for."""
        with self._changed:
            self._check()
        return self._pieces(context, writing)

    async def _pieces(self, context: CompactContext, writing: Writing) -> AsyncGenerator[Piece, None]:
        stream = _Stream(context, writing)
        self._admit(stream, self._queued)
        try:
            while True:
                piece = await stream.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            self._cancel(stream)

    async def close(self, timeout: float) -> None:
        """Accept no more work, wait so many seconds for the end of what runs, then end it with `Stopped`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _admit(self, work: Any, queue: deque[Any]) -> None:
        with self._changed:
            self._check()
            queue.append(work)
            self._changed.notify()

    def _check(self) -> None:
        if self._closing:
            raise Stopped("the engine is closed: no new work is accepted")
        if len(self._jobs) + len(self._queued) >= self._waiting:
            raise Busy(f"{self._waiting} pieces of work wait already: try again later")

    def _cancel(self, work: _Caller) -> None:
        with self._changed:
            work.cancelled = True
            self._changed.notify()

    def _work(self) -> None:
        while self._await_work():
            self._drop_cancelled()
            self._step_reader()
            self._begin_streams()
            self._step_streams()

    def _await_work(self) -> bool:
        """Wait for something to do; False once it is over."""
        with self._changed:
            while not (self._jobs or self._queued or self._streams or self._closing):
                self._changed.wait()
            if not self._stopping:
                return bool(self._jobs or self._queued or self._streams)
            jobs, streams = list(self._jobs), [*self._queued, *self._streams]
            self._jobs.clear()
        error = Stopped("the engine was closed before this was done")
        for job in jobs:
            job.end(error)
        for stream in streams:
            stream.give(error)
        return False

    def _drop_cancelled(self) -> None:
        with self._changed:
            jobs = [job for job in self._jobs if job.cancelled]
            for job in jobs:
                self._jobs.remove(job)
            for stream in [stream for stream in self._queued if stream.cancelled]:
                self._queued.remove(stream)
        for job in jobs:
            job.end()
        for stream in [stream for stream in self._streams if stream.cancelled]:
            self._leave(stream)

    def _step_reader(self) -> None:
        """A step of the reader whose turn it is."""
        with self._changed:
            job = self._jobs[0] if self._jobs else None
        if job is None:
            return
        more = job.step()
        with self._changed:
            self._jobs.popleft()
            if more:
                self._jobs.append(job)

    def _begin_streams(self) -> None:
        while len(self._streams) < self._most_streams:
            with self._changed:
                if not self._queued:
                    return
                stream = self._queued.popleft()
            try:
                stream.row = self._decoding.add(stream.context, stream.writing)
            except BaseException as error:
                stream.give(error)
            else:
                self._streams.append(stream)

    def _step_streams(self) -> None:
        """A token of every running answer."""
        by_row = {stream.row: stream for stream in self._streams}
        for row, piece in self._decoding.step():
            stream = by_row[row]
            stream.give(piece)
            if isinstance(piece, Exception) or piece.finish is not None:
                self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        assert stream.row is not None
        self._decoding.remove(stream.row)
        self._streams.remove(stream)
