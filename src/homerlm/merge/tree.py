"""The tree walk: leaves run, neighbours merge, the least significant tokens go (paper section 3.1, SPEC 3 to 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from homerlm.merge.chunk import Chunk
from homerlm.merge.refinement import LAYER_SCORED_REFINEMENTS, Refinement, propagative
from homerlm.merge.schedule import Node, Schedule
from homerlm.model.decoder import Decoder
from homerlm.score.scores import Attention, Score, keep_most_significant, pool, pool_within
from homerlm.score.sentences import Sentences

SENTENCE_REACH = 63  # tokens on each side of a match that its sentence can bring along


@dataclass(frozen=True)
class Selection:
    """How a chunk is reduced: the score, how many of the last tokens ask, the pooling width, the score's bias
    (L, distances) where it needs one, and what becomes of the layers below the one that chooses.

    `voters=None` scores at the node's last layer alone, as the paper does; a range of layers makes all of them vote: a
    token's significance is the sum of what they have given it, in this node or below. In a tree that carries keys and
    values, a node that must be reduced before any of them has run is scored at its last layer.

    A match counts for its neighbours too (`pooling`), and, by `sentence_weight`, for the rest of its sentence where
    `sentences` are known: it stands at a sentence's beginning, what it is about at the end. Not in the paper
    (docs/experiments.md).
    """

    score: Score
    queries: int
    pooling: int
    sentence_weight: float = 0.0
    sentences: Sentences | None = None
    bias: Tensor | None = None
    voters: range | None = None
    refine: Refinement = propagative

    def judge(self, layer: int, queries: Tensor, keys: Tensor, scaling: float, position_ids: Tensor) -> Tensor:
        """(B, S) on the device of position_ids: what one layer's last queries think of each token."""
        bias = None if self.bias is None else self.bias[layer]
        asking = queries[:, :, queries.shape[2] - self.queries :]
        attention = Attention(asking, keys, position_ids.to(keys.device), scaling, bias)
        return self.score(attention).to(position_ids.device)

    def worth(self, chunk: Chunk, input_ids: Tensor) -> Tensor:
        """(B, C) what the context tokens of a scored chunk are worth, for themselves, their neighbours and their
        sentence. input_ids: (B, S), the chunk's."""
        assert chunk.scores is not None
        context = slice(chunk.prefix_len, len(chunk) - chunk.suffix_len)
        scores = chunk.scores[:, context]
        worth = pool(scores, self.pooling)
        if self.sentences is None or not self.sentence_weight or not scores.shape[1]:
            return worth
        numbers = self.sentences.number(input_ids[:, context], chunk.token_indices[:, context])
        rest = self.sentence_weight * pool_within(scores, numbers, SENTENCE_REACH)
        return torch.where(rest > 0, worth.maximum(rest), worth)  # part of a logit below 0 would be more than it


@dataclass(frozen=True)
class Event:
    """A node of `schedule` has run and been reduced. `kept` (B, S): original indices of the tokens that live on.

    Where the tree's result is judged again, the root comes once more, with `look` 2.
    """

    schedule: Schedule
    node: Node
    kept: Tensor
    look: int = 1


Observer = Callable[[Event], None]


@dataclass(frozen=True)
class Tree:
    """One compression under way: the plan, the prompt (B, P), (B, C), (B, S) and how chunks are reduced.

    `keep_kv=False` carries no keys and values: the tree then only chooses tokens. `leaf_batch` leaves of equal length
    run as one batch. `leaf_scores` gives the scores (B, S) of each leaf's tokens, where layers are not asked: then none
    run, and merged chunks are only reduced.
    """

    decoder: Decoder
    schedule: Schedule
    prefix_ids: Tensor
    context_ids: Tensor
    suffix_ids: Tensor
    selection: Selection
    keep_kv: bool
    leaf_batch: int = 1
    leaf_scores: Callable[[Node], Tensor] | None = None
    observer: Observer | None = field(default=None, compare=False)

    def run(self) -> Chunk:
        """The root chunk, reduced to its target. To be called inside the decoder's session."""
        return self._walk(self.schedule.root, self._leaves())

    def ids_of(self, chunk: Chunk) -> Tensor:
        """(B, S) input ids of a chunk's tokens. The prompt is never put together: of a long one that would be the
        largest tensor there is."""
        p, s = chunk.prefix_len, chunk.suffix_len
        places = chunk.token_indices[:, p : len(chunk) - s] - p
        return torch.cat([self.prefix_ids, self.context_ids.gather(1, places), self.suffix_ids], dim=1)

    def _walk(self, node: Node, leaves: Iterator[Chunk]) -> Chunk:
        """Depth first: the left child whole, then the right one, then their parent, so one reduced chunk per level
        waits at a time (SPEC 7)."""
        if not node.children:
            return next(leaves)
        left = self._walk(node.children[0], leaves)
        merged = left.merge(self._walk(node.children[1], leaves))
        del left
        return self._reduce(node, merged if self.leaf_scores else self._run_layers(node, merged))

    def _leaves(self) -> Iterator[Chunk]:
        """The leaves' chunks after their layers and reduction, in order, `leaf_batch` of them computed at a time."""
        for group in _equal_groups(self.schedule.leaves, self.leaf_batch):
            reduced = self._run_leaves(group)
            while reduced:
                yield reduced.pop(0)

    def _run_leaves(self, group: list[Node]) -> list[Chunk]:
        ids = [self.context_ids[:, node.context_start : node.context_stop] for node in group]
        batch = self.prefix_ids.shape[0]
        chunk = self._leaf_chunk(group, ids)
        if self.leaf_scores is None:
            chunk = self._run_layers(group[0], chunk)
        else:
            scores = torch.cat([self.leaf_scores(node) for node in group])
            chunk = replace(chunk, hidden=chunk.hidden.new_empty(*scores.shape, 0), scores=scores)
        return [self._reduce(node, chunk.rows(i * batch, (i + 1) * batch)) for i, node in enumerate(group)]

    def _leaf_chunk(self, group: list[Node], context_ids: list[Tensor]) -> Chunk:
        """Chunks `prefix + context + suffix` of a group, stacked along the batch axis (SPEC 2)."""
        plan, device = self.schedule, self.prefix_ids.device
        ids = torch.cat([torch.cat([self.prefix_ids, part, self.suffix_ids], dim=1) for part in context_ids])
        length = group[0].context_stop - group[0].context_start
        p, s = plan.prefix_len, plan.suffix_len
        positions = torch.cat(
            [
                torch.arange(p + length, device=device),
                torch.arange(plan.suffix_start, plan.next_position, device=device),
            ]
        )
        indices = torch.stack(
            [
                torch.cat(
                    [
                        torch.arange(p, device=device),
                        torch.arange(p + node.context_start, p + node.context_stop, device=device),
                        torch.arange(p + plan.context_len, p + plan.context_len + s, device=device),
                    ]
                )
                for node in group
            ]
        ).repeat_interleave(self.prefix_ids.shape[0], dim=0)
        return Chunk(self.decoder.embed(ids), positions.expand(len(ids), -1), indices, p, s)

    def _run_layers(self, node: Node, chunk: Chunk) -> Chunk:
        """The chunk after the node's layers, scored where it is to be reduced."""
        voters, reduces = self.selection.voters, node.target < node.length
        last = last_layer_run(self.schedule, node, voters, self.keep_kv)
        if last <= node.first_layer:
            return chunk
        scores = None if voters is None else chunk.scores
        every_layer = self.selection.refine in LAYER_SCORED_REFINEMENTS
        layer_scores: list[Tensor] = []

        def watch(layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
            nonlocal scores
            unheard = scores is None and reduces and layer == last - 1
            votes = unheard or (voters is not None and layer in voters)
            if not votes and not every_layer:
                return
            new = self.selection.judge(layer, queries, keys, scaling, chunk.position_ids)
            if votes:
                scores = new if scores is None else scores + new
            if every_layer:
                layer_scores.append(new)

        run = self.decoder.run(
            chunk.hidden,
            chunk.position_ids,
            node.first_layer,
            last,
            keep_kv=self.keep_kv,
            watch=watch,
            finish=self.keep_kv or (voters is None and last < self.schedule.layers),
        )
        return replace(
            chunk,
            hidden=run.hidden,
            keys=chunk.keys + run.keys,
            values=chunk.values + run.values,
            scores=scores,
            layer_scores=(*chunk.layer_scores, *layer_scores),
        )

    def _reduce(self, node: Node, chunk: Chunk) -> Chunk:
        """Drop the least significant context tokens down to the node's target; refine the layers below (SPEC 4, 5)."""
        if node.target < len(chunk):
            worth = self.selection.worth(chunk, self.ids_of(chunk))
            keep = keep_most_significant(worth, chunk.prefix_len, chunk.suffix_len, node.target)
            chunk = self.selection.refine(chunk, keep, self.selection.pooling)
        if self.observer is not None:
            self.observer(Event(self.schedule, node, chunk.token_indices))
        return chunk


def last_layer_run(schedule: Schedule, node: Node, voters: range | None, keep_kv: bool) -> int:
    """Where the node's layers stop. A tree that only chooses (`keep_kv=False`) asks all voters in its first chunks and
    then only ranks: reduced by another layer's word, a chunk may lose what they would have found
    (docs/experiments.md). A root that has nothing left to choose does not run."""
    if keep_kv:
        return node.last_layer
    if node is schedule.root and node.target == node.length:
        return node.first_layer
    if voters is None:
        return node.last_layer
    return node.first_layer if node.children else voters.stop


def _equal_groups(leaves: tuple[Node, ...], size: int) -> Iterator[list[Node]]:
    """Runs of at most `size` neighbouring leaves of one length."""
    remaining = iter(leaves)
    while group := list(islice(remaining, size)):
        while group:
            alike = [node for node in group if node.length == group[0].length]
            count = len(alike) if group[: len(alike)] == alike else 1
            yield group[:count]
            group = group[count:]
