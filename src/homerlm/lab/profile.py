"""Where the time of reading one prompt goes: every moment belongs to exactly one part.

torch's profiler records named ranges around the model's modules and homerlm's own functions, both only inside a `with`
block; what a range has beyond the ranges within it is its part's own. On CUDA it is the time of the kernels, and what
the device waits for Python is the rest.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pkgutil import resolve_name
from tempfile import TemporaryFile
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile
from transformers import PreTrainedModel

from homerlm.lab.case import WARM_UP_LEN, Case, prepared, random_prompt
from homerlm.lab.facts import Outcome, facts_of
from homerlm.lab.readers import Reader
from homerlm.lab.samples import Asked
from homerlm.model.decoder import Decoder
from homerlm.model.flops import attention_linears
from homerlm.model.memory import out_of_memory_explained

ATTENTION, PROJECTIONS, MLP, NORMS = "attention", "projections", "MLP", "norms and rotary"
SCORING, MERGING, HEAD, REST = "scoring", "merging copies", "embedding and head", "rest (Python)"
PARTS = (ATTENTION, PROJECTIONS, MLP, NORMS, SCORING, MERGING, HEAD, REST)

NOTES = b"USDT:"  # of its C++ library on the terminal; KINETO_LOG_LEVEL would silence its errors too

FUNCTIONS = {  # of the library, by where they are looked up
    "homerlm.model.attention.sdpa_attention_forward": ATTENTION,
    "homerlm.score.scores.Score.__call__": SCORING,
    "homerlm.merge.tree.keep_most_significant": SCORING,
    "homerlm.select.ranking.Ranking.candidates": SCORING,
    "homerlm.select.ranking.Ranking.reranked": SCORING,
    "homerlm.select.ranking.Ranking.kept": SCORING,
    "homerlm.select.ranking.recap": SCORING,
    "homerlm.merge.chunk.Chunk.select": MERGING,
    "homerlm.merge.chunk.Chunk.merge": MERGING,
    "homerlm.merge.chunk.Chunk.rows": MERGING,
}


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
def parts_recorded(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the profiler sees every part as a range; after it, model and library are as they were."""
    with ExitStack() as undo:
        for module, part in parts_of_modules(model):
            undo.enter_context(patch.object(module, "forward", _in_range(module.forward, part)))
        for name, part in FUNCTIONS.items():
            owner, _, attribute = name.rpartition(".")
            found = getattr(resolve_name(owner), attribute)
            undo.enter_context(patch(name, _in_range(found, part)))
        yield


def _in_range(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return recorded


def profile_once(reader: Reader, prompt: Asked) -> dict[str, float]:
    """Seconds by part of one reading. The plain model's attention, too, goes through the adapter's function, which is
    torch's own kernel in both cases."""
    model = reader.model
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if model.device.type == "cuda" else [])]
    with parts_recorded(model), Decoder(model).watched(), quiet_profile(activities=activities) as seen:  # noqa: SIM117
        with record_function(REST):  # closed before the profiler is
            reader.read(prompt, 0).prefill()
            if model.device.type != "cpu":
                torch.accelerator.synchronize(model.device)
    return own_seconds(seen.events(), on_device=model.device.type == "cuda")


def own_seconds(events: Any, on_device: bool = False) -> dict[str, float]:
    """Seconds by part: what each range has beyond the ranges within it; their sum is the outermost range's time."""
    totals = dict.fromkeys(PARTS, 0.0)
    ranges = [event for event in events if event.name in totals and event.device_type == DeviceType.CPU]
    for event in ranges:
        within = sum(_seconds(inner, on_device) for inner in _ranges_within(event))
        totals[event.name] += _seconds(event, on_device) - within
    if on_device:
        totals[REST] += max(_seconds(event, False) - _seconds(event, True) for event in ranges if event.name == REST)
    return totals


def _seconds(event: Any, on_device: bool) -> float:
    return (event.device_time_total if on_device else event.cpu_time_total) / 1e6


def _ranges_within(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        if child.name in PARTS:
            yield child
        else:
            yield from _ranges_within(child)


def profile(case: Case) -> Outcome:
    """The record of a case: `parts` in seconds, the medians over its repeats."""
    reader, prompt = prepared(case)
    with out_of_memory_explained(f"reading {case.length} tokens", "Lower the length or the batch"):
        reader.read(random_prompt(reader.model, min(case.length, WARM_UP_LEN), case.batch), 0).prefill()
        runs = [profile_once(reader, prompt) for _ in range(case.repeats)]
    parts = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    return facts_of(reader.model, chat=False) | {"batch": case.batch, "n": len(runs), "parts": parts}


@contextmanager
def quiet_profile(**settings: Any) -> Iterator[torch_profile]:
    """`torch.profiler.profile(**settings)` over the block, without its library's notes on the terminal."""
    profiler = torch_profile(**settings)
    with lines_left_out(NOTES):
        profiler.start()
    try:
        yield profiler
    finally:
        with lines_left_out(NOTES):
            profiler.stop()


@contextmanager
def lines_left_out(start: bytes) -> Iterator[None]:
    """Standard error, at the level of the process, less the lines that begin with `start`; the others come after the
    block."""
    sys.stderr.flush()
    kept = os.dup(2)
    with TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not line.startswith(start):
                    os.write(2, line)
