"""`kill -9` of a whole server at random moments, while clients upload files, let documents be read and fill the store
so that others give way. After each restart on the same folder it is checked that nothing is half visible
(`serve_checks`).

    python benchmarks/serve_kills.py --kills 100 --output results/serve/kills.json

Results that are there already are gone on with, on a new folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx

from serve_checks import Expected, check, left_behind
from serve_process import Launcher, ServerProcess, machine, tiny_model

SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "store_bytes": 2_000_000, "owner_bytes": 2_000_000}
MOST_FILES = 4  # that a client keeps
DOCUMENTS = 40  # different ones that are asked about
WORDS = "the keeper of light house sea wind letter brother Kyoto Sunday storm lamp stairs oil log book".split()  # noqa: SIM905


class Server(Protocol):
    """What can be killed."""

    address: str
    store: Path

    def kill(self) -> None: ...


@dataclass
class Clients:
    """Those of one server's life: `uploading`, `reading` and `searching` go on until it is dead. statuses: of what was
    answered; expected: what must be there afterwards."""

    address: str
    seed: int
    expected: Expected
    statuses: Counter[str] = field(default_factory=Counter)
    under_way: Counter[str] = field(default_factory=Counter)

    def start(self) -> list[threading.Thread]:
        works: list[Callable[[httpx.Client, random.Random], None]] = [self._upload, self._read, self._search]
        threads = [threading.Thread(target=self._until_dead, args=(work, n)) for n, work in enumerate(works)]
        for thread in threads:
            thread.start()
        return threads

    def _until_dead(self, work: Callable[[httpx.Client, random.Random], None], number: int) -> None:
        draw = random.Random(f"{self.seed} {number}")
        with httpx.Client(base_url=self.address, timeout=60) as http:
            while True:
                try:
                    work(http, draw)
                except httpx.TransportError:
                    return

    def _ask(self, http: httpx.Client, what: str, method: str, path: str, **more: Any) -> httpx.Response:
        self.under_way[what] += 1
        answer = http.request(method, path, **more)
        self.under_way[what] -= 1
        self.statuses[f"{what} {answer.status_code}"] += 1
        return answer

    def _upload(self, http: httpx.Client, draw: random.Random) -> None:
        """A file named by its hash; the oldest of a client's files goes."""
        content = text(draw, draw.choice([50, 2_000, 60_000])).encode()
        name = hashlib.sha256(content).hexdigest()
        files, purpose = {"file": (f"{name}.txt", content)}, {"purpose": "assistants"}
        made = self._ask(http, "upload", "POST", "/v1/files", files=files, data=purpose)
        if made.is_success:
            self.expected.files.append(made.json()["id"])
        if len(self.expected.files) > MOST_FILES:
            self.expected.perhaps = self.expected.files.pop(0)
            self._ask(http, "delete", "DELETE", f"/v1/files/{self.expected.perhaps}")

    def _read(self, http: httpx.Client, draw: random.Random) -> None:
        """A question about a long document, which is read where it has given way to others."""
        said = f"{document(draw.randrange(DOCUMENTS))}\n\nWho keeps the light?"
        self._ask(http, "read", "POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": said}]})

    def _search(self, http: httpx.Client, draw: random.Random) -> None:
        """A vector store of files that were uploaded, which are read in the background."""
        ids = draw.sample(self.expected.files, min(1, len(self.expected.files)))
        self._ask(http, "vector store", "POST", "/v1/vector_stores", json={"file_ids": ids})
        time.sleep(draw.uniform(0, 0.3))


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def document(number: int) -> str:
    return text(random.Random(number), 1_000)


def live_and_die(server: Server, seed: int, expected: Expected, longest: float) -> dict[str, Any]:
    """Work on a server until it is killed at a random moment; what was going on then, and what it left."""
    clients = Clients(server.address, seed, expected)
    threads = clients.start()
    time.sleep(random.Random(seed).uniform(0.02, longest))
    under_way = {what: count for what, count in clients.under_way.items() if count}
    server.kill()
    for thread in threads:
        thread.join(120)
    return {"seed": seed, "under_way": under_way, "statuses": dict(clients.statuses), "left": left_behind(server.store)}


def run(
    start: Callable[[], Server], kills: int, seed: int, longest: float, seconds: float = float("inf")
) -> list[dict[str, Any]]:
    """The lives of so many servers, each killed, and the next one started on what it has left, or of as many as there
    is time for. Raises `AssertionError` for a fault."""
    expected, started = Expected(), time.monotonic()
    lives: list[dict[str, Any]] = []
    server = start()
    try:
        while len(lives) < kills and time.monotonic() - started < seconds:
            lives.append(live_and_die(server, seed + len(lives), expected, longest))
            server = start()
            lives[-1]["found"] = check(server.address, server.store, expected).to_dict()
            lives[-1]["seconds"] = round(time.monotonic() - started, 1)
    finally:
        server.kill()
    return lives


def totals(lives: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all servers: what was answered, going on and left."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in ("under_way", "statuses", "left", "found")}
    for life in lives:
        for name, counter in sums.items():
            counter.update(life[name])
    lasting = ("removed documents", "removed files")  # counted since their folder was made
    for name in lasting:
        sums["left"][name] = 0
    for life, after in zip(lives, [*lives[1:], None], strict=True):
        if after is None or after["seconds"] < life["seconds"]:
            sums["left"].update({name: life["left"][name] for name in lasting})
    struck = Counter(name for life in lives for part in ("under_way", "left") for name, n in life[part].items() if n)
    by_name = {name: dict(sorted(one.items())) for name, one in sums.items()}
    return {"kills_with": {name: n for name, n in sorted(struck.items()) if name not in lasting}, **by_name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=2.0, help="Seconds that a server lives at most.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Stop after so many, to go on later.")
    parser.add_argument("--output", type=Path, default=Path("results/serve/kills.json"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lives = json.loads(options.output.read_text())["lives"] if options.output.exists() else []
    launcher = Launcher(forked=True)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model")
        start = partial(ServerProcess, Path(folder), model, launcher=launcher, dtype="float32", **SETTINGS)
        left, seed = options.kills - len(lives), options.seed + len(lives)
        lives += run(start, left, seed, options.longest, 60 * options.minutes)
    launcher.close()
    found = {"machine": machine(), "seed": options.seed, "kills": len(lives), "totals": totals(lives)}
    options.output.write_text(json.dumps({**found, "lives": lives}, indent=1) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
