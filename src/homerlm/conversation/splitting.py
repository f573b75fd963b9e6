"""A long text that holds a document and what is asked about it: which is which."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

EDGE_TOKENS, EDGE_SHARE = 160, 6  # of the text before or after the document, at most, and of the room for both
EDGE_PARAGRAPHS = 6
MOST_MARKS = 50  # different ones that are looked for
_MARK = re.compile(r"^[ \t]*(?:<([A-Za-z_][\w.-]{0,40})(?:\s[^<>\n]{0,200})?>|(`{3,9}|~{3,9}|\"{3}))", re.MULTILINE)
_PARAGRAPH, _LINE = re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_ASKS = ("?", "？", ":", "：", "؟")

Count = Callable[[str], int]


@dataclass(frozen=True)
class Split:
    """A text's parts in order, without the white space between them."""

    head: str
    document: str
    tail: str

    @property
    def asked(self) -> str:
        """What is to stand behind the document as the question: the tail, or the head where there is none; both where
        the tail may be the document's end."""
        parts = [self.tail] if asks(self.tail) else [self.tail, self.head]
        return "\n\n".join(part for part in parts if part)


def split(text: str, count: Count, room: int) -> Split:
    """A text of more tokens than there is room for (`count` gives their number) cut into what comes before the
    document, the document, and what comes after it. What stands between marks (`<context>`, a fence) is the document
    where it is most of the text; else the short paragraphs at both ends are not."""
    edge = min(EDGE_TOKENS, room // EDGE_SHARE)
    return _marked(text, count, 4 * edge) or _by_paragraphs(text, count, edge)


def asks(text: str) -> bool:
    """Whether a text's first or last paragraph ends like a question or a task."""
    paragraphs = [part.rstrip() for part in _PARAGRAPH.split(text.strip())]
    return any(part.endswith(_ASKS) for part in (paragraphs[0], paragraphs[-1]))


def _marked(text: str, count: Count, most: int) -> Split | None:
    """Cut at the longest marked block, if it is most of the text and what is around it is short."""
    start, stop = max(_blocks(text), key=lambda block: block[1] - block[0], default=(0, 0))
    if 2 * (stop - start) < len(text):
        return None
    head, tail = text[:start].strip(), text[stop:].strip()
    short = all(count(part) <= most for part in (head, tail))
    return Split(head, text[start:stop].strip(), tail) if short and (head or tail) else None


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """`[start, stop)` from the first mark of each kind that opens a line to the last one that closes it."""
    seen: set[str] = set()
    for found in _MARK.finditer(text):
        closing = f"</{found[1]}>" if found[1] else f"\n{found[2]}"
        if closing in seen or len(seen) == MOST_MARKS:
            continue
        seen.add(closing)
        if (at := text.rfind(closing, found.end())) >= 0:
            yield found.start(), at + len(closing)


def _by_paragraphs(text: str, count: Count, edge: int) -> Split:
    text = text.strip()
    stop = _tail_start(text, count, edge)
    start = _head_stop(text[:stop], count, edge)
    if asks(text[:start]) and not asks(text[stop:]):
        stop = len(text)  # the document's own end
    return Split(text[:start].strip(), text[start:stop].strip(), text[stop:].strip())


def _head_stop(text: str, count: Count, edge: int) -> int:
    """Where the first paragraph ends, and those after it that end like a task; 0 where it is long."""
    stop, begin = 0, 0
    for number, (_, end) in enumerate(_parts(_PARAGRAPH, text)):
        paragraph = text[begin:end].strip()
        if number == EDGE_PARAGRAPHS or count(text[:end]) > edge or end >= len(text):
            break
        if number == 0 or paragraph.endswith(_ASKS):
            stop = end
        begin = end
    return stop


def _tail_start(text: str, count: Count, edge: int) -> int:
    """Where the last paragraph begins, or a paragraph of the last few from which on it is asked; where the last one is
    long, its last line or sentence. The text's length where that is long, too."""
    for boundary in (_PARAGRAPH, _LINE, _SENTENCE):
        spans = list(_parts(boundary, text))[-EDGE_PARAGRAPHS:]
        found = len(text)
        for number, (begin, end) in enumerate(reversed(spans)):
            if begin == 0 or count(text[begin:]) > edge:
                break
            if number == 0 or text[begin:end].strip().endswith(_ASKS):
                found = begin
        if found < len(text):
            return found
    return len(text)


def _parts(boundary: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """`[start, end)` of the parts between boundaries, each with the boundary behind it."""
    start = 0
    for found in boundary.finditer(text):
        if found.end() < len(text):
            yield start, found.end()
            start = found.end()
    yield start, len(text)
