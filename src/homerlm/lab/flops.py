"""What a prompt costs, counted instead of timed: floating-point operations and bytes of keys and values.

One multiply-add is two operations. Attention counts every query with every key of its chunk, as `FlopCounterMode` of
torch and most papers do: a causal kernel computes about half of that, and since the rate that it is divided by is
counted alike (`machine`), the half cancels. Norms, rotary embedding, softmax and copies are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from homerlm.config import HomerConfig, Lengths
from homerlm.errors import UnsupportedModelError
from homerlm.homer import voting_layers
from homerlm.merge.schedule import Node, Schedule
from homerlm.merge.tree import last_layer_run
from homerlm.score.surprisal import LEAD


@dataclass(frozen=True)
class Flops:
    """Operations by what does them. projections: queries, keys, values and output of the attention; head: logits."""

    projections: int = 0
    mlp: int = 0
    attention: int = 0
    scoring: int = 0
    head: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, times: int) -> Flops:
        return Flops(*(getattr(self, name) * times for name in self.__dataclass_fields__))

    @property
    def matmul(self) -> int:
        """All but the attention: what runs at the machine's rate for matrices."""
        return self.projections + self.mlp + self.scoring + self.head

    @property
    def total(self) -> int:
        return self.matmul + self.attention


@dataclass(frozen=True)
class Shape:
    """The sizes that decide the cost. projections, mlp: operations of one token in each layer (`outputs`: the part of
    its projections that comes after the attention); head: of its logits.

    heads, head_dim: of the queries; kv_bytes: of one token's keys and values in one layer.
    """

    projections: tuple[int, ...]
    outputs: tuple[int, ...]
    mlp: tuple[int, ...]
    head: int
    heads: int
    head_dim: int
    kv_bytes: int

    @property
    def layers(self) -> int:
        return len(self.mlp)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """Read off a model's modules, which may be without storage (device "meta").

        Raises `UnsupportedModelError` for a mixture of experts, whose cost depends on what is read.
        """
        config: Any = model.config.get_text_config(decoder=True)
        layers = model.get_decoder().layers
        if any(parameter.dim() > 2 for parameter in layers.parameters()):
            raise UnsupportedModelError(f"{type(model).__name__} is a mixture of experts, whose operations vary")
        attention = [sum(2 * linear.weight.numel() for linear in attention_linears(layer)) for layer in layers]
        whole = [sum(2 * linear.weight.numel() for linear in linears(layer)) for layer in layers]
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            projections=tuple(attention),
            outputs=tuple(2 * list(attention_linears(layer))[-1].weight.numel() for layer in layers),
            mlp=tuple(both - own for both, own in zip(whole, attention, strict=True)),
            head=2 * model.get_output_embeddings().weight.numel(),
            heads=heads,
            head_dim=head_dim,
            kv_bytes=2 * kv_heads * head_dim * model.dtype.itemsize,
        )

    def run(self, tokens: int, first: int = 0, last: int | None = None, keys: int | None = None) -> Flops:
        """`tokens` through layers `[first, last)`, each attending to `keys` (default: to one another)."""
        layers = slice(first, last)
        pairs = tokens * (tokens if keys is None else keys)
        return Flops(
            projections=tokens * sum(self.projections[layers]),
            mlp=tokens * sum(self.mlp[layers]),
            attention=4 * pairs * self.heads * self.head_dim * len(self.mlp[layers]),
        )

    def ask(self, tokens: int, layer: int) -> Flops:
        """`tokens` through a layer as far as its queries and keys."""
        return Flops(projections=tokens * (self.projections[layer] - self.outputs[layer]))

    def judge(self, queries: int, keys: int) -> Flops:
        """One vote: the logits of the last queries with all keys."""
        return Flops(scoring=2 * queries * keys * self.heads * self.head_dim)


@dataclass(frozen=True)
class Counted:
    """A prefill's operations, its bytes of keys and values at the peak, and appendix A's bound on these."""

    flops: Flops
    kv_bytes: int
    bound_bytes: int | None = None


def linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (part for part in module.modules() if isinstance(part, nn.Linear))


def attention_linears(layer: nn.Module) -> Iterator[nn.Linear]:
    """The projections of a layer's attention, which every family calls by a name that says so."""
    return (
        part
        for name, child in layer.named_children()
        if "attn" in name or "attention" in name
        for part in linears(child)
    )


def plain_flops(shape: Shape, tokens: int) -> Flops:
    """The plain model's prefill, with the logits of its last token."""
    return shape.run(tokens) + Flops(head=shape.head)


@dataclass(frozen=True)
class Compression:
    """What decides a compression's cost. `kept`: tokens of its result, at most `lengths.target_len`; a floor lowers it
    by content."""

    shape: Shape
    config: HomerConfig
    lengths: Lengths
    schedule: Schedule
    kept: int

    @property
    def queries(self) -> int:
        return min(self.config.scoring_queries or self.schedule.suffix_len, self.schedule.suffix_len)

    @property
    def voters(self) -> range | None:
        return voting_layers(self.config.voters, self.shape.layers, self.lengths.warmup_layers)

    def flops(self) -> Flops:
        """Of one row of a batch: the tree, the second look, the readout."""
        tree = self._surprisal() if self.config.by_surprisal(self.schedule) else self._tree()
        return tree + self._second_look() + self._readout()

    @property
    def _judges(self) -> range:
        """The layers that vote where a prompt is judged outside the tree."""
        return self.voters or range(self.shape.layers - 1, self.shape.layers)

    def _surprisal(self) -> Flops:
        """Every chunk through the whole model, with logits for its context, and a step to see how these are made."""
        total, step, affixes = Flops(), self.shape.run(1), self.schedule.prefix_len + self.schedule.suffix_len
        for leaf in self.schedule.leaves:
            context = leaf.context_stop - leaf.context_start
            read = affixes + min(leaf.context_start, LEAD) + context
            total += self.shape.run(read) + step + Flops(head=self.shape.head * (context + 2))
            if self.config.chosen_by == "both":
                total += self.shape.judge(self.queries, read) * len(self._judges)
        return total

    def _tree(self) -> Flops:
        total = Flops()
        for node in self.schedule.root.walk():
            last = self._last_layer(node)
            if last > node.first_layer:
                votes = self.shape.judge(self.queries, node.length) * self._votes(node)
                total += self._layers(node.length, node.first_layer, last) + votes
        return total

    def _layers(self, tokens: int, first: int, last: int) -> Flops:
        """Layers whose last one is left where it has only to vote."""
        only_chooses = self.config.readout == "recomputed"
        if only_chooses and last == (self.voters.stop if self.voters else self.shape.layers):
            return self.shape.run(tokens, first, last - 1) + self.shape.ask(tokens, last - 1)
        return self.shape.run(tokens, first, last)

    def _last_layer(self, node: Node) -> int:
        return last_layer_run(self.schedule, node, self.voters, keep_kv=self.config.readout != "recomputed")

    def _votes(self, node: Node) -> int:
        """In how many of its layers a node's tokens are judged: in all voters among them, or once, in the last one, if
        it is to be reduced and no layer below has judged them."""
        last = self._last_layer(node)
        if self.config.refinement == "per_layer_top_k":
            return last - node.first_layer
        heard = range(max(node.first_layer, self.voters.start), min(last, self.voters.stop)) if self.voters else ()
        judged_below = self.voters is not None and bool(node.children) and all(map(self._judged, node.children))
        return len(heard) or int(node.target < node.length and not judged_below)

    def _judged(self, node: Node) -> bool:
        return self._votes(node) > 0 or (bool(node.children) and all(map(self._judged, node.children)))

    def _second_look(self) -> Flops:
        if not self.lengths.looks_again(self.schedule):
            return Flops()
        candidates = self.schedule.root.target
        votes = self.shape.judge(self.queries, candidates) * len(self._judges)
        return self._layers(candidates, 0, self._judges.stop) + votes

    def _readout(self) -> Flops:
        """What the config's readout runs; the logits cost one stand-in token where the suffix does not give them."""
        head, suffix = Flops(head=self.shape.head), self.schedule.suffix_len
        again = {
            "recomputed": self.shape.run(self.kept) + self.shape.run(1),
            "reencoded": self.shape.run(suffix, keys=self.kept),
            "merged": self.shape.run(1),
        }
        return again[self.config.readout] + head

    def kv_tokens(self) -> int:
        """(Token, layer) pairs of keys and values at the peak: of the walk where they are carried, or of the result."""
        result = self.kept * self.shape.layers
        return result if self.config.readout == "recomputed" else max(self.schedule.peak_kv_tokens, result)
