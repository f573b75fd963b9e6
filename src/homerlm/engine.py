"""One model for many callers of an event loop: documents are read step by step, answers written between the steps.

A single thread uses the model (`homerlm.work`): a long document delays an answer by one chunk at most, and all answers
that are being written share the forwards of the model.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, TypeVar

import torch

from homerlm.context import CompactContext
from homerlm.decoding import Decoding
from homerlm.errors import InputError
from homerlm.model.threads import take_threads
from homerlm.passes import Event
from homerlm.work import Job, Stream, Work
from homerlm.writing import Piece, Writing

if TYPE_CHECKING:
    from homerlm.homer import Homer

__all__ = ["Engine", "Piece", "Writing", "shared"]

T = TypeVar("T")
_threads: weakref.WeakKeyDictionary[Work, threading.Thread] = weakref.WeakKeyDictionary()


@atexit.register
def _end_threads() -> None:
    """Let every thread come to the end of its step: one that the interpreter's end meets inside of torch aborts the
    process."""
    for work in list(_threads):
        work.close(stop=True)
    for thread in list(_threads.values()):
        thread.join()


class Engine:
    """What runs on one model: `run` for reading, `write` for answers, from any number of event loops and tasks.

    streams: answers that are written at once; waiting: readers, and answers that wait for their turn, above which new
    work is refused (`Busy`); threads: that the model's thread computes with, default as many as the caller's. Dropping
    the engine ends its thread. Raises `InputError` without a tokenizer.
    """

    def __init__(self, homer: Homer, *, waiting: int = 64, streams: int = 32, threads: int | None = None) -> None:
        if homer.tokenizer is None:
            raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer) to write text")
        self.homer = homer
        self._work = Work(Decoding(homer.model, homer.tokenizer), waiting, streams)
        self._thread = _started(self._work, threads or torch.get_num_threads())
        _threads[self._work] = self._thread
        weakref.finalize(self, self._work.close, stop=True).atexit = False  # `_end_threads` does more

    async def run(self, steps: Generator[Event, None, T], on_event: Callable[[Event], None] | None = None) -> T:
        """The value of steps, which run on the model's thread; every event is shown to `on_event` in the event loop.

        Cancelling the task closes the generator before its next step. Raises `Busy`, `Stopped`, or the steps' error.
        """
        job = Job(steps, on_event)
        self._work.add(job)
        try:
            return await job.result
        except asyncio.CancelledError:
            self._work.cancel(job)
            raise

    def write(self, context: CompactContext, writing: Writing) -> AsyncGenerator[Piece, None]:
        """Pieces of an answer after a context; the last one has a `finish`.

        Leaving the generator (`aclose`), or cancelling who waits for it, takes the answer out of the work before its
        next token. Raises `Busy` or `Stopped` at once, before the first piece is asked for.
        """
        self._work.check()
        return self._pieces(context, writing)

    async def close(self, timeout: float) -> None:
        """Accept no more work, wait so many seconds for the end of what runs, then end it before its next step: who
        waits for it gets `Stopped`."""
        self._work.close(stop=False)
        await asyncio.to_thread(self._thread.join, timeout)
        self._work.close(stop=True)
        await asyncio.to_thread(self._thread.join)

    async def _pieces(self, context: CompactContext, writing: Writing) -> AsyncGenerator[Piece, None]:
        stream = Stream(context, writing)
        self._work.add(stream)
        try:
            while True:
                piece = await stream.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            self._work.cancel(stream)


def _started(work: Work, threads: int) -> threading.Thread:
    """The thread that does the work."""
    own, ready = torch.get_num_threads(), threading.Event()

    def run() -> None:
        take_threads(threads)
        ready.set()
        work.run()

    thread = threading.Thread(target=run, name="homerlm-model", daemon=True)
    thread.start()
    ready.wait()
    torch.set_num_threads(own)  # also what threads that begin later have
    return thread


_engines: weakref.WeakValueDictionary[tuple[int, int], Engine] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def shared(homer: Homer) -> Engine:
    """The engine of a Homer's model and tokenizer, the same for all of them as long as somebody holds it. It accepts
    any amount of work."""
    key = id(homer.model), id(homer.tokenizer)  # the engine holds both, so that no others can have these ids
    with _sharing:
        engine = _engines.get(key)
        if engine is None:
            engine = _engines[key] = Engine(homer, waiting=1 << 30)
        return engine
