"""Which model and tokenizer a saved calibration or context belongs to.

Kept keys and values only mean something to the very weights and RoPE settings that made them, so a saved file carries
a `ModelIdentity`, and loading compares it with the model at hand.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from homerlm.errors import CorruptFileError, InputError
from homerlm.model.rope import rope_settings

_SAMPLES = 64  # values per tensor


@dataclass(frozen=True)
class ModelIdentity:
    """What a saved file must have in common with a model; `name` and `revision` are shown, never compared."""

    architecture: str
    name: str
    revision: str | None
    weights: str
    rope: str

    @classmethod
    def of(cls, model: nn.Module) -> ModelIdentity:
        """The identity of a transformers model as it is now. Raises `InputError` for what is none."""
        check_model(model)
        config: Any = model.config
        return cls(
            architecture=type(model).__name__,
            name=model_name(model),
            revision=getattr(config, "_commit_hash", None),
            weights=weights_fingerprint(model),
            rope=_rope(config),
        )

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> ModelIdentity:
        """The inverse of `to_dict`; raises `CorruptFileError` for anything `to_dict` cannot have returned."""
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise CorruptFileError(f"the saved model identity is {str(values)[:200]}; make the file again")
        for key, value in values.items():
            if not (isinstance(value, str) or (value is None and key == "revision")):
                raise CorruptFileError(f"the saved model identity has {key} {str(value)[:200]}; make the file again")
        return cls(**values)

    def mismatch(self, other: ModelIdentity) -> str | None:
        """None, or a sentence with both values of the first field in which the model at hand (`other`) differs."""
        for field in ("architecture", "weights", "rope"):
            saved, given = getattr(self, field), getattr(other, field)
            if saved != given:
                return f"{field}: made with {saved}{self._origin()}, but the model given has {given}{other._origin()}"
        return None

    def _origin(self) -> str:
        return f" ({self.name}, revision {self.revision or 'unknown'})" if self.name else ""


def check_model(model: Any) -> None:
    """Raise `InputError` for what is no model of transformers."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model is {type(model).__name__}; it must be a transformers model: load one with "
            "`model, tokenizer = load_model(name)`"
        )


def check_evaluating(model: PreTrainedModel) -> None:
    """Raise `InputError` for a model in a training mode that changes what it reads and writes."""
    if model.training and any(map(_differs, model.modules())):
        raise InputError(
            "model is in training mode, in which dropout and gradient checkpointing change what it reads and writes: "
            "call model.eval() first"
        )


def _differs(module: nn.Module) -> bool:
    """Whether a module in training mode leaves out states or attention by chance, or keeps no cache."""
    dropout = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0)
    return module.training and (dropout > 0 or getattr(module, "gradient_checkpointing", False))


def model_name(model: nn.Module) -> str:
    """What a model was loaded by: a hub name, or a path; empty where it was not loaded."""
    return str(getattr(model.config, "_name_or_path", None) or "")


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over every parameter's and saved buffer's name and shape and up to 64 of its values, evenly spread.

    Floating-point values are rounded to bfloat16, so that a checkpoint loaded in float32 and in bfloat16 has one
    fingerprint (float16 rounds otherwise and can differ); quantised integers are taken as they are. Nothing is kept
    between calls: weights can change in place, and a 100M model takes milliseconds. Weights offloaded by accelerate
    (device "meta") cannot be seen; the fingerprint then ends in how many those are.
    """
    sha, unseen, tensors = hashlib.sha256(), 0, _saved_tensors(model)
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, list(tensor.shape)]).encode())
        if tensor.device.type == "meta":
            unseen += 1
        else:
            sha.update(_sample(tensor))
    return sha.hexdigest() + (f"+{unseen}-offloaded" if unseen else "")


def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """SHA-256 over a tokenizer's vocabulary and special tokens; None for no tokenizer. Taken once, until a token is
    added: of a large vocabulary it takes as long as several tokens of an answer."""
    if tokenizer is None:
        return None
    special = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    version = len(tokenizer), sorted(special.items()), sorted(tokenizer.all_special_tokens)
    known = _fingerprints.get(tokenizer)
    if known is None or known[0] != version:
        content = [sorted(tokenizer.get_vocab().items()), *version[1:]]
        known = _fingerprints[tokenizer] = version, hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return known[1]


_fingerprints: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def _saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers (where GPTQ and AWQ keep their weights), without copying as state_dict may."""
    saved: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                saved[name] = buffer
    return saved


def _sample(tensor: Tensor) -> bytes:
    """Bytes of at most `_SAMPLES` values. The stride is odd: a power of two would stay in one column of a matrix."""
    stride = -(-tensor.numel() // _SAMPLES) | 1
    values = tensor.data.reshape(-1)[::stride]
    if values.is_floating_point():
        values = values.to(torch.bfloat16)
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _rope(config: PreTrainedConfig) -> str:
    """Canonical JSON of the RoPE settings in force; 10000 and 10000.0 are one value."""
    return json.dumps(json.loads(json.dumps(rope_settings(config)), parse_int=float), sort_keys=True)
