"""What of the documents an answer was written from: passages with their places, and a page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from homerlm import page
from homerlm.answer import Prepared
from homerlm.index.index import Index
from homerlm.selection import Excerpt, Selection
from homerlm.trace import LevelTrace, kept_indices


@dataclass(frozen=True)
class Kept:
    """Of one answer. index: of its documents; prepared: what it was written from; trace: what became of the documents'
    tokens; limit: of the model, in tokens."""

    question: str
    index: Index
    prepared: Prepared
    trace: LevelTrace
    seconds: float
    limit: int

    def passages(self) -> tuple[Excerpt, ...]:
        """In the documents' order, each with its document's name and characters `[start, end)`."""
        found = Selection.of_index(self.index, self.question, kept_indices(self.prepared.context), 0).passages
        return tuple(replace(one, document=one.document or self.index.names[0]) for one in found)

    def write_page(self, path: Path, answer: str) -> None:
        """Write the page of the documents. Raises `InputError`."""
        shown = page.Kept(self.prepared.context, self.seconds, self.limit, answer)
        page.write_page(path, page.render_documents(self.index, self.question, shown, self.trace))
