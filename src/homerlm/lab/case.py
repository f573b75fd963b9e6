"""What is measured: one method on one model at one length, as a value that goes to a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import ConfigError
from homerlm.model.compiling import compile_model
from homerlm.model.loading import load_model, native_dtype
from homerlm.model.rope import RopeScaling, scale_config

MEASURE, PROFILE = "measure", "profile"
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a cell's model comes from, and where it runs.

    model: as `load_model` takes it, None for the bundled one. random: a shape with random weights in its place (see
    `shapes`), cut to its first `layers` if given. dtype "auto": the checkpoint's own; for random weights bfloat16
    where the device computes in it. compiled: through `compile_model`.
    """

    model: str | None = None
    random: str | None = None
    layers: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.model and self.random:
            raise ConfigError(f"model is {self.model!r} and random is {self.random!r}; give only one of them")
        if self.layers is not None and not self.random:
            raise ConfigError(f"layers is {self.layers}, but a model keeps its layers: give it with random weights")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")

    @property
    def name(self) -> str:
        if not self.random:
            return self.model or "bundled model"
        cut = f", {self.layers} layers" if self.layers else ""
        return f"{self.random} (random weights{cut})"

    def load(self, rope: RopeScaling | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """The model, on its device, with the scaling applied, and its tokenizer, which random weights have none of.
        Raises `HomerError`."""
        model, tokenizer = self._load(rope)
        return (compile_model(model) if self.compiled else model), tokenizer

    def _load(self, rope: RopeScaling | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        from homerlm.lab.shapes import random_model, shape_config

        if not self.random:
            dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
            placed = {} if self.device == "cpu" else {"device_map": self.device}
            return load_model(self.model, rope=rope, dtype=dtype, **placed)
        config = shape_config(self.random, self.layers)
        dtype = native_dtype(self.device) if self.dtype == "auto" else getattr(torch, self.dtype)
        model = random_model(scale_config(config, rope) if rope else config, self.device, dtype)
        model.config._name_or_path = self.name
        return model, None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One process's work.

    job: what is done with it, `MEASURE` or `PROFILE`. method: in the evaluation's grammar. length: tokens of the
    prompt, affixes included. new_tokens: the numbers of generated tokens for which a time is wanted. tensors: whether
    the prompt is read once more, to count what its tensors come to.
    """

    method: str
    length: int
    batch: int = 1
    new_tokens: tuple[int, ...] = (20, 50, 100)
    repeats: int = 3
    source: Source = field(default_factory=Source)
    job: str = MEASURE
    tensors: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """What names its record; one with more repeats takes another's place."""
        source = self.source
        shown = {name: value for name, value in asdict(source).items() if name != "compiled" or value}
        work = {**shown, "batch": self.batch, "new_tokens": list(self.new_tokens), "job": self.job}
        work |= {"tensors": True} if self.tensors else {}
        task = "profile" if self.job == PROFILE else "bench"
        return {"task": task, "method": self.method, "length": self.length, "cell": work}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        source = Source(**values["source"])
        return cls(**{**values, "source": source, "new_tokens": tuple(values["new_tokens"])})
