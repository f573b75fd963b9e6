"""What a compression runs, in plain integers: the list that costs, memory, progress and the program itself read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from homerlm.errors import Cancelled, InputError, ScheduleError

if TYPE_CHECKING:
    from torch import Tensor

    from homerlm.model.shape import DecoderShape


@dataclass(frozen=True)
class Pass:
    """One run of tokens through a range of layers.

    kind: "chunk" (a span of the document between the affixes), "again" (one of the best of these), "ask" (the question
    behind sentences of them), "merge" (two merged chunks), "rerank" (the candidates) or "read" (what the answer is read
    from). tokens: of one row of one chunk; rows: chunks that run side by side; layers `[first_layer, last_layer)`;
    finish: False where the last layer stops after its queries and keys; scoring_layers: those whose attention scores
    the tokens, with this many `queries`; logits: positions whose logits are computed; keys: tokens attended to, more
    than `tokens` where a cache comes before them.
    """

    kind: str
    tokens: int
    first_layer: int
    last_layer: int
    rows: int = 1
    finish: bool = True
    scoring_layers: tuple[int, ...] = ()
    queries: int = 0
    logits: int = 0
    cached: int = 0

    @property
    def keys(self) -> int:
        return self.cached + self.tokens


@dataclass(frozen=True)
class Lengths:
    """Of a config, resolved for one model and short affixes; tokens."""

    max_chunk_len: int
    target_len: int


Step = TypeVar("Step")
Result = TypeVar("Result")


class Aside(Generic[Result]):
    """A value that is made without the model: by the steps that need it, unless whoever takes them has begun it on a
    thread of its own."""

    def __init__(self, make: Callable[[], Result]) -> None:
        self._make = make
        self._begun: Future[Result] | None = None

    def begin(self, executor: Executor) -> Future[Result]:
        self._begun = executor.submit(self._make)
        return self._begun

    def value(self) -> Result:
        """Raises what making it does."""
        return self._make() if self._begun is None else self._begun.result()


@dataclass(frozen=True)
class Event:
    """A step of a compression is done. `read` of `total` context tokens have been read so far.

    kept: (B, n) indices in the prompt of the tokens that live on at `level` (1, 2, ... the higher, the later they were
    still there), or None where nothing was decided. note: what is being read where it is not the document. aside: what
    the next step waits for, so that others may have the model until it is there.
    """

    read: int
    total: int
    level: int = 0
    kept: Tensor | None = None
    note: str = ""
    aside: Aside[Any] | None = field(default=None, compare=False, repr=False)


Observer = Callable[[Event], None]


def check_callbacks(cancel: object = None, **functions: object) -> None:
    """Raise `InputError` for an event that is none, or for what is to be called and cannot be; None is neither."""
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise InputError(f"cancel is {type(cancel).__name__}; it must be a threading.Event, or None")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise InputError(f"{name} is {type(function).__name__}; it must be a function, or None")


def run_steps(
    steps: Generator[Step, None, Result],
    observer: Callable[[Step], None] | None = None,
    cancel: threading.Event | None = None,
) -> Result:
    """The value of work that goes step by step, each step shown to `observer`. Raises `Cancelled` once `cancel` is
    set, `InputError` for an event or observer that is none."""
    check_callbacks(cancel, observer=observer)
    while True:
        if cancel is not None and cancel.is_set():
            steps.close()
            raise Cancelled("stopped while reading the document")
        try:
            step = next(steps)
        except StopIteration as done:
            return done.value
        if observer is not None:
            observer(step)


def pausing(steps: Generator[object, None, Result], pause: Event) -> Generator[Event, None, Result]:
    """The value of steps, each of which is told as this event."""
    with closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value
            yield pause


LONG = 1 << 14  # characters: to cut more of them into tokens can take as long as to read a chunk
TOKEN = 4  # characters, about


def tokenising(make: Callable[[], Result], characters: int, read: int = 0) -> Generator[Event, None, Result]:
    """The value of `make`, which cuts so many characters, behind `read` tokens, into tokens; many of them aside."""
    if characters <= LONG:
        return make()
    made = Aside(make)
    yield Event(read, read + characters // TOKEN, aside=made)
    return made.value()


class Plan(Protocol):
    """What lengths and model decide about one compression, before it starts. Prints itself."""

    @property
    def prefix_len(self) -> int: ...
    @property
    def context_len(self) -> int: ...
    @property
    def read_len(self) -> int:
        """Tokens of the context that are read at all."""
        ...

    @property
    def suffix_len(self) -> int: ...
    @property
    def passes(self) -> tuple[Pass, ...]:
        """In the order in which they run."""
        ...

    @property
    def cache_len(self) -> int:
        """Largest number of tokens in the result, affixes included."""
        ...

    @property
    def prompt_len(self) -> int: ...
    def kv_during(self, run: Pass) -> int:
        """Largest number of (token, layer) pairs whose keys and values are kept while a pass runs."""
        ...


def check_target(prefix_len: int, context_len: int, suffix_len: int, target_len: int) -> None:
    """Raise `ScheduleError` where the affixes, which are never dropped, leave no room for the document."""
    affixes = prefix_len + suffix_len
    if target_len < affixes + (context_len > 0):
        raise ScheduleError(
            f"target_len is {target_len}, but prefix ({prefix_len}) and suffix ({suffix_len}) are never dropped and "
            f"leave no room for the document: raise target_len (--target-len) above {affixes}, or shorten them"
        )


def head_pass(layers: int) -> Pass:
    """The pass of a stand-in token through the model's own forward, which makes the logits of a final state, the first
    time; later the head does, where it is all that makes them."""
    return Pass("read", 1, 0, layers, logits=1)


BLOCK_BYTES = 1 << 26  # of float32 attention logits that exist at once
LOGITS_SLICE = 64  # tokens whose logits exist at once: 40 MB in float32 over a vocabulary of 150k


def peak_bytes(plan: Plan, shape: DecoderShape) -> int:
    """Predicted peak of tensors above the weights: the largest pass's hidden state and copies of it, queries, keys and
    values, the MLP's numbers, attention logits where they exist, and the keys and values kept while it runs."""
    return max(plan.kv_during(run) * shape.kv_bytes + _pass_bytes(run, shape) for run in plan.passes)


def _pass_bytes(run: Pass, shape: DecoderShape) -> int:
    tokens = run.tokens * run.rows
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim  # queries before and after RoPE, keys, values
    states = tokens * (4 * shape.hidden + max(2 * heads, 3 * shape.intermediate)) * shape.itemsize
    scores = 2 * _logits_bytes(run, shape, run.queries, run.keys) if run.scoring_layers else 0
    return (
        states
        + max(scores, _eager_bytes(run, shape))
        + 4 * shape.vocab * min(max(run.logits * run.rows, 1), LOGITS_SLICE)
    )


def _eager_bytes(run: Pass, shape: DecoderShape) -> int:
    """Logits, weights and masks of attention that no fused kernel computes, a block of queries at a time."""
    if not shape.eager:
        return 0
    windows = shape.windows[run.first_layer : run.last_layer - (not run.finish)]
    widest = max((min(window or run.keys, run.keys) for window in windows), default=0)
    keys = run.keys if widest == run.keys else 2 * widest
    return 3 * _logits_bytes(run, shape, min(widest, run.tokens), keys)


def _logits_bytes(run: Pass, shape: DecoderShape, queries: int, keys: int) -> int:
    return min(4 * run.rows * shape.heads * queries * keys, BLOCK_BYTES)
