"""Responses that a client can go on from, in memory, for a while."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from homerlm.conversation.messages import Message

OVERHEAD_BYTES = 2000  # of a response besides its text


@dataclass(frozen=True)
class Remembered:
    """response: as it was given; messages: of the whole conversation up to its answer, without instructions; items: of
    its input, as JSON."""

    response: dict[str, Any]
    messages: tuple[Message, ...]
    items: tuple[dict[str, Any], ...]

    @property
    def bytes(self) -> int:
        """About what it holds in memory."""
        parts = (part for message in self.messages for part in (*message.parts, *(text for _, text in message.files)))
        return OVERHEAD_BYTES + sum(map(len, parts))


class Memory:
    """The last responses of all owners: at most so many, of so many bytes, each for so many seconds."""

    def __init__(self, most: int, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._most_bytes, self._seconds, self._clock = most, most_bytes, seconds, clock
        self._kept: OrderedDict[tuple[str, str], tuple[float, Remembered]] = OrderedDict()
        self._bytes = 0
        self._changing = threading.Lock()

    def put(self, owner: str, remembered: Remembered) -> None:
        with self._changing:
            self._kept[owner, remembered.response["id"]] = self._clock() + self._seconds, remembered
            self._bytes += remembered.bytes
            while self._kept and (
                len(self._kept) > self._most or self._bytes > self._most_bytes or self._first_is_over()
            ):
                self._drop(next(iter(self._kept)))

    def get(self, owner: str, id: str) -> Remembered | None:
        """None where the owner has no such response, or its time is over."""
        with self._changing:
            while self._kept and self._first_is_over():
                self._drop(next(iter(self._kept)))
            found = self._kept.get((owner, id))
            return None if found is None else found[1]

    def remove(self, owner: str, id: str) -> bool:
        """Whether there was one."""
        with self._changing:
            known = (owner, id) in self._kept
            if known:
                self._drop((owner, id))
            return known

    def _first_is_over(self) -> bool:
        return next(iter(self._kept.values()))[0] <= self._clock()

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes -= self._kept.pop(key)[1].bytes
