"""An index made: documents are read chunk by chunk, without a question, and the keys of every token are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm import prompt, storage
from homerlm.executor import IN_PROCESS, Executor, LoadedModel, values_of
from homerlm.index.index import Frame, Index, Part, saving
from homerlm.index.keys import KeyLayout, embedding, indexing
from homerlm.index.pieces import Piece, pieces
from homerlm.mapped import Rows, Spool
from homerlm.model.attention import Attended
from homerlm.model.decoder import Decoder
from homerlm.passes import TOKEN, Event, tokenising
from homerlm.score.embedding import Embedding, UnitMeans, run_with_states, unit_sums
from homerlm.select.method import Select
from homerlm.select.plan import even_spans, groups_alike, lengths

QUESTION_SHARE = 32  # of a chunk, one part is left for a question
BLOCK = 1 << 14  # tokens that are kept at once


class Store(Protocol):
    """Where the tensors grow, row by row."""

    def add(self, name: str, rows: Tensor) -> None: ...


class Memory:
    """Tensors that grow in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, name: str, rows: Tensor) -> None:
        self._parts.setdefault(name, []).append(rows)

    def joined(self, before: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor, behind the rows of that name that came before."""
        return {name: torch.cat([before[name], *self._parts.get(name, [])]) for name in before}


@dataclass
class Builder:
    """Documents one after the other, behind those of `into`. Works inside the decoder's session.

    model: sentences for the units, where it has a tokenizer; batch: chunks that run at once; executor: what reads them.
    """

    model: LoadedModel
    frame: Frame
    into: Index
    store: Store
    batch: int = 1
    executor: Executor = IN_PROCESS
    parts: list[Part] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.parts, self.tokens = list(self.into.parts), len(self.into)

    def text(self, tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> Iterator[Event]:
        """Read a document's text. Events count its tokens; how many it has is estimated until its end."""
        read = characters = 0
        first = self.tokens
        size = 0
        for piece in pieces(text):
            ids = yield from self._tokens(tokenizer, piece, len(text), read)
            characters += len(piece.text)
            total = (read + ids.shape[1]) * len(text) // characters
            for done in self._piece(ids):
                yield Event(read + done, total)
            read += ids.shape[1]
            encoded = torch.frombuffer(bytearray(piece.text.encode()), dtype=torch.uint8)
            self.store.add("text", encoded)
            size += len(encoded)
        self._end(name, first, size)

    def ids(self, name: str, ids: Tensor) -> Iterator[Event]:
        """Read a document given as ids (1, T)."""
        first = self.tokens
        self.store.add("ids", ids[0].to("cpu", torch.int32))
        self.store.add("spans", torch.zeros(ids.shape[1], 2, dtype=torch.int32))
        for done in self._piece(ids.cpu()):
            yield Event(done, ids.shape[1])
        self._end(name, first, 0)

    def _end(self, name: str, first: int, size: int) -> None:
        byte = sum(part.bytes for part in self.parts[-1:]) + (self.parts[-1].first_byte if self.parts else 0)
        self.parts.append(Part(name, first, self.tokens - first, byte, size))

    def _tokens(
        self, tokenizer: PreTrainedTokenizerBase, piece: Piece, length: int, read: int
    ) -> Generator[Event, None, Tensor]:
        """Ids (1, T) of a piece of a text of so many characters, of which `read` tokens come before; these and their
        spans are kept."""
        left = length - piece.start
        ids, spans = yield from tokenising(partial(prompt.ids_and_spans, tokenizer, piece.text), left, read)
        whole = torch.empty(1, len(ids), dtype=torch.long)
        for start in range(0, len(ids), BLOCK):
            block = slice(start, start + BLOCK)
            whole[0, block] = torch.tensor(ids[block])
            self.store.add("ids", whole[0, block].int())
            self.store.add("spans", torch.tensor(spans[block], dtype=torch.int32) + piece.start)
            if len(ids) > BLOCK:
                yield Event(read, read + left // TOKEN)
        return whole

    def _piece(self, ids: Tensor) -> Iterator[int]:
        """Read a piece of ids (1, T), its chunks apart from those of others; how many of its tokens are read by now."""
        count = ids.shape[1]
        if not count:
            return
        found: list[Tensor] = []
        if (sentences := self.model.sentences) is not None:
            for starts in sentences.unit_starts(ids[0].to(self.model.decoder.device)):
                found.append(starts)
                self.store.add("units", starts + self.tokens)
                if count > BLOCK:
                    yield 0
        units = torch.cat(found) if found else torch.zeros(1, dtype=torch.long)
        means = UnitMeans(torch.diff(units, append=torch.tensor([count])))
        chunks = even_spans(count, self.frame.chunk_len)
        self.store.add("chunks", torch.tensor([start for start, _ in chunks]) + self.tokens)
        groups = list(groups_alike(chunks, self.batch))
        items = (ChunkIds.of(ids, group, units) for group in groups)
        ends = iter(group[-1][1] for group in groups)
        done = 0
        with closing(values_of(self.executor, self.model, ChunkRows.of(self.frame), items, len(groups))) as kept:
            for rows in kept:
                if rows is not None:
                    self._keep(rows, means)
                    done = next(ends)
                yield done
        self.tokens += count

    def _keep(self, rows: TokenRows, means: UnitMeans) -> None:
        self.store.add("keys", rows.keys)
        if rows.scales is not None:
            self.store.add("scales", rows.scales)
        if rows.sums is not None:
            self.store.add("embeddings", means.add(rows.sums, len(rows.keys)).half())


@dataclass(frozen=True)
class ChunkIds:
    """Neighbouring chunks of ids (B, C). units: (B * C,) of their tokens, counted from that of the first."""

    ids: Tensor
    units: Tensor

    @classmethod
    def of(cls, ids: Tensor, spans: Sequence[tuple[int, int]], starts: Tensor) -> ChunkIds:
        """Of spans of a piece of ids (1, T) whose units begin at `starts` (U,)."""
        tokens = torch.arange(spans[0][0], spans[-1][1])
        units = torch.searchsorted(starts, tokens, right=True)
        return cls(torch.cat([ids[:, start:stop] for start, stop in spans]), units - units[0])


@dataclass(frozen=True)
class TokenRows:
    """What is kept of T tokens. keys: (T, width) of the layout; scales: (T, slots) where they are int8; sums: (n, E) of
    the states of each of their units, where these have embeddings."""

    keys: Tensor
    scales: Tensor | None
    sums: Tensor | None


@dataclass(frozen=True)
class ChunkRows:
    """Work of an executor: what is kept of chunks that are read behind the prefix."""

    layout: KeyLayout
    prefix: tuple[int, ...]
    int8: bool
    embedding: Embedding | None

    @classmethod
    def of(cls, frame: Frame) -> ChunkRows:
        return cls(frame.layout, frame.prefix, frame.int8, frame.embedding)

    def __call__(self, model: LoadedModel, chunks: ChunkIds) -> TokenRows:
        decoder, layout, before = model.decoder, self.layout, len(self.prefix)
        prefix = torch.tensor([self.prefix], dtype=torch.long).expand(len(chunks.ids), -1)
        whole = torch.cat([prefix, chunks.ids.cpu()], dim=1).to(decoder.device)
        positions = torch.arange(whole.shape[1], device=whole.device).expand(len(whole), -1)
        depth = None if self.embedding is None else self.embedding.depth
        seen: list[Attended] = []
        states = run_with_states(decoder, whole, positions, layout.scoring, depth, seen.append)
        rows = layout.rows(seen, before, whole.shape[1]).cpu().flatten(0, 1)
        keys, scales = layout.to_int8(rows) if self.int8 else (rows, None)
        sums = None if states is None else unit_sums(states[:, before:].flatten(0, 1), chunks.units).cpu()
        return TokenRows(keys, scales, sums)


def empty(frame: Frame, dtype: torch.dtype) -> Index:
    """An index of nothing yet, whose keys have this dtype."""
    width = None if frame.embedding is None else len(frame.embedding.usual)
    slots = len(frame.layout.slots)
    return Index(
        frame,
        (),
        keys=torch.empty(0, frame.layout.width, dtype=torch.int8 if frame.int8 else dtype),
        scales=torch.empty(0, slots, dtype=torch.float16) if frame.int8 else None,
        embeddings=None if width is None else torch.empty(0, width, dtype=torch.float16),
        ids=torch.empty(0, dtype=torch.int32),
        chunks=torch.empty(0, dtype=torch.int64),
        units=torch.empty(0, dtype=torch.int64),
        spans=torch.empty(0, 2, dtype=torch.int32),
        text=torch.empty(0, dtype=torch.uint8),
    )


Reads = Callable[[Builder], Iterable[Event]]


@dataclass(frozen=True)
class Indexer:
    """Makes indexes for the default method, whose model is `decoder`. To be used inside its session."""

    decoder: Decoder
    method: Select

    def frame(
        self, prefix_ids: Tensor, stand_in: Tensor, neutral_len: int, *, chat: bool | None = None, int8: bool = False
    ) -> Frame:
        """Of documents that are read behind a prefix (1, P). Chunks leave room for a question as long as the neutral
        one, or a little more."""
        config, before = self.method.config, prefix_ids.shape[1]
        chunk_len, _ = lengths(config, self.decoder.shape, before, 1, max(neutral_len, 1))
        room = max(chunk_len - before - max(neutral_len, chunk_len // QUESTION_SHARE), 1)
        layout = KeyLayout.of(self.decoder, indexing(config, self.decoder.shape, chunk_len))
        prefix, behind = (tuple(part[0].tolist()) for part in (prefix_ids, stand_in))
        about = None if self.method.ranking.whole_sentences is None else embedding(config, self.decoder.shape)
        return Frame(self.method.origin(), layout, prefix, behind, room, chat, int8, about)

    def in_memory(self, into: Index, reads: Reads) -> Generator[Event, None, Index]:
        """Events of what `reads` reads, behind what is in `into`; the value is the index of both."""
        store = Memory()
        builder = self._builder(into, store)
        yield from reads(builder)
        return Index(into.frame, tuple(builder.parts), **({"scales": None} | store.joined(into.tensors())))

    def to_file(self, path: Path, into: Index, reads: Reads) -> Generator[Event, None, None]:
        """The same into a file, with nothing of the documents left in memory; the last event comes again as it is
        written. Raises `InputError` if it cannot be."""
        with closing(Spool(storage.check_target(path).parent)) as store:
            builder = self._builder(into, store)
            yield from reads(builder)
            new = store.rows()
            rows = {
                name: [Rows.of(tensor, into.forget), *([new[name]] if name in new else [])]
                for name, tensor in into.tensors().items()
            }
            last = builder.parts[-1].tokens if builder.parts else 0
            for synced in saving(path, into.frame, builder.parts, rows):
                yield Event(last, last, aside=synced)

    def _builder(self, into: Index, store: Store) -> Builder:
        method = self.method
        return Builder(method.loaded, into.frame, into, store, method.config.chunk_batch, method.executor)
