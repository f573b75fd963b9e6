"""How fast this machine is at what a prompt cannot do without: matrices, attention, moving memory.

Measured in the case's own process, on the model's own layer, so that a time stands beside what it could be.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from homerlm.model.flops import Flops, Shape, linears

SECONDS = 0.5  # each rate is the median of the calls that fit into it: what the machine keeps up, not a moment's best
_COPIED_BYTES = {"cpu": 1 << 27}  # elsewhere 1 GiB
_OPERATIONS = {"cpu": 1e11}  # of one call, at most; elsewhere 2e13


class Rates(NamedTuple):
    """Operations a second through one layer's matrices and through causal attention (counted as in `flops`), bytes a
    second copied (each read and written)."""

    matmul: float
    attention: float
    copy: float

    @classmethod
    def typical(cls, several: Sequence[Rates]) -> Rates:
        """The median of each: a shared machine's speed changes from one measurement to the next."""
        return cls(*map(statistics.median, zip(*several, strict=True)))

    def floor_s(self, flops: Flops) -> float:
        """Seconds of the counted operations alone."""
        return flops.matrices / self.matmul + flops.attention / self.attention


@torch.no_grad()
def measure_rates(model: PreTrainedModel, shape: Shape, tokens: int) -> Rates:
    """On the model's device and dtype, for chunks of `tokens`, shorter where one call would take too long."""
    device, layer = model.device, model.get_decoder().layers[0]
    most = _OPERATIONS.get(device.type, 2e13)
    per_token = shape.projections[0] + shape.mlp[0]
    rows = max(1, min(tokens, int(most / per_token)))
    parts = list(linears(layer))
    inputs = {part.in_features: torch.randn(rows, part.in_features, dtype=model.dtype, device=device) for part in parts}
    per_pair = 4 * shape.heads * shape.head_dim
    square = max(1, min(tokens, int((most / per_pair) ** 0.5)))
    queries, keys, values = torch.randn(3, 1, shape.heads, square, shape.head_dim, dtype=model.dtype, device=device)
    source = torch.empty(_COPIED_BYTES.get(device.type, 1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def time_of(work: Callable[[], object]) -> float:
        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=SECONDS).median

    return Rates(
        matmul=rows * per_token / time_of(lambda: [part(inputs[part.in_features]) for part in parts]),
        attention=square**2
        * per_pair
        / time_of(lambda: scaled_dot_product_attention(queries, keys, values, is_causal=True)),
        copy=2 * source.numel() / time_of(lambda: target.copy_(source)),
    )
