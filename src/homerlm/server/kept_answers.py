"""What the last answers were written from, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from homerlm.answer import Prepared
from homerlm.index.index import Index
from homerlm.trace import kept_indices

MOST = 256  # answers that are remembered; each holds its documents' indexes open


@dataclass
class KeptAnswers:
    """The documents that the last answers of all owners were written from, and which of their tokens, by the answers'
    ids. The context with its keys and values, some megabytes, is not held."""

    most: int = MOST
    _kept: OrderedDict[tuple[str, str], tuple[Index, list[int]]] = field(default_factory=OrderedDict)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def put(self, owner: str, id: str, prepared: Prepared) -> None:
        """Remember an answer; one that was written without an index has nothing to show."""
        if not isinstance(prepared.source, Index):
            return
        with self._changing:
            self._kept[owner, id] = prepared.source, kept_indices(prepared.context)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)

    def get(self, owner: str, id: str) -> tuple[Index, list[int]] | None:
        with self._changing:
            return self._kept.get((owner, id))
