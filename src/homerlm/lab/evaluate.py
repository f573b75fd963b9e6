"""Evaluations as jobs of `homerlm.lab.run`: a method on a sample or a document, in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import HomerError
from homerlm.lab.facts import Outcome, facts_of, failure
from homerlm.lab.methods import Method
from homerlm.lab.perplexity import WindowsWork
from homerlm.lab.questions import ASKING, Setup, answered
from homerlm.lab.readers import reader_for
from homerlm.lab.records import Record, RecordFile
from homerlm.lab.samples import Task
from homerlm.model.rope import RopeScaling

Load = Callable[[RopeScaling | None], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@dataclass(frozen=True)
class SampleWork:
    """Sample `index` of a task at one length."""

    task: Task
    length: int
    index: int
    seed: int

    @property
    def keys(self) -> list[dict[str, Any]]:
        """What names each record that `run` gives: task, variant, ask, length, sample, seed, text."""
        task = self.task
        key = {"task": task.name, "variant": task.variant, "ask": task.ask, "length": self.length, "seed": self.seed}
        numbers = range(self.index * task.questions, (self.index + 1) * task.questions)
        return [key | {"sample": number, "text": task.text} for number in numbers]

    def run(self, setup: Setup, done: Collection[int]) -> Iterator[tuple[int, Outcome]]:  # noqa: ARG002
        """Each record's place in `keys` and what it adds to its key; those `done` need not be given."""
        task, sample = self.task, self.task.sample(setup.tokenizer, self.length, self.index, self.seed)
        depth = None if sample.depth is None else round(sample.depth, 4)
        judge = task.judge or answered(task.max_new_tokens)
        for place, outcome in enumerate(ASKING[task.ask](setup, sample, task.max_new_tokens, judge)):
            yield place, {"depth": depth} | sample.facts | outcome


Work = SampleWork | WindowsWork
Plan = list[tuple[Method, list[Work]]]


def drawn(tasks: Sequence[Task], lengths: Sequence[int], samples: int, seed: int) -> list[Work]:
    """`samples` of every task at every length (documents, where each is asked several times). Sample by sample, so that
    a run that is stopped has as many of every length."""
    return [SampleWork(task, length, k, seed) for k in range(samples) for task in tasks for length in lengths]


@dataclass
class Models:
    """The model of one RoPE scaling at a time. `calibrations`: files for the scores that need one."""

    load: Load
    chat: bool = False
    calibrations: Sequence[Path] = ()
    _rope: str | None = field(default=None, init=False)
    _loaded: tuple[Any, Any] | None = field(default=None, init=False)
    _setup: tuple[Method, Setup] | None = field(default=None, init=False)

    def facts(self, method: Method) -> Outcome:
        return facts_of(self._model(method)[0], self.chat) | {"method": str(method)}

    def setup(self, method: Method) -> Setup:
        """Raises `HomerError` for a method that does not fit the model."""
        model, tokenizer = self._model(method)
        if self._setup is None or self._setup[0] != method:
            reader = reader_for(method, model, tokenizer, self.calibrations)
            self._setup = method, Setup(model, tokenizer, reader, self.chat)
        return self._setup[1]

    def _model(self, method: Method) -> tuple[Any, Any]:
        if self._loaded is None or self._rope != str(method.rope):
            self._loaded = self._setup = None
            gc.collect()
            self._rope, self._loaded = str(method.rope), self.load(method.rope)
        return self._loaded


@dataclass(frozen=True)
class EvalJob:
    """A method's work on the models of a run. A sample that fails or runs out of memory leaves a record that says so,
    and so do all samples of a method that does not fit the model."""

    method: Method
    work: Work
    models: Models

    @property
    def label(self) -> str:
        return str(self.method)

    def records(self, known: RecordFile) -> Iterator[Record]:
        keys = self._keys()
        found = {place: record for place, key in enumerate(keys) if (record := known.get(key))}
        yield from found.values()
        missing = dict.fromkeys(place for place in range(len(keys)) if place not in found)
        try:
            if missing:
                for place, outcome in self.work.run(self.models.setup(self.method), found.keys()):
                    if place in missing:
                        del missing[place]
                        yield keys[place] | outcome
        except HomerError as error:  # the method does not fit, or the sample itself cannot be made
            yield from (keys[place] | {"error": failure(error)} for place in missing)

    def failed(self, error: str) -> Iterator[Record]:
        return (key | {"error": error} for key in self._keys())

    def _keys(self) -> list[dict[str, Any]]:
        facts = self.models.facts(self.method)
        return [facts | key for key in self.work.keys]


def jobs_of(plan: Plan, models: Models) -> list[EvalJob]:
    """One for each method and work; those of one RoPE scaling follow each other, for they share a model."""
    ropes = list(dict.fromkeys(str(method.rope) for method, _ in plan))
    same = sorted(plan, key=lambda one: ropes.index(str(one[0].rope)))
    return [EvalJob(method, work, models) for method, works in same for work in works]
