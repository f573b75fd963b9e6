"""What a benchmark measures: one method on one model at one length, as a value that goes to a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.config import MergeConfig
from homerlm.errors import ConfigError
from homerlm.homer import Homer
from homerlm.lab.methods import Method
from homerlm.lab.random_weights import random_model, shape_config
from homerlm.lab.readers import HomerReader, PlainReader, Reader
from homerlm.lab.samples import Asked
from homerlm.merge.plan import MergeLengths
from homerlm.model.compiling import compile_model
from homerlm.model.loading import load_model, native_dtype
from homerlm.model.memory import out_of_memory_explained
from homerlm.model.rope import RopeScaling, scale_config
from homerlm.model.shape import DecoderShape
from homerlm.score.calibration import Calibration
from homerlm.score.scores import SCORES

MEASURE, PROFILE = "measure", "profile"
DTYPES = ("auto", "float32", "float16", "bfloat16")
SOURCE = ("model", "random", "layers", "device", "dtype", "threads", "compiled")  # where the model comes from
AFFIX_LEN = 30  # tokens of the prefix, and of the suffix: an instruction and a question
WARM_UP_LEN = 512  # tokens of the prompt that is read first, so that libraries and kernels are ready


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process's work.

    model: as `load_model` takes it, None for the bundled one. random: a shape with random weights in its place (see
    `random_weights`), cut to its first `layers` if given. dtype "auto": the checkpoint's own; for random weights
    bfloat16 where the device computes in it. compiled: through `compile_model`.

    job: what is done, `MEASURE` or `PROFILE`. method: in the grammar of `methods`. length: tokens of the prompt,
    affixes included. new_tokens: the numbers of generated tokens for which a time is wanted. tensors: whether the
    prompt is read once more, to count what its tensors come to.
    """

    model: str | None = None
    random: str | None = None
    layers: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    compiled: bool = False
    batch: int = 1
    new_tokens: tuple[int, ...] = (20, 50, 100)
    job: str = MEASURE
    tensors: bool = False
    method: str = ""
    length: int = 0
    repeats: int = 3

    def __post_init__(self) -> None:
        if self.model and self.random:
            raise ConfigError(f"model is {self.model!r} and random is {self.random!r}; give only one of them")
        if self.layers is not None and not self.random:
            raise ConfigError(f"layers is {self.layers}, but a model keeps its layers: give it with random weights")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")

    @property
    def key(self) -> dict[str, Any]:
        """What names its record; one with more repeats takes another's place."""
        work = {name: list(value) if name == "new_tokens" else value for name, value in asdict(self).items()}
        named = {name: work.pop(name) for name in ("method", "length")}
        del work["repeats"]
        work = {name: value for name, value in work.items() if value or name not in ("compiled", "tensors")}
        return {"task": "profile" if self.job == PROFILE else "bench", **named, "cell": work}

    def load(self, rope: RopeScaling | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """The model, on its device, with the scaling applied, and its tokenizer, which random weights have none of.
        Raises `HomerError`."""
        if self.random:
            config = shape_config(self.random, self.layers)
            dtype = native_dtype(self.device) if self.dtype == "auto" else getattr(torch, self.dtype)
            model, tokenizer = random_model(scale_config(config, rope) if rope else config, self.device, dtype), None
            model.config._name_or_path = source_name(asdict(self))
        else:
            placed = {} if self.device == "cpu" else {"device_map": self.device}
            dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
            model, tokenizer = load_model(self.model, rope=rope, dtype=dtype, **placed)
        return (compile_model(model) if self.compiled else model), tokenizer


def source_name(case: Mapping[str, Any]) -> str:
    """What a case's model is called, before it has been loaded."""
    if not case.get("random"):
        return case.get("model") or "bundled model"
    cut = f", {case['layers']} layers" if case.get("layers") else ""
    return f"{case['random']} (random weights{cut})"


def cases(
    methods: Sequence[Method], lengths: Sequence[int], batches: Sequence[int], plain_up_to: int | None, like: Case
) -> list[Case]:
    """Every method at every length and batch, the short ones first, otherwise `like` one; the methods that read every
    token with every other only to `plain_up_to` tokens."""
    return [
        replace(like, method=str(method), length=length, batch=batch)
        for length in lengths
        for batch in batches
        for method in methods
        if method.is_homer or plain_up_to is None or length <= plain_up_to
    ]


def bench_reader(method: Method, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Reader:
    """The reader of a method that is benchmarked. A calibration of zeros stands for the model's own, where the score
    wants one: it decides which tokens are kept, not how many, and costs the same. Raises `HomerError`."""
    if method.base == "plain":
        return PlainReader(model)
    if not method.is_homer:
        raise ConfigError(f"method is {method}; the benchmark measures plain, homer and homer-paper")
    config, text = method.config(), model.config.get_text_config(decoder=True)
    if isinstance(config, MergeConfig) and SCORES[config.score].calibrated:
        longest = MergeLengths.of(config, DecoderShape.of(text)).max_chunk_len
        config = replace(config, calibration=Calibration(torch.zeros(text.num_hidden_layers, longest)))
    return HomerReader(Homer(model, tokenizer, config))


def prepared(case: Case) -> tuple[Reader, Asked]:
    """A case's method on its model, and its prompt. Raises `HomerError`, out of memory among them."""
    method = Method.parse(case.method)
    with out_of_memory_explained("loading the model", "Take a smaller model"):
        model, tokenizer = case.load(method.rope)
        reader = bench_reader(method, model, tokenizer)
    return reader, random_prompt(model, case.length, case.batch)


def random_prompt(model: Any, length: int, batch: int, seed: int = 0) -> Asked:
    """Random ids, every row its own, `length` tokens with the affixes."""
    if length < 3 * AFFIX_LEN:
        raise ConfigError(f"length is {length}; it must be at least {3 * AFFIX_LEN} tokens")
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (batch, length), generator=generator)
    return Asked(*ids.split([AFFIX_LEN, length - 2 * AFFIX_LEN, AFFIX_LEN], dim=1))
