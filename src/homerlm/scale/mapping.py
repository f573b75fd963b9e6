"""Work mapped over items by several workers: ordered values, few items on their way, late ones twice."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

EACH = 2  # items on their way to or at one worker, so that none waits for the next one
AHEAD = 16  # times as many items as workers are begun before the value of the first one is there
WAIT_S = 0.05
LATE, LATE_S = 3, 2.0  # an item that takes so many times as long as usual, and so many seconds, is given to another too
REST_S = 10.0  # that a worker gets nothing new after another one was faster so


class Worker(Protocol):
    """What does one item after the other."""

    def submit(self, work: Any, item: Any) -> Future[Any]: ...

    def value(self, future: Future[Any]) -> Any:
        """Of a future that is done. Raises what the work raised."""
        ...

    def cancel(self, future: Future[Any]) -> None:
        """Do not begin it, if it has not begun."""
        ...


@dataclass(eq=False)
class _Task:
    """An item without a value. home: the worker that it is for, None for any; by: the workers that it was given to."""

    number: int
    item: Any
    home: int | None
    given: float = 0.0
    by: dict[Future[Any], int] = field(default_factory=dict)


def in_order(
    workers: Sequence[Worker],
    work: Any,
    items: Iterable[Any],
    homes: Sequence[int] | None = None,
    *,
    long: bool = False,
) -> Iterator[Any]:
    """`Executor.map` by workers. long: items take so long that a worker's next one may wait for its last one's value,
    and none is given to a second worker because it is late."""
    run = _Run(workers, work, items, homes, long)
    try:
        while run.fill():
            if run.has_next:
                yield run.take()
            else:
                run.wait()
                if not run.has_next:
                    yield None
    finally:
        run.cancel()


class _Run:
    """One map: tasks in the items' order, and the workers with their futures of those that are done."""

    def __init__(
        self, workers: Sequence[Worker], work: Any, items: Iterable[Any], homes: Sequence[int] | None, long: bool
    ) -> None:
        self._workers, self._work, self._homes, self._long = workers, work, homes, long
        self._items = enumerate(items)
        self._tasks: list[_Task] = []
        self._done: dict[int, tuple[Worker, Future[Any]]] = {}
        self._read = self._taken = 0
        self._resting: dict[int, float] = {}
        self._seconds: deque[float] = deque(maxlen=64)

    @property
    def has_next(self) -> bool:
        return self._taken in self._done

    def fill(self) -> bool:
        """Give tasks to whoever has room for them; False once every value was taken."""
        room = self._taken + AHEAD * len(self._workers) - self._read
        for number, item in itertools.islice(self._items, max(room, 0)):
            home = None if self._homes is None else self._homes[number] % len(self._workers)
            self._tasks.append(_Task(number, item, home))
            self._read = number + 1
        for worker in range(len(self._workers)):
            while self._load(worker) < (1 if self._long else EACH) and (task := self._next_for(worker)):
                self._give(task, worker)
        return bool(self._tasks or self._done)

    def take(self) -> Any:
        worker, future = self._done.pop(self._taken)
        self._taken += 1
        return worker.value(future)

    def wait(self) -> None:
        """Until something is done, at most WAIT_S."""
        given = {future: task for task in self._tasks for future in task.by}
        for future in wait(given, WAIT_S, FIRST_COMPLETED).done:
            if (task := given[future]) in self._tasks:
                self._tasks.remove(task)
                self._seconds.append(time.monotonic() - task.given)
                self._done[task.number] = self._workers[task.by.pop(future)], future
                self._resting |= dict.fromkeys(task.by.values(), time.monotonic() + REST_S)
                self._drop(task)

    def cancel(self) -> None:
        for task in self._tasks:
            self._drop(task)

    def _load(self, worker: int) -> int:
        return sum(worker in task.by.values() for task in self._tasks)

    def _next_for(self, worker: int) -> _Task | None:
        """The first task that nobody has and that is for this worker, or one that is late elsewhere."""
        now = time.monotonic()
        resting = {number for number, end in self._resting.items() if now < end}
        if worker in resting:
            return None
        late = [task for task in self._tasks if self._is_late(task, now)]
        held_up = resting.union(*(task.by.values() for task in late))
        for task in self._tasks:
            if not task.by and (task.home in (None, worker) or task.home in held_up):
                return task
        return next((task for task in late if len(task.by) == 1 and worker not in task.by.values()), None)

    def _is_late(self, task: _Task, now: float) -> bool:
        if self._long or not task.by or not self._seconds:
            return False
        return now - task.given > LATE_S + LATE * statistics.median(self._seconds)

    def _give(self, task: _Task, worker: int) -> None:
        task.given = task.given or time.monotonic()
        task.by[self._workers[worker].submit(self._work, task.item)] = worker

    def _drop(self, task: _Task) -> None:
        for future, worker in task.by.items():
            with suppress(Exception):  # it is over, or its worker is
                self._workers[worker].cancel(future)
