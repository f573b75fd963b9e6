"""Which cells make which table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from homerlm.lab.case import PROFILE, Cell, Source
from homerlm.lab.methods import Method

METHODS = ("plain", "homer-paper", "homer", "homer+yarn:2")
PROFILED = ("plain", "homer")
CPU_PLAIN_UP_TO = 32768  # the plain model's attention takes minutes beyond


def cells(
    methods: Sequence[Method],
    lengths: Sequence[int],
    batches: Sequence[int],
    source: Source,
    *,
    new_tokens: tuple[int, ...],
    repeats: int,
    plain_up_to: int | None = None,
    tensors: bool = False,
) -> list[Cell]:
    """Every method at every length and batch, the short ones first; the methods that read every token with every other
    only to `plain_up_to` tokens."""
    cell = Cell(method="", length=0, new_tokens=new_tokens, repeats=repeats, source=source, tensors=tensors)
    return [
        replace(cell, method=str(method), length=length, batch=batch)
        for length in lengths
        for batch in batches
        for method in methods
        if method.is_homer or plain_up_to is None or length <= plain_up_to
    ]


def profiles(methods: Sequence[Method], lengths: Sequence[int], source: Source, *, repeats: int) -> list[Cell]:
    return [
        Cell(method=str(method), length=length, new_tokens=(1,), repeats=repeats, source=source, job=PROFILE)
        for length in lengths
        for method in methods
    ]
