"""One cell measured: time, memory and operations of reading one prompt and of the tokens after it."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from homerlm.errors import UnsupportedModelError
from homerlm.lab.case import Cell
from homerlm.lab.flops import Shape
from homerlm.lab.methods import Method
from homerlm.lab.prefill import Prefilled, Subject, greedy_steps, random_prompt, subject_for
from homerlm.lab.questions import facts_of
from homerlm.lab.rates import Rates, measure_rates, synchronize
from homerlm.lab.tensors import peak_of_tensors
from homerlm.model.memory import PeakMemory, out_of_memory_explained
from homerlm.prompt import PromptIds

WARM_UP_LEN = 512  # tokens of the prompt that is read first, so that libraries and kernels are ready
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One repeat: seconds until the prompt was read, and until each new token was known; what it held."""

    prefill_s: float
    token_s: tuple[float, ...]
    peak_bytes: int
    kv_bytes: int
    kept: int


def measure(cell: Cell) -> Record:
    """The record of a cell. Raises `HomerError` for a cell that cannot run, out of memory among them."""
    method = Method.parse(cell.method)
    before = bytes_in_use(torch.device(cell.source.device))
    with out_of_memory_explained("loading the model", "Take a smaller model"):
        model, tokenizer = cell.source.load(method.rope)
        subject = subject_for(method, model, tokenizer)
    prompt = random_prompt(vocabulary(model), cell.length, cell.batch)
    record = facts_of(model, chat=False) | {"batch": cell.batch, "weights_bytes": weights_bytes(model)}
    if cell.source.compiled:
        record["model"] += ", compiled"
    try:
        shape = Shape.of(model)
    except UnsupportedModelError as error:
        shape, record["not_counted"] = None, str(error)
    with out_of_memory_explained(f"reading {cell.length} tokens", "Lower the length or the batch"):
        warm_up(subject, cell)
        record["constant_bytes"] = max(bytes_in_use(model.device) - before - record["weights_bytes"], 0)
        runs, rates = repeated(subject, prompt, cell, shape)
        if cell.tensors:
            record["tensors_bytes"] = tensors_bytes(subject, prompt)
    record |= _memory(record, runs[0]) | _times(cell, runs)
    return record if shape is None else record | _counted(subject, shape, prompt, record, Rates.typical(rates))


def repeated(subject: Subject, prompt: PromptIds, cell: Cell, shape: Shape | None) -> tuple[list[Run], list[Rates]]:
    """The repeats, and the machine's rates after each of them, where the model's operations can be counted. Not before:
    what measuring them leaves behind would hide memory that the first repeat takes."""
    runs: list[Run] = []
    rates: list[Rates] = []
    for _ in range(cell.repeats):
        runs.append(run_once(subject, prompt, max(cell.new_tokens)))
        if shape is not None:
            rates.append(measure_rates(subject.model, shape, subject.chunk_len(prompt)))
    return runs, rates


def vocabulary(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().weight.shape[0]


def weights_bytes(model: PreTrainedModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def warm_up(subject: Subject, cell: Cell) -> None:
    """Read a short prompt and write a few tokens. What stays then, above the weights, any prompt brings: Python's
    modules, libraries' rearranged copies of weights, their workspaces. (A CPU's weights are read from their file when
    they are first used, so memory right after loading would say nothing.)"""
    prompt = random_prompt(vocabulary(subject.model), min(cell.length, WARM_UP_LEN), cell.batch)
    run_once(subject, prompt, 3)
    gc.collect()


def tensors_bytes(subject: Subject, prompt: PromptIds) -> int:
    """Of tensors alive at once while the prompt is read. On CUDA the allocator's own peak is just that."""
    if subject.model.device.type == "cpu":
        return peak_of_tensors(lambda: subject.prefill(prompt))
    with PeakMemory(subject.model.device) as peak:
        subject.prefill(prompt)
    return peak.bytes


def bytes_in_use(device: torch.device) -> int:
    """Of the device's allocator, or the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def run_once(subject: Subject, prompt: PromptIds, new_tokens: int) -> Run:
    """Read the prompt and write `new_tokens`, the clock read only when the device has caught up."""
    gc.collect()
    device = subject.model.device
    peak, marks = PeakMemory(device), _Marks(device)
    with peak:
        marks.start()
        read: Prefilled = subject.prefill(prompt)
        marks.note()
        greedy_steps(subject.model, read, new_tokens, marks.note)
    prefill_s, *token_s = marks.seconds
    return Run(prefill_s, tuple(token_s), peak.bytes, read.kv_bytes, read.kept)


class _Marks:
    """Seconds since `start` at each `note`."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._device = device

    def start(self) -> None:
        self._started = self._now()

    def note(self) -> None:
        self.seconds.append(self._now() - self._started)

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def _memory(record: Record, run: Run) -> Record:
    """The first repeat's peak, which finds nothing that an earlier one left to use again."""
    return {
        "kept": run.kept,
        "peak_bytes": run.peak_bytes,
        "kv_bytes": run.kv_bytes,
        "transient_bytes": max(run.peak_bytes - run.kv_bytes, 0),
        "total_bytes": record["weights_bytes"] + record["constant_bytes"] + run.peak_bytes,
    }


def _times(cell: Cell, runs: list[Run]) -> Record:
    """Medians over the repeats. `seconds` by number of new tokens, the prompt's reading included (table 8)."""
    ends = {count: statistics.median(run.token_s[count - 1] for run in runs) for count in cell.new_tokens}
    steps = max(max(cell.new_tokens) - 1, 1)
    return {
        "n": len(runs),
        "prefill_s": statistics.median(run.prefill_s for run in runs),
        "first_token_s": statistics.median(run.token_s[0] for run in runs),
        "step_s": statistics.median((run.token_s[-1] - run.token_s[0]) / steps for run in runs),
        "seconds": {str(count): seconds for count, seconds in ends.items()},
        "prefills_s": [run.prefill_s for run in runs],
    }


def _counted(subject: Subject, shape: Shape, prompt: PromptIds, record: Record, rates: Rates) -> Record:
    """Operations and bytes from the plan, and the time that they alone would take on this machine."""
    counted = subject.counted(shape, prompt, record["kept"])
    flops = counted.flops
    floor, batch = rates.floor_s(flops) * record["batch"], record["batch"]
    return {
        "flops": asdict(flops * batch) | {"total": flops.total * batch},
        "counted_kv_bytes": counted.kv_bytes * batch,
        "kv_bound_bytes": counted.bound_bytes and counted.bound_bytes * batch,
        "rates": rates.to_dict(),
        "floor_s": floor,
        "floor_share": floor / record["prefill_s"],
        "step_floor_s": rates.step_floor_s(_read_bytes(subject.model, record), record["kv_bytes"]),
    }


def _read_bytes(model: PreTrainedModel, record: Record) -> int:
    """The weights that one new token needs: all but a table of embeddings that is not the output head's too."""
    table = model.get_input_embeddings().weight
    tied = table.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    return record["weights_bytes"] - (0 if tied else table.numel() * table.element_size())
