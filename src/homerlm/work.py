"""The thread that uses a model for all callers: a step of one reader, then a step of all answers, and so on."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from homerlm.context import CompactContext
from homerlm.decoding import Decoding, Row
from homerlm.errors import Busy, Stopped
from homerlm.passes import Event
from homerlm.writing import Piece, Writing

T = TypeVar("T")


class _Caller:
    """The event loop that waits for a piece of work."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.cancelled = False

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a function in the loop; nothing where the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def end(self, error: BaseException) -> None:
        """Tell the one who waits that nothing more will come."""
        raise NotImplementedError


class Job(_Caller, Generic[T]):
    """Steps whose value is awaited. They run in a copy of the context variables of the one who made the job, of its own
    so that what they set and reset around a step is never seen by another job."""

    def __init__(self, steps: Generator[Event, None, T], on_event: Callable[[Event], None] | None) -> None:
        super().__init__()
        self._steps, self._on_event = steps, on_event
        self._variables = contextvars.copy_context()
        self.result: asyncio.Future[T] = self._loop.create_future()

    def step(self) -> Callable[[], None] | None:
        """Take a step; after the last one, what tells the caller the value or the error."""
        try:
            event = self._variables.run(next, self._steps)
        except StopIteration as done:
            return partial(self.call, self._settle, done.value, None)
        except BaseException as error:
            return partial(self.call, self._settle, None, error)
        if self._on_event is not None:
            self.call(self._show, event)
        return None

    def end(self, error: BaseException) -> None:
        """Close the steps before the next one is taken; `error` is what the caller gets, if it still waits."""
        with suppress(Exception):  # whatever a closed generator raises, nobody waits for
            self._variables.run(self._steps.close)
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


class Stream(_Caller):
    """An answer that is written for a caller. row: None while it waits for its turn."""

    def __init__(self, context: CompactContext, writing: Writing) -> None:
        super().__init__()
        self.context, self.writing = context, writing
        self.row: Row | None = None
        self.pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

    def end(self, error: BaseException) -> None:
        """Nothing follows but this error."""
        self.give(error)

    def give(self, piece: Piece | BaseException) -> None:
        self.call(self.pieces.put_nowait, piece)


class Work:
    """What is to be done on one model. Readers and waiting answers together are at most `waiting`, running answers at
    most `streams`."""

    def __init__(self, decoding: Decoding, waiting: int, streams: int) -> None:
        self._decoding = decoding
        self._waiting, self._most_streams = waiting, streams
        self._changed = threading.Condition()
        self._jobs: deque[Job[Any]] = deque()  # the first is next
        self._queued: deque[Stream] = deque()
        self._streams: list[Stream] = []
        self._closing = self._stopping = False

    def check(self) -> None:
        """Raise `Stopped` or `Busy` where no work is accepted."""
        if self._closing:
            raise Stopped("the engine is closed: no new work is accepted")
        if len(self._jobs) + len(self._queued) >= self._waiting:
            raise Busy(f"{self._waiting} pieces of work wait already: try again later")

    def add(self, work: Job[Any] | Stream) -> None:
        """Raises `Stopped` or `Busy`."""
        with self._changed:
            self.check()
            if isinstance(work, Job):
                self._jobs.append(work)
            else:
                self._queued.append(work)
            self._changed.notify()

    def cancel(self, work: Job[Any] | Stream) -> None:
        """Take it out before its next step."""
        with self._changed:
            work.cancelled = True
            self._changed.notify()

    def close(self, *, stop: bool) -> None:
        """Accept no more; `stop`: end what runs, too, before its next step."""
        with self._changed:
            self._closing, self._stopping = True, self._stopping or stop
            self._changed.notify()

    def run(self) -> None:
        """Work until it is closed. An error outside of any one piece of work ends all of them, and none that follow."""
        while self._await_work():
            try:
                self._drop_cancelled()
                self._step_reader()
                self._begin_streams()
                self._step_streams()
            except BaseException as error:
                self._end_all(error)
        self._end_all(Stopped("the engine was closed before this was done"))

    def _await_work(self) -> bool:
        """Wait for something to do; False once it is over."""
        with self._changed:
            while not (self._jobs or self._queued or self._streams or self._closing):
                self._changed.wait()
            return not self._stopping and bool(self._jobs or self._queued or self._streams)

    def _end_all(self, error: BaseException) -> None:
        with self._changed:
            every = [*self._jobs, *self._queued, *self._streams]
            self._jobs.clear()
            self._queued.clear()
        for stream in list(self._streams):
            self._leave(stream)
        for work in every:
            work.end(error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            jobs = [job for job in self._jobs if job.cancelled]
            self._jobs = deque(job for job in self._jobs if not job.cancelled)
            self._queued = deque(stream for stream in self._queued if not stream.cancelled)
        for job in jobs:
            job.end(Stopped("cancelled by its caller"))
        for stream in [stream for stream in self._streams if stream.cancelled]:
            self._leave(stream)

    def _step_reader(self) -> None:
        """A step of the reader whose turn it is."""
        with self._changed:
            job = self._jobs[0] if self._jobs else None
        if job is None:
            return
        tell = job.step()
        with self._changed:
            self._jobs.popleft()
            if tell is None:
                self._jobs.append(job)
        if tell is not None:  # now that it is out: the caller may have more work at once, which finds its place
            tell()

    def _begin_streams(self) -> None:
        """Let those whose turn has come join the running answers."""
        while len(self._streams) < self._most_streams:
            with self._changed:
                if not self._queued:
                    return
                stream = self._queued.popleft()
            try:
                stream.row = self._decoding.add(stream.context, stream.writing)
            except Exception as error:
                stream.end(error)
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

    def _leave(self, stream: Stream) -> None:
        if stream.row is not None:
            self._decoding.remove(stream.row)
        self._streams.remove(stream)
