"""Runs jobs, by default one after another, and keeps their records; what is recorded already is left out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

from homerlm.errors import HomerError, OutOfMemoryError
from homerlm.lab.records import OUT_OF_MEMORY, Record, RecordFile

Progress = Callable[[str, int, int], None]  # the job at work, jobs done, jobs there are


class Job(Protocol):
    """Work that ends in records: in this process (`evaluate.EvalJob`) or in one of its own (`isolated.IsolatedJob`)."""

    @property
    def label(self) -> str: ...

    def records(self, known: RecordFile) -> Iterator[Record]:
        """All of the job's records: those that are known as they are, then the others, made now. A failure is a record
        with an `error`."""

    def failed(self, error: str) -> Iterable[Record]:
        """All of the job's records where doing it ended its process: with this error."""


Doing = Callable[[Sequence[Job], RecordFile], Generator[Iterable[Record]]]  # the records of each job, in order


def one_by_one(jobs: Sequence[Job], known: RecordFile) -> Generator[Iterable[Record]]:
    """Jobs done by this process."""
    for job in jobs:
        yield job.records(known)


def run(jobs: Sequence[Job], file: RecordFile, *, progress: Progress, doing: Doing = one_by_one) -> str | None:
    """Append the new records of all jobs to a file. A record with an error is made again by the next run.

    Returns the first error if all records have one, else None.
    """
    errors: list[str] = []
    succeeded = not jobs
    with closing(doing(jobs, file)) as found:
        for done, job in enumerate(jobs):
            progress(job.label, done, len(jobs))
            for record in next(found):
                if file.get(record) is None:
                    file.append(record)
                if record.get("error"):
                    errors.append(str(record["error"]))
                else:
                    succeeded = True
    progress("done", len(jobs), len(jobs))
    return None if succeeded else errors[0]


def raise_failure(error: str) -> None:
    """The error of a run in which everything failed, as one of the library's."""
    kind = OutOfMemoryError if error.startswith(OUT_OF_MEMORY) else HomerError
    raise kind(f"everything failed, and the records say so; the first: {error}")
