"""A conversation answered: its documents read, what the question needs of them found, the answer written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from homerlm import prompt
from homerlm.answer import Prepared
from homerlm.conversation.telling import told
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.passes import Event, Observer
from homerlm.store.documents import Documents
from homerlm.writing import Piece, Writing


@dataclass(frozen=True)
class Asked:
    """What is to be answered. affixes: of the prompt, around its documents: indexes, which were read before, and
    others (name, text each); neutral: the part behind for a question that asks for nothing."""

    affixes: tuple[prompt.Text, prompt.Text]
    neutral: prompt.Text
    documents: tuple[tuple[str, str], ...] = ()
    indexes: tuple[Index, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Of one answer. new_tokens: its longest; seconds: of reading and writing, None for any; check_prompt: raises where
    a prompt of so many tokens is too long."""

    new_tokens: int
    seconds: float | None = None
    check_prompt: Callable[[int], None] = lambda _: None


@dataclass(frozen=True)
class Progress:
    """Reading goes on. total: tokens of the prompt; cache: of these, those known before; processed: read so far, the
    known ones included; seconds: since it began; note: what is being read where it is not the prompt."""

    total: int
    cache: int
    processed: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Usage:
    """prompt: tokens of the request's prompt; cached: those of it not read anew; read, kept: that the model read for
    this answer, and of the cache it was written from; seconds: of reading and writing."""

    prompt: int
    cached: int
    completion: int
    read: int
    kept: int
    seconds: float


@dataclass
class Meter:
    """How far reading has come, in tokens. total: of all that is read; known: of those that were read before; new: of
    the documents that were read since."""

    total: int = 0
    known: int = 0
    new: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def progress(self, event: Event | None = None) -> Progress:
        """At an event of the document that is being read, or between two documents."""
        read = 0 if event is None or event.note else event.read
        processed = min(self.known + self.new + read, self.total)
        return Progress(self.total, self.known, processed, self.seconds, "" if event is None else event.note)

    def add(self, tokens: int, known: bool) -> None:
        """Count a document that is there now."""
        if known:
            self.known += tokens
        else:
            self.new += tokens


Step = Progress | Prepared | Piece | Usage


async def answering(
    documents: Documents, owner: str, asked: Asked, writing: Writing, limits: Limits, observer: Observer | None = None
) -> AsyncGenerator[Step, None]:
    """Progress while documents are read, what was prepared, the answer's pieces, and last what it took. observer: sees
    the events of finding what the question needs. Leaving the generator stops the work. Raises what the engine and the
    documents do, what `Limits.check_prompt` does, and `TimeoutError`."""
    work = _Work(documents, owner, asked, writing, limits, observer)
    async with aclosing(told(work.run)) as steps:
        async for step in steps:
            yield step


class _Work:
    """One answer in the making."""

    def __init__(
        self,
        documents: Documents,
        owner: str,
        asked: Asked,
        writing: Writing,
        limits: Limits,
        observer: Observer | None,
    ) -> None:
        self._documents, self._owner, self._asked, self._writing = documents, owner, asked, writing
        self._limits, self._observer = limits, observer
        self._engine = documents.engine
        self._meter = Meter()

    async def run(self, tell: Callable[[Step], None]) -> None:
        """All of it; `tell` is given the steps as they come."""
        async with asyncio.timeout(self._limits.seconds):
            prepared = await self._read(tell)
            tell(prepared)
            await self._write(prepared, tell)

    async def _write(self, prepared: Prepared, tell: Callable[[Step], None]) -> None:
        written = 0
        writing = replace(self._writing, max_new_tokens=self._room(prepared))
        async with aclosing(self._engine.write(prepared.context, writing)) as pieces:
            async for piece in pieces:
                written += piece.tokens
                tell(piece)
        tell(_usage(prepared, self._meter.new, written, self._meter.seconds))

    async def _read(self, tell: Callable[[Step], None]) -> Prepared:
        asked = self._asked
        self._meter.known = sum(map(len, asked.indexes))
        self._meter.total = self._meter.known + await asyncio.to_thread(self._affixes_len)
        for _, text in asked.documents:
            self._meter.total += await self._documents.length(self._owner, text)
        self._limits.check_prompt(self._meter.total)
        indexes = list(asked.indexes)
        for name, text in asked.documents:
            indexes.append(await self._index(name, text, tell))
        document = None if not indexes else indexes[0] if len(indexes) == 1 else join(indexes)
        steps = self._engine.homer.preparing(document, asked.affixes, asked.neutral)
        return replace(await self._engine.run(steps, self._observer), source=document)

    async def _index(self, name: str, text: str, tell: Callable[[Step], None]) -> Index:
        def show(event: Event) -> None:
            if event.note or event.read:  # a turn may end before the first chunk does
                tell(self._meter.progress(event))

        index, known = await self._documents.index(self._owner, name, text, show)
        self._meter.add(len(index), known)
        tell(self._meter.progress())
        return index

    def _affixes_len(self) -> int:
        return sum(map(self._documents.count, self._asked.affixes))

    def _room(self, prepared: Prepared) -> int:
        """Tokens that the answer may have within the model's limit and its own."""
        left = self._engine.homer.limit - len(prepared.context)
        return max(1, min(self._writing.max_new_tokens, left, self._limits.new_tokens))


def _usage(prepared: Prepared, new: int, written: int, seconds: float) -> Usage:
    read = new + prepared.tokens_read
    cached = max(0, prepared.prompt_len - read)
    return Usage(prepared.prompt_len, cached, written, read, len(prepared.context), seconds)
