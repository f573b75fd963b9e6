"""Jobs of a run done by workers on Ray: the records that one process makes, in its order."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from homerlm.lab.records import Record, RecordFile
from homerlm.lab.run import Job
from homerlm.scale.mapping import in_order
from homerlm.scale.ray_actors import Actor, Actors, Mapper, RaySettings

RETRIES = 2  # of a job whose worker died: that may be because of the job
ENDLESS = -1


@dataclass(frozen=True)
class OnRay:
    """How `homerlm.lab.run.run` has its jobs done by workers, each job by one of them; jobs can be pickled."""

    settings: RaySettings

    def __call__(self, jobs: Sequence[Job], known: RecordFile) -> Generator[Iterable[Record]]:
        """The records of each job, in the jobs' order. Raises `HomerError` where a job does, or cannot be done."""
        shared = self.settings.connect().put((list(jobs), known))  # once, however many workers and jobs there are
        with Actors(self.settings, JobActor, shared, restarts=ENDLESS, retries=RETRIES) as actors:
            workers = [_Worker(Mapper(actors, handle)) for handle in actors.handles]
            with closing(in_order(workers, None, range(len(jobs)), long=True)) as values:  # type: ignore[type-var]
                yield from (value for value in values if value is not None)


class JobActor(Actor):
    """A worker, which does jobs by their number. What they have in common, such as a loaded model, it keeps."""

    def __init__(self, shared: tuple[Sequence[Job], RecordFile], threads: int) -> None:
        super().__init__(threads)
        self._jobs, self._known = shared
        os.environ["OMP_NUM_THREADS"] = str(threads)  # also of the processes that jobs start

    def do(self, asked: tuple[str | None, int]) -> list[Record]:
        """A job's records; with an error, those that say so."""
        error, number = asked
        job = self._jobs[number]
        return list(job.records(self._known) if error is None else job.failed(error))


@dataclass
class _Worker:
    """A worker as `in_order` uses it: a job of which it died again and again has failed."""

    mapper: Mapper
    _numbers: dict[Future[Any], int] = field(default_factory=dict)

    def submit(self, work: None, number: int) -> Future[Any]:
        future = self.mapper.submit(work, number)
        self._numbers[future] = number
        return future

    def value(self, future: Future[Any]) -> Any:
        from ray.exceptions import RayActorError

        number = self._numbers.pop(future)
        try:
            return self.mapper.value(future)
        except RayActorError as died:
            error = f"crash: its worker died {RETRIES + 1} times: {str(died).splitlines()[0]}"
            return self.mapper.value(self.mapper.submit(error, number))

    def cancel(self, future: Future[Any]) -> None:
        self.mapper.cancel(future)
