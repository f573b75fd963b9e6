"""What work tells while it runs in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")


async def told(work: Callable[[Callable[[T], None]], Coroutine[None, None, None]]) -> AsyncGenerator[T, None]:
    """Whatever work gives to the function that it is called with, as it comes. Leaving the generator cancels the work.
    Raises what the work does."""
    steps: asyncio.Queue[T | None] = asyncio.Queue()
    task = asyncio.create_task(work(steps.put_nowait))
    task.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield step
        task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen, whether or not somebody still waits for it
