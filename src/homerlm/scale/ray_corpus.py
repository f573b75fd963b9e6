"""A corpus indexed through Ray Data: files are listed by tasks, and written by actors that hold the model.

Ray Data streams, runs what a lost process or machine has left over again, and hands each file's record on as it comes.
Files have names that follow from what is in them and are put in place whole, so to write one twice is to write it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from homerlm.config import Config
from homerlm.errors import HomerError
from homerlm.homer import Homer
from homerlm.index.manifest import Shard
from homerlm.passes import Event, run_steps
from homerlm.scale.listing import Fields, Listed, list_file
from homerlm.scale.packing import pack, unpack
from homerlm.scale.ray_actors import RESTARTS, RETRIES, RaySettings
from homerlm.scale.shard import Planned, ShardWriting
from homerlm.scale.source import ModelSource


class RayEngine:
    """Lists and writes on Ray (`homerlm.scale.corpus.Engine`). Raises `ConfigError` without ray."""

    def __init__(self, source: ModelSource, settings: RaySettings) -> None:
        self._source, self._settings = source, settings
        settings.connect()
        self._data = _quiet_data()

    def listed(self, files: Sequence[tuple[str, str]], fields: Fields) -> Iterable[Listed]:
        """In order of the files: a digest needs all of a file's bytes, which many machines read faster than one."""
        rows = [{"number": number, "name": name, "path": path} for number, (name, path) in enumerate(files)]
        listed = self._data.from_items(rows).map(_ListedFile(fields)).iter_rows()
        found: dict[int, list[Listed]] = {row["number"]: unpack(row["listed"]) for row in listed}
        return (document for number in range(len(files)) for document in found[number])

    def written(self, homer: Homer, writing: ShardWriting, shards: Sequence[Planned]) -> Iterator[Shard | Event]:
        if not shards:
            return
        rows = [{"shard": pack(shard)} for shard in shards]
        settings = self._settings
        done = self._data.from_items(rows, override_num_blocks=len(rows)).map(
            Writer,
            fn_constructor_args=(self._source, homer.config, writing, settings),
            compute=self._data.ActorPoolStrategy(size=min(settings.workers, len(rows))),
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
        )
        for row in done.iter_rows():
            result = unpack(row["record"])
            if isinstance(result, HomerError):
                raise result
            yield result


class _ListedFile:
    """Work of a Ray task: the documents of a file."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        documents = list(list_file(row["name"], row["path"], self._fields))
        return {"number": row["number"], "listed": pack(documents)}


class Writer:
    """An actor of Ray Data: holds the model and writes files."""

    def __init__(self, source: ModelSource, config: Config, writing: ShardWriting, settings: RaySettings) -> None:
        from homerlm.model.memory import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(settings.threads_each)
        loaded = source.load(settings.device)
        self._homer = Homer(loaded.decoder.model, loaded.tokenizer, config)
        self._writing = writing

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"record": pack(run_steps(self._writing.write(self._homer, unpack(row["shard"]))))}
        except HomerError as error:
            return {"record": pack(error)}


def _quiet_data() -> Any:
    """The module ray.data, which says nothing by itself."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    return ray.data
