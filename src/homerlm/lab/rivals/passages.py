"""Passages of a document, and the best of them that fit a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

Span = tuple[int, int]  # tokens [start, stop) of the document


def passages(sentences: Sequence[int], most: int) -> list[Span]:
    """Spans of neighbouring sentences, together at most `most` tokens; a longer sentence is cut. `sentences` (tokens,):
    the number of each token's."""
    spans: list[Span] = []
    start = stop = 0
    for length in _pieces(sentences, most):
        if stop + length - start > most:
            spans.append((start, stop))
            start = stop
        stop += length
    return [*spans, (start, stop)] if stop > start else spans


def best_that_fit(spans: Sequence[Span], scores: np.ndarray, room: int) -> list[Span]:
    """The spans of the highest scores (ties: the earlier one), in the document's order, `room` tokens in all: the last
    one chosen is cut to fit."""
    chosen = []
    for start, stop in (spans[k] for k in np.argsort(-scores, kind="stable")):
        if taken := min(stop - start, room):
            chosen.append((start, start + taken))
            room -= taken
    return sorted(chosen)


def _pieces(sentences: Sequence[int], most: int) -> Iterator[int]:
    """Lengths of the sentences, in parts where one is longer than `most`."""
    for _, tokens in groupby(sentences):
        length = len(list(tokens))
        yield from [most] * (length // most)
        if length % most:
            yield length % most
