"""The result of a compression: an ordinary, short KV cache with its positions (docs/method.md, "Using the result")."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from homerlm import storage
from homerlm.errors import CorruptFileError, InputError, MismatchError
from homerlm.formatting import size
from homerlm.model.identity import ModelIdentity, check_model, tokenizer_fingerprint

KIND = "compact context"
VERSION = 1
_TOKEN_TENSORS = ("position_ids", "token_indices", "input_ids")
_NUMBERS = ("next_position", "prefix_len", "suffix_len", "prompt_len")


@dataclass(frozen=True)
class Origin:
    """What made a context: the model, the tokenizer's fingerprint (None without one) and the settings."""

    model: ModelIdentity
    tokenizer: str | None
    settings: dict[str, Any]

    @classmethod
    def now(cls, model: PreTrainedModel, tokenizer: str | None, settings: dict[str, Any]) -> Origin:
        """With the model's weights as they are at this moment: a merged LoRA changes them in place."""
        return cls(ModelIdentity.of(model), tokenizer, settings)

    def check(
        self, path: Any, dtype: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Raise `MismatchError` with both values where a file at `path` with numbers of `dtype` belongs to another
        model, RoPE scaling, dtype or tokenizer (where one is given)."""
        if difference := self.model.mismatch(ModelIdentity.of(model)):
            raise MismatchError(f"{path} belongs to another model, {difference}: load that one, or make it again")
        if dtype != str(model.dtype):
            raise MismatchError(
                f"{path} was made in {dtype}, the model given runs in {model.dtype}: load it with that dtype"
            )
        given = tokenizer_fingerprint(tokenizer)
        if given is not None and self.tokenizer is not None and given != self.tokenizer:
            raise MismatchError(f"{path} was made with tokenizer {self.tokenizer}, the one given is {given}")


@dataclass(frozen=True, eq=False, repr=False)
class CompactContext:
    """A compressed prompt.

    keys, values: one (B, K, S, D) tensor per layer, RoPE applied; position_ids: (B, S) RoPE positions they carry;
    token_indices: (B, S) index in the original prompt of each kept token; input_ids: (B, S) their ids;
    logits: (B, V) for the next token, at `next_positions`. The first `prefix_len` and the last `suffix_len` tokens are
    the prompt's affixes, `prompt_len` the length of the whole prompt before compression.

    padding: (B,) tokens at the beginning of each row that only fill it up, because other rows kept more; None for none.

    Where layers were not refined alike (`MergeConfig.refinement`), the token tensors describe the last layer: the ones
    below hold other context tokens between the same affixes, and with refinement "none" more of them (`uneven`).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    position_ids: Tensor
    token_indices: Tensor
    input_ids: Tensor
    logits: Tensor
    prefix_len: int
    suffix_len: int
    prompt_len: int
    model_config: Any
    origin: Origin
    padding: Tensor | None = None

    def __repr__(self) -> str:
        rows = f"{self.batch_size} rows, " if self.batch_size > 1 else ""
        return (
            f"CompactContext({rows}{len(self):,} of {self.prompt_len:,} tokens, {len(self.keys)} layers, "
            f"{self.keys[0].dtype}, {size(self.nbytes)})"
        )

    def __len__(self) -> int:
        return self.position_ids.shape[1]

    @property
    def batch_size(self) -> int:
        return self.position_ids.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def next_positions(self) -> Tensor:
        """(B,) RoPE position of each row's next token."""
        return self.position_ids[:, -1] + 1

    @property
    def next_position(self) -> int:
        """RoPE position of the first row's next token."""
        return int(self.next_positions[0])

    @property
    def attention_mask(self) -> Tensor:
        """(B, S) 1 for tokens, 0 for padding, as transformers' `generate` takes it."""
        if self.padding is None:
            return torch.ones_like(self.input_ids)
        places = torch.arange(len(self), device=self.input_ids.device)
        return (places >= self.padding.to(places.device)[:, None]).long()

    def row(self, index: int) -> CompactContext:
        """One row of a batch as a context of its own, without padding. Raises `InputError` for one it lacks."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.batch_size:
            raise InputError(f"index is {index!r}; the context has rows 0 to {self.batch_size - 1}")
        skip = 0 if self.padding is None else int(self.padding[index])
        one = slice(index, index + 1)
        return replace(
            self,
            keys=tuple(keys[one, :, skip:] for keys in self.keys),
            values=tuple(values[one, :, skip:] for values in self.values),
            **{name: getattr(self, name)[one, skip:] for name in _TOKEN_TENSORS},
            logits=self.logits[one],
            padding=None,
        )

    @classmethod
    def stack(cls, rows: Sequence[CompactContext]) -> CompactContext:
        """Contexts of one row each as a batch; shorter rows are padded at their beginning. Raises `InputError`
        for no context, and for those that cannot be rows of one batch: of several rows, of other models, dtypes or
        lengths of affixes."""
        _check_rows(rows)
        longest = max(map(len, rows))
        padding = torch.tensor([longest - len(row) for row in rows])
        if len(rows) == 1 or not padding.any():
            padded = list(rows)
        else:
            padded = [_padded(row, longest - len(row)) for row in rows]

        def join(tensors: Sequence[Tensor]) -> Tensor:
            return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))

        return replace(
            rows[0],
            keys=tuple(join(layer) for layer in zip(*(row.keys for row in padded), strict=True)),
            values=tuple(join(layer) for layer in zip(*(row.values for row in padded), strict=True)),
            **{name: join([getattr(row, name) for row in padded]) for name in (*_TOKEN_TENSORS, "logits")},
            padding=padding if padding.any() else None,
        )

    @property
    def uneven(self) -> bool:
        """Whether some layer holds another number of tokens than the last one."""
        return any(keys.shape[2] != len(self) for keys in self.keys)

    def to_cache(self) -> DynamicCache:
        """A transformers cache of this context, its own copy: generating with it leaves the context as it was.

        Feed the next tokens at `next_positions`, with `attention_mask` if there is padding; where the model has
        sliding-window layers they keep their window. The cache of an uneven context takes one token at a time.
        """
        return self._cache(len(self), copies=1)

    def check_model(self, identity: ModelIdentity) -> None:
        """Raise `MismatchError` if the context was made by another model than the one of this identity."""
        if difference := self.origin.model.mismatch(identity):
            raise MismatchError(f"this context belongs to another model, {difference}")

    def _cache(self, length: int, copies: int) -> DynamicCache:
        """All but the last tokens, so that `length` are left, as a cache with each batch row `copies` times."""
        cache = (_UnevenCache if self.uneven else DynamicCache)(config=self.model_config)
        for layer, states in enumerate(zip(self.keys, self.values, strict=True)):
            keys, values = (t[:, :, : t.shape[2] - len(self) + length] for t in states)
            if copies > 1:
                keys, values = (t.repeat_interleave(copies, dim=0) for t in (keys, values))
            cache.update(keys, values, layer)  # concatenates, which copies
        return cache

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the context to a file (safetensors with JSON metadata, complete or not at all).

        Raises `InputError` if the path cannot be written, or if the context is uneven.
        """
        if self.uneven:
            raise InputError(
                f"{path} was not written: the context's layers hold different numbers of tokens "
                "(refinement 'none'), which the file format does not know; compress with another refinement"
            )
        tensors = {name: getattr(self, name) for name in (*_TOKEN_TENSORS, "logits")}
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            tensors |= {f"keys.{layer}": keys, f"values.{layer}": values}
        if self.padding is not None:
            tensors["padding"] = self.padding
        metadata = {name: getattr(self, name) for name in _NUMBERS} | {
            "model": self.origin.model.to_dict(),
            "tokenizer": self.origin.tokenizer,
            "settings": self.origin.settings,
            "dtype": str(self.keys[0].dtype),
        }
        storage.write(path, kind=KIND, version=VERSION, tensors=tensors, metadata=metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> CompactContext:
        """A saved context, for the model that made it, each layer's part on that layer's device.

        Raises `MismatchError` with both values for another model, RoPE scaling, dtype or tokenizer (where one is
        given), `CorruptFileError` for a damaged file, `InputError` for a path that is no file.
        """
        check_model(model)
        tensors, metadata = storage.read(path, kind=KIND, version=VERSION)
        origin, numbers = _metadata(path, metadata)
        origin.check(path, metadata["dtype"], model, tokenizer)
        return _rebuild(path, tensors, numbers, origin, model)


class _UnevenCache(DynamicCache):
    """Layers of different lengths, for one new token at a time: more would need a causal mask for each length."""

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens of a layer; of the last one, whose tokens the context lists, where the caller means the sequence."""
        return super().get_seq_length(len(self.layers) - 1 if layer_idx is None else layer_idx)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if key_states.shape[2] > 1 and self.get_seq_length(layer_idx):
            raise InputError(
                f"{key_states.shape[2]} tokens at once for a context whose layers differ in length (refinement "
                "'none'): feed it one token at a time"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _check_rows(rows: Sequence[CompactContext]) -> None:
    if not isinstance(rows, list | tuple) or not all(isinstance(row, CompactContext) for row in rows):
        raise InputError(f"rows is {type(rows).__name__}; it must be a list of contexts")
    if not rows:
        raise InputError("rows is empty; a batch needs at least one context")
    if several := [row.batch_size for row in rows if row.batch_size > 1]:
        raise InputError(f"rows holds a context of {several[0]} rows; give them one by one (`CompactContext.row`)")
    first = rows[0]
    for name in ("prefix_len", "suffix_len"):
        if len(found := {getattr(row, name) for row in rows}) > 1:
            raise InputError(f"rows differ in {name}: {sorted(found)}; a batch has one")
    for row in rows[1:]:
        if difference := first.origin.model.mismatch(row.origin.model):
            raise InputError(f"rows belong to different models, {difference}")
        if first.keys[0].dtype != row.keys[0].dtype:
            raise InputError(f"rows hold {first.keys[0].dtype} and {row.keys[0].dtype}; a batch has one dtype")


def _padded(row: CompactContext, count: int) -> CompactContext:
    """A row with `count` tokens in front that nothing attends to."""

    def fill(tensor: Tensor, axis: int) -> Tensor:
        shape = list(tensor.shape)
        shape[axis] = count
        return torch.cat([tensor.new_zeros(shape), tensor], dim=axis)

    return replace(
        row,
        keys=tuple(fill(keys, 2) for keys in row.keys),
        values=tuple(fill(values, 2) for values in row.values),
        **{name: fill(getattr(row, name), 1) for name in _TOKEN_TENSORS},
    )


def _metadata(path: Any, metadata: dict[str, Any]) -> tuple[Origin, dict[str, int]]:
    expected = {*_NUMBERS, "model", "tokenizer", "settings", "dtype"}
    if set(metadata) != expected:
        raise CorruptFileError(f"{path}: its metadata names {sorted(metadata)}, expected {sorted(expected)}")
    numbers = {name: metadata[name] for name in _NUMBERS}
    if not all(isinstance(value, int) and value >= 0 for value in numbers.values()):
        raise CorruptFileError(f"{path}: its lengths are {numbers}, expected whole numbers of at least 0")
    identity = ModelIdentity.from_dict(metadata["model"])
    return Origin(identity, metadata["tokenizer"], metadata["settings"]), numbers


def _rebuild(
    path: Any, tensors: dict[str, Tensor], numbers: dict[str, int], origin: Origin, model: PreTrainedModel
) -> CompactContext:
    """The context from checked parts: every name, shape and dtype, and every index within its range."""
    base: Any = model.get_decoder()
    layers = range(len(base.layers))
    kv_names = [f"{part}.{layer}" for layer in layers for part in ("keys", "values")]
    padding = {"padding"} & set(tensors)
    storage.check_names(tensors, {*_TOKEN_TENSORS, "logits", *kv_names, *padding})
    batch, length = storage.check_tensor(tensors, "input_ids", shape=(None, None), dtype=torch.long).shape
    if padding and not (
        int(storage.check_tensor(tensors, "padding", shape=(batch,), dtype=torch.long).min()) >= 0
        and int(tensors["padding"].max()) < length
    ):
        raise CorruptFileError(f"{path}: padding is {tensors['padding'].tolist()}, expected 0 to {length - 1}")
    for name in _TOKEN_TENSORS:
        storage.check_tensor(tensors, name, shape=(batch, length), dtype=torch.long)
    for layer in layers:  # some families' layers differ in heads and sizes, and their values' size from their keys'
        keys = storage.check_tensor(tensors, f"keys.{layer}", shape=(batch, None, length, None), dtype=model.dtype)
        storage.check_tensor(tensors, f"values.{layer}", shape=(*keys.shape[:3], None), dtype=model.dtype)
    vocab = model.get_output_embeddings().weight.shape[0]
    storage.check_tensor(tensors, "logits", shape=(batch, vocab), dtype=tensors["logits"].dtype)
    limits = {"position_ids": numbers["next_position"], "token_indices": numbers["prompt_len"], "input_ids": vocab}
    for name, limit in limits.items():
        low, high = (int(x) for x in tensors[name].aminmax()) if length else (0, -1)
        if low < 0 or high >= limit:
            raise CorruptFileError(f"{path}: {name} runs from {low} to {high}, expected 0 to {limit - 1}")
    devices = [_device_of(base.layers[layer], model) for layer in layers]
    first = model.get_input_embeddings().weight.device
    return CompactContext(
        keys=tuple(tensors[f"keys.{layer}"].to(devices[layer]) for layer in layers),
        values=tuple(tensors[f"values.{layer}"].to(devices[layer]) for layer in layers),
        **{name: tensors[name].to(first) for name in _TOKEN_TENSORS},
        logits=tensors["logits"].to(first),
        prefix_len=numbers["prefix_len"],
        suffix_len=numbers["suffix_len"],
        prompt_len=numbers["prompt_len"],
        model_config=base.config,
        origin=origin,
        padding=tensors.get("padding"),
    )


def _device_of(layer: torch.nn.Module, model: PreTrainedModel) -> torch.device:
    """Where a layer computes: offloaded weights (device "meta") are brought to the model's device."""
    device = next(layer.parameters()).device
    return model.device if device.type == "meta" else device
