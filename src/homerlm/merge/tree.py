"""The tree walk: leaves run, neighbours merge, the least significant tokens go (paper section 3.1; docs/method.md).

`Tree.walk` is what runs when a prompt is compressed by the paper's method, up to the root chunk.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homerlm.merge.chunk import Chunk
from homerlm.merge.plan import MergePlan
from homerlm.merge.refinement import REFINEMENTS
from homerlm.merge.schedule import Node
from homerlm.model.attention import Attended
from homerlm.model.decoder import Decoder
from homerlm.passes import Event
from homerlm.score.attention import Attention
from homerlm.score.neighbours import keep_most_significant, pool
from homerlm.score.scores import SCORES

Walk = Generator[Event, None, Chunk]


@dataclass(frozen=True)
class Tree:
    """One compression under way: the plan, the prompt (B, P), (B, C), (B, S), and the score's bias (L, distances)
    where it needs one. To be used inside the decoder's session."""

    decoder: Decoder
    plan: MergePlan
    prefix_ids: Tensor
    context_ids: Tensor
    suffix_ids: Tensor
    bias: Tensor | None = None

    def walk(self) -> Walk:
        """Events of every node as it is done; the generator's value is the root chunk, reduced to its target."""
        return self._walk(self.plan.schedule.root, self._leaves())

    def ids_of(self, chunk: Chunk) -> Tensor:
        """(B, S) input ids of a chunk's tokens. The prompt is never put together: of a long one that would be the
        largest tensor there is."""
        p, s = chunk.prefix_len, chunk.suffix_len
        places = chunk.token_indices[:, p : len(chunk) - s] - p
        return torch.cat([self.prefix_ids, self.context_ids.gather(1, places), self.suffix_ids], dim=1)

    def _walk(self, node: Node, leaves: Iterator[Chunk]) -> Walk:
        """Depth first: the left child whole, then the right one, then their parent, so one reduced chunk per level
        waits at a time."""
        if not node.children:
            chunk = next(leaves)
        else:
            left = yield from self._walk(node.children[0], leaves)
            merged = left.merge((yield from self._walk(node.children[1], leaves)))
            del left
            chunk = self._reduce(node, self._run_layers(node, merged))
            del merged
        yield Event(node.context_stop, self.plan.context_len, node.height + 1, chunk.token_indices)
        return chunk

    def _leaves(self) -> Iterator[Chunk]:
        """The leaves' chunks after their layers and reduction, in order, `chunk_batch` of them computed at a time."""
        for group in self.plan.schedule.leaf_groups(self.plan.config.chunk_batch):
            reduced = self._run_leaves(group)
            while reduced:
                yield reduced.pop(0)

    def _run_leaves(self, group: list[Node]) -> list[Chunk]:
        ids = [self.context_ids[:, node.context_start : node.context_stop] for node in group]
        batch = self.prefix_ids.shape[0]
        chunk = self._run_layers(group[0], self._leaf_chunk(group, ids))
        return [self._reduce(node, chunk.rows(i * batch, (i + 1) * batch)) for i, node in enumerate(group)]

    def _leaf_chunk(self, group: list[Node], context_ids: list[Tensor]) -> Chunk:
        """Chunks `prefix + context + suffix` of a group, stacked along the batch axis. All have the same positions."""
        schedule, device = self.plan.schedule, self.prefix_ids.device
        p, s, start = schedule.prefix_len, schedule.suffix_len, schedule.suffix_start
        ids = torch.cat([torch.cat([self.prefix_ids, part, self.suffix_ids], dim=1) for part in context_ids])
        head, tail = torch.arange(p, device=device), torch.arange(s, device=device)
        length = group[0].context_stop - group[0].context_start
        positions = torch.cat([torch.arange(p + length, device=device), start + tail])
        spans = [torch.arange(p + node.context_start, p + node.context_stop, device=device) for node in group]
        indices = torch.stack([torch.cat([head, span, p + schedule.context_len + tail]) for span in spans])
        indices = indices.repeat_interleave(self.prefix_ids.shape[0], dim=0)
        return Chunk(self.decoder.embed(ids), positions.expand(len(ids), -1), indices, p, s)

    def _run_layers(self, node: Node, chunk: Chunk) -> Chunk:
        """The chunk after the node's layers, scored where it is to be reduced."""
        scoring = self.plan.scoring_layer(node) if node.target < node.length else None
        every_layer = self.plan.config.refinement == "per_layer_top_k"
        hidden, scores = chunk.hidden, chunk.scores
        keys, values, layer_scores = list(chunk.keys), list(chunk.values), list(chunk.layer_scores)
        for step in self.decoder.steps(hidden, chunk.position_ids, node.first_layer, node.last_layer):
            assert step.hidden is not None
            hidden = step.hidden
            keys.append(step.attended.keys)
            values.append(step.attended.values)
            if step.layer == scoring or every_layer:
                new = self._score(step.attended, chunk.position_ids)
                layer_scores += [new] if every_layer else []
                scores = new if step.layer == scoring else scores
        return replace(
            chunk,
            hidden=hidden,
            keys=tuple(keys),
            values=tuple(values),
            scores=scores,
            layer_scores=tuple(layer_scores),
        )

    def _score(self, attended: Attended, position_ids: Tensor) -> Tensor:
        """Scores (B, S) of a chunk's tokens by one layer, on the device of position_ids."""
        bias = None if self.bias is None else self.bias[attended.layer]
        window = self.decoder.window(attended.layer)
        attention = Attention.of(attended, self.plan.queries, position_ids, window, bias)
        return SCORES[self.plan.config.score](attention).to(position_ids.device)

    def _reduce(self, node: Node, chunk: Chunk) -> Chunk:
        """Drop the least significant context tokens down to the node's target; refine the layers below."""
        if node.target >= len(chunk):
            return chunk
        assert chunk.scores is not None
        p, s, pooling = chunk.prefix_len, chunk.suffix_len, self.plan.config.pooling
        significance = pool(chunk.scores[:, p : len(chunk) - s], pooling)
        keep = keep_most_significant(significance, p, s, node.target)
        return REFINEMENTS[self.plan.config.refinement](chunk, keep, pooling)
