"""Candidates judged once more, with all of the evidence in sight: those of the tree, or those of a document that was
compressed before and is asked something else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homerlm.context import CompactContext
from homerlm.merge.chunk import Chunk
from homerlm.merge.readout import exchange_suffix, recomputed
from homerlm.merge.tree import Selection
from homerlm.model.decoder import Decoder
from homerlm.score.scores import keep_most_significant
from homerlm.score.votes import Votes
from homerlm.select.recap import with_recap


@dataclass(frozen=True)
class SecondLook:
    """What is left of candidates, and how much of that is repeated before the question (`homerlm.select.recap`).

    In a chunk of its own a fact competes with what happens to stand beside it; here it competes with the best of the
    whole document, which tells the fact that is asked for from others like it. Context tokens whose significance is
    below `floor` times the highest are dropped even where there is room: they only distract. Rows of a batch keep as
    many as the row that needs most. Not in the paper (docs/experiments.md).

    target_len: tokens of the result, affixes and the at most `recap_len` repeated ones included.
    """

    selection: Selection
    target_len: int
    floor: float
    recap_len: int

    def judge(self, decoder: Decoder, candidates: Chunk, input_ids: Tensor) -> Chunk:
        """The candidates with the scores of one more reading, as one chunk. input_ids: (B, S), theirs. To be called
        inside a session."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
        votes = Votes(self.selection, positions, len(decoder.layers))
        decoder.run(decoder.embed(input_ids), positions, 0, votes.voters.stop, watch=votes.add, finish=False)
        return replace(candidates, scores=votes.total)

    def cut(self, candidates: Chunk, input_ids: Tensor) -> Chunk:
        """The scored candidates that are worth their place. input_ids: (B, S), theirs."""
        p, s = candidates.prefix_len, candidates.suffix_len
        worth = self.selection.worth(candidates, input_ids)
        if not worth.shape[1]:
            return candidates
        best = worth.amax(1, keepdim=True)
        lowest = best - (1 - self.floor) * best.abs()  # of a score that can be negative too, the best one stays
        worthy = int((worth >= lowest).sum(1).amax())
        room = self.target_len - self._repeated(candidates)
        return candidates.select(keep_most_significant(worth, p, s, min(room, p + s + worthy)))

    def recap(self, chunk: Chunk) -> Chunk:
        return with_recap(chunk, self._repeated(chunk))

    def _repeated(self, chunk: Chunk) -> int:
        """What `recap_len` comes to: at most half of the target's room for context."""
        return min(self.recap_len, (self.target_len - chunk.prefix_len - chunk.suffix_len) // 2)


def focus(decoder: Decoder, context: CompactContext, suffix_ids: Tensor, look: SecondLook) -> CompactContext:
    """A compressed document cut to what another question, suffix ids (B, S), asks for.

    The suffix runs over the context's keys and values; what its queries attend to there is the second look. What is
    worth its place is recomputed as a short prompt. The context itself stays as it was, for the next question.
    """
    old, new = context.suffix_len, suffix_ids.shape[1]
    places = torch.arange(len(context) - old + new, device=suffix_ids.device).expand(len(suffix_ids), -1)
    votes = Votes(look.selection, places, len(decoder.layers))
    with decoder.watched(votes.add):
        asked = exchange_suffix(decoder, context, suffix_ids)
    nothing = torch.empty(*places.shape, 0, device=places.device)
    candidates = Chunk(nothing, places, asked.token_indices, asked.prefix_len, new, scores=votes.total)
    chosen = look.recap(look.cut(candidates, asked.input_ids))
    input_ids = asked.input_ids.gather(1, chosen.position_ids)
    read = recomputed(decoder, chosen, input_ids)
    return replace(
        asked,
        keys=read.keys,
        values=read.values,
        position_ids=read.position_ids,
        token_indices=chosen.token_indices,
        input_ids=input_ids,
        logits=read.logits,
        next_position=len(chosen),
    )
