"""Indexes that are open: a few that were asked last, and whatever somebody still holds."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

from homerlm.index.index import Index
from homerlm.mapped import Mapped


class OpenIndexes:
    """The last `count` indexes by their document's id. Threads may use it at once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, Index] = OrderedDict()
        self._files: weakref.WeakValueDictionary[str, Mapped] = weakref.WeakValueDictionary()

    def get(self, id: str) -> Index | None:
        with self._lock:
            if id in self._recent:
                self._recent.move_to_end(id)
            return self._recent.get(id)

    def put(self, id: str, index: Index) -> None:
        assert index.mapped is not None
        with self._lock:
            self._files[id] = index.mapped
            self._recent[id] = index
            self._recent.move_to_end(id)
            while len(self._recent) > self._count:
                self._recent.popitem(last=False)

    def in_use(self, id: str) -> bool:
        """Whether somebody else holds a document's index. Asked when it is to go: it is not kept open for the next."""
        with self._lock:
            self._recent.pop(id, None)
            return id in self._files
