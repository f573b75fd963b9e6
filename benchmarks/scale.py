"""What do workers on Ray cost, and what do they bring, on one machine? A document is read for a question in this
process and by workers, in turn; the chosen tokens must be the same. Times are of reading and choosing, from ids to the
short prompt that the answer is read from; models are loaded before.

    python benchmarks/scale.py --lengths 16k 64k --repeats 3 --output results/scale/one-machine.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from homerlm import Homer, load_model, prompt
from homerlm.cli.options import parse_counts
from homerlm.context import CompactContext
from homerlm.lab.corpora import python_documentation
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import Event
from homerlm.scale.ray_workers import RayExecutor, RaySettings
from homerlm.scale.source import ModelSource
from serve_process import machine

QUESTION = "What is the special magic number for Kyoto mentioned in the provided text?"
WARM_UP = 4096  # tokens
ROWS = {  # workers and threads of each; no workers: this process
    "in process, 2 threads": (0, 2),
    "1 worker of 2 threads": (1, 2),
    "in process, 1 thread": (0, 1),
    "2 workers of 1 thread": (2, 1),
}


def prepared(model: str | None, row: str, stack: ExitStack) -> Homer:
    """A model whose chunks are read as a row says."""
    workers, threads = ROWS[row]
    executor = None
    if workers:
        settings = RaySettings(workers=workers, cpus=0, threads=threads)  # all rows are there at once
        executor = stack.enter_context(RayExecutor(ModelSource(model), settings))
        executor.wait_until_loaded()
    return Homer(*load_model(model), executor=executor)


def timed(homer: Homer, row: str, ids: tuple[torch.Tensor, ...]) -> tuple[dict[str, Any], CompactContext]:
    """One reading: its seconds, of the chunks alone and of all, and what it moved."""
    torch.set_num_threads(ROWS[row][1])
    executor = homer.executor
    before = executor.bytes_moved if isinstance(executor, RayExecutor) else 0
    read: list[float] = []

    def observe(event: Event) -> None:
        if event.level == 1:
            read.append(time.perf_counter())

    started = time.perf_counter()
    context = homer.compress(*ids, observer=observe)
    seconds = time.perf_counter() - started
    moved = executor.bytes_moved - before if isinstance(executor, RayExecutor) else 0
    return {"chunks_s": read[0] - started, "seconds": seconds, "bytes_moved": moved}, context


def measured(homers: dict[str, Homer], ids: tuple[torch.Tensor, ...], repeats: int) -> list[dict[str, Any]]:
    """A record of each row, medians of readings that took turns, after a short one each that is not counted."""
    runs: dict[str, list[dict[str, Any]]] = {row: [] for row in homers}
    contexts: dict[str, CompactContext] = {}
    for row, homer in homers.items():
        timed(homer, row, (ids[0], ids[1][:, :WARM_UP], ids[2]))
    for _ in range(repeats):
        for row, homer in homers.items():
            run, contexts[row] = timed(homer, row, ids)
            runs[row].append(run)
            print(row, json.dumps(run), flush=True)
    alone = {ROWS[row][1]: contexts[row] for row in homers if not ROWS[row][0]}  # by threads, which make a difference
    return [
        {
            "row": row,
            "workers": ROWS[row][0],
            "threads_each": ROWS[row][1],
            "tokens": ids[1].shape[1],
            "repeats": repeats,
            **{name: round(statistics.median(run[name] for run in runs[row]), 3) for name in runs[row][0]},
            "all_seconds": [round(run["seconds"], 3) for run in runs[row]],
            "bytes_per_token": round(runs[row][-1]["bytes_moved"] / ids[1].shape[1], 2),
            "as_in_process": same(contexts[row], alone.get(ROWS[row][1])),
        }
        for row in homers
    ]


def same(context: CompactContext, alone: CompactContext | None) -> bool | None:
    """Whether the chosen tokens and their logits are, to the bit, those of as many threads in process."""
    if alone is None:
        return None
    return torch.equal(context.token_indices, alone.token_indices) and torch.equal(context.logits, alone.logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="name, folder or file; default the bundled model")
    parser.add_argument("--lengths", nargs="+", default=["16k", "64k"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    records: list[dict[str, Any]] = []
    with ExitStack() as stack:
        homers: dict[str, Homer] = {row: prepared(given.model, row, stack) for row in given.rows}
        tokenizer = next(iter(homers.values())).tokenizer
        assert tokenizer is not None
        prefix, suffix = (prompt.token_ids(tokenizer, part) for part in prompt.affixes(tokenizer, QUESTION))
        document = prompt.token_ids(tokenizer, python_documentation())
        for length in parse_counts(" ".join(given.lengths), "--lengths"):
            records += measured(homers, (prefix, document[:, :length], suffix), given.repeats)
    print(json.dumps(records, indent=1))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"model": given.model or "bundled", "machine": machine(), "rows": records}
        given.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
