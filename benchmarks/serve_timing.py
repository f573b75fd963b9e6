"""What readers of long documents cost those who chat beside them, and what answers that are written side by side gain.
All figures are ratios of times of one run, on one real `homer serve` of the bundled model:

- decode throughput of 8 answers at once against one;
- the longest gap in a stream while two documents of 64k tokens are read, against one chunk of reading and one step of
  writing, both measured alone before;
- the time to the first token of a short chat meanwhile, and of one while nothing but one such document is read, in
  chunks.

    python benchmarks/serve_timing.py --threads 2 --output results/serve/timing.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve_process import ServerProcess, machine, served
from serve_requests import CHAT, document

STREAMS, BESIDE, READERS = 8, 4, 2
TOKENS = 48  # of an answer whose throughput is measured
CHARACTERS = 4.2  # of a token of Python's documentation, about
STORY = "Write a long story about a lighthouse keeper, number {}. Begin with: Once upon a time"


@dataclass
class Told:
    """When something came, in seconds. first: of a request's sending; tokens: of each token of the answer; progress: of
    each step of reading; read: tokens that the model read."""

    first: float = field(default_factory=time.perf_counter)
    tokens: list[float] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    read: int = 0

    @property
    def gaps(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.tokens, self.tokens[1:], strict=False)]

    @property
    def to_first_token(self) -> float:
        return self.tokens[0] - self.first


async def chat(http: httpx.AsyncClient, text: str, new_tokens: int, told: Told | None = None) -> Told:
    """A streamed answer, timed as its client sees it."""
    told = told or Told()
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": new_tokens, "stream": True, "logprobs": True}
    body |= {"return_progress": True, "stream_options": {"include_usage": True}}
    async for event in _events(http, body):
        now = time.perf_counter()
        if "prompt_progress" in event:
            told.progress.append(now)
        if event.get("usage"):
            told.read = event["usage"]["homer"]["read"]
        for choice in event["choices"]:
            told.tokens += [now] * len((choice["logprobs"] or {"content": []})["content"])
    return told


async def _events(http: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    async with http.stream("POST", CHAT, json=body) as got:
        got.raise_for_status()
        async for line in got.aiter_lines():
            data = line.removeprefix("data: ")
            if data not in (line, "[DONE]"):
                event = json.loads(data)
                assert "error" not in event, event
                yield event


async def throughput(http: httpx.AsyncClient, streams: int) -> float:
    """Tokens a second of so many answers together, from when all are being written until the first one ends."""
    told = await asyncio.gather(*(chat(http, STORY.format(number), TOKENS) for number in range(streams)))
    begin, end = max(one.tokens[0] for one in told), min(one.tokens[-1] for one in told)
    return sum(sum(begin < at <= end for at in one.tokens) for one in told) / (end - begin)


async def decoding(http: httpx.AsyncClient, repeats: int) -> dict[str, Any]:
    pairs = [(await throughput(http, 1), await throughput(http, STREAMS)) for _ in range(repeats)]
    ratios = [many / one for one, many in pairs]
    return {
        "tokens_a_second_alone": [round(one, 2) for one, _ in pairs],
        f"tokens_a_second_of_{STREAMS}": [round(many, 2) for _, many in pairs],
        "ratio": round(statistics.median(ratios), 2),
    }


async def read(http: httpx.AsyncClient, number: int, tokens: int) -> Told:
    """A question about a long document of its own."""
    return await chat(http, f"{document(number, int(CHARACTERS * tokens))}\n\nWhat is a list?", 8)


async def beside(http: httpx.AsyncClient, tokens: int) -> dict[str, Any]:
    """Chats beside readers; chunk and step alone first."""
    alone = await read(http, 1, tokens)
    chunks = [later - sooner for sooner, later in zip(alone.progress, alone.progress[1:], strict=False)]
    chunks = [chunk for chunk in chunks if chunk > 0.002]  # the last event comes again when the document is done
    streams = await asyncio.gather(*(chat(http, STORY.format(n), TOKENS) for n in range(BESIDE)))
    steps = [gap for one in streams for gap in one.gaps if gap]
    told, firsts, readers = await _together(http, tokens)
    gaps = [gap for one in told for gap in one.gaps if gap]
    chunk, step = statistics.median(chunks), statistics.median(steps)
    return {
        "read": [one.read for one in (alone, *readers)],
        "chunk": _figures(chunks),
        "step": _figures(steps),
        "gap": _figures(gaps),
        "longest_gap_of_longest_chunk_and_step": round(max(gaps) / (max(chunks) + max(steps)), 3),
        "longest_gap_of_median_chunk_and_step": round(max(gaps) / (chunk + step), 3),
        "share_of_gaps_above_median_chunk_and_step": round(sum(gap > chunk + step for gap in gaps) / len(gaps), 4),
        "first_token": _figures(firsts),
        "first_token_in_chunks": [round(first / chunk, 2) for first in (statistics.median(firsts), max(firsts))],
        "gaps": [round(gap, 4) for gap in gaps],
        "chunks": [round(chunk, 4) for chunk in chunks],
        "first_tokens": [round(first, 4) for first in firsts],
    }


async def _together(http: httpx.AsyncClient, tokens: int) -> tuple[list[Told], list[float], list[Told]]:
    """Streams and short chats, again and again, until the readers have begun to answer."""
    readers = [asyncio.create_task(read(http, 2 + number, tokens)) for number in range(READERS)]
    told: list[Told] = []
    firsts: list[float] = []

    async def streaming(number: int) -> None:
        while not any(reader.done() for reader in readers):
            told.append(Told())
            await chat(http, STORY.format(number), 200, told[-1])

    async def asking() -> None:
        while sum(bool(one.tokens) for one in told) < BESIDE:  # their own beginnings wait for each other
            await asyncio.sleep(0.05)
        for number in range(1000):
            await asyncio.sleep(1)
            if any(reader.done() for reader in readers):
                return
            firsts.append((await chat(http, f"Say hello, number {number}.", 2)).to_first_token)

    await asyncio.sleep(2)  # until the documents are being read
    await asyncio.gather(asking(), *(streaming(number) for number in range(BESIDE)))
    return told, firsts, list(await asyncio.gather(*readers))


async def beside_one(http: httpx.AsyncClient, tokens: int, chunk: float) -> dict[str, Any]:
    """Short chats, one after the other, while a document is read. chunk: seconds of one, alone."""
    reader = asyncio.create_task(read(http, 2 + READERS, tokens))
    await asyncio.sleep(2)
    firsts: list[float] = []
    while not reader.done():
        told = await chat(http, f"Say hello, number {100 + len(firsts)}.", 2)
        if not reader.done():
            firsts.append(told.to_first_token)
        await asyncio.sleep(0.2)
    in_chunks = [round(first / chunk, 2) for first in (statistics.median(firsts), max(firsts))]
    return {"read": (await reader).read, "first_token": _figures(firsts), "first_token_in_chunks": in_chunks}


def _figures(seconds: list[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "median_ms": round(1000 * statistics.median(seconds), 1),
        "p99_ms": round(1000 * statistics.quantiles(seconds, n=100)[98], 1),
        "most_ms": round(1000 * max(seconds), 1),
    }


async def measure(server: ServerProcess, tokens: int, repeats: int) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.address, timeout=600) as http:
        await chat(http, "Warm up.", 8)
        found = {"decoding": await decoding(http, repeats), "beside": await beside(http, tokens)}
        chunk = found["beside"]["chunk"]["median_ms"] / 1000
        return {**found, "beside_one": await beside_one(http, tokens, chunk)}


@contextmanager
def paused(text: str | None) -> Iterator[int]:
    """Other processes whose command has this text stand still meanwhile; how many there are."""
    found = [one for one in psutil.process_iter(["cmdline"]) if text and text in " ".join(one.info["cmdline"] or [])]
    others = [one for one in found if one.pid != os.getpid()]
    try:
        for one in others:
            one.send_signal(signal.SIGSTOP)
        yield len(others)
    finally:
        for one in others:
            one.send_signal(signal.SIGCONT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", help="Let processes whose command has this text stand still meanwhile.")
    parser.add_argument("--output", type=Path, default=Path("results/serve/timing.json"))
    options = parser.parse_args()
    with paused(options.pause) as standing, served(None, threads=options.threads) as server:
        before = machine()
        found = asyncio.run(measure(server, options.tokens, options.repeats))
        facts = {"machine": before, "load_after": machine()["load"], "threads": options.threads, "paused": standing}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**facts, **found}) + "\n")
    long = ("gaps", "chunks", "first_tokens")
    shown = {name: value for name, value in found["beside"].items() if name not in long}
    print(json.dumps({**facts, **found, "beside": shown}, indent=1))


if __name__ == "__main__":
    main()
