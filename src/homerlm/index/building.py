"""An index made: documents are read chunk by chunk, without a question, and the keys of every token are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.index.index import Frame, Index, Part, save_rows
from homerlm.index.pieces import Piece, pieces, unit_starts
from homerlm.mapped import Rows, Spool
from homerlm.model.decoder import Decoder
from homerlm.passes import Event
from homerlm.score.sentences import Sentences
from homerlm.select.plan import even_spans


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

    sentences: for the units, where there is a tokenizer; batch: chunks that run at once.
    """

    decoder: Decoder
    frame: Frame
    into: Index
    sentences: Sentences | None
    store: Store
    batch: int = 1
    parts: list[Part] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.parts, self.tokens = list(self.into.parts), len(self.into)

    def text(self, tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> Iterator[Event]:
        """Read a document's text. Events count its tokens; how many it has is estimated until its end."""
        read = characters = 0
        first = self.tokens
        size = 0
        for piece in pieces(tokenizer, text):
            characters += len(piece.text)
            total = (read + piece.ids.shape[1]) * len(text) // characters
            for done in self._piece(piece):
                yield Event(read + done, total)
            read += piece.ids.shape[1]
            encoded = torch.frombuffer(bytearray(piece.text.encode()), dtype=torch.uint8)
            self.store.add("text", encoded)
            size += len(encoded)
        self._end(name, first, size)

    def ids(self, name: str, ids: Tensor) -> Iterator[Event]:
        """Read a document given as ids (1, T)."""
        first = self.tokens
        for done in self._piece(Piece(ids, torch.zeros(ids.shape[1], 2, dtype=torch.int32), "")):
            yield Event(done, ids.shape[1])
        self._end(name, first, 0)

    def _end(self, name: str, first: int, size: int) -> None:
        byte = sum(part.bytes for part in self.parts[-1:]) + (self.parts[-1].first_byte if self.parts else 0)
        self.parts.append(Part(name, first, self.tokens - first, byte, size))

    def _piece(self, piece: Piece) -> Iterator[int]:
        """Read a piece, its chunks apart from those of others; how many of its tokens are read by now."""
        count = piece.ids.shape[1]
        if not count:
            return
        self.store.add("ids", piece.ids[0].to("cpu", torch.int32))
        self.store.add("spans", piece.spans)
        if self.sentences is not None:
            self.store.add("units", unit_starts(self.sentences, piece.ids.to(self.decoder.device)) + self.tokens)
        spans = even_spans(count, self.frame.chunk_len)
        self.store.add("chunks", torch.tensor([start for start, _ in spans]) + self.tokens)
        for group in _groups(spans, self.batch):
            self._keep(torch.cat([piece.ids[:, start:stop] for start, stop in group]))
            yield group[-1][1]
        self.tokens += count

    def _keep(self, ids: Tensor) -> None:
        """Run chunks of ids (B, C) behind the prefix and keep their keys."""
        decoder, layout = self.decoder, self.frame.layout
        prefix = torch.tensor([self.frame.prefix], dtype=torch.long).expand(len(ids), -1)
        whole = torch.cat([prefix, ids.cpu()], dim=1).to(decoder.device)
        positions = torch.arange(whole.shape[1], device=whole.device).expand(len(whole), -1)
        steps = decoder.steps(decoder.embed(whole), positions, 0, layout.scoring.last + 1, finish=False)
        seen = [step.attended for step in steps if step.layer in layout.scoring.layers]
        for rows in layout.rows(seen, prefix.shape[1], whole.shape[1]).cpu():
            if self.frame.int8:
                rows, scales = layout.to_int8(rows)
                self.store.add("scales", scales)
            self.store.add("keys", rows)


def empty(frame: Frame, dtype: torch.dtype) -> Index:
    """An index of nothing yet, whose keys have this dtype."""
    slots = len(frame.layout.slots)
    return Index(
        frame,
        (),
        keys=torch.empty(0, frame.layout.width, dtype=torch.int8 if frame.int8 else dtype),
        scales=torch.empty(0, slots, dtype=torch.float16) if frame.int8 else None,
        ids=torch.empty(0, dtype=torch.int32),
        chunks=torch.empty(0, dtype=torch.int64),
        units=torch.empty(0, dtype=torch.int64),
        spans=torch.empty(0, 2, dtype=torch.int32),
        text=torch.empty(0, dtype=torch.uint8),
    )


Reads = Callable[[Builder], Iterable[Event]]


def in_memory(builder: Callable[[Store], Builder], reads: Reads) -> Generator[Event, None, Index]:
    """Events of what `reads` reads with a builder; the value is the index."""
    store = Memory()
    made = builder(store)
    yield from reads(made)
    return Index(made.frame, tuple(made.parts), **({"scales": None} | store.joined(made.into.tensors())))


def to_file(path: Path, builder: Callable[[Store], Builder], reads: Reads) -> Generator[Event, None, None]:
    """The same into a file, with nothing of the documents left in memory. Raises `InputError` if it cannot be
    written."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it or choose another path")
    with closing(Spool(folder)) as store:
        made = builder(store)
        yield from reads(made)
        new, old = store.rows(), made.into
        rows = {
            name: [Rows.of(tensor, old.forget), *([new[name]] if name in new else [])]
            for name, tensor in old.tensors().items()
        }
        save_rows(path, made.frame, made.parts, rows)


def _groups(spans: Iterable[tuple[int, int]], batch: int) -> Iterator[list[tuple[int, int]]]:
    """At most `batch` neighbours of one length at a time."""
    group: list[tuple[int, int]] = []
    for span in spans:
        if group and (len(group) == batch or span[1] - span[0] != group[0][1] - group[0][0]):
            yield group
            group = []
        group.append(span)
    if group:
        yield group
