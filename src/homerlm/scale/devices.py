"""One thread for each device of this machine, each with a copy of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from homerlm.errors import InputError
from homerlm.executor import Item, LoadedModel, Value, Work
from homerlm.scale.identical import check_identical
from homerlm.scale.mapping import in_order


class Devices:
    """The executor of a machine with several devices: each of `models` is the same model on a device of its own.

    Raises `InputError` for none.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        if not models:
            raise InputError("models is empty: give a copy of the model on each device")
        self._threads = [_Thread(model) for model in models]

    def map(
        self, here: LoadedModel, work: Work[Item, Value], items: Iterable[Item], homes: Sequence[int] | None = None
    ) -> Iterator[Value | None]:
        facts = here.facts
        for thread in self._threads:
            check_identical(facts, thread.model.facts)
        return in_order(self._threads, work, items, homes)

    def close(self) -> None:
        """End the threads, each after the item at hand."""
        for thread in self._threads:
            thread.pool.shutdown(cancel_futures=True)


class _Thread:
    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=f"homerlm-{model.decoder.device}")

    def submit(self, work: Work[Any, Any], item: Any) -> Future[Any]:
        return self.pool.submit(self.model.run, work, item)

    def value(self, future: Future[Any]) -> Any:
        return future.result()

    def cancel(self, future: Future[Any]) -> None:
        future.cancel()
