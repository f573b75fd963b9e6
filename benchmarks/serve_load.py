r"""Many clients at once, some of which leave at random moments: is every answer that one client alone gets, is nothing
lost, and does the server hold afterwards what it held before? Requests of all kinds go to a real `homer serve`, some of
them with a long document each; another server, asked by one client, gives the answers to compare with. They are kept in
`--alone`, so that this part may be stopped and gone on with.

    python benchmarks/serve_load.py --output results/serve/load.json                        # a tiny model, float32
    python benchmarks/serve_load.py --bundled --clients 20 --requests 150 --characters 25000 --different 12 --long 0 \
        --warm-up 0.2 --threads 2 --output results/serve/load-bundled.json                  # float32, documents of 6k
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from homerlm.work import IDLE_S
from serve_process import Held, ServerProcess, machine, served, tiny_model
from serve_requests import KINDS, LONG, Ask, answer, pieces

LEAVING = 0.2  # of the clients
DIFFERENT = 25  # requests of each kind
CALM_SECONDS = 30.0  # at most, until nothing is being answered any more
GIVEN_BACK_S = IDLE_S + 2  # without work, after which the server has given freed memory back
WARM_UP = 1.0  # as many requests again, others, before it is looked at what the server holds: caches, pools, imports
LONG_EVERY = 50  # one request of so many has a long document of its own
POOLS = {"asyncio": min(32, (os.cpu_count() or 1) + 4), "AnyIO worker thread": 40}  # threads that wait for work
OF_REQUESTS = ("CompactContext", "Row", "Job", "Prepared")  # classes whose objects end with their request


@dataclass
class Seen:
    """What became of requests. answers: of those that were waited for; left: of clients that went away; seconds: of the
    answers, by kind; samples: of what the server held meanwhile; total_seconds: until the last client was done;
    running: requests that were being answered even afterwards."""

    answers: list[tuple[Ask, bool, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    samples: list[dict[str, float]] = field(default_factory=list)
    total_seconds: float = 0.0
    running: int = 0

    @property
    def requests(self) -> int:
        return len(self.answers) + len(self.errors) + self.left.total()


async def load(server: ServerProcess, asks: list[Ask], clients: int, seed: int) -> Seen:
    """Let so many clients at once send the requests, in order; a share of `LEAVING` goes away before its answer. Ends
    once the server has been idle for a while."""
    seen, draw = Seen(), random.Random(seed)
    waiting = iter([(ask, draw.random() < 0.5, draw.random() < LEAVING, draw.random()) for ask in asks])

    async def client() -> None:
        async with httpx.AsyncClient(base_url=server.address, timeout=600) as http:
            for ask, stream, leaves, moment in waiting:
                await (_leave(http, ask, stream, moment, seen) if leaves else _stay(http, ask, stream, seen))

    watching, started = asyncio.create_task(_watch(server, seen)), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seen.total_seconds = round(time.perf_counter() - started, 1)
    seen.running = await asyncio.to_thread(calm, server)
    await asyncio.sleep(GIVEN_BACK_S)
    watching.cancel()
    return seen


async def _stay(http: httpx.AsyncClient, ask: Ask, stream: bool, seen: Seen) -> None:
    started = time.perf_counter()
    try:
        text = await answer(http, ask, stream=stream)
    except (httpx.HTTPError, RuntimeError) as error:
        seen.errors.append(f"{ask.kind}: {type(error).__name__} {error}"[:300])
    else:
        seen.answers.append((ask, stream, text))
        seen.seconds[ask.kind].append(round(time.perf_counter() - started, 4))


async def _leave(http: httpx.AsyncClient, ask: Ask, stream: bool, moment: float, seen: Seen) -> None:
    """Go away at a random moment: after some pieces of a stream, or after a time."""
    if stream and moment < 0.5:
        async with aclosing(pieces(http, ask)) as coming:
            for _ in range(int(2 * moment * ask.new_tokens) + 1):
                with suppress(StopAsyncIteration, httpx.HTTPError, RuntimeError):
                    await anext(coming)
        seen.left["in a stream"] += 1
        return
    with suppress(TimeoutError, httpx.HTTPError, RuntimeError):
        async with asyncio.timeout(2 * moment):
            await answer(http, ask, stream=stream)
        seen.left["after its answer"] += 1
        return
    seen.left["before its answer"] += 1


async def _watch(server: ServerProcess, seen: Seen) -> None:
    started = time.perf_counter()
    while True:
        memory = server.process.memory_full_info()
        numbers = {"uss": memory.uss, "threads": server.process.num_threads(), "files": server.process.num_fds()}
        seen.samples.append({"seconds": round(time.perf_counter() - started, 2), **numbers})
        await asyncio.sleep(1)


async def alone(server: ServerProcess, asks: list[Ask], kept: Path | None) -> dict[Ask, str]:
    """The answers that a single client gets, one after the other; those in the file are not asked for again."""
    known = {str(ask): ask for ask in asks}
    lines = kept.read_text().splitlines() if kept is not None and kept.exists() else []
    answers = {known[one["ask"]]: one["text"] for one in map(json.loads, lines) if one["ask"] in known}
    async with httpx.AsyncClient(base_url=server.address, timeout=600) as http:
        for ask in known.values():
            if ask not in answers:
                answers[ask] = await answer(http, ask, stream=False)
                _keep(kept, {"ask": str(ask), "text": answers[ask]})
    return answers


def _keep(path: Path | None, line: dict[str, str]) -> None:
    if path is not None:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def calm(server: ServerProcess) -> int:
    """How many requests are still being answered once nothing changes any more, this one apart."""
    end = time.monotonic() + CALM_SECONDS
    with server.client() as http:
        while True:
            found = re.search(r"^homer_requests_running (\S+)", http.get("/metrics").text, re.MULTILINE)
            assert found is not None
            running = int(float(found[1])) - 1
            if not running or time.monotonic() > end:
                return running
            time.sleep(0.1)


def asks_of(count: int, seed: int, first: int, characters: int, long: int, different: int = DIFFERENT) -> list[Ask]:
    """So many requests of all kinds, from `different` ones of each, whose numbers begin at `first`; characters: of
    their documents; long: of those of one request in `LONG_EVERY`, 0 for no such."""
    draw, numbers = random.Random(seed), range(first, first + different)
    asks = [Ask(draw.choice(KINDS), draw.choice(numbers), draw.choice([6, 12, 20]), characters) for _ in range(count)]
    if long:
        for number, at in enumerate(range(LONG_EVERY // 2, count, LONG_EVERY), first + different):
            asks[at] = Ask(LONG, number, 12, long)
    return asks


def report(seen: Seen, expected: dict[Ask, str], start: Held, before: Held, after: Held) -> dict[str, Any]:
    """Figures; `ok` holds whether each of the promises is kept. start: what the server held before any request."""
    other = [(ask, stream, text) for ask, stream, text in seen.answers if text != expected[ask]]
    grown, since_start = _grown(before, after), _grown(start, after)
    return {
        "ok": {
            "nothing lost": not seen.errors,
            "answers equal to a single client's": not other,
            "memory within 5%": max(grown.values()) <= 0.05,
            "threads": all(
                n <= max(before.threads.get(name, 0), POOLS.get(name, 0)) for name, n in after.threads.items()
            ),
            "files but those of indexes": after.files - after.objects["Mapped"]
            <= before.files - before.objects["Mapped"],
            "requests, contexts and rows": not (seen.running or any(after.objects[name] for name in OF_REQUESTS)),
            "sqlite handles": after.sqlite == before.sqlite,
            "processes": after.children == before.children == 0,
        },
        "requests": seen.requests,
        "answered": len(seen.answers),
        "streamed": sum(stream for _, stream, _ in seen.answers),
        "equal": len(seen.answers) - len(other),
        "left": dict(seen.left),
        "errors": seen.errors[:20],
        "different": [{"ask": str(ask), "alone": expected[ask], "here": text} for ask, _, text in other[:20]],
        "grown": grown,
        "grown_since_start": since_start,
        "total_seconds": seen.total_seconds,
        "start": start.to_dict(),
        "before": before.to_dict(),
        "after": after.to_dict(),
        "seconds": seen.seconds,
        "samples": seen.samples,
    }


def _grown(before: Held, after: Held) -> dict[str, float]:
    return {name: round(getattr(after, name) / getattr(before, name) - 1, 4) for name in ("uss", "rss")}


def run(
    model: Path | None,
    clients: int,
    requests: int,
    seed: int,
    *,
    characters: int = 9_000,
    long: int = 0,
    kept: Path | None = None,
    different: int = DIFFERENT,
    again: float = WARM_UP,
    **settings: Any,
) -> dict[str, Any]:
    """Answers alone on one server, then the warm-up and the load on another. again: share of the requests that the
    warm-up has."""
    asks = asks_of(requests, seed, 0, characters, long, different)
    warm_up = asks_of(int(again * requests), seed + 1, 1000, characters, long, different)
    with served(model, **settings) as server:
        expected = asyncio.run(alone(server, asks, kept))
    with served(model, **settings) as server:
        time.sleep(GIVEN_BACK_S)
        start = server.held()
        asyncio.run(load(server, warm_up, clients, seed + 1))
        before = server.held()
        seen = asyncio.run(load(server, asks, clients, seed))
        found = report(seen, expected, start, before, server.held())
    longs = {"long_documents": sum(ask.kind == LONG for ask in asks), "characters_of_long_documents": long}
    return {"clients": clients, "characters": characters, **longs, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--long", type=int, default=270_000, help="Characters of long documents, about 4.2 a token.")
    parser.add_argument("--characters", type=int, default=9_000, help="Of the other documents.")
    parser.add_argument("--different", type=int, default=DIFFERENT, help="Requests of each kind.")
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="Share of the requests that come before.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", type=Path, help="File of the answers that a single client gets.")
    parser.add_argument("--bundled", action="store_true", help="The bundled model, not a tiny one.")
    parser.add_argument("--output", type=Path, default=Path("results/serve/load.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = None if options.bundled else tiny_model(Path(folder))
        sizes = {"characters": options.characters, "long": options.long, "different": options.different}
        sizes |= {"kept": options.alone, "again": options.warm_up, "threads": options.threads}
        found = run(model, options.clients, options.requests, options.seed, dtype="float32", **sizes)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "model": "bundled" if options.bundled else "tiny", "seed": options.seed}
    options.output.write_text(json.dumps({**facts, **found}) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("samples", "seconds")}, indent=1))


if __name__ == "__main__":
    main()
