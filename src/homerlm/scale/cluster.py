"""What a cluster needs for an index of many tokens and for a question about it: figures alone, nothing is run.

Documents are read in shards, one after the other by each worker, and stay where they were read. A question goes to all
workers, each gives its best candidates, one ranks them and answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from homerlm.errors import ConfigError
from homerlm.formatting import rounded
from homerlm.scale.rates import Rates

CANDIDATE_BYTES = 16  # place, id, score
MEMORY_SHARE = 0.8  # of a machine's memory, for the pages of its index
MANIFEST_BYTES = 1024  # of a shard, at the driver
QUESTION_BYTES = 64 << 10  # text of a question, and what is asked with it
FARTHEST = 1 << 20  # times as many tokens as there are, up to which limits are looked for
GATHER_S = 1.0  # longest time that gathering candidates, and handing out tasks, should take


@dataclass(frozen=True)
class Machines:
    """Machines of one kind: how many, workers (accelerators, or processes on CPUs) in each; bytes of memory and disk,
    and bytes a second of disk and network, of each machine."""

    count: int
    workers: int
    memory: float = 512e9
    disk: float = 4e12
    disk_rate: float = 2e9
    network: float = 1.25e9

    def __post_init__(self) -> None:
        for name in ("count", "workers", "memory", "disk", "disk_rate", "network"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} of the machines is {getattr(self, name)}; it must be above 0, and finite")

    @property
    def all_workers(self) -> int:
        return self.count * self.workers


@dataclass(frozen=True)
class Limit:
    """Something that ends. growth: how many times as much of what `grows` ("tokens" or "machines") it stands, below 1
    where it is passed already; then: what happens."""

    name: str
    grows: str
    growth: float
    then: str


@dataclass(frozen=True)
class ClusterPlan:
    """An index of so many tokens on some machines, and a question about it, from the rates of one worker.

    shard: tokens that are read as one task; candidates: tokens that each worker gives for a question; new_tokens: of an
    answer; within: seconds that a question should take at most.
    """

    machines: Machines
    rates: Rates
    tokens: int
    shard: int = 1_000_000
    candidates: int = 1024
    new_tokens: int = 50
    within: float = 10.0

    def __post_init__(self) -> None:
        for name in ("tokens", "shard", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("tokenise", "read", "scan", "search", "merge", "index_bytes"):
            if getattr(self.rates, name) <= 0:
                raise ConfigError(f"the rate {name} is {getattr(self.rates, name)}; it must be above 0")

    @property
    def shards(self) -> int:
        return -(-self.tokens // self.shard)

    @property
    def worker_tokens(self) -> int:
        """Of the worker that has most."""
        most = -(-self.shards // self.machines.all_workers) * self.shard
        return min(most, self.tokens)

    @property
    def machine_tokens(self) -> int:
        """Of the machine that has most: its workers are given shards in turn with all others."""
        rounds, left = divmod(self.shards, self.machines.all_workers)
        most = rounds * self.machines.workers + min(-(-left // self.machines.count), self.machines.workers)
        return min(most * self.shard, self.tokens)

    @property
    def index_bytes(self) -> float:
        return self.tokens * self.rates.index_bytes

    @property
    def machine_bytes(self) -> float:
        return self.machine_tokens * self.rates.index_bytes

    @property
    def in_memory(self) -> bool:
        """Whether a machine's index stays in its memory between two questions."""
        return self.machine_bytes <= self.machines.memory * MEMORY_SHARE

    @property
    def indexing(self) -> dict[str, float]:
        """Seconds that each part of making the index takes, all of them at once but the start."""
        text = self.machine_tokens * self.rates.text_bytes
        return {
            "tokenising": self.worker_tokens / self.rates.tokenise,
            "reading": self.worker_tokens / self.rates.read,
            "disk": self.machine_bytes / self.machines.disk_rate,
            "network": text / self.machines.network,
            "driver": self.shards * self.rates.task_s,
        }

    @property
    def indexing_s(self) -> float:
        return self.rates.start_s + max(self.indexing.values())

    @property
    def gathered_bytes(self) -> int:
        """The largest gather: every worker's candidates at the driver, at once."""
        return self.machines.all_workers * self.candidates * CANDIDATE_BYTES

    @property
    def asking(self) -> dict[str, float]:
        """Seconds that each part of a question takes, one after the other."""
        return {
            "tasks": 2 * self._hand_out_s,  # the question, then the search for what its best sentences share
            "question": self.rates.question_s,
            "keys": max(self.worker_tokens / self.rates.scan, 0.0 if self.in_memory else self._from_disk_s),
            "gather": self._gather_s,
            "search": self.worker_tokens / self.rates.search,
            "rerank": self.rates.rerank_s,
            "new tokens": self.new_tokens * self.rates.new_token_s,
        }

    @property
    def asking_s(self) -> float:
        return sum(self.asking.values())

    @property
    def moved_bytes(self) -> dict[str, float]:
        """Bytes over the network: of the index, all its text; of a question, what goes out and comes back."""
        return {
            "index": self.tokens * self.rates.text_bytes,
            "question": self.machines.all_workers * QUESTION_BYTES + self.gathered_bytes,
        }

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What ends, the first first. More tokens: on the same machines; more machines: each with as many tokens."""
        machines, rates = self.machines, self.rates
        found = [
            self._memory(),
            Limit(
                "disk",
                "tokens",
                machines.disk / self.machine_bytes,
                f"the index fills the disks: {rounded(machines.disk * machines.count / rates.index_bytes)} tokens",
            ),
            Limit("time", "tokens", self._until_slow(), f"a question takes {self.within:g} s"),
            Limit(
                "driver's memory",
                "tokens",
                machines.memory * MEMORY_SHARE / (self.shards * MANIFEST_BYTES),
                "the list of shards fills it",
            ),
            Limit(
                "network",
                "machines",
                machines.network / (machines.workers * self._speed * rates.text_bytes),
                "text comes slower than it is read; per machine, so more machines change nothing unless one store "
                "serves all",
            ),
            Limit(
                "driver",
                "machines",
                self.shard / (machines.all_workers * self._speed * rates.task_s) if rates.task_s else float("inf"),
                "shards are read faster than it hands them out: make shards larger",
            ),
            Limit("gather", "machines", self._until_gathers(), f"candidates of one question take {GATHER_S:g} s"),
        ]
        return tuple(sorted(found, key=lambda limit: limit.growth))

    @property
    def _speed(self) -> float:
        """Tokens a second that go into the index on one worker."""
        return min(self.rates.tokenise, self.rates.read)

    @property
    def _from_disk_s(self) -> float:
        """A scan from beginning to end of more than fits finds nothing of the last one in memory."""
        return self.machine_bytes / self.machines.disk_rate

    @property
    def _hand_out_s(self) -> float:
        return self.machines.all_workers * self.rates.task_s

    @property
    def _gather_s(self) -> float:
        ranked = self.machines.all_workers * self.candidates / self.rates.merge
        return self.gathered_bytes / self.machines.network + ranked

    def _memory(self) -> Limit:
        slower = self.machines.memory * MEMORY_SHARE / self.machines.disk_rate
        return Limit(
            "memory",
            "tokens",
            self.machines.memory * MEMORY_SHARE / self.machine_bytes,
            f"keys come from the disk for each question: {rounded(slower)} s from there on",
        )

    def _until_slow(self) -> float:
        """By trial: a question takes longer with every token, and suddenly where memory ends."""
        least, most = 1, self.tokens
        while most < FARTHEST * self.tokens and replace(self, tokens=most).asking_s <= self.within:
            least, most = most, 2 * most
        while most - least > max(least // 1000, 1):
            middle = (least + most) // 2
            if replace(self, tokens=middle).asking_s <= self.within:
                least = middle
            else:
                most = middle
        return least / self.tokens

    def _until_gathers(self) -> float:
        grows = self._gather_s + 2 * self._hand_out_s
        return GATHER_S / grows if grows else float("inf")
