"""A document's text in pieces that are tokenised, cut into chunks and units, and read one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 1 << 20  # characters of a piece: longer texts are never tokenised at once
_BREAK = re.compile(r"(?<=\S)\n(?=\S)|(?<=\S) (?=\S)")


@dataclass(frozen=True)
class Piece:
    """A document's text from character `start` on."""

    text: str
    start: int


def pieces(text: str, longest: int = LONGEST) -> Iterator[Piece]:
    """The whole text, or its parts of at most so many characters, cut at a line's end or else at a space."""
    start = 0
    while start < len(text):
        stop = _end(text, start, longest)
        yield Piece(text[start:stop], start)
        start = stop


def _end(text: str, start: int, longest: int) -> int:
    """Where a piece that begins at `start` ends: all that is left, or the last good place in its last quarter."""
    stop = start + longest
    if stop >= len(text):
        return len(text)
    near = text[stop - longest // 4 : stop]
    found = [match.start() for match in _BREAK.finditer(near)]
    lines = [at for at in found if near[at] == "\n"]
    cut = (lines or found or [len(near)])[-1]
    return stop - len(near) + cut
