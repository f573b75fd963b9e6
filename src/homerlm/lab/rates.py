"""How fast this machine is at what a prompt cannot do without: matrices, attention, moving memory.

Measured in the cell's own process, on the model's own layer, so that a time stands beside what it could be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from homerlm.lab.flops import Flops, Shape, linears

SECONDS = 0.5  # each rate is the median of the calls that fit into it: what the machine keeps up, not a moment's best
COPIED_BYTES = {"cpu": 1 << 27}
MOST_OPERATIONS = {"cpu": 1e11}  # of one call; elsewhere as many as `_ELSEWHERE`
_ELSEWHERE = {"copied": 1 << 30, "operations": 2e13}


@dataclass(frozen=True)
class Rates:
    """Operations a second through one layer's matrices and through causal attention (counted as in `counts`), bytes a
    second copied (each read and written)."""

    matmul: float
    attention: float
    copy: float

    @classmethod
    def typical(cls, several: Sequence[Rates]) -> Rates:
        """The median of each: a shared machine's speed changes from one measurement to the next."""
        return cls(*(statistics.median(getattr(rates, each.name) for rates in several) for each in fields(cls)))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def floor_s(self, flops: Flops) -> float:
        """Seconds of the counted operations alone."""
        return flops.matmul / self.matmul + flops.attention / self.attention

    def step_floor_s(self, weights_bytes: int, kv_bytes: int) -> float:
        """Seconds of one new token: every weight, and every key and value, is read once."""
        return (weights_bytes + kv_bytes) / self.copy


@torch.no_grad()
def measure_rates(model: PreTrainedModel, shape: Shape, tokens: int) -> Rates:
    """On the model's device and dtype, for chunks of `tokens`, shorter where one call would take too long."""
    device = model.device
    layer = model.get_decoder().layers[0]
    most = MOST_OPERATIONS.get(device.type, _ELSEWHERE["operations"])
    per_token = shape.projections[0] + shape.mlp[0]
    rows = max(1, min(tokens, int(most / per_token)))
    parts = list(linears(layer))
    inputs = {part.in_features: torch.randn(rows, part.in_features, dtype=model.dtype, device=device) for part in parts}

    def matrices() -> None:
        for part in parts:
            part(inputs[part.in_features])

    square = max(1, min(tokens, int((most / (4 * shape.heads * shape.head_dim)) ** 0.5)))
    states = torch.randn(3, 1, shape.heads, square, shape.head_dim, dtype=model.dtype, device=device)
    flops = shape.run(square, 0, 1).attention
    source = torch.empty(COPIED_BYTES.get(device.type, _ELSEWHERE["copied"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(
        matmul=rows * per_token / _typical_seconds(matrices, device),
        attention=flops / _typical_seconds(lambda: _attend(states), device),
        copy=2 * source.numel() / _typical_seconds(lambda: target.copy_(source), device),
    )


def _attend(states: Tensor) -> Tensor:
    """states: (3, B, H, S, D), queries, keys and values."""
    queries, keys, values = states
    return scaled_dot_product_attention(queries, keys, values, is_causal=True)


def _typical_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of at least three calls, after one that does not count."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
