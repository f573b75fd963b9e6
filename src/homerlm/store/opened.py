"""Indexes that are open: a few that were asked last, and whatever somebody still holds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from weakref import WeakSet

from homerlm.index.index import Index
from homerlm.mapped import Mapped


class OpenIndexes:
    """The last `count` indexes by their document's id. Threads may use it at once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, Index] = OrderedDict()
        self._files: dict[str, WeakSet[Mapped]] = {}

    def get(self, id: str) -> Index | None:
        with self._lock:
            if id in self._recent:
                self._recent.move_to_end(id)
            return self._recent.get(id)

    def put(self, id: str, index: Index) -> None:
        assert isinstance(index.mapped, Mapped)
        with self._lock:
            self._files.setdefault(id, WeakSet()).add(index.mapped)
            self._recent[id] = index
            self._recent.move_to_end(id)
            while len(self._recent) > self._count:
                self._forget(next(iter(self._recent)))

    def in_use(self, id: str) -> bool:
        """Whether somebody else holds a document's index, which is not kept open here any longer."""
        with self._lock:
            self._forget(id)
            return id in self._files

    def _forget(self, id: str) -> None:
        self._recent.pop(id, None)
        for known in [one for one, files in self._files.items() if not files]:
            del self._files[known]
