"""What does one worker do in a second? The figures that `homer plan --cluster` computes a cluster from, measured here.

Python's documentation is read once, and its rows are repeated to indexes of two lengths (`benchmarks/index.py`): what a
question's time grows by is its rate, what is left is its beginning. The driver's part is measured with Ray, where it is
installed: actors that do nothing are given tasks.

    python benchmarks/cluster_rates.py --tokens 0.5M 2M --threads 2 --output results/cluster/rates.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from homerlm import Homer, Index, load_model, prompt
from homerlm.cli.plan import with_default_profile
from homerlm.config import HomerConfig
from homerlm.lab.corpora import python_documentation
from homerlm.model.identity import model_name
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.scale.rates import Rates
from homerlm.select.document import Document
from homerlm.select.links import ROUNDS, SOURCES, Links
from homerlm.select.words import Words
from index import QUESTION, asked, repeated
from serve_process import machine

READ, REPEATS = 60_000, 5  # characters that are read, questions that are timed
TASKS, RANKED = 2000, 1 << 20
NEW_TOKENS = 32


def reading(homer: Homer) -> tuple[Index, float]:
    """An index, and tokens a second at which it was made, the quickest of three times. The first reading is not
    timed."""
    text, times = python_documentation()[:READ], []
    homer.read(text[: READ // 10])
    for _ in range(3):
        started = time.perf_counter()
        index = homer.read(text)
        times.append(time.perf_counter() - started)
    return index, len(index) / min(times)


def timed(homer: Homer, small: Index, tokens: int) -> dict[str, Any]:
    """The quickest of some questions to an index of so many tokens (a shared machine's others are slower by what else
    it does): seconds until its candidates are known, and for the rest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        repeated(small, tokens, path)
        index = Index.load(path, homer.model, homer.tokenizer)
        asked(homer, index)
        runs = [asked(homer, index) for _ in range(REPEATS)]
    scored = min(run["scored_s"] for run in runs)
    rest = min(run["seconds"] - run["scored_s"] for run in runs)
    return {"tokens": len(index), "scored_s": scored, "rest_s": rest, "runs": runs}


def line(points: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Seconds at no tokens, and tokens a second, of a line through two points."""
    first, last = points[0], points[-1]
    slope = (last[name] - first[name]) / (last["tokens"] - first["tokens"])
    if slope <= 0:
        raise RuntimeError(f"more tokens took no longer ({points}): something else ran beside it, measure again")
    return max(first[name] - slope * first["tokens"], 0.0), 1 / slope


def tokenise_rate(homer: Homer) -> float:
    """Tokens a second that are cut out of text by one thread."""
    assert homer.tokenizer is not None
    text, times = python_documentation()[: 10 * READ], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        count = prompt.token_ids(homer.tokenizer, text).shape[1]
        times.append(time.perf_counter() - started)
    return count / min(times)


def new_token_s(homer: Homer, index: Index) -> float:
    """Seconds of one more token of an answer."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        homer.ask(index, QUESTION, max_new_tokens=count, min_new_tokens=count)
        return time.perf_counter() - started

    seconds(1)
    short, long = (min(seconds(count) for _ in range(REPEATS)) for count in (1, NEW_TOKENS + 1))
    if long <= short:
        raise RuntimeError("a longer answer took no longer: something else ran beside it, measure again")
    return (long - short) / NEW_TOKENS


def search_rate(homer: Homer, index: Index) -> float:
    """Tokens a second that are searched for the words of the best sentences, as many times as there can be rounds."""
    assert homer.tokenizer is not None
    document, words, times = Document(index.ids, index.units), Words(homer.tokenizer), []
    for first in range(0, REPEATS * SOURCES, SOURCES):
        links = Links(document, words, index.ids[:0])
        started = time.perf_counter()
        run_steps(links.of(range(first, first + SOURCES)))
        times.append(time.perf_counter() - started)
    return len(index) / min(times) / ROUNDS


def merge_rate() -> float:
    """Candidates a second that are ranked: the best thousandth of so many."""
    scores = torch.rand(RANKED)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        scores.topk(RANKED // 1000)
        times.append(time.perf_counter() - started)
    return RANKED / min(times)


def task_s() -> float | None:
    """Seconds of the driver for a task of an actor, its answer with it; None without Ray."""
    try:
        import ray
    except ImportError:
        return None

    class Worker:
        def nothing(self) -> int:
            return 0

    ray.init("local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    try:
        actor: Any = ray.remote(Worker)
        workers = [actor.options(num_cpus=1).remote() for _ in range(2)]
        ray.get([worker.nothing.remote() for worker in workers])
        started = time.perf_counter()
        ray.get([workers[i % 2].nothing.remote() for i in range(TASKS)])
        return (time.perf_counter() - started) / TASKS
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="name, folder or file; default the bundled model")
    parser.add_argument("--tokens", nargs=2, default=["0.5M", "2M"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    before = machine()
    each_task = task_s()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    loaded = load_model(given.model)
    start = time.perf_counter() - started
    homer = Homer(*loaded, with_default_profile(HomerConfig()) if given.model is None else None)
    small, read = reading(homer)
    points = [timed(homer, small, int(float(wanted.rstrip("M")) * 10**6)) for wanted in given.tokens]
    question, scan = line(points, "scored_s")
    rerank, search = min(point["rest_s"] for point in points), search_rate(homer, small)
    rates = Rates(
        worker=f"{given.threads} threads of {before['processor']}",
        model="bundled" if given.model is None else model_name(loaded[0]) or given.model,
        index_bytes=round(small.nbytes / len(small), 1),
        text_bytes=round(len(small.text) / len(small), 2),
        tokenise=round(tokenise_rate(homer)),
        read=round(read),
        scan=round(scan),
        search=round(search),
        question_s=round(question, 3),
        rerank_s=round(rerank, 3),
        new_token_s=round(new_token_s(homer, small), 4),
        task_s=round(each_task or 0.0, 6),
        merge=round(merge_rate()),
        start_s=round(start, 2),
    )
    facts = {"command": "benchmarks/cluster_rates.py", "threads": given.threads, "before": before, "after": machine()}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"rates": asdict(rates), "facts": facts | {"ray": each_task is not None}, "points": points}
    given.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["rates"], indent=1))


if __name__ == "__main__":
    main()
