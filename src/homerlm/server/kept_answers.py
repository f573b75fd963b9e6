"""What the last answers were written from, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from homerlm.answer import Prepared
from homerlm.index.index import Index

MOST = 256  # answers that are remembered; each holds its documents' indexes open


@dataclass
class KeptAnswers:
    """What the last answers of all owners were written from, in memory."""

    most: int = MOST
    _kept: OrderedDict[tuple[str, str], tuple[Index, Prepared]] = field(default_factory=OrderedDict)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def put(self, owner: str, id: str, prepared: Prepared) -> None:
        """Remember an answer; one that was written without an index has nothing to show."""
        if not isinstance(prepared.source, Index):
            return
        with self._changing:
            self._kept[owner, id] = prepared.source, prepared
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)

    def get(self, owner: str, id: str) -> tuple[Index, Prepared] | None:
        with self._changing:
            return self._kept.get((owner, id))
