"""What the last answers were written from, in memory: places, and no text."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from homerlm.answer import Prepared
from homerlm.index.index import Index, Part
from homerlm.selection import Selection
from homerlm.trace import kept_indices

MOST = 256  # answers that are remembered


@dataclass(frozen=True)
class KeptDocument:
    """sha256: of its text, by which its index is found again; spans: characters `[start, end)` of the passages that an
    answer was written from."""

    name: str
    sha256: str
    tokens: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class KeptAnswer:
    """tokens: of all passages; document_tokens: of all documents."""

    tokens: int
    document_tokens: int
    documents: tuple[KeptDocument, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> Self | None:
        """None for an answer that was written without an index. Reads the text of its documents."""
        index = prepared.source
        if not isinstance(index, Index):
            return None
        found = Selection.of_index(index, "", kept_indices(prepared.context), 0)
        documents = tuple(_documents(index, found))
        index.forget()
        return cls(found.tokens, found.document_tokens, documents)


@dataclass
class KeptAnswers:
    """The last answers of all owners by their ids. No index is held open, so that documents which nobody asks can make
    room for others; their passages are read from the store when somebody wants to see them."""

    most: int = MOST
    _kept: OrderedDict[tuple[str, str], KeptAnswer] = field(default_factory=OrderedDict)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def put(self, owner: str, id: str, answer: KeptAnswer) -> None:
        with self._changing:
            self._kept[owner, id] = answer
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)

    def get(self, owner: str, id: str) -> KeptAnswer | None:
        with self._changing:
            return self._kept.get((owner, id))

    def remove(self, owner: str, id: str) -> None:
        with self._changing:
            self._kept.pop((owner, id), None)


def _documents(index: Index, found: Selection) -> Iterator[KeptDocument]:
    """Several of one name, as there are in several vector stores, are one text."""
    for part in index.parts:
        spans = tuple((one.start, one.end) for one in found.passages if one.document in (part.name, None))
        yield KeptDocument(part.name, _sha256(index, part), part.tokens, spans)


def _sha256(index: Index, part: Part) -> str:
    return hashlib.sha256(index.text[part.first_byte : part.first_byte + part.bytes].numpy().tobytes()).hexdigest()
