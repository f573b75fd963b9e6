"""Work that several tasks wait for, and that ends when none of them does any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from homerlm.passes import Event

T = TypeVar("T")
OnEvent = Callable[[Event], None]


class Shared(Generic[T]):
    """Work begun now, in a task of its own. work: is given whom to tell its events; over: called once nobody is to join
    it any more, because it is done or was given up."""

    def __init__(self, work: Callable[[OnEvent], Coroutine[Any, Any, T]], over: Callable[[], None]) -> None:
        self._listeners: list[OnEvent] = []
        self._waiting = 0
        self._over = over
        self._task = asyncio.create_task(work(self._tell))
        self._task.add_done_callback(self._done)

    async def wait(self, on_event: OnEvent | None = None) -> T:
        """The work's value or error; on_event: is shown its events from now on. Who is cancelled leaves the others
        alone; the last one takes the work along."""
        self._waiting += 1
        if on_event is not None:
            self._listeners.append(on_event)
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if on_event is not None:
                self._listeners.remove(on_event)
            if not self._waiting and not self._task.done():
                self._over()
                self._task.cancel()

    def _tell(self, event: Event) -> None:
        for listener in list(self._listeners):
            listener(event)

    def _done(self, task: asyncio.Task[T]) -> None:
        self._over()
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it
