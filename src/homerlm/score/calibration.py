"""What attention logit a token at some distance usually gets, per layer: the bias of the paper's score (docs/method.md,
"Calibration")."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import storage
from homerlm.errors import ConfigError, HomerError, InputError, MismatchError
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity, check_model
from homerlm.score.attention import Attention

KIND = "calibration"
VERSION = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """bias: (L, distances) float32, the mean over text segments of the maximum over heads of the last token's logit,
    by layer and distance from that token. `model` is whose it is (None: not checked); `notes` how it was made."""

    bias: Tensor
    model: ModelIdentity | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.bias, Tensor):
            raise ConfigError(f"a calibration's bias is {type(self.bias).__name__}; it must be a tensor, a row a layer")
        if self.bias.dim() != 2 or not self.bias.is_floating_point():
            raise ConfigError(
                f"a calibration's bias is {tuple(self.bias.shape)} {self.bias.dtype}; it must be floats, a row a layer"
            )
        if not torch.isfinite(self.bias).all():
            raise ConfigError("a calibration's bias holds NaN or infinity: measure it again, in bfloat16 or float32")

    @classmethod
    def measure(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Iterable[str],
        *,
        length: int | None = None,
        segments: int = 100,
        queries: int = 1,
        progress: Progress | None = None,
    ) -> Calibration:
        """Calibrate on text: joined, tokenised and cut into at most `segments` pieces of `length` tokens (default half
        the model's limit, the longest chunk), spread evenly over it.

        `queries` averages over that many last tokens of each segment: 1 is the paper's, more is the same mean with
        less noise. Raises `InputError` if the texts are shorter than one segment, `ConfigError` for numbers out of
        their range.
        """
        check_model(model)
        if isinstance(texts, str):  # its characters would be the texts
            raise InputError("texts is one text; it must be a list of texts: [text]")
        decoder = Decoder(model)
        length = length or decoder.config.max_position_embeddings // 2
        if length < 2:
            raise ConfigError(f"length is {length}; a segment must have at least 2 tokens")
        if not 1 <= queries <= length:
            raise ConfigError(f"queries is {queries}; it must be between 1 and the segment length {length}")
        ids = tokenizer("\n\n".join(texts), add_special_tokens=False, verbose=False, return_tensors="pt").input_ids[0]
        available = len(ids) // length
        if segments < 1 or not available:
            raise InputError(
                f"{len(ids)} tokens of text make {available} segments of {length} tokens, and {segments} are wanted: "
                "give more text or a shorter length"
            )
        count = min(segments, available)
        starts = [i * (len(ids) - length) // max(count - 1, 1) for i in range(count)]
        bias = torch.zeros(len(decoder.layers), length, dtype=torch.float64)
        for done, start in enumerate(starts, 1):
            bias += _logits_by_distance(decoder, ids[None, start : start + length], queries).cpu() / count
            if progress is not None:
                progress(done, count)
        notes = {"segments": count, "length": length, "queries": queries, "dtype": str(model.dtype)}
        return cls(bias.float(), ModelIdentity.of(model), notes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a file, complete or not at all. Raises `InputError` if it cannot be written."""
        metadata = {"model": self.model.to_dict() if self.model else None, "notes": self.notes}
        storage.write(path, kind=KIND, version=VERSION, tensors={"bias": self.bias}, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: PreTrainedModel) -> Calibration:
        """A saved calibration of this model under this RoPE scaling; `MismatchError` with both values otherwise."""
        check_model(model)
        calibration = cls._read(path)
        calibration.check(model)
        return calibration

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MismatchError` if this calibration was measured on another model or RoPE scaling."""
        if self.model is not None and (difference := self.model.mismatch(ModelIdentity.of(model))):
            raise MismatchError(
                f"this calibration belongs to another model, {difference}: run `homer calibrate` for it"
            )
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        if len(self.bias) != layers:
            raise MismatchError(f"this calibration has {len(self.bias)} layers, the model given has {layers}")

    @classmethod
    def bundled(cls, model: PreTrainedModel) -> Calibration | None:
        """The calibration that ships with homerlm for this very model and RoPE scaling, if there is one."""
        for entry in resources.files("homerlm").joinpath("data").iterdir():
            if entry.name.endswith(".safetensors"):
                with resources.as_file(entry) as path:
                    try:
                        return cls.load(path, model)
                    except HomerError:
                        continue
        return None

    @classmethod
    def _read(cls, path: str | os.PathLike[str]) -> Calibration:
        tensors, metadata = storage.read(path, kind=KIND, version=VERSION)
        storage.check_names(tensors, {"bias"})
        bias = storage.check_tensor(tensors, "bias", shape=(None, None), dtype=torch.float32)
        identity = metadata.get("model")
        return cls(bias, ModelIdentity.from_dict(identity) if identity else None, metadata.get("notes") or {})


@torch.no_grad()
def _logits_by_distance(decoder: Decoder, ids: Tensor, queries: int) -> Tensor:
    """(L, S) float64: for one segment of ids (1, S), the mean over its last `queries` tokens of the maximum over heads
    of their logit at each distance. Distances that only some of them reach are averaged over those."""
    length = ids.shape[1]
    positions = torch.arange(length, device=decoder.device)[None]
    counts = _sum_by_distance(torch.ones(queries, length, dtype=torch.float64))
    rows: list[Tensor] = []
    with decoder.session():
        for step in decoder.steps(decoder.embed(ids), positions, 0, len(decoder.layers)):
            attention = Attention.of(step.attended, queries, positions, decoder.window(step.layer))
            rows.append(_sum_by_distance(attention.logits().amax(1)[0].double().cpu()) / counts)
    return torch.stack(rows)


def _sum_by_distance(logits: Tensor) -> Tensor:
    """(S,): logits (Q, S) of the last Q tokens summed over queries at each distance from the query, past keys only."""
    queries, length = logits.shape
    total = torch.zeros(length, dtype=logits.dtype)
    for back in range(queries):
        reach = length - back
        total[:reach] += logits[queries - 1 - back, :reach].flip(0)
    return total
