"""Operations of a prompt, counted from its plan instead of timed.

One multiply-add is two operations. Attention counts every query with every key of its chunk, as `FlopCounterMode` of
torch and most papers do: a causal kernel computes about half of that, and since the rate that it is divided by is
counted alike (`homerlm.lab.rates`), the half cancels. Norms, rotary embedding, softmax and copies are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from homerlm.errors import UnsupportedModelError
from homerlm.lab.readers import HomerReader, Reader
from homerlm.lab.samples import Asked
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


def plain_pass(shape: Shape, tokens: int) -> Pass:
    """The plain model's reading, with the logits of its last token."""
    return Pass("read", tokens, 0, shape.layers, logits=1)


def with_kept(passes: Iterable[Pass], planned: int, kept: int) -> list[Pass]:
    """The passes of a plan for a prompt of which `kept` tokens are left, not the `planned` ones, the most there can
    be."""
    return [_shortened(run, planned - kept) if run.kind == "read" and run.keys == planned else run for run in passes]


def _shortened(run: Pass, tokens: int) -> Pass:
    return replace(run, cached=run.cached - tokens) if run.cached else replace(run, tokens=run.tokens - tokens)


class Cost(NamedTuple):
    """Of one row: operations, bytes of keys and values at the peak, appendix A's bound on these, the longest chunk."""

    flops: Flops
    kv_bytes: int
    bound_bytes: int | None
    chunk_len: int


def cost_of(reader: Reader, shape: Shape, prompt: Asked, kept: int | None = None) -> Cost:
    """`kept`: tokens that were left of the prompt; a plan knows the most that there can be."""
    lengths = prompt.prefix.shape[1], prompt.context.shape[1], prompt.suffix.shape[1]
    if not isinstance(reader, HomerReader):
        run = plain_pass(shape, sum(lengths))
        return Cost(flops_of(shape, [run]), run.tokens * shape.layers * shape.kv_bytes, None, run.tokens)
    plan = reader.homer.plan(*lengths)
    passes = list(plan.passes)
    planned = plan.cache_len
    kept = planned if kept is None else kept
    carried = max((plan.kv_during(run) for run in passes if run.kind != "read"), default=0)
    schedule = getattr(plan, "schedule", None)  # of a tree, which appendix A is about
    return Cost(
        flops_of(shape, with_kept(passes, planned, kept)),
        max(carried, kept * shape.layers) * shape.kv_bytes,
        None if schedule is None else schedule.kv_bound_tokens() * shape.kv_bytes,
        max(run.keys for run in passes),
    )
