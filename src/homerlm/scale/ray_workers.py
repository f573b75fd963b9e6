"""Ray actors that hold the model: the executor of several processes, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from homerlm.errors import HomerError
from homerlm.executor import Item, LoadedModel, Value, Work
from homerlm.scale.identical import check_identical
from homerlm.scale.mapping import in_order
from homerlm.scale.ray_actors import Actor, Actors, Mapper, RaySettings
from homerlm.scale.source import ModelSource

__all__ = ["RayExecutor", "RaySettings"]


class RayExecutor:
    """Workers on Ray, which load the model by themselves from the start and are there until `close`.

    Raises `ConfigError` without ray.
    """

    def __init__(self, source: ModelSource | None = None, settings: RaySettings | None = None) -> None:
        settings = settings or RaySettings()
        self.actors = Actors(settings, ModelActor, source or ModelSource(), settings.device)

    @property
    def bytes_moved(self) -> int:
        """Of work, items and values so far, both ways."""
        return self.actors.bytes_moved

    def map(
        self, here: LoadedModel, work: Work[Item, Value], items: Iterable[Item], homes: Sequence[int] | None = None
    ) -> Iterator[Value | None]:
        facts = here.facts
        workers = [Mapper(self.actors, handle, facts) for handle in self.actors.handles]
        return in_order(workers, work, items, homes)

    def wait_until_loaded(self) -> None:
        """Until every worker has the model: for measurements. Raises `HomerError` where one cannot load it."""
        loading = [self.actors.submit(handle, None, 0) for handle in self.actors.handles]
        for future in loading:
            self.actors.value(future)

    def close(self) -> None:
        """End the workers."""
        self.actors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class ModelActor(Actor):
    """A model that cannot be loaded is told to everybody who asks for work."""

    def __init__(self, source: ModelSource, device: str | None, threads: int) -> None:
        super().__init__(threads)
        self._failed: HomerError | None = None
        try:
            self._model = source.load(device)
            self._facts = self._model.facts
        except HomerError as error:
            self._failed = error

    def do(self, asked: Any) -> Any:
        """The value of facts, work and an item; of None, nothing once the model is there."""
        if self._failed is not None:
            raise self._failed
        if asked is None:
            return None
        facts, work, item = asked
        check_identical(facts, self._facts)
        return self._model.run(work, item)
