"""What became of each token of a document: how far up the tree it came, and the passages that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.context import CompactContext
from homerlm.passes import Event

READ = 255  # the level of what an answer was read from


class LevelTrace:
    """An observer of `compress` (batch of one). `levels`: (prompt tokens,) uint8, for each token of the prompt the
    highest level at which it was kept, 0 for one that was dropped at once."""

    def __init__(self) -> None:
        self.levels = torch.zeros(0, dtype=torch.uint8)

    def __call__(self, event: Event) -> None:
        if event.kept is None:
            return
        kept = event.kept[0].cpu()
        missing = int(kept.max()) + 1 - len(self.levels)
        if missing > 0:
            self.levels = torch.cat([self.levels, self.levels.new_zeros(missing)])
        self.levels[kept] = event.level


@dataclass(frozen=True)
class Fates:
    """What became of the document's tokens: `levels` (tokens,) is `READ`, or of a token that was dropped how often it
    had been kept before, at most `rounds` times."""

    levels: Tensor
    rounds: int

    @classmethod
    def of(cls, trace: LevelTrace, context: CompactContext) -> Fates:
        """The fates for an answer read from `context`."""
        document = slice(context.prefix_len, context.prompt_len - context.suffix_len)
        levels = torch.zeros(context.prompt_len, dtype=torch.uint8)
        levels[: len(trace.levels)] = trace.levels
        levels = levels[document].clamp(max=READ - 1)
        levels[kept_indices(context)] = READ
        dropped = levels[levels < READ]
        return cls(levels, int(dropped.max()) if len(dropped) else 0)

    def count(self, level: int) -> int:
        return int((self.levels == level).sum())


@dataclass(frozen=True)
class Passage:
    """A run of neighbouring document tokens with one fate: its text, first token and level."""

    text: str
    start: int
    level: int


def passages(tokenizer: PreTrainedTokenizerBase, document: str, levels: Tensor) -> Iterator[Passage]:
    """The document cut where the level (tokens,) changes; the texts joined are the document again."""
    return passages_at([start for start, _ in prompt.token_spans(tokenizer, document)], document, levels)


def passages_at(starts: Sequence[int], document: str, levels: Tensor) -> Iterator[Passage]:
    """The same of a document whose tokens' first characters are known."""
    runs = [
        (level, [i for i, _ in run]) for level, run in groupby(enumerate(levels.tolist()), key=lambda pair: pair[1])
    ]
    cuts = [starts[tokens[0]] for _, tokens in runs][1:]
    for (level, tokens), begin, end in zip(runs, [0, *cuts], [*cuts, len(document)], strict=True):
        yield Passage(document[begin:end], tokens[0], level)


def kept_indices(context: CompactContext) -> list[int]:
    """Indices of the kept tokens among the document's, in order (the context's first row)."""
    return [index for index, _ in _kept(context)]


def kept_passages(tokenizer: PreTrainedTokenizerBase, context: CompactContext) -> Iterator[Passage]:
    """The document's kept passages in order, from the context alone (its first row): neighbours in the prompt are one.

    `start` counts from the document's first token.
    """
    for _, run in groupby(enumerate(_kept(context)), key=lambda pair: pair[1][0] - pair[0]):
        tokens = [token for _, token in run]
        text = tokenizer.decode([token_id for _, token_id in tokens])
        yield Passage(str(text), tokens[0][0], 1)


def _kept(context: CompactContext) -> list[tuple[int, int]]:
    """Index in the document and id of each kept token; one that is read twice is one."""
    document = slice(context.prefix_len, len(context) - context.suffix_len)
    indices, ids = (tokens[0, document].tolist() for tokens in (context.token_indices, context.input_ids))
    return sorted({(index - context.prefix_len, token_id) for index, token_id in zip(indices, ids, strict=True)})
