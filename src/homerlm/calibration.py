"""What attention logit a token at some distance usually gets, per layer: the bias of the paper's score (SPEC 9)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from homerlm.errors import ConfigError


@dataclass(frozen=True)
class Calibration:
    """bias: (L, distances) float32, the mean over texts of the maximum over heads of the last token's logits."""

    bias: Tensor

    def __post_init__(self) -> None:
        if self.bias.dim() != 2:
            raise ConfigError(f"a calibration's bias has shape {tuple(self.bias.shape)}; it must be (layers, distances)")
