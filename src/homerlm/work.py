"""The thread that uses a model for all callers: a turn of one reader, then a step of all answers, and so on.

A turn is a chunk of a document, or several steps where they take no time. Who is new gets a turn before those who had
one, every other time, so that a short question waits for one chunk, however many long documents are being read. What a
reader has to do without the model (`homerlm.passes.Aside`) is done on a second thread, while others have their turns.
Once there has been nothing to do for a while, memory that was freed goes back to the system.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from homerlm.context import CompactContext
from homerlm.decoding import Decoding, Row
from homerlm.errors import Busy, Stopped
from homerlm.model.memory import give_freed_memory_back
from homerlm.passes import Aside, Event
from homerlm.writing import Piece, Writing

T = TypeVar("T")
TURN_S = 0.02  # steps that together take less are one turn
NEXT_S = 0.01  # that a caller whose steps have ended is given to ask for what comes next, before another one's turn
IDLE_S = 5.0  # without work, after which freed memory is given back


class _Caller:
    """The event loop that waits for a piece of work."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.cancelled = False

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a function in the loop; nothing where the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


class Job(_Caller, Generic[T]):
    """Steps whose value is awaited. They run in a copy of the context variables of the one who made the job, of its own
    so that what they set and reset around a step is never seen by another job. aside: what the next step waits for."""

    def __init__(self, steps: Generator[Event, None, T], on_event: Callable[[Event], None] | None) -> None:
        super().__init__()
        self._steps, self._on_event = steps, on_event
        self._variables = contextvars.copy_context()
        self.result: asyncio.Future[T] = self._loop.create_future()
        self.aside: Aside[Any] | None = None

    def step(self) -> bool:
        """Take a step; whether another one is to come."""
        try:
            event = self._variables.run(next, self._steps)
        except StopIteration as done:
            self.call(self._settle, done.value, None)
            return False
        except BaseException as error:
            self.call(self._settle, None, error)
            return False
        self.aside = event.aside
        if self._on_event is not None:
            self.call(self._show, event)
        return True

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
        self._new: deque[Job[Any]] = deque()  # that had no turn; the first is next
        self._jobs: deque[Job[Any]] = deque()  # the same of the others
        self._had_new = False  # whether the last turn was that of a new one
        self._aside: list[Job[Any]] = []  # that wait for the second thread
        self._second = ThreadPoolExecutor(1, "homerlm-aside")
        self._queued: deque[Stream] = deque()
        self._streams: list[Stream] = []
        self._closing = self._stopping = False

    def check(self) -> None:
        """Raise `Stopped` or `Busy` where no work is accepted."""
        if self._closing:
            raise Stopped("the engine is closed: no new work is accepted")
        if self.waiting >= self._waiting:
            raise Busy(f"{self._waiting} pieces of work wait already: try again later")

    @property
    def waiting(self) -> int:
        """Readers, and answers that wait for their turn."""
        return len(self._new) + len(self._jobs) + len(self._aside) + len(self._queued)

    def add(self, work: Job[Any] | Stream) -> None:
        """Raises `Stopped` or `Busy`."""
        with self._changed:
            self.check()
            if isinstance(work, Job):
                self._new.append(work)
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
                self._give(self._decoding.begin())  # who is new does not wait for the next token of the others
                self._give(self._decoding.step())
            except BaseException as error:
                self._end_all(error)
        self._second.shutdown(wait=False, cancel_futures=True)
        self._end_all(Stopped("the engine was closed before this was done"))

    def _await_work(self) -> bool:
        """Wait for something to do; False once it is over."""
        if not self._await_change(IDLE_S):
            give_freed_memory_back()
            self._await_change(None)
        with self._changed:
            return not self._stopping and bool(self.waiting or self._streams)

    def _await_change(self, seconds: float | None) -> bool:
        """Whether within so many seconds, or ever, there is something to do, or it is over."""
        with self._changed:
            return self._changed.wait_for(self._has_changed, seconds)

    def _has_changed(self) -> bool:
        if self._new or self._jobs or self._queued or self._streams or self._stopping:
            return True
        return any(job.cancelled for job in self._aside) if self._aside else self._closing

    def _end_all(self, error: BaseException) -> None:
        with self._changed:
            every: list[Job[Any] | Stream] = [
                *self._new,
                *self._jobs,
                *self._aside,
                *self._queued,
                *self._streams,
            ]
            for queue in (self._new, self._jobs, self._aside, self._queued):
                queue.clear()
        for stream in list(self._streams):
            self._leave(stream)
        for work in every:
            work.end(error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            jobs = [job for job in (*self._new, *self._jobs, *self._aside) if job.cancelled]
            self._new = deque(job for job in self._new if not job.cancelled)
            self._jobs = deque(job for job in self._jobs if not job.cancelled)
            self._aside = [job for job in self._aside if not job.cancelled]
            self._queued = deque(stream for stream in self._queued if not stream.cancelled)
        for job in jobs:
            job.end(Stopped("cancelled by its caller"))
        for stream in [stream for stream in self._streams if stream.cancelled]:
            self._leave(stream)

    def _step_reader(self) -> None:
        """The turn of one reader."""
        with self._changed:
            if not (self._new or self._jobs):
                return
            self._had_new = bool(self._new) and not (self._had_new and self._jobs)
            queue = self._new if self._had_new else self._jobs
            job = queue[0]
        more = self._turn(job)
        with self._changed:
            queue.popleft()
            if more and job.aside is not None:
                self._set_aside(job, job.aside)
            elif more:
                self._jobs.append(job)
            elif self._new or self._jobs:
                self._changed.wait(NEXT_S)

    def _turn(self, job: Job[Any]) -> bool:
        """Whether another turn is to come."""
        end = time.perf_counter() + TURN_S
        while job.step():
            if job.aside is not None or time.perf_counter() >= end or job.cancelled or self._stopping:
                return True
        return False

    def _set_aside(self, job: Job[Any], aside: Aside[Any]) -> None:
        """Give it no turn until what it waits for is there."""
        self._aside.append(job)
        aside.begin(self._second).add_done_callback(lambda _: self._take_back(job))

    def _take_back(self, job: Job[Any]) -> None:
        with self._changed:
            if job in self._aside:
                self._aside.remove(job)
                self._jobs.append(job)
                self._changed.notify()

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

    def _give(self, pieces: list[tuple[Row, Piece | Exception]]) -> None:
        """Pieces to those whose answers they are of."""
        by_row = {stream.row: stream for stream in self._streams}
        for row, piece in pieces:
            stream = by_row[row]
            stream.give(piece)
            if isinstance(piece, Exception) or piece.finish is not None:
                self._leave(stream)

    def _leave(self, stream: Stream) -> None:
        if stream.row is not None:
            self._decoding.remove(stream.row)
        self._streams.remove(stream)
