"""How long does a question take that is asked of an index of millions of tokens, and in what memory? Python's
documentation is read once, and its rows are repeated (what they are makes no difference to the time) into a file as
long as wanted. Each question is timed from its ids to the short prompt that its answer is read from.

    python benchmarks/index.py --tokens 1M 10M --threads 2 --output results/index/asking.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from homerlm import Homer, Index, load_model, prompt
from homerlm.index.index import Part, saving
from homerlm.lab.corpora import python_documentation
from homerlm.mapped import Rows
from homerlm.model.memory import PeakMemory, keep_freed_memory

QUESTION = "What is the special magic number for Kyoto mentioned in the provided text?"
READ, REPEATS = 30_000, 3  # characters that are read, questions that are timed


def repeated(index: Index, tokens: int, path: Path) -> None:
    """A file of an index that holds the same rows over and over, written without holding them."""
    times, length = -(-tokens // len(index)), len(index)
    shifts = {"chunks": length, "units": length}
    rows = {
        name: [Rows.of(tensor + shifts.get(name, 0) * i if name in shifts else tensor) for i in range(times)]
        for name, tensor in index.tensors().items()
    }
    parts = [Part("repeated", 0, times * length, 0, times * len(index.text))]
    for _ in saving(path, index.frame, parts, rows):
        pass


def asked(homer: Homer, index: Index) -> dict[str, Any]:
    """One question: seconds until the candidates are known and until all is read, and its peak of memory."""
    tokenizer = homer.tokenizer
    suffix = prompt.token_ids(tokenizer, prompt.affixes(tokenizer, QUESTION)[1])
    scored: list[float] = []
    with PeakMemory(homer.model) as peak:
        started = time.perf_counter()
        homer.search(
            index, suffix, observer=lambda event: scored.append(time.perf_counter()) if event.level == 1 else None
        )
        seconds = time.perf_counter() - started
    return {"scored_s": scored[0] - started, "seconds": seconds, "peak_bytes": peak.bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="name, folder or file; default the bundled model")
    parser.add_argument("--tokens", nargs="+", default=["1M", "10M"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    homer = Homer(*load_model(given.model))
    records = []
    for int8 in (False, True):
        started = time.perf_counter()
        small = homer.read(python_documentation()[:READ], int8=int8)
        reading = len(small) / (time.perf_counter() - started)
        for wanted in given.tokens:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "index"
                repeated(small, int(wanted.rstrip("M")) * 10**6, path)
                started = time.perf_counter()
                index = Index.load(path, homer.model, homer.tokenizer)
                loaded = time.perf_counter() - started
                asked(homer, index)  # warm
                runs = [asked(homer, index) for _ in range(REPEATS)]
            medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
            records.append(
                {
                    "model": given.model or "bundled",
                    "threads": given.threads,
                    "tokens": len(index),
                    "int8": int8,
                    "bytes_per_token": round(index.nbytes / len(index), 1),
                    "heads": str(index.frame.layout.scoring),
                    "reading_tokens_per_s": round(reading),
                    "load_s": round(loaded, 2),
                    **medians,
                }
            )
            print(json.dumps(records[-1]), flush=True)
    if given.output:
        given.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
