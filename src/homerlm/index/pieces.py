"""A document's text in pieces that are tokenised, cut into chunks and units, and read one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.score.sentences import Sentences

LONGEST = 1 << 20  # characters of a piece: longer texts are never tokenised at once
_BREAK = re.compile(r"(?<=\S)\n(?=\S)|(?<=\S) (?=\S)")


@dataclass(frozen=True)
class Piece:
    """ids: (1, T) long; spans: (T, 2) int32 characters `[start, end)` in the document; text: its part of it."""

    ids: Tensor
    spans: Tensor
    text: str


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, longest: int = LONGEST) -> Iterator[Piece]:
    """The whole text, or its parts of at most so many characters, cut at a line's end or else at a space."""
    start = 0
    while start < len(text):
        stop = _end(text, start, longest)
        part = text[start:stop]
        ids, spans = prompt.ids_and_spans(tokenizer, part)
        places = torch.tensor(spans, dtype=torch.int32).view(-1, 2) + start
        yield Piece(torch.tensor([ids], dtype=torch.long), places, part)
        start = stop


def unit_starts(sentences: Sentences, ids: Tensor) -> Tensor:
    """(U,) long: the first token of each unit of ids (1, T)."""
    numbers = sentences.units(ids, torch.arange(ids.shape[1], device=ids.device)[None])[0].cpu()
    new = torch.ones(len(numbers), dtype=torch.bool)
    new[1:] = numbers[1:] != numbers[:-1]
    return new.nonzero()[:, 0]


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
