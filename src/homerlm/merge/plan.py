"""What HOMER runs for one prompt, in plain integers: the tree, which layer scores each chunk, and every pass."""

from __future__ import annotations

from dataclasses import dataclass

from homerlm.config import MergeConfig
from homerlm.errors import ConfigError, ScheduleError
from homerlm.merge.schedule import Node, Schedule, plan
from homerlm.model.shape import DecoderShape
from homerlm.passes import Lengths, Pass, head_pass

PAPER_WARMUP = 12 / 32  # section 4: 12 of Llama-2-7b's 32 layers


@dataclass(frozen=True)
class MergeLengths(Lengths):
    """The numbers of a config, resolved for one model; tokens and layers."""

    warmup_layers: int

    @classmethod
    def of(cls, config: MergeConfig, shape: DecoderShape) -> MergeLengths:
        """Raises `ConfigError` for lengths above the model's, or layers that it does not have."""
        max_chunk_len = config.max_chunk_len or int(shape.limit * config.chunk_share)
        target_len = config.target_len or int(shape.limit * config.target_share)
        for name, value in (("max_chunk_len", max_chunk_len), ("target_len", target_len)):
            if value > shape.limit:
                raise ConfigError(f"{name} is {value}, above the model's limit of {shape.limit} tokens: lower it")
        warmup = round(PAPER_WARMUP * shape.layers) if config.warmup_layers is None else config.warmup_layers
        if warmup >= shape.layers:
            raise ConfigError(f"warmup_layers is {warmup}; it must be below the model's {shape.layers} layers")
        if (merged := int(max_chunk_len * 2 * config.retention)) > shape.limit:
            raise ConfigError(
                f"retention is {config.retention}, so merged chunks hold up to {merged} tokens, above the model's "
                f"limit of {shape.limit}: lower it or max_chunk_len"
            )
        return cls(max_chunk_len, target_len, warmup)


@dataclass(frozen=True)
class MergePlan:
    """The tree of a prompt and what runs in it."""

    schedule: Schedule
    config: MergeConfig
    shape: DecoderShape

    @classmethod
    def of(
        cls, config: MergeConfig, shape: DecoderShape, prefix_len: int, context_len: int, suffix_len: int
    ) -> MergePlan:
        """Chunks that are reduced are at most what some layer sees as a whole. Raises `ScheduleError` for a prompt that
        cannot be cut into a tree, `ConfigError` for lengths or layers that do not fit the model."""
        lengths = MergeLengths.of(config, shape)
        longest = lengths.max_chunk_len
        if prefix_len + context_len + suffix_len > min(longest, lengths.target_len):  # something has to be chosen
            longest = min(longest, shape.sight)
        schedule = plan(
            prefix_len,
            context_len,
            suffix_len,
            max_chunk_len=longest,
            target_len=lengths.target_len,
            warmup_layers=lengths.warmup_layers,
            layers=shape.layers,
            max_initial_chunk_len=_at_most(config.max_initial_chunk_len, longest),
            retention=config.retention,
        )
        made = cls(schedule, config, shape)
        for leaf in schedule.leaves:
            if leaf.target < leaf.length and made.scoring_layer(leaf) is None:
                raise ScheduleError(
                    f"none of the layers [0, {leaf.last_layer}) of the first chunks sees all of their {leaf.length} "
                    "tokens, so none can choose: raise warmup_layers, or lower max_chunk_len to the layers' sliding "
                    f"window of {shape.windows[leaf.last_layer - 1]}"
                )
        return made

    @property
    def prefix_len(self) -> int:
        return self.schedule.prefix_len

    @property
    def context_len(self) -> int:
        return self.schedule.context_len

    @property
    def suffix_len(self) -> int:
        return self.schedule.suffix_len

    @property
    def prompt_len(self) -> int:
        return self.schedule.prompt_len

    @property
    def read_len(self) -> int:
        return self.schedule.context_len

    @property
    def cache_len(self) -> int:
        return self.schedule.root.target

    def kv_during(self, run: Pass) -> int:  # noqa: ARG002
        return self.schedule.peak_kv_tokens

    @property
    def height(self) -> int:
        return self.schedule.height

    @property
    def queries(self) -> int:
        """Number of the last suffix tokens whose attention scores the context."""
        return min(self.config.scoring_queries or self.suffix_len, self.suffix_len)

    def scoring_layer(self, node: Node) -> int | None:
        """The layer that scores a node's tokens: its last one, or the last before that whose attention reaches over the
        whole chunk. None where there is none; the scores from below then stand."""
        seeing = self.shape.layers_seeing(node.length)
        return max((layer for layer in seeing if node.first_layer <= layer < node.last_layer), default=None)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The nodes in the order of the walk, `chunk_batch` leaves of one length at a time, and the readout."""
        waiting, passes = list(self.schedule.leaf_groups(self.config.chunk_batch)), []
        for node in self.schedule.root.walk():
            if node.height:
                passes.append(self._pass("merge", node, 1))
            elif waiting and node is waiting[0][0]:
                passes.append(self._pass("chunk", node, len(waiting.pop(0))))
        if self.config.readout == "merged":
            return (*passes, head_pass(self.shape.layers))
        cached = self.cache_len - self.suffix_len
        return (*passes, Pass("read", self.suffix_len, 0, self.shape.layers, logits=1, cached=cached))

    def __str__(self) -> str:
        return str(self.schedule)

    def _pass(self, kind: str, node: Node, rows: int) -> Pass:
        every = self.config.refinement == "per_layer_top_k"
        one = self.scoring_layer(node) if node.target < node.length else None
        layers = tuple(range(node.first_layer, node.last_layer)) if every else () if one is None else (one,)
        return Pass(
            kind, node.length, node.first_layer, node.last_layer, rows, scoring_layers=layers, queries=self.queries
        )


def _at_most(length: int | None, most: int) -> int | None:
    return None if length is None else min(length, most)
