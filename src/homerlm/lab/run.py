"""Runs an evaluation: every method on every job, what is recorded already left out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import HomerError
from homerlm.lab.methods import Method
from homerlm.lab.questions import ASKING, Bench, Judge, Outcome, facts_of, failure
from homerlm.lab.readers import reader_for
from homerlm.lab.records import RecordFile
from homerlm.lab.samples import Task
from homerlm.model.rope import RopeScaling

Load = Callable[[RopeScaling | None], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
Progress = Callable[[str, int, int], None]  # the method at work, jobs done, jobs there are


class Job(Protocol):
    """Something a method does that ends in records."""

    @property
    def keys(self) -> list[dict[str, Any]]:
        """What names each record that `run` gives: task, variant, ask, length, sample, seed, text."""

    def run(self, bench: Bench, done: Collection[int]) -> Iterator[tuple[int, Outcome]]:
        """Each record's place in `keys` and what it adds to its key; those `done` need not be given."""


@dataclass(frozen=True)
class SampleJob:
    """Sample `index` of a task at one length. `row`: the report's (task, variant), where they are not the task's."""

    task: Task
    length: int
    index: int
    seed: int
    judge: Judge
    ask: str = "now"
    questions: int = 1
    row: tuple[str, str] | None = None

    @property
    def keys(self) -> list[dict[str, Any]]:
        name, variant = self.row or (self.task.name, self.task.variant)
        key = {"task": name, "variant": variant, "ask": self.ask, "length": self.length, "seed": self.seed}
        numbers = range(self.index * self.questions, (self.index + 1) * self.questions)
        return [key | {"sample": number, "text": self.task.text} for number in numbers]

    def run(self, bench: Bench, done: Collection[int]) -> Iterator[tuple[int, Outcome]]:  # noqa: ARG002
        sample = self.task.sample(bench.tokenizer, self.length, self.index, self.seed)
        depth = None if sample.depth is None else round(sample.depth, 4)
        for place, outcome in enumerate(ASKING[self.ask](bench, sample, self.task.max_new_tokens, self.judge)):
            yield place, {"depth": depth} | sample.facts | outcome


Plan = list[tuple[Method, list[Job]]]


def run(
    plan: Plan,
    load: Load,
    records: RecordFile,
    *,
    chat: bool = False,
    calibrations: Sequence[Path] = (),
    progress: Progress,
) -> None:
    """Run the jobs of each method and append their records; the methods of one RoPE scaling share one model.

    What is recorded without an error is left out, so that a run that was stopped goes on where it was. A sample that
    fails or runs out of memory leaves a record that says so, and so do all samples of a method that does not fit the
    model. `calibrations`: files for the scores that need one.
    """
    total, done = sum(len(jobs) for _, jobs in plan), 0
    ropes = list(dict.fromkeys(str(method.rope) for method, _ in plan))
    for rope in ropes:
        same = [(method, jobs) for method, jobs in plan if str(method.rope) == rope]
        model, tokenizer = load(same[0][0].rope)
        for method, jobs in same:
            facts = facts_of(model, chat) | {"method": str(method)}
            try:
                bench = Bench(model, tokenizer, reader_for(method, model, tokenizer, calibrations), chat)
            except HomerError as error:
                bench, misfit = None, error
            for job in jobs:
                progress(str(method), done, total)
                keys = [facts | key for key in job.keys]
                if bench is None:
                    _record_failure(keys, misfit, records)
                else:
                    _run_job(job, bench, keys, records)
                done += 1
            bench = None
        del model, tokenizer
        gc.collect()
    progress("done", done, total)


def _run_job(job: Job, bench: Bench, keys: list[dict[str, Any]], records: RecordFile) -> None:
    done = {place for place, key in enumerate(keys) if key in records}
    if len(done) == len(keys):
        return
    try:
        for place, outcome in job.run(bench, done):
            if place not in done:
                records.append(keys[place] | outcome)
                done.add(place)
    except HomerError as error:  # the sample itself cannot be made
        _record_failure([key for place, key in enumerate(keys) if place not in done], error, records)


def _record_failure(keys: list[dict[str, Any]], error: HomerError, records: RecordFile) -> None:
    for key in keys:
        records.append(key | {"error": failure(error)})
