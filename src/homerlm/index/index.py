"""The index: a document, or several, of which every token can still be found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import mapped, storage
from homerlm.context import Origin
from homerlm.errors import CorruptFileError, InputError, MismatchError
from homerlm.formatting import counted, size
from homerlm.index.buckets import is_url, local
from homerlm.index.keys import KeyLayout, Slot
from homerlm.index.question import Question
from homerlm.mapped import Mapped, MappedFiles, Rows
from homerlm.model.identity import ModelIdentity, check_model
from homerlm.passes import Aside
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Head, Scoring

KIND = "index"
VERSION = 1
OPTIONAL = ("scales", "embeddings")
TENSORS = {"chunks": torch.int64, "units": torch.int64, "spans": torch.int32, "ids": torch.int32, "text": torch.uint8}


@dataclass(frozen=True)
class Part:
    """One document of an index: its name, its first token and byte of text, and how many it has of each."""

    name: str
    first_token: int
    tokens: int
    first_byte: int
    bytes: int


@dataclass(frozen=True)
class IndexFile:
    """A file of an index, or of a part of it: its documents' tokens `[first_token, first_token + tokens)`."""

    path: str
    first_token: int
    tokens: int


@dataclass(frozen=True)
class Frame:
    """What an index and everything that is added to it have in common.

    origin: what made it; layout: which keys are kept; prefix, stand_in: ids that chunks are read after, and that a
    question runs behind; chunk_len: most tokens of a chunk; chat: whether the prefix is a chat template's (None: as the
    tokenizer has one); int8: whether keys are kept as such; embedding: how units are embedded, None where
    they are not.
    """

    origin: Origin
    layout: KeyLayout
    prefix: tuple[int, ...]
    stand_in: tuple[int, ...]
    chunk_len: int
    chat: bool | None
    int8: bool
    embedding: Embedding | None = None

    def question(self, suffix: Tensor, neutral: Tensor | None, queries: int) -> Question:
        """What suffix (1, S) and neutral question (1, N) ask of the chunks, by the last `queries` tokens."""
        prefix, stand_in = (torch.tensor([ids], dtype=torch.long) for ids in (self.prefix, self.stand_in))
        return Question(prefix, stand_in, suffix, neutral, queries, self.chunk_len)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        scoring = self.layout.scoring
        return {
            "model": self.origin.model.to_dict(),
            "tokenizer": self.origin.tokenizer,
            "settings": self.origin.settings,
            "layers": scoring.layers,
            "heads": [[head.layer, head.index, head.weight] for head in scoring.heads],
            "slots": [list(astuple(slot)) for slot in self.layout.slots],
            "group": self.layout.group,
            "embedding": None if self.embedding is None else self.embedding.to_json(),
        } | {name: getattr(self, name) for name in ("prefix", "stand_in", "chunk_len", "chat", "int8")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Frame:
        """The inverse of `to_dict`; raises `CorruptFileError`, or what a wrong type does."""
        origin = Origin(ModelIdentity.from_dict(values["model"]), values["tokenizer"], values["settings"])
        scoring = Scoring(tuple(map(int, values["layers"])), tuple(map(Head.from_json, values["heads"])))
        slots = tuple(Slot(*map(int, slot)) for slot in values["slots"])
        layout = KeyLayout(scoring, slots, int(values["group"]))
        prefix, stand_in = (tuple(map(int, values[name])) for name in ("prefix", "stand_in"))
        chunk_len, chat, int8 = int(values["chunk_len"]), values["chat"], bool(values["int8"])
        embedding = Embedding.from_json(values["embedding"]) if values.get("embedding") else None
        return cls(origin, layout, prefix, stand_in, chunk_len, chat, int8, embedding)

    def check_same(self, other: Frame) -> None:
        """Raise `MismatchError` where something is to be added that another frame made."""
        mine, given = self.to_dict(), other.to_dict()
        for name in mine:
            if name == "prefix" and mine[name] != given[name]:  # ids tell nobody anything
                raise MismatchError(
                    "the index was made with another instruction, or another chat template, than what is to be added: "
                    "use the same ones, or make an index of its own"
                )
            if name not in ("model", "settings") and mine[name] != given[name]:
                raise MismatchError(
                    f"the index was made with {name} {str(mine[name])[:200]}, what is to be added would be with "
                    f"{str(given[name])[:200]}: use the same settings, or make an index of its own"
                )


@dataclass(frozen=True, eq=False, repr=False)
class Index:
    """Documents of T tokens that were read once, without a question, and can be asked any.

    keys: (T, width) rows of `KeyLayout`, as they were in their chunk, RoPE applied; scales: (T, slots) where keys are
    int8; ids: (T,); chunks, units: the first token of each chunk, and of each unit (sentence), which is chosen as a
    whole, none without a tokenizer; spans: (T, 2) characters `[start, end)` of each token in its document; text:
    (bytes,) UTF-8 of all documents, none where ids were given; embeddings: (U, E) of the units, where the frame embeds
    them; files: that hold all of it, none where it is in memory.
    """

    frame: Frame
    parts: tuple[Part, ...]
    keys: Tensor
    scales: Tensor | None
    ids: Tensor
    chunks: Tensor
    units: Tensor
    spans: Tensor
    text: Tensor
    embeddings: Tensor | None = None
    mapped: Mapped | MappedFiles | None = field(default=None)
    files: tuple[IndexFile, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Index({counted(len(self.parts), 'document')}, {counted(len(self), 'token')}, "
            f"{counted(len(self.chunks), 'chunk')}, "
            f"{self.frame.layout.scoring}, {self.keys.dtype}, {size(self.nbytes)})"
        )

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, in memory or in the file."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in ("keys", *TENSORS, *OPTIONAL)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """Tokens `[start, stop)` that compete with each other for a question's attention: a chunk, or several short
        ones that are neighbours, so that a short document has no advantage."""
        starts = [*self.chunks.tolist(), len(self)]
        cuts = [0]
        for start, stop in pairwise(starts):
            if stop - cuts[-1] > self.frame.chunk_len and start > cuts[-1]:
                cuts.append(start)
        return [block for block in zip(cuts, [*cuts[1:], len(self)], strict=True) if block[0] < block[1]]

    def keys_of(self, start: int, stop: int) -> Tensor:
        """(C, width) rows of the tokens `[start, stop)`."""
        rows = self.keys[start:stop]
        return rows if self.scales is None else self.frame.layout.from_int8(rows, self.scales[start:stop])

    def part_of(self, tokens: Tensor) -> Tensor:
        """(n,) the number of each token's document."""
        firsts = torch.tensor([part.first_token for part in self.parts])
        return torch.searchsorted(firsts, tokens.cpu(), right=True) - 1

    def text_of(self, part: Part) -> str:
        """A document's text. Raises `InputError` for an index that was made of ids."""
        if part.tokens and not part.bytes:
            raise InputError("this index was made of token ids and holds no text: make it with `Homer.read`")
        encoded = self.text[part.first_byte : part.first_byte + part.bytes]
        return encoded.numpy().tobytes().decode("utf-8")

    def forget(self) -> None:
        """Give memory back that holds what was read of the file."""
        if self.mapped is not None:
            self.mapped.forget()

    def check_model(self, identity: ModelIdentity) -> None:
        """Raise `MismatchError` if the index was made by another model than the one of this identity."""
        if difference := self.frame.origin.model.mismatch(identity):
            raise MismatchError(f"this index belongs to another model, {difference}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file (safetensors with JSON metadata, complete or not at all). Raises `InputError` if
        the path cannot be written."""
        rows = {name: [Rows.of(tensor, self.forget)] for name, tensor in self.tensors().items()}
        for _ in saving(path, self.frame, self.parts, rows):
            pass

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        check: bool = True,
    ) -> Index:
        """A saved index, for the model that made it. Its tensors stay in the file and are read when they are needed.
        Without `check` the file is not read through to see whether it is damaged: who scores its keys should have done
        so. path: may be a URL, such as s3://bucket/book.homer, whose file is copied into the cache.

        Raises `MismatchError` with both values for another model, RoPE scaling, dtype or tokenizer (where one is
        given), or for a file of another kind, `CorruptFileError` for a damaged one, `InputError` for a path that is
        no file.
        """
        check_model(model)
        window, metadata = mapped.read(local(path), kind=KIND, version=VERSION, check=check)
        index = rebuilt(path, window, metadata, vocab=model.get_input_embeddings().weight.shape[0])
        dtype = str(model.dtype) if index.frame.int8 else str(index.keys.dtype)
        index.frame.origin.check(path, dtype, model, tokenizer)
        index.forget()
        return index


def saving(
    path: str | os.PathLike[str], frame: Frame, parts: Sequence[Part], rows: Mapping[str, Sequence[Rows]]
) -> Iterator[Aside[None] | None]:
    """Write an index whose tensors come in parts, with pauses."""
    metadata = frame.to_dict() | {"parts": [list(astuple(part)) for part in parts]}
    return mapped.writing(path, kind=KIND, version=VERSION, tensors=rows, metadata=metadata)


def rebuilt(path: Any, window: Mapped, metadata: dict[str, Any], vocab: int) -> Index:
    """The index from its file's parts, every name, shape, dtype and number checked."""
    try:
        frame = Frame.from_dict(metadata)
        parts = tuple(Part(str(name), *map(int, numbers)) for name, *numbers in metadata["parts"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(f"{path}: its metadata is wrong or lacks something: {error!r}") from error
    tensors, layout = window.tensors, frame.layout
    optional = dict(zip(OPTIONAL, (frame.int8, frame.embedding is not None), strict=True))
    storage.check_names(tensors, {"keys", *TENSORS, *(name for name in OPTIONAL if optional[name])})
    shapes: dict[str, tuple[int | None, ...]] = dict.fromkeys(TENSORS, (None,))
    tokens = len(storage.check_tensor(tensors, "ids", shape=(None,), dtype=torch.int32))
    shapes |= {"ids": (tokens,), "spans": (tokens, 2)}
    for name, dtype in TENSORS.items():
        storage.check_tensor(tensors, name, shape=shapes[name], dtype=dtype)
    keys = torch.int8 if frame.int8 else tensors["keys"].dtype
    storage.check_tensor(tensors, "keys", shape=(tokens, layout.width), dtype=keys)
    if frame.int8:
        storage.check_tensor(tensors, "scales", shape=(tokens, len(layout.slots)), dtype=torch.float16)
    if frame.embedding is not None:
        shape = len(tensors["units"]), len(frame.embedding.usual)
        storage.check_tensor(tensors, "embeddings", shape=shape, dtype=torch.float16)
    for name in ("chunks", "units"):
        starts = tensors[name]
        if len(starts) and (int(starts[0]) != 0 or int(starts[-1]) >= tokens or bool((starts.diff() <= 0).any())):
            raise CorruptFileError(f"{path}: {name} are not ascending numbers of tokens from 0 to {tokens - 1}")
    low, high = (int(number) for number in tensors["ids"].aminmax()) if tokens else (0, -1)
    if low < 0 or high >= vocab:
        raise CorruptFileError(f"{path}: ids run from {low} to {high}, expected 0 to {vocab - 1}")
    if bool(tokens) != bool(len(tensors["chunks"])):
        raise CorruptFileError(f"{path}: {tokens} tokens are in {len(tensors['chunks'])} chunks")
    if _ends(parts) != (tokens, len(tensors["text"])):
        raise CorruptFileError(f"{path}: its documents do not follow each other to the end of its tokens and text")
    given = {name: tensors.get(name) for name in ("keys", *TENSORS, *OPTIONAL)}
    place = path if is_url(path) else os.path.abspath(path)
    return Index(frame, parts, **given, mapped=window, files=(IndexFile(place, 0, tokens),))


def _ends(parts: Sequence[Part]) -> tuple[int, int]:
    """Tokens and bytes of documents that follow each other; (-1, -1) where they do not."""
    token = byte = 0
    for part in parts:
        if (part.first_token, part.first_byte) != (token, byte) or part.tokens < 0 or part.bytes < 0:
            return -1, -1
        token, byte = token + part.tokens, byte + part.bytes
    return token, byte
