"""What reading a prompt costs: the passes that its reader runs, counted (`homerlm.model.flops`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from homerlm.lab.readers import HomerReader, Reader
from homerlm.lab.samples import Asked
from homerlm.model.flops import Flops, Shape, flops_of
from homerlm.passes import Pass


def plain_pass(shape: Shape, tokens: int) -> Pass:
    """The plain model's reading, with the logits of its last token."""
    return Pass("read", tokens, 0, shape.layers, logits=1)


def with_kept(passes: Iterable[Pass], planned: int, kept: int) -> list[Pass]:
    """The passes of a plan for a prompt of which `kept` tokens are left, not the `planned` ones, the most there can
    be."""
    return [_shortened(run, planned - kept) if run.kind == "read" and run.keys == planned else run for run in passes]


def _shortened(run: Pass, tokens: int) -> Pass:
    return replace(run, cached=run.cached - tokens) if run.cached else replace(run, tokens=run.tokens - tokens)


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
