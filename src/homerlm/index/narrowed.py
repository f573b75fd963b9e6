"""An index of a part of what a document says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from homerlm.errors import InputError
from homerlm.index.index import Index


def narrowed(index: Index, spans: Sequence[tuple[int, int]]) -> Index:
    """The index of one document with only the tokens that have characters in one of `[start, end)`. It is asked as any
    other, finds nothing else, and gives places in the whole text; what it keeps in memory are its own rows.

    Raises `InputError` for an index of several documents, or without a token in the spans.
    """
    if len(index.parts) != 1:
        raise InputError(f"the index has {len(index.parts)} documents: narrow each of them, then join them")
    tokens = _inside(index.spans, spans)
    if not len(tokens):
        raise InputError("no token of the document is in the spans")
    runs = _runs(tokens)
    embeddings = index.embeddings
    if embeddings is not None:
        embeddings = embeddings[torch.searchsorted(index.units, tokens, right=True).unique() - 1]
    scales = None if index.scales is None else _rows(index.scales, runs)
    return replace(
        index,
        parts=(replace(index.parts[0], first_token=0, tokens=len(tokens)),),
        keys=_rows(index.keys, runs),
        scales=scales,
        ids=index.ids[tokens],
        chunks=_starts(index.chunks, tokens),
        units=_starts(index.units, tokens),
        spans=index.spans[tokens],
        embeddings=embeddings,
        files=(),
    )


def _inside(places: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """(n,) ascending tokens of places (T, 2) that overlap a span."""
    inside = torch.zeros(len(places), dtype=torch.bool)
    for start, end in spans:
        inside |= (places[:, 0] < end) & (places[:, 1] > start)
    return inside.nonzero()[:, 0]


def _runs(tokens: Tensor) -> list[tuple[int, int]]:
    """`[start, stop)` of neighbours among ascending tokens."""
    cuts = [0, *((tokens.diff() > 1).nonzero()[:, 0] + 1).tolist(), len(tokens)]
    return [(int(tokens[a]), int(tokens[b - 1]) + 1) for a, b in pairwise(cuts)]


def _rows(rows: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    return torch.cat([rows[start:stop] for start, stop in runs])


def _starts(starts: Tensor, tokens: Tensor) -> Tensor:
    """Where chunks or units that begin at `starts` begin among the tokens that are left."""
    if not len(starts):
        return starts
    numbers = torch.searchsorted(starts, tokens, right=True)
    return torch.cat([numbers.new_zeros(1), (numbers.diff() > 0).nonzero()[:, 0] + 1])
