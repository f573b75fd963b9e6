"""Operations of a plan's passes, counted instead of timed.

One multiply-add is two operations. Attention counts every query with every key of its chunk, as `FlopCounterMode` of
torch and most papers do: a causal kernel computes about half of that, and since the rate that it is divided by is
counted alike (`homerlm.lab.rates`), the half cancels. Norms, rotary embedding, softmax and copies are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from homerlm.errors import UnsupportedModelError
from homerlm.model.shape import DecoderShape
from homerlm.passes import Pass


class Flops(NamedTuple):
    """Operations by what does them. projections: queries, keys, values and output of the attention; head: logits."""

    projections: int = 0
    mlp: int = 0
    attention: int = 0
    scoring: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def matrices(self) -> int:
        """All but the attention: what runs at the machine's rate for matrices."""
        return self.total - self.attention


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

    @property
    def weights(self) -> int:
        """Numbers in the matrices, each of which is multiplied once for a token."""
        return (sum(self.projections) + sum(self.mlp) + self.head) // 2

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """Read off a model's modules, which may be without storage (device "meta").

        Raises `UnsupportedModelError` for a mixture of experts, whose cost depends on what is read.
        """
        config: Any = model.config.get_text_config(decoder=True)
        layers = model.get_decoder().layers
        if any(parameter.dim() > 2 for parameter in layers.parameters()):
            raise UnsupportedModelError(f"{type(model).__name__} is a mixture of experts, whose operations vary")
        attention = [[2 * linear.weight.numel() for linear in attention_linears(layer)] for layer in layers]
        whole = [sum(2 * linear.weight.numel() for linear in linears(layer)) for layer in layers]
        sizes = DecoderShape.of(config, model.dtype)
        return cls(
            projections=tuple(map(sum, attention)),
            outputs=tuple(own[-1] for own in attention),
            mlp=tuple(both - sum(own) for both, own in zip(whole, attention, strict=True)),
            head=2 * model.get_output_embeddings().weight.numel(),
            heads=sizes.heads,
            head_dim=sizes.head_dim,
            kv_bytes=sizes.kv_bytes,
        )

    @classmethod
    def planned(cls, sizes: DecoderShape) -> Shape:
        """Of a model whose config alone is there: with an MLP of three matrices, as nearly all have."""
        width = 2 * sizes.hidden * sizes.head_dim  # of one head's projection
        return cls(
            projections=(2 * (sizes.heads + sizes.kv_heads) * width,) * sizes.layers,
            outputs=(sizes.heads * width,) * sizes.layers,
            mlp=(2 * sizes.hidden * 3 * sizes.intermediate,) * sizes.layers,
            head=2 * sizes.vocab * sizes.hidden,
            heads=sizes.heads,
            head_dim=sizes.head_dim,
            kv_bytes=sizes.kv_bytes,
        )


def linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (part for part in module.modules() if isinstance(part, nn.Linear))


def attention_linears(layer: nn.Module) -> Iterator[nn.Linear]:
    """The projections of a layer's attention, which every family calls by a name that says so."""
    for name, child in layer.named_children():
        if "attn" in name or "attention" in name:
            yield from linears(child)


def flops_of(shape: Shape, passes: Iterable[Pass]) -> Flops:
    """What the passes of a plan cost, for one row of a batch."""
    return Flops(*map(sum, zip(*(_of_pass(shape, run) for run in passes), strict=True)))


def _of_pass(shape: Shape, run: Pass) -> Flops:
    """A pass that does not finish leaves its last layer with its queries and keys."""
    finished = slice(run.first_layer, run.last_layer if run.finish else run.last_layer - 1)
    projections, mlp = sum(shape.projections[finished]), shape.mlp[finished]
    if not run.finish:
        projections += shape.projections[run.last_layer - 1] - shape.outputs[run.last_layer - 1]
    per_key = 2 * shape.heads * shape.head_dim
    counted = Flops(
        projections=run.tokens * projections,
        mlp=run.tokens * sum(mlp),
        attention=2 * run.tokens * run.keys * per_key * len(mlp),
        scoring=run.queries * run.keys * per_key * len(run.scoring_layers),
        head=run.logits * shape.head,
    )
    return Flops(*(run.rows * count for count in counted))
