"""Actors on Ray that do one task after the other: what reads chunks, and what measures, is an actor of its own kind.

Ray restarts an actor that dies, on another machine where its own is gone, and does again what it had not done. Tasks
are values in, a value out; nothing is put into the object store by hand.
"""

from __future__ import annotations

import itertools
import math
import os
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

import torch

from homerlm.errors import ConfigError, HomerError
from homerlm.model.memory import FREED_MEMORY_KEPT
from homerlm.scale.packing import pack, unpack
from homerlm.scale.ray_start import check_gpus, connected

CONTROL = "control"
SMALLEST_SHARE = 1e-4  # that Ray gives of a GPU or a core
RESTARTS, RETRIES = 16, 16  # of an actor, and of a task that its actor's death cut short
_numbers = itertools.count(1)


@dataclass(frozen=True)
class RaySettings:
    """address: of a cluster, "auto" for the one that this machine belongs to, None to start Ray here, or use what this
    process is connected to; workers: actors; gpus, cpus: of each, which may be shares of one; threads: of torch in
    each, default its CPUs. Raises `ConfigError` for numbers out of range."""

    address: str | None = None
    workers: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; it must be at least 1 (--num-workers)")
        if not _can_be_had(self.gpus) or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(
                f"gpus is {self.gpus}; it must be a share of one GPU, from {SMALLEST_SHARE} on, or a whole number "
                "(--gpus-per-worker)"
            )
        if not _can_be_had(self.cpus):
            raise ConfigError(f"cpus is {self.cpus}; it must be 0, or a number from {SMALLEST_SHARE} on")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1")

    @property
    def threads_each(self) -> int:
        """Threads of torch in a worker."""
        return self.threads or max(int(self.cpus), 1)

    @property
    def device(self) -> str | None:
        """Where a worker has its model; None for the place that the source says."""
        return "cuda" if self.gpus else None

    def connect(self) -> Any:
        """The module ray, connected as the settings say. Raises `ConfigError` where it is not installed or cannot be
        reached, or where there are fewer GPUs than workers need."""
        ray = connected(self.address, num_cpus=max(os.cpu_count() or 1, math.ceil(self.workers * self.cpus)))
        if self.address is None:
            check_gpus(ray, self.workers * self.gpus)
        return ray


def _can_be_had(number: float) -> bool:
    """Whether Ray gives so many of a thing."""
    return number == 0 or SMALLEST_SHARE <= number < math.inf


class Actor:
    """What runs on a worker. threads: of torch."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._cancelled: set[int] = set()

    def do(self, asked: Any) -> Any:
        """The value of a task. A `HomerError` is raised where it was asked for."""
        raise NotImplementedError

    def cancel(self, number: int) -> None:
        """Do not begin the task of a number."""
        self._cancelled.add(number)

    def run(self, packed: bytes, number: int) -> bytes:
        """The packed value of a packed task. number: of the task, which nobody waits for once it is cancelled."""
        if number in self._cancelled:
            self._cancelled.remove(number)
            return pack(None)
        torch.set_num_threads(self._threads)  # a setting of the thread
        try:
            return pack(self.do(unpack(packed)))
        except HomerError as error:
            return pack(_Failed(error))


@dataclass(frozen=True)
class _Failed:
    """An error of the library's own, which is raised where the task was given."""

    error: HomerError


class Actors:
    """Actors of one kind, which are there until `close`. bytes_moved: of tasks and values so far, both ways."""

    def __init__(
        self,
        settings: RaySettings,
        kind: type[Actor],
        *arguments: Any,
        restarts: int = RESTARTS,
        retries: int = RETRIES,
    ) -> None:
        """arguments: of the actors, before the threads; restarts: of each, -1 for any number; retries: of a task that
        its actor's death cut short. Raises `ConfigError` without ray."""
        self.bytes_moved = 0
        self.ray = settings.connect()
        options: dict[str, Any] = {"max_restarts": restarts, "max_task_retries": retries}
        options["scheduling_strategy"] = "SPREAD"
        options["concurrency_groups"] = {CONTROL: 1}  # heard while a task is done
        options["runtime_env"] = {"env_vars": FREED_MEMORY_KEPT}  # tasks run in a thread that is there before us
        made = self.ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, **options)(kind)
        self.handles = [made.remote(*arguments, settings.threads_each) for _ in range(settings.workers)]

    def submit(self, handle: Any, task: Any, number: int) -> Future[Any]:
        packed = pack(task)
        self.bytes_moved += len(packed)
        future: Future[Any] = handle.run.remote(packed, number).future()
        return future

    def value(self, future: Future[Any]) -> Any:
        """Of a future that is done. Raises the task's `HomerError`."""
        reply = future.result()
        self.bytes_moved += len(reply)
        value = unpack(reply)
        if isinstance(value, _Failed):
            raise value.error
        return value

    def close(self) -> None:
        """End the actors."""
        handles, self.handles = self.handles, []
        if self.ray.is_initialized():
            for handle in handles:
                self.ray.kill(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Mapper:
    """An actor as `in_order` uses it. shared: what goes with every item, before the work."""

    def __init__(self, actors: Actors, handle: Any, *shared: Any) -> None:
        self._actors, self._handle, self._shared = actors, handle, shared
        self._numbers: dict[Future[Any], int] = {}

    def submit(self, work: Any, item: Any) -> Future[Any]:
        number = next(_numbers)
        future = self._actors.submit(self._handle, (*self._shared, work, item), number)
        self._numbers[future] = number
        return future

    def value(self, future: Future[Any]) -> Any:
        self._numbers.pop(future, None)
        return self._actors.value(future)

    def cancel(self, future: Future[Any]) -> None:
        if (number := self._numbers.pop(future, None)) is not None:  # ray.cancel leaves what an actor has queued
            self._handle.cancel.options(concurrency_group=CONTROL).remote(number)
