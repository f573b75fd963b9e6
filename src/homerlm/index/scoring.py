"""What a question asks for each token of an index, by the kept keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from homerlm.index.index import Index
from homerlm.index.question import LayerQuestion
from homerlm.score.heads import joined
from homerlm.score.scores import SCORES

FORGET_BYTES = 1 << 25  # of keys that are read before memory is given back
GROUP_TOKENS, WAITING_TOKENS = 1 << 14, 1 << 20  # that are scored at once, and that wait for others of their length

Block = tuple[int, int]


def scored(
    index: Index, asked: Sequence[LayerQuestion], score: str, blocks: Iterable[Block], device: torch.device
) -> Iterator[list[tuple[Block, Tensor]]]:
    """Blocks `[start, stop)` with the scores (C,) of their tokens, on the CPU, in groups that are scored at once; the
    tokens of a block compete with each other."""
    seen = 0
    for group in alike(blocks):
        scores = group_scores(index, asked, score, group, device)
        seen += scores.numel() * index.keys[:1].nbytes
        if seen > FORGET_BYTES:
            index.forget()
            seen = 0
        yield list(zip(group, scores, strict=True))


def group_scores(
    index: Index, asked: Sequence[LayerQuestion], score: str, blocks: Sequence[Block], device: torch.device
) -> Tensor:
    """(B, C) of the tokens of blocks of one length."""
    layout = index.frame.layout
    rows = torch.stack([index.keys_of(*block) for block in blocks])
    total = torch.zeros(rows.shape[:2], device=device)
    for one in asked:
        by_head = one.scores(layout.of_layer(rows, one.layer), SCORES[score])
        total += joined(by_head, layout.scoring.of_layer(one.layer)).to(device)
    return total.cpu()


def alike(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """The blocks in groups of one length, so that few large operations score them, not many small ones. Those of a long
    document have two lengths."""
    waiting: defaultdict[int, list[Block]] = defaultdict(list)
    tokens = 0
    for block in blocks:
        group, length = waiting[block[1] - block[0]], block[1] - block[0]
        group.append(block)
        tokens += length
        if len(group) * length >= GROUP_TOKENS:
            tokens -= len(group) * length
            yield waiting.pop(length)
        elif tokens >= WAITING_TOKENS:  # of many lengths: do not read the whole index ahead
            yield from waiting.values()
            waiting.clear()
            tokens = 0
    yield from waiting.values()
