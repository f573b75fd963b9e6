"""Ray actors that hold the model: the executor of several processes, on this machine or on a cluster.

Ray restarts an actor that dies, on another machine where its own is gone, and does again what it had not done. Tasks
are values in, a value out; nothing is put into the object store by hand.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

import torch

from homerlm.errors import ConfigError, HomerError
from homerlm.executor import Item, LoadedModel, Value, Work
from homerlm.model.memory import FREED_MEMORY_KEPT
from homerlm.scale.identical import check_identical
from homerlm.scale.mapping import in_order
from homerlm.scale.packing import pack, unpack
from homerlm.scale.source import ModelSource

EXTRA = 'pip install "homerlm[ray]"'
CONTROL = "control"
RESTARTS, RETRIES = 16, 16  # of an actor, and of a task that its actor's death cut short
STORE_BYTES = 200_000_000  # of the object store where Ray is started here: values are small
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
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(
                f"gpus is {self.gpus}; it must be a share of one GPU, or a whole number (--gpus-per-worker)"
            )
        if self.cpus < 0:
            raise ConfigError(f"cpus is {self.cpus}; it must not be negative")
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


def connected(settings: RaySettings) -> Any:
    """The module ray, connected as the settings say. Raises `ConfigError` where it is not installed or cannot be
    reached."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"workers on Ray need ray, which is not installed: {EXTRA}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # where Ray is started here, it tells nobody,
    os.environ.setdefault("RAY_worker_niceness", "0")  # and its workers are as urgent as this process
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        cpus = max(os.cpu_count() or 1, math.ceil(settings.workers * settings.cpus))
        options = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"Ray at {settings.address or 'this machine'} cannot be reached: {error}; check --workers ray:ADDRESS"
        ) from error
    return ray


class RayExecutor:
    """Workers on Ray, which load the model by themselves from the start and are there until `close`.

    bytes_moved: of work, items and values so far, both ways. Raises `ConfigError` without ray.
    """

    def __init__(self, source: ModelSource | None = None, settings: RaySettings | None = None) -> None:
        self.bytes_moved = 0
        self._source, self._settings = source or ModelSource(), settings or RaySettings()
        self._ray = connected(self._settings)
        self._actors = self._started()

    def map(
        self, here: LoadedModel, work: Work[Item, Value], items: Iterable[Item], homes: Sequence[int] | None = None
    ) -> Iterator[Value | None]:
        facts = here.facts
        workers = [_Worker(self, actor, facts) for actor in self._actors]
        return in_order(workers, work, items, homes)

    def _started(self) -> list[Any]:
        """Handles of the actors."""
        settings = self._settings
        options: dict[str, Any] = {
            "max_restarts": RESTARTS,
            "max_task_retries": RETRIES,
            "scheduling_strategy": "SPREAD",
        }
        options["concurrency_groups"] = {CONTROL: 1}  # heard while an item is done
        options["runtime_env"] = {"env_vars": FREED_MEMORY_KEPT}  # items run in a thread that is there before us
        made = self._ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, **options)(Actor)
        loading = self._source, settings.device, settings.threads_each
        return [made.remote(*loading) for _ in range(settings.workers)]

    def wait_until_loaded(self) -> None:
        """Until every worker has the model: for measurements. Raises `HomerError` where one cannot load it."""
        for reply in self._ray.get([actor.run.remote(None, 0) for actor in self._actors]):
            _value_of(reply)

    def close(self) -> None:
        """End the workers."""
        actors, self._actors = self._actors, []
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Worker:
    """An actor as `in_order` uses it. facts: of the caller's model, which the actor's is compared with."""

    def __init__(self, executor: RayExecutor, actor: Any, facts: dict[str, str | None]) -> None:
        self._executor, self._actor, self._facts = executor, actor, facts
        self._numbers: dict[Future[Any], int] = {}

    def submit(self, work: Work[Any, Any], item: Any) -> Future[Any]:
        packed = pack((self._facts, work, item))
        self._executor.bytes_moved += len(packed)
        number = next(_numbers)
        future: Future[Any] = self._actor.run.remote(packed, number).future()
        self._numbers[future] = number
        return future

    def value(self, future: Future[Any]) -> Any:
        self._numbers.pop(future, None)
        reply = future.result()
        self._executor.bytes_moved += len(reply)
        return _value_of(reply)

    def cancel(self, future: Future[Any]) -> None:
        if (number := self._numbers.pop(future, None)) is not None:  # ray.cancel leaves what an actor has queued
            self._actor.cancel.options(concurrency_group=CONTROL).remote(number)


def _value_of(reply: bytes) -> Any:
    value = unpack(reply)
    if isinstance(value, _Failed):
        raise value.error
    return value


@dataclass(frozen=True)
class _Failed:
    """An error of the library's own, which is raised where the work was asked for."""

    error: HomerError


class Actor:
    """What runs on a worker. A model that cannot be loaded is told to everybody who asks for work."""

    def __init__(self, source: ModelSource, device: str | None, threads: int) -> None:
        self._threads = threads
        self._cancelled: set[int] = set()
        self._model: LoadedModel | None = None
        self._failed: _Failed | None = None
        try:
            self._model = source.load(device)
            self._facts = self._model.facts
        except HomerError as error:
            self._failed = _Failed(error)

    def cancel(self, number: int) -> None:
        """Do not begin the item of a number."""
        self._cancelled.add(number)

    def run(self, packed: bytes | None, number: int) -> bytes:
        """The packed value of packed facts, work and item; of None, whether the model is there. number: of the item,
        which nobody waits for once it is cancelled."""
        if number in self._cancelled:
            self._cancelled.remove(number)
            return pack(None)
        if self._model is None or packed is None:
            return pack(self._failed)
        torch.set_num_threads(self._threads)  # a setting of the thread
        try:
            facts, work, item = unpack(packed)
            check_identical(facts, self._facts)
            return pack(self._model.run(work, item))
        except HomerError as error:
            return pack(_Failed(error))
