"""The plan of one compression in plain integers: which chunks, layers, lengths (paper section 3).

Nothing here knows about tensors. A `Schedule` prints as a tree, and predicts the memory of the walk before it starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from homerlm.config import flag
from homerlm.errors import ScheduleError
from homerlm.passes import check_target


@dataclass(frozen=True)
class Node:
    """One chunk of the tree, from its first layer to its reduction.

    `height` is 0 for leaves. Context tokens `[context_start, context_stop)` are the ones below this node.
    `length` counts the tokens (affixes included) that run through layers `[first_layer, last_layer)`, and `target`
    the tokens left after the reduction at the last of them.
    """

    height: int
    index: int
    first_layer: int
    last_layer: int
    context_start: int
    context_stop: int
    length: int
    target: int
    children: tuple[Node, ...] = ()

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order in which they run: left, right, parent (docs/method.md, "Order")."""
        for child in self.children:
            yield from child.walk()
        yield self


@dataclass(frozen=True)
class Schedule:
    """Everything that lengths and layer count decide about one compression."""

    prefix_len: int
    context_len: int
    suffix_len: int
    layers: int
    leaf_context_len: int
    root: Node

    @property
    def height(self) -> int:
        return self.root.height

    @property
    def leaves(self) -> tuple[Node, ...]:
        return tuple(node for node in self.root.walk() if node.height == 0)

    def leaf_groups(self, size: int) -> Iterator[list[Node]]:
        """Runs of at most `size` neighbouring leaves of one length: those that can run as one batch."""
        for _, alike in itertools.groupby(self.leaves, key=lambda leaf: leaf.length):
            while group := list(itertools.islice(alike, size)):
                yield group

    @property
    def prompt_len(self) -> int:
        return self.prefix_len + self.context_len + self.suffix_len

    @property
    def suffix_start(self) -> int:
        """First position id of the suffix, the same in every chunk (docs/method.md, "Leaves")."""
        return self.prefix_len + self.leaf_context_len

    @property
    def next_position(self) -> int:
        return self.suffix_start + self.suffix_len

    @cached_property
    def peak_kv_tokens(self) -> int:
        """Largest number of (token, layer) pairs alive at once in the depth-first walk that keeps every layer's KV."""
        return _peak_kv(self.root)

    def kv_bound_tokens(self) -> int:
        """Appendix A's bound on `peak_kv_tokens`: (h/2 + 1) * L * C_max, C_max the longest chunk."""
        longest = max(node.length for node in self.root.walk())
        return math.ceil((self.height / 2 + 1) * self.layers * longest)

    def __str__(self) -> str:
        head = (
            f"{self.prompt_len} tokens (prefix {self.prefix_len}, context {self.context_len}, suffix {self.suffix_len})"
            f" in {len(self.leaves)} chunks of up to {self.leaf_context_len} context tokens, height {self.height}"
        )
        return "\n".join([head, *_tree_lines(self.root, "", "")])


def plan(
    prefix_len: int,
    context_len: int,
    suffix_len: int,
    *,
    max_chunk_len: int,
    target_len: int,
    warmup_layers: int,
    layers: int,
    max_initial_chunk_len: int | None = None,
    retention: float = 0.5,
) -> Schedule:
    """Cut a prompt into HOMER's binary tree (docs/method.md, "Schedule"). All lengths are tokens, affixes included
    where a chunk is meant.

    `retention`: how much of a full chunk's context a child keeps, 0.5 in the paper; above that, merged chunks are
    longer than `max_chunk_len`.

    Where the authors' program breaks, this one does the following: an empty context gives one chunk of the two
    affixes; a last leaf that would be empty makes the leaves even (sizes differ by one); everything else that cannot
    be cut raises `ScheduleError` with the setting to change.
    """
    _check_whole(
        prefix_len=prefix_len,
        context_len=context_len,
        suffix_len=suffix_len,
        max_chunk_len=max_chunk_len,
        target_len=target_len,
        warmup_layers=warmup_layers,
        layers=layers,
        max_initial_chunk_len=0 if max_initial_chunk_len is None else max_initial_chunk_len,
    )
    _check_lengths(prefix_len, context_len, suffix_len, max_chunk_len, target_len, max_initial_chunk_len)
    if not 0 <= warmup_layers < layers:
        raise ScheduleError(f"warmup_layers is {warmup_layers}; it must be at least 0 and below the {layers} layers")
    affixes = prefix_len + suffix_len
    room = max_chunk_len - affixes
    leaf_room = room if max_initial_chunk_len is None else max_initial_chunk_len - affixes
    height = math.ceil(math.log2(chunks)) if (chunks := math.ceil(context_len / leaf_room)) > 1 else 0
    bounds = _leaf_bounds(context_len, 2**height)
    ranges = _layer_ranges(layers, warmup_layers, height)
    builder = _TreeBuilder(affixes, int(2 * retention * room), bounds, ranges)
    root = builder.build(height, 0, min(target_len, affixes + context_len))
    leaf_len = max(stop - start for start, stop in bounds)
    return Schedule(prefix_len, context_len, suffix_len, layers, leaf_len, root)


def _check_whole(**numbers: int) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ScheduleError(f"{name} is {number!r}; it must be a whole number")


def _check_lengths(
    prefix_len: int,
    context_len: int,
    suffix_len: int,
    max_chunk_len: int,
    target_len: int,
    max_initial_chunk_len: int | None,
) -> None:
    if prefix_len < 0 or context_len < 0:
        raise ScheduleError(f"lengths must not be negative (prefix {prefix_len}, context {context_len})")
    if suffix_len < 1:
        raise ScheduleError("the suffix is empty; its last token scores the context, so it needs at least one")
    affixes = prefix_len + suffix_len
    for name, limit in (("max_chunk_len", max_chunk_len), ("max_initial_chunk_len", max_initial_chunk_len)):
        if limit is not None and limit <= affixes:
            raise ScheduleError(
                f"{name} is {limit}, but prefix ({prefix_len}) and suffix ({suffix_len}) already take {affixes}: "
                f"shorten them or raise {name} ({flag(name)}) above {affixes}"
            )
    if max_initial_chunk_len is not None and max_initial_chunk_len > max_chunk_len:
        raise ScheduleError(
            f"max_initial_chunk_len is {max_initial_chunk_len}, above max_chunk_len {max_chunk_len}: lower it"
        )
    check_target(prefix_len, context_len, suffix_len, target_len)


def _leaf_bounds(context_len: int, leaves: int) -> list[tuple[int, int]]:
    """Context spans of the leaves: ceil(C / n) each and a shorter last one, or even ones if that leaves one empty."""
    if leaves > 1 and context_len < leaves:
        raise ScheduleError(
            f"{context_len} context tokens cannot fill the {leaves} chunks of the tree: raise max_chunk_len "
            "(or max_initial_chunk_len), or shorten prefix and suffix"
        )
    size = math.ceil(context_len / leaves)
    if (leaves - 1) * size < context_len or leaves == 1:
        return [(i * size, min((i + 1) * size, context_len)) for i in range(leaves)]
    longer = context_len - leaves * (size - 1)
    starts = [i * (size - 1) + min(i, longer) for i in range(leaves + 1)]
    return list(itertools.pairwise(starts))


def _layer_ranges(layers: int, warmup_layers: int, height: int) -> list[tuple[int, int]]:
    """`[first, last)` layers of the nodes at each height; the leaves take the warm-up and what is left over."""
    per_level, left_over = divmod(layers - warmup_layers, height + 1)
    if per_level == 0:
        raise ScheduleError(
            f"the tree has {height + 1} levels, but only {layers - warmup_layers} of {layers} layers are above "
            f"warmup_layers = {warmup_layers}: raise max_chunk_len (fewer levels) or lower warmup_layers"
        )
    stops = [warmup_layers + left_over + per_level * (k + 1) for k in range(height + 1)]
    return list(zip([0, *stops[:-1]], stops, strict=True))


@dataclass(frozen=True)
class _TreeBuilder:
    affixes: int
    merged_room: int  # context tokens of a merged chunk
    bounds: list[tuple[int, int]]
    ranges: list[tuple[int, int]]

    def build(self, height: int, index: int, target: int) -> Node:
        children = self._children(height, index) if height else ()
        start = self.bounds[index << height][0]
        stop = self.bounds[((index + 1) << height) - 1][1]
        length = sum(child.target for child in children) - self.affixes if children else self.affixes + stop - start
        first, last = self.ranges[height]
        return Node(height, index, first, last, start, stop, length, min(target, length), children)

    def _children(self, height: int, index: int) -> tuple[Node, Node]:
        right_index = 2 * index + 1
        start, stop = self.bounds[right_index << (height - 1)]
        left_target = right_target = self.affixes + self.merged_room // 2
        if self.affixes + stop - start < right_target:
            right_target = self.affixes + stop - start
            left_target = self.affixes + self.merged_room - (stop - start)
        left = self.build(height - 1, 2 * index, left_target)
        return left, self.build(height - 1, right_index, right_target)


def _peak_kv(node: Node) -> int:
    """Peak (token, layer) pairs of a subtree: while the right child runs, the reduced left one waits."""
    own = node.length * node.last_layer
    if not node.children:
        return own
    left, right = node.children
    waiting = left.target * left.last_layer
    merging = waiting + right.target * right.last_layer + node.length * left.last_layer
    return max(_peak_kv(left), waiting + _peak_kv(right), own, merging)


def _tree_lines(node: Node, lead: str, child_lead: str) -> Iterator[str]:
    kept = f" -> {node.target}" if node.target < node.length else ""
    context = f", context [{node.context_start}, {node.context_stop})" if not node.children else ""
    yield f"{lead}layers [{node.first_layer}, {node.last_layer}): {node.length} tokens{kept}{context}"
    for child in node.children:
        last = child is node.children[-1]
        yield from _tree_lines(child, child_lead + ("└─ " if last else "├─ "), child_lead + ("   " if last else "│  "))
