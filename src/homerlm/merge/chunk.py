"""One chunk of the tree as a value: what is alive for it between two nodes.

Axes, here and in every docstring of the package: B batch, H query heads, K key-value heads, Q scoring queries,
S tokens of a chunk or context, D head size, E hidden size, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """Prefix, some context and suffix, after the layers run so far.

    hidden: (B, S, E); position_ids, token_indices: (B, S); keys, values: per layer run so far (B, K, S, D), each on its
    layer's device; scores: (B, S) of the layer that scored last, None before the first. `token_indices` point into the
    original prompt.

    All of it holds the same tokens, unless layers were refined by themselves (`refinement`): then the layers
    below the last reduction have S of their own, and hold context tokens of their own between the same affixes.
    layer_scores: per layer run so far (B, S of the layer), empty unless every layer ranks its own tokens.
    """

    hidden: Tensor
    position_ids: Tensor
    token_indices: Tensor
    prefix_len: int
    suffix_len: int
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    scores: Tensor | None = None
    layer_scores: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.position_ids.shape[1]

    def select(self, keep: Tensor, below: Sequence[Tensor | None] | None = None) -> Chunk:
        """The chunk with only the tokens `keep` (B, n), ascending indices: hidden state, positions and the keys and
        values of every layer are cut together (propagative refinement, paper 3.2).

        `below`, for the other refinements, has for every layer under the last one what it keeps of its own tokens
        instead: indices (B, m), or None for all of them.
        """
        layers = [keep] * len(self.keys) if below is None else [*below, keep]
        return replace(
            self,
            hidden=_take(self.hidden, keep, 1),
            position_ids=_take(self.position_ids, keep, 1),
            token_indices=_take(self.token_indices, keep, 1),
            keys=tuple(_take(k, own, 2) for k, own in zip(self.keys, layers, strict=True)),
            values=tuple(_take(v, own, 2) for v, own in zip(self.values, layers, strict=True)),
            scores=None if self.scores is None else _take(self.scores, keep, 1),
            layer_scores=tuple(_take(s, own, 1) for s, own in zip(self.layer_scores, layers, strict=False)),
        )

    def rows(self, start: int, stop: int) -> Chunk:
        """Batch rows `[start, stop)` as a chunk of their own."""
        return replace(
            self,
            hidden=self.hidden[start:stop],
            position_ids=self.position_ids[start:stop],
            token_indices=self.token_indices[start:stop],
            keys=tuple(k[start:stop] for k in self.keys),
            values=tuple(v[start:stop] for v in self.values),
            scores=None if self.scores is None else self.scores[start:stop],
            layer_scores=tuple(s[start:stop] for s in self.layer_scores),
        )

    def merge(self, right: Chunk) -> Chunk:
        """Affixes averaged, contexts side by side, position ids carried along (docs/method.md, "Merging")."""
        p, s = self.prefix_len, self.suffix_len

        def join(a: Tensor, b: Tensor, axis: int, mean: bool) -> Tensor:
            body = (a.narrow(axis, p, a.shape[axis] - p - s), b.narrow(axis, p, b.shape[axis] - p - s))
            head = a.narrow(axis, 0, p), b.narrow(axis, 0, p)
            tail = a.narrow(axis, a.shape[axis] - s, s), b.narrow(axis, b.shape[axis] - s, s)
            ends = [torch.lerp(x, y, 0.5) if mean else x for x, y in (head, tail)]  # x + y can overflow in float16
            return torch.cat([ends[0], *body, ends[1]], dim=axis)

        return replace(
            self,
            hidden=join(self.hidden, right.hidden, 1, mean=True),
            position_ids=join(self.position_ids, right.position_ids, 1, mean=False),
            token_indices=join(self.token_indices, right.token_indices, 1, mean=False),
            keys=tuple(join(a, b, 2, mean=True) for a, b in zip(self.keys, right.keys, strict=True)),
            values=tuple(join(a, b, 2, mean=True) for a, b in zip(self.values, right.values, strict=True)),
            scores=None
            if self.scores is None or right.scores is None
            else join(self.scores, right.scores, 1, mean=False),
            layer_scores=tuple(
                join(a, b, 1, mean=False) for a, b in zip(self.layer_scores, right.layer_scores, strict=True)
            ),
        )


def _take(tensor: Tensor, keep: Tensor | None, axis: int) -> Tensor:
    """Per-row gather of `keep` (B, n) along the token axis of `tensor`, on the tensor's own device; None: all of it."""
    if keep is None:
        return tensor
    index = keep.to(tensor.device)
    shape = [1] * tensor.dim()
    shape[0], shape[axis] = index.shape
    sizes = list(tensor.shape)
    sizes[axis] = index.shape[1]
    return tensor.gather(axis, index.view(shape).expand(sizes))
