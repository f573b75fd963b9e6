"""How fast one worker is at an index: measured on a machine, or assumed of an accelerator that is not there."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from homerlm.errors import CorruptFileError, InputError
from homerlm.index.keys import kept_heads
from homerlm.model.flops import Shape, flops_of
from homerlm.model.shape import DecoderShape
from homerlm.passes import Pass
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Scoring, layers_run

ID_BYTES, SPAN_BYTES, UNIT_BYTES = 4, 8, 8  # of an index's rows besides their keys
UNIT_TOKENS = 20  # of a sentence, about
FLOAT16_BYTES = 2
TEXT_BYTES = 4.3  # of a token, in English
QUESTION_TOKENS = 30


@dataclass(frozen=True)
class Rates:
    """What one worker does in a second, and what the one that asks (the driver) needs for many.

    worker: what these figures are of; model: whose index; index_bytes, text_bytes: of a token, text within the former;
    tokenise: tokens cut out of text, by the machine's processor; read: tokens read into an index; scan: tokens whose
    keys a question meets; search: tokens whose ids are searched for what the best sentences share; question_s: until a
    question's queries are known; rerank_s: to read the candidates and the answer's prompt; new_token_s: for a token of
    the answer; task_s: of the driver for one task; merge: candidates that the driver ranks in a second; start_s: until
    a worker holds its model.
    """

    worker: str
    model: str
    index_bytes: float
    text_bytes: float
    tokenise: float
    read: float
    scan: float
    search: float
    question_s: float
    rerank_s: float
    new_token_s: float
    task_s: float
    merge: float
    start_s: float

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Those that `benchmarks/cluster_rates.py` has written as JSON. Raises `InputError` for a file that cannot be
        read, `CorruptFileError` for one without them."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))["rates"]
            return cls(**{one.name: _checked(one.name, values[one.name]) for one in fields(cls)})
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{path} holds no rates of a cluster's plan ({error}): make them with benchmarks/cluster_rates.py"
            ) from error

    def changed(self, **given: float | None) -> Self:
        """With the figures that are given, those that are None left as they are."""
        known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **known)


@dataclass(frozen=True)
class Accelerator:
    """An accelerator by its data sheet: dense operations on bfloat16 a second, bytes of its memory, bytes a second of
    that memory and from the machine's own."""

    name: str
    flops: float
    memory: float
    memory_rate: float
    link_rate: float


ACCELERATORS = {
    one.name: one
    for one in (
        Accelerator("a100", 312e12, 80e9, 2.039e12, 32e9),
        Accelerator("h100", 989e12, 80e9, 3.35e12, 64e9),
        Accelerator("h200", 989e12, 141e9, 4.8e12, 64e9),
        Accelerator("l4", 121e12, 24e9, 300e9, 32e9),
    )
}


def index_bytes(
    scoring: Scoring, shape: DecoderShape, *, int8: bool = False, embedding: Embedding | None = None
) -> float:
    """Bytes of a token in an index that keeps what these heads attend to: keys, ids, places, units and text, and the
    units' embeddings."""
    group = shape.heads // shape.kv_heads
    slots = sum(len(kept_heads(scoring, layer, group, shape.kv_heads)) for layer in scoring.layers)
    key = shape.head_dim + 2 if int8 else shape.head_dim * shape.itemsize  # and a scale in float16
    unit = UNIT_BYTES if embedding is None else UNIT_BYTES + shape.hidden * FLOAT16_BYTES
    return slots * key + ID_BYTES + SPAN_BYTES + unit / UNIT_TOKENS + TEXT_BYTES


def assumed(
    measured: Rates,
    model: str,
    accelerator: Accelerator,
    utilisation: float,
    shape: DecoderShape,
    indexing: Scoring,
    reranking: Scoring,
    embedding: Embedding | None,
    chunk_len: int,
    target_len: int,
    stand_in_len: int = 256,
) -> Rates:
    """An accelerator's rates out of its data sheet: this share of its operations for reading, of its memory's rate for
    new tokens, and of the way from the machine's memory, where the index lies, for meeting keys. What the driver does
    and what the machine's processor does (tokens, searching ids) stays as it was measured."""
    costs = Shape.planned(shape)
    rate = accelerator.flops * utilisation

    def seconds(tokens: int, layers: int, *, whole: bool = False) -> float:
        """Of one chunk through the first layers, of which the last stops after its queries and keys, unless it is
        `whole`, with the logits of its last token."""
        run = Pass("read" if whole else "chunk", tokens, 0, layers, finish=whole, logits=int(whole))
        return flops_of(costs, [run]).total / rate

    weights_bytes = costs.weights * shape.itemsize
    keys = index_bytes(indexing, shape) - ID_BYTES - SPAN_BYTES - UNIT_BYTES / UNIT_TOKENS - TEXT_BYTES
    read_layers = layers_run(indexing, None if embedding is None else embedding.depth)
    return replace(
        measured,
        worker=f"{accelerator.name} at {utilisation:.0%} (assumed)",
        model=model,
        index_bytes=index_bytes(indexing, shape, embedding=embedding),
        read=(chunk_len - QUESTION_TOKENS) / seconds(chunk_len, read_layers),
        scan=accelerator.link_rate * utilisation / keys,
        question_s=seconds(stand_in_len + 2 * QUESTION_TOKENS, indexing.last + 1),
        rerank_s=seconds(target_len, reranking.last + 1) + seconds(target_len, shape.layers, whole=True),
        new_token_s=weights_bytes / (accelerator.memory_rate * utilisation),
        start_s=weights_bytes / 1e9,
    )


def _checked(name: str, value: Any) -> Any:
    if name in ("worker", "model"):
        return str(value)
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} is {value!r}; it must be a number that is not negative")
    return number
