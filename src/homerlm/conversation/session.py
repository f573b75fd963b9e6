"""One conversation at work: its documents, what was said, and the next answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from homerlm import prompt
from homerlm.answer import Prepared
from homerlm.conversation.answering import Asked, Limits, Step, answering
from homerlm.conversation.kept import Kept
from homerlm.conversation.messages import SYSTEM, Message, Reader
from homerlm.conversation.transcript import Attached, End, Transcript, Transcripts, Turn
from homerlm.errors import InputError
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.passes import Event
from homerlm.store.documents import Documents, sha256_of
from homerlm.trace import LevelTrace
from homerlm.writing import Piece, Writing

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Added:
    """A document that a conversation now has. known: it was not read anew; same_as: the name of a document with the
    same text, which the conversation has already, so that it has this one not."""

    attached: Attached
    tokens: int
    known: bool
    same_as: str | None = None


class Session:
    """A conversation of an owner, saved after every change. system: text that stands in front of it. For one event
    loop; `ask` once at a time."""

    def __init__(
        self,
        documents: Documents,
        owner: str,
        transcripts: Transcripts,
        writing: Writing,
        *,
        system: str = "",
        transcript: Transcript | None = None,
    ) -> None:
        homer = documents.homer
        assert homer.tokenizer is not None  # the engine refuses a Homer without one
        self._documents, self._owner, self._transcripts, self._writing = documents, owner, transcripts, writing
        self._reader = Reader.of(homer.tokenizer, homer.lengths.target_len)
        self._system = system
        self._indexes: dict[str, Index] = {}  # of the attached documents, by name
        self.transcript = transcript or Transcript()
        self.kept: Kept | None = None

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of each document that can be asked, by its name."""
        return {name: len(index) for name, index in self._indexes.items()}

    async def add(self, name: str, path: str, text: str, on_event: OnEvent | None = None) -> Added:
        """Have a document, in place of one of the same path or the same name. Raises as `Documents.index`."""
        attached = Attached(name, path, sha256_of(text))
        others = [one for one in self.transcript.documents if one.path != path and one.name in self._indexes]
        for one in others:
            if one.sha256 == attached.sha256:
                return Added(attached, len(self._indexes[one.name]), True, one.name)
        index, known = await self._documents.index(self._owner, name, text, on_event)
        self._attach(attached, index)
        return Added(attached, len(index), known)

    async def restore(self, attached: Attached) -> bool:
        """Have a document of an earlier conversation again, if what was read of it is still kept."""
        index = await self._documents.known(self._owner, attached.sha256)
        if index is not None:
            self._indexes[attached.name] = join([index], [attached.name])
        return index is not None

    def begin(self) -> None:
        """Begin a conversation of its own about the same documents."""
        self.transcript, self.kept = Transcript(documents=list(self.transcript.documents)), None

    def drop(self, name: str) -> None:
        """Have a document no longer; the store keeps what was read of it. Raises `InputError` for one that is not
        there."""
        if not any(one.name == name for one in self.transcript.documents):
            raise InputError(f"{name} is no document of this conversation: /files lists them")
        self.transcript.documents = [one for one in self.transcript.documents if one.name != name]
        self._indexes.pop(name, None)
        self._transcripts.save(self.transcript)

    async def ask(self, question: str, on_event: OnEvent | None = None) -> AsyncGenerator[Step, None]:
        """The steps of answering. Leaving the generator stops the work; what was written until then stays in the
        conversation, and a question without a word of an answer does not. Raises as `answering`."""
        asked = await asyncio.to_thread(self._asked, question)
        text, kept = "", None
        end: End = "stopped"
        trace, started = LevelTrace(), time.perf_counter()
        try:
            async with aclosing(
                answering(self._documents, self._owner, asked, self._writing, self._limits(), _both(trace, on_event))
            ) as steps:
                async for step in steps:
                    if isinstance(step, Prepared):
                        kept = self._kept(question, step, trace, time.perf_counter() - started)
                    elif isinstance(step, Piece):
                        text, end = text + step.text, step.finish or end
                    yield step
        finally:
            if text or end != "stopped":
                self._said(question, text, end, kept)

    def _asked(self, question: str) -> Asked:
        messages = [Message(SYSTEM, (self._system,))] if self._system else []
        for turn in self.transcript.turns:
            messages += [Message("user", (turn.question,)), Message("assistant", (turn.answer,))]
        messages.append(Message("user", (question,)))
        conversation = self._reader.read(messages, has_documents=bool(self._indexes))
        tokenizer = self._reader.tokenizer
        affixes, neutral = conversation.affixes(tokenizer), prompt.neutral(tokenizer)
        return Asked(affixes, neutral, conversation.documents, self._ordered())

    def _ordered(self) -> tuple[Index, ...]:
        return tuple(self._indexes[one.name] for one in self.transcript.documents if one.name in self._indexes)

    def _limits(self) -> Limits:
        return Limits(self._writing.max_new_tokens)

    def _kept(self, question: str, prepared: Prepared, trace: LevelTrace, seconds: float) -> Kept | None:
        if not isinstance(prepared.source, Index):
            return None
        return Kept(question, prepared.source, prepared, trace, seconds, self._documents.homer.limit)

    def _said(self, question: str, answer: str, end: End, kept: Kept | None) -> None:
        self.kept = kept
        self.transcript.turns.append(Turn(question, answer, end, () if kept is None else kept.passages()))
        self._transcripts.save(self.transcript)

    def _attach(self, attached: Attached, index: Index) -> None:
        before = [one for one in self.transcript.documents if one.path != attached.path and one.name != attached.name]
        for gone in {one.name for one in self.transcript.documents} - {one.name for one in before}:
            self._indexes.pop(gone, None)
        self.transcript.documents = [*before, attached]
        self._indexes[attached.name] = index
        self._transcripts.save(self.transcript)


def _both(trace: LevelTrace, on_event: OnEvent | None) -> OnEvent:
    def observe(event: Event) -> None:
        trace(event)
        if on_event is not None:
            on_event(event)

    return observe
