"""One case measured: time, memory and operations of reading one prompt and of the tokens after it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity

from homerlm.errors import UnsupportedModelError
from homerlm.lab.case import WARM_UP_LEN, Case, prepared, random_prompt
from homerlm.lab.costs import cost_of
from homerlm.lab.facts import Outcome, facts_of
from homerlm.lab.profile import quiet_profile
from homerlm.lab.rates import Rates, measure_rates
from homerlm.lab.readers import Reader
from homerlm.lab.samples import Asked
from homerlm.model.flops import Shape
from homerlm.model.memory import PeakMemory, out_of_memory_explained


@dataclass(frozen=True)
class Repeat:
    """Seconds until the prompt was read, and until each new token was known; what that held."""

    prefill_s: float
    token_s: tuple[float, ...]
    peak_bytes: int
    kv_bytes: int
    kept: int


def measure(case: Case) -> Outcome:
    """The record of a case. Raises `HomerError` for one that cannot run, out of memory among them."""
    before = bytes_in_use(torch.device(case.device))
    reader, prompt = prepared(case)
    model = reader.model
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    record = facts_of(model, chat=False) | {"batch": case.batch, "weights_bytes": weights}
    if case.compiled:
        record["model"] += ", compiled"
    try:
        shape = Shape.of(model)
    except UnsupportedModelError as error:
        shape, record["not_counted"] = None, str(error)
    repeats, rates = [], []
    with out_of_memory_explained(f"reading {case.length} tokens", "Lower the length or the batch"):
        warm_up(reader, case)
        record["constant_bytes"] = max(bytes_in_use(model.device) - before - weights, 0)
        for _ in range(case.repeats):
            repeats.append(run_once(reader, prompt, max(case.new_tokens)))
            if shape is not None:  # not before: what it leaves behind would hide memory that the first repeat takes
                rates.append(measure_rates(model, shape, cost_of(reader, shape, prompt).chunk_len))
        if case.tensors:
            record["tensors_bytes"] = tensors_bytes(reader, prompt)
    record |= _memory(record, repeats[0]) | _times(case, repeats)
    return record if shape is None else record | _floors(reader, shape, prompt, record, Rates.typical(rates))


def run_once(reader: Reader, prompt: Asked, new_tokens: int) -> Repeat:
    """Read the prompt and write `new_tokens`, the clock read only when the device has caught up."""
    gc.collect()
    device = reader.model.device
    moments: list[float] = []

    def note() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        moments.append(time.perf_counter())

    with PeakMemory(device) as peak:
        note()
        reading = reader.read(prompt, new_tokens)
        kept, prefill = len(reading.token_indices), reading.prefill()
        del reading
        note()
        prefill.likeliest(new_tokens, note)
    prefill_s, *token_s = (moment - moments[0] for moment in moments[1:])
    return Repeat(prefill_s, tuple(token_s), peak.bytes, prefill.kv_bytes, kept)


def warm_up(reader: Reader, case: Case) -> None:
    """Read a short prompt and write a few tokens. What stays then, above the weights, any prompt brings: Python's
    modules, libraries' rearranged copies of weights, their workspaces. (A CPU's weights are read from their file when
    they are first used, so memory right after loading would say nothing.)"""
    run_once(reader, random_prompt(reader.model, min(case.length, WARM_UP_LEN), case.batch), 3)
    gc.collect()


def bytes_in_use(device: torch.device) -> int:
    """Of the device's allocator, or the process's resident set."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def tensors_bytes(reader: Reader, prompt: Asked) -> int:
    """Of tensors alive at once while the prompt is read. On CUDA the allocator's own peak is just that."""
    if reader.model.device.type == "cpu":
        return peak_of_tensors(lambda: reader.read(prompt, 0).prefill())
    with PeakMemory(reader.model.device) as peak:
        reader.read(prompt, 0).prefill()
    return peak.bytes


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Bytes of CPU tensors alive at once, at most, during `work`, beyond those alive before.

    Unlike the resident set it repeats to the byte: memory that the process kept for later, or that libraries took by
    themselves, is not in it. Recording slows the work by a few percent, and itself takes memory.
    """
    with quiet_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    recorder: Any = recorded.profiler
    events = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(sizes), default=0)


def _memory(record: Outcome, first: Repeat) -> Outcome:
    """The first repeat's peak, which finds nothing that an earlier one left to use again."""
    return {
        "kept": first.kept,
        "peak_bytes": first.peak_bytes,
        "kv_bytes": first.kv_bytes,
        "transient_bytes": max(first.peak_bytes - first.kv_bytes, 0),
        "total_bytes": record["weights_bytes"] + record["constant_bytes"] + first.peak_bytes,
    }


def _times(case: Case, repeats: list[Repeat]) -> Outcome:
    """Medians over the repeats. `seconds` by number of new tokens, the prompt's reading included (table 8)."""
    ends = [statistics.median(seconds) for seconds in zip(*(one.token_s for one in repeats), strict=True)]
    steps = [(one.token_s[-1] - one.token_s[0]) / max(len(ends) - 1, 1) for one in repeats]
    return {
        "n": len(repeats),
        "prefill_s": statistics.median(one.prefill_s for one in repeats),
        "first_token_s": ends[0],
        "step_s": statistics.median(steps),
        "seconds": {str(n): ends[n - 1] for n in case.new_tokens},
        "prefills_s": [one.prefill_s for one in repeats],
    }


def _floors(reader: Reader, shape: Shape, prompt: Asked, record: Outcome, rates: Rates) -> Outcome:
    """Operations and bytes from the plan, and the time that they alone would take on this machine. Of a new token it
    is the time in which every key and value is read once, and every weight but those of a table of embeddings that is
    not the output head's too."""
    cost, batch = cost_of(reader, shape, prompt, record["kept"]), record["batch"]
    flops, floor = cost.flops, rates.floor_s(cost.flops) * batch
    table, head = (part().weight for part in (reader.model.get_input_embeddings, reader.model.get_output_embeddings))
    unread = 0 if table.data_ptr() == head.data_ptr() else table.numel() * table.element_size()
    return {
        "flops": {name: count * batch for name, count in (flops._asdict() | {"total": flops.total}).items()},
        "counted_kv_bytes": cost.kv_bytes * batch,
        "kv_bound_bytes": cost.bound_bytes and cost.bound_bytes * batch,
        "rates": rates._asdict(),
        "floor_s": floor,
        "floor_share": floor / record["prefill_s"],
        "step_floor_s": (record["weights_bytes"] - unread + record["kv_bytes"]) / rates.copy,
    }
