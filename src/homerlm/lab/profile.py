"""Where the time of reading one prompt goes: every moment belongs to exactly one part.

The clock is read where a part begins and ends, through hooks on the model's modules and wrappers around homerlm's own
functions, both only inside a `with` block. On CUDA the marks are events in the stream of work, so that the device is
never waited for: a part's time is then what lies between its marks on the device, waiting for Python included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from homerlm.lab.case import Cell
from homerlm.lab.flops import attention_linears
from homerlm.lab.measure import WARM_UP_LEN, Record, vocabulary
from homerlm.lab.methods import Method
from homerlm.lab.prefill import Subject, random_prompt, subject_for
from homerlm.lab.questions import facts_of
from homerlm.lab.rates import synchronize
from homerlm.merge import tree as merging
from homerlm.merge.chunk import Chunk
from homerlm.merge.tree import Selection
from homerlm.model import decoder as adapter
from homerlm.model.decoder import Decoder
from homerlm.model.memory import out_of_memory_explained
from homerlm.prompt import PromptIds
from homerlm.select import rerank as second_look

ATTENTION, PROJECTIONS, MLP, NORMS = "attention", "projections", "MLP", "norms and rotary"
SCORING, MERGING, HEAD, REST = "scoring", "merging copies", "embedding and head", "rest (Python)"
PARTS = (ATTENTION, PROJECTIONS, MLP, NORMS, SCORING, MERGING, HEAD, REST)

FUNCTIONS: tuple[tuple[Any, str, str], ...] = (  # owner, name, part
    (adapter, "_recording_attention", ATTENTION),
    (Selection, "judge", SCORING),
    (merging, "keep_most_significant", SCORING),
    (second_look, "keep_most_significant", SCORING),
    (Selection, "worth", SCORING),
    (second_look, "with_recap", SCORING),
    (Chunk, "select", MERGING),
    (Chunk, "merge", MERGING),
    (Chunk, "rows", MERGING),
)


class Clock(Protocol):
    """Marks moments; `seconds` gives the time between each mark and the one before it."""

    def mark(self) -> None: ...
    def seconds(self) -> list[float]: ...


class HostClock:
    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]


class CudaClock:
    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(self._marks, self._marks[1:], strict=False)]


class Ledger:
    """Which part each span between two marks belongs to: the innermost that had begun."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open = [REST]
        self._spans: list[str] = []
        clock.mark()

    def begin(self, part: str) -> None:
        self._mark()
        self._open.append(part)

    def end(self) -> None:
        self._mark()
        self._open.pop()

    def totals(self) -> dict[str, float]:
        """Seconds by part, to be read once; their sum is the time between the first mark and now."""
        self._mark()
        totals = dict.fromkeys(PARTS, 0.0)
        for part, seconds in zip(self._spans, self._clock.seconds(), strict=True):
            totals[part] += seconds
        return totals

    def _mark(self) -> None:
        self._spans.append(self._open[-1])
        self._clock.mark()


def parts_of_modules(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """The modules that are timed. An attention's own time, its projections and kernel apart, is rotary and norms."""
    base: Any = model.get_decoder()
    yield model.get_input_embeddings(), HEAD
    yield model.get_output_embeddings(), HEAD
    yield base.rotary_emb, NORMS
    yield Decoder(model).norm, NORMS
    for layer in base.layers:
        projections = set(attention_linears(layer))
        yield from ((linear, PROJECTIONS) for linear in projections)
        for name, child in layer.named_children():
            if set(child.modules()) & projections or "norm" in name:
                yield child, NORMS
            elif list(child.parameters(recurse=True)):
                yield child, MLP


@contextmanager
def watched(model: PreTrainedModel, ledger: Ledger) -> Iterator[None]:
    """Inside the block the ledger hears of every part; after it, model and library are as they were."""
    with ExitStack() as undo:
        for module, part in parts_of_modules(model):
            begin = module.register_forward_pre_hook(lambda *_, part=part: ledger.begin(part), prepend=True)
            undo.callback(begin.remove)
            undo.callback(module.register_forward_hook(lambda *_: ledger.end()).remove)
        for owner, name, part in FUNCTIONS:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, _timed(getattr(owner, name), part, ledger))
        yield


def _timed(function: Callable[..., Any], part: str, ledger: Ledger) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        ledger.begin(part)
        try:
            return function(*args, **kwargs)
        finally:
            ledger.end()

    return timed


def profile_once(subject: Subject, prompt: PromptIds) -> dict[str, float]:
    """Seconds by part of one reading. The plain model's attention, too, goes through the adapter's function, which is
    torch's own kernel in both cases."""
    synchronize(subject.model.device)
    ledger = Ledger(CudaClock() if subject.model.device.type == "cuda" else HostClock())
    with watched(subject.model, ledger), Decoder(subject.model).session():
        subject.prefill(prompt)
    return ledger.totals()


def profile(cell: Cell) -> Record:
    """The record of a cell: `parts` in seconds, the medians over its repeats."""
    method = Method.parse(cell.method)
    with out_of_memory_explained("loading the model", "Take a smaller model"):
        model, tokenizer = cell.source.load(method.rope)
    subject = subject_for(method, model, tokenizer)
    with out_of_memory_explained(f"reading {cell.length} tokens", "Lower the length or the batch"):
        subject.prefill(random_prompt(vocabulary(model), min(cell.length, WARM_UP_LEN), cell.batch))
        prompt = random_prompt(vocabulary(model), cell.length, cell.batch)
        runs = [profile_once(subject, prompt) for _ in range(cell.repeats)]
    parts = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    return facts_of(model, chat=False) | {"batch": cell.batch, "n": len(runs), "parts": parts}
