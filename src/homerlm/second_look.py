"""The tree's candidates read once more as one chunk, and judged again with all of the evidence in sight."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homerlm.adapter import Decoder
from homerlm.chunk import Chunk
from homerlm.merging import Selection
from homerlm.significance import keep_most_significant, pool


def second_look(
    decoder: Decoder, candidates: Chunk, input_ids: Tensor, selection: Selection, target_len: int, floor: float
) -> Chunk:
    """The candidates cut to at most `target_len` tokens. input_ids: (B, S), theirs. To be called inside a session.

    In a chunk of its own a fact competes with what happens to stand beside it; here it competes with the best of the
    whole document, which tells the fact that is asked for from others like it. Context tokens whose significance is
    below `floor` times the highest are dropped even where there is room: they only distract. Rows of a batch keep as
    many as the row that needs most. Not in the paper (docs/experiments.md).
    """
    layers = len(decoder.layers)
    voters = selection.voters or range(layers - 1, layers)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
    votes: list[Tensor] = []

    def watch(layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
        if layer in voters:
            vote = selection.judge(layer, queries, keys, scaling, positions)
            votes[:] = [votes[0] + vote] if votes else [vote]

    decoder.run(decoder.embed(input_ids), positions, 0, voters.stop, watch=watch)
    (scores,) = votes
    p, s = candidates.prefix_len, candidates.suffix_len
    context = pool(scores[:, p : len(candidates) - s], selection.pooling)
    worthy = int((context >= floor * context.amax(1, keepdim=True)).sum(1).amax())
    keep = keep_most_significant(scores, p, s, min(target_len, p + s + worthy), selection.pooling)
    return replace(candidates, scores=scores).select(keep)
