"""What reading a prompt costs by its plan, and what a benchmark reads it with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.config import MergeConfig
from homerlm.errors import ConfigError
from homerlm.homer import Homer
from homerlm.lab.asked import Asked
from homerlm.lab.case import Case
from homerlm.lab.flops import Flops, Shape, flops_of, plain_pass, with_kept
from homerlm.lab.methods import Method
from homerlm.lab.readers import HomerReader, PlainReader, Reader
from homerlm.merge.plan import MergeLengths
from homerlm.model.memory import out_of_memory_explained
from homerlm.model.shape import DecoderShape
from homerlm.score.calibration import Calibration
from homerlm.score.scores import SCORES

AFFIX_LEN = 30  # tokens of the prefix, and of the suffix: an instruction and a question


class Cost(NamedTuple):
    """Of one row: operations, bytes of keys and values at the peak, appendix A's bound on these, the longest chunk."""

    flops: Flops
    kv_bytes: int
    bound_bytes: int | None
    chunk_len: int


def cost_of(reader: Reader, shape: Shape, prompt: Asked, kept: int | None = None) -> Cost:
    """`kept`: tokens that were left of the prompt; a plan knows the most that there can be."""
    lengths = prompt.prefix.shape[1], prompt.context.shape[1], prompt.suffix.shape[1]
    if not isinstance(reader, HomerReader):
        run = plain_pass(shape, sum(lengths))
        return Cost(flops_of(shape, [run]), run.tokens * shape.layers * shape.kv_bytes, None, run.tokens)
    plan = reader.homer.plan(*lengths)
    passes = list(plan.passes)
    planned = plan.cache_len
    kept = planned if kept is None else kept
    carried = max((plan.kv_during(run) for run in passes if run.kind != "read"), default=0)
    schedule = getattr(plan, "schedule", None)  # of a tree, which appendix A is about
    return Cost(
        flops_of(shape, with_kept(passes, planned, kept)),
        max(carried, kept * shape.layers) * shape.kv_bytes,
        None if schedule is None else schedule.kv_bound_tokens() * shape.kv_bytes,
        max(run.keys for run in passes),
    )


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
