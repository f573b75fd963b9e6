"""A conversation as the library reads it: what is said verbatim, and the document that stands in it.

What fits is an ordinary chat. Where it does not, long parts of messages become documents, which are recognised by their
hash when the next turn sends them again, and so do older turns; the last turns stay as they are, and the document
stands before the newest question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.conversation.splitting import Count, split
from homerlm.errors import InputError

HISTORY = "What was said before in this conversation:"
LAST_SHARE, BLOCK_SHARE = 4, 2  # a part of the room for what must be verbatim, and for a block of older turns
SYSTEM = "system"
MOST_CHARACTERS = 16  # of a token of ordinary text
_COUNTED = 4096  # texts whose number of tokens is remembered, of at most so many characters
_REMEMBERED = 1 << 14


@dataclass(frozen=True)
class Message:
    """role: system, user, assistant or tool; parts: of its text; files: names and texts that came with it."""

    role: str
    parts: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return "\n\n".join(part for part in self.parts if part)


@dataclass(frozen=True)
class Conversation:
    """turns: role and text of what is verbatim; documents: name and text of what is read, in order; place: where in the
    turns they stand, None without any."""

    turns: tuple[tuple[str, str], ...]
    documents: tuple[tuple[str, str], ...] = ()
    place: tuple[int, int] | None = None

    def affixes(self, tokenizer: PreTrainedTokenizerBase) -> tuple[prompt.Text, prompt.Text]:
        """The prompt before and after the documents."""
        return prompt.conversation(tokenizer, self.turns, self.place)


@dataclass(frozen=True)
class Reader:
    """Turns messages into conversations for one tokenizer. room: tokens that may be verbatim."""

    tokenizer: PreTrainedTokenizerBase
    room: int
    count: Count = field(repr=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, room: int) -> Reader:
        return cls(tokenizer, room, counting(tokenizer))

    def read(self, messages: Sequence[Message], *, has_documents: bool = False) -> Conversation:
        """The conversation of messages; has_documents: whether it is about documents that are not in them, whose place
        it then has. Raises `InputError` for no messages, or none that could be answered."""
        asked = _asked(messages)
        plain = Conversation(tuple((message.role, message.text) for message in messages))
        files = [named for message in messages for named in message.files]
        if not (files or has_documents) and self.fits(plain):
            return plain
        work = _Reading(list(messages), asked, list(files), self.room)
        work.take_parts(lambda part: self.longer(part, self.room), self.count)
        if not self.fits(work.conversation()):
            work.take_turns(self)
        if not self.fits(work.conversation()):
            most = self.room // LAST_SHARE
            work.take_parts(lambda part: self.longer(part, most), self.count)
        return work.placed(has_documents)

    def fits(self, conversation: Conversation) -> bool:
        before, after = replace(conversation, place=None).affixes(self.tokenizer)
        return not self.longer(before.text + after.text, self.room)

    def longer(self, text: str, tokens: int) -> bool:
        """Whether a text has more tokens: seen from its beginning, if it is far longer."""
        if len(text.encode("utf-8", "replace")) <= tokens:
            return False
        begins = text[: tokens * MOST_CHARACTERS]
        return self.count(begins) > tokens or (len(begins) < len(text) and self.count(text) > tokens)


@dataclass
class _Reading:
    """Messages, of which the one numbered `asked` holds the question, while documents are taken out of them. question:
    what stands behind the documents, where that is not all of the message."""

    messages: list[Message]
    asked: int
    documents: list[tuple[str, str]]
    room: int
    history: list[str] = field(default_factory=list)
    head: str = ""
    question: str | None = None

    def conversation(self) -> Conversation:
        return Conversation(tuple((message.role, message.text) for message in self.messages))

    def take_parts(self, is_long: Callable[[str], bool], count: Count) -> None:
        """Make documents of long parts; their short beginnings and ends stay."""
        for number, message in enumerate(self.messages):
            if not any(map(is_long, message.parts)):
                continue
            kept: list[str] = []
            asks = [part for part in message.parts if part.strip() and not is_long(part)]
            for part in message.parts:
                kept += self._without_document(number, part, count, bool(asks)) if is_long(part) else [part]
            self.messages[number] = replace(message, parts=tuple(kept))
            if number == self.asked and asks:
                self.head, self.question = "", self.messages[number].text

    def _without_document(self, number: int, part: str, count: Count, asked_beside: bool) -> list[str]:
        """What stays of a part whose document is taken."""
        role = self.messages[number].role
        if role not in (SYSTEM, "user") or (asked_beside and role == "user"):
            self._add(part.strip())
            return []
        found = split(part, count, self.room)
        self._add(found.document)
        if number == self.asked:
            self.head, self.question = found.head, found.asked
        return [text for text in (found.head, found.tail) if text]

    def take_turns(self, reader: Reader) -> None:
        """Make documents of the oldest turns, in blocks that stay what they are while the conversation goes on, until
        the others fit."""
        first = next((n for n, message in enumerate(self.messages) if message.role != SYSTEM), len(self.messages))
        blocks = _blocks(self.messages[first : self.asked], reader.count, self.room // BLOCK_SHARE)
        for taken, lines in blocks:
            del self.messages[first : first + taken]
            self.asked -= taken
            self.history.append("\n\n".join(lines))
            if reader.fits(self.conversation()):
                return

    def placed(self, has_documents: bool) -> Conversation:
        """The conversation with its documents before the question."""
        blocks = [(name_of(text), text) for text in self.history]
        documents = (*blocks, *dict(self.documents_by_text()).values())
        turns = [(message.role, message.text) for message in self.messages]
        if not documents and not has_documents:
            return Conversation(tuple(turns))
        usual = HISTORY if blocks and not (self.documents or has_documents) else prompt.INSTRUCTION
        role, text = turns[self.asked]
        head, question = self.head or usual, text if self.question is None else self.question
        turns[self.asked] = role, f"{head}\n\n\n\n{question}"
        return Conversation(tuple(turns), documents, (self.asked, len(head) + 2))

    def documents_by_text(self) -> list[tuple[str, tuple[str, str]]]:
        """Each text once, however often it was sent."""
        return [(text, (name, text)) for name, text in self.documents if text.strip()]

    def _add(self, text: str) -> None:
        self.documents.append((name_of(text), text))


def name_of(text: str) -> str:
    """A name for a text that has none, from its hash."""
    return f"text-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def counting(tokenizer: PreTrainedTokenizerBase) -> Count:
    """A function that gives a text's number of tokens, and remembers those of short ones."""

    def count(text: str) -> int:
        return prompt.token_ids(tokenizer, text).shape[1]

    remembered = lru_cache(_COUNTED)(count)
    return lambda text: remembered(text) if len(text) < _REMEMBERED else count(text)


def _asked(messages: Sequence[Message]) -> int:
    """The number of the message that holds the question: the last of a user, or the last that is not an answer."""
    for roles in (("user",), ("user", "tool", SYSTEM)):
        for number in reversed(range(len(messages))):
            if messages[number].role in roles:
                return number
    raise InputError("messages holds nothing to answer: the last one must be from the user")


def _blocks(messages: Sequence[Message], count: Count, size: int) -> list[tuple[int, list[str]]]:
    """Older turns in order: how many messages are in each block, and their lines. A block ends once it has `size`
    tokens, at an answer, so that it does not change when turns are added behind."""
    blocks: list[tuple[int, list[str]]] = []
    lines: list[str] = []
    taken = tokens = 0
    for number, message in enumerate(messages):
        lines += [f"{message.role.capitalize()}: {message.text}"] if message.text else []
        taken += 1
        tokens += count(message.text)
        followed = number + 1 == len(messages) or messages[number + 1].role == "user"
        if followed and tokens >= size:
            blocks.append((taken, lines))
            lines, taken, tokens = [], 0, 0
    return [*blocks, (taken, lines)] if taken else blocks
