"""A question about a document, from text to text, and the record of what it took."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedTokenizerBase, TextStreamer

from homerlm import prompt
from homerlm.context import CompactContext
from homerlm.documents import read_document
from homerlm.errors import ConfigError, InputError
from homerlm.generation import check_settings
from homerlm.index.asking import Found
from homerlm.index.index import Index
from homerlm.model.memory import PeakMemory
from homerlm.passes import Observer

if TYPE_CHECKING:
    from torch import Tensor

OnText = Callable[[str], None]
Document = str | Path | CompactContext | Index


class Reader(Protocol):
    """What of a `Homer` a question needs."""

    @property
    def model(self) -> Any: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None: ...
    @property
    def limit(self) -> int: ...
    @property
    def keeps_keys(self) -> bool: ...
    def compress(
        self,
        prefix_ids: Tensor,
        context_ids: Tensor,
        suffix_ids: Tensor,
        *,
        neutral_ids: Tensor | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> CompactContext: ...
    def focus(
        self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None = None
    ) -> CompactContext: ...
    def search(
        self,
        index: Index,
        suffix_ids: Tensor,
        neutral_ids: Tensor | None = None,
        *,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Found: ...
    def read(
        self,
        document: str,
        *,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Index: ...
    def generate(
        self, context: CompactContext, *, cancel: threading.Event | None = None, **settings: Any
    ) -> Tensor: ...
    def check_context(self, context: CompactContext | Index) -> None: ...


@dataclass(frozen=True)
class Answer:
    """An answer and its price.

    tokens_read: tokens that the model read for this answer: of the whole document, or, where it was read before, of
    the question and of the candidates that an index gave; prompt_len: tokens of the whole prompt; tokens_kept: of the
    cache the answer was written from; peak_bytes: memory above what was in use before (the loaded model); model_limit:
    tokens the plain model was made to read; token_ids: the new ids. context: what was read for this answer; source:
    what can be asked again.
    """

    text: str
    tokens_read: int
    prompt_len: int
    tokens_kept: int
    new_tokens: int
    compress_seconds: float
    generate_seconds: float
    peak_bytes: int
    model_limit: int
    token_ids: tuple[int, ...]
    context: CompactContext
    source: CompactContext | Index

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the contexts left out."""
        return {name: value for name, value in vars(self).items() if name not in ("context", "source", "token_ids")}


@dataclass(frozen=True)
class Asking:
    """One question, checked, before any work. The fields are `Homer.ask`'s arguments."""

    homer: Reader
    document: Document
    question: str
    instruction: str | None
    answer_start: str
    chat: bool | None
    template_options: Mapping[str, Any] | None
    reuse: bool
    max_new_tokens: int
    settings: dict[str, Any]

    def check(self) -> tuple[prompt.Text, prompt.Text]:
        """The parts before and after the document. Raises `InputError` or `ConfigError` for what cannot be asked."""
        self.check_types()
        if isinstance(self.document, CompactContext | Index):
            given = {"instruction": self.instruction, "template_options": self.template_options}
            ignored = [name for name, value in given.items() if value is not None] + ["reuse"] * self.reuse
            if ignored:
                raise InputError(f"{ignored[0]} has no effect on a document that was read before: leave it out")
            self.homer.check_context(self.document)
        check_settings(self.homer.model, self.settings)
        return self._affixes(self.question, self.answer_start)

    def answer(self, *, on_text: OnText | None, observer: Observer | None, cancel: threading.Event | None) -> Answer:
        """The answer, its pieces to `on_text` as they are written. Raises `Cancelled` once `cancel` is set."""
        affixes, tokenizer = self.check(), _tokenizer(self.homer)
        document = read_document(self.document) if isinstance(self.document, Path) else self.document
        with PeakMemory(self.homer.model) as peak:
            started = time.perf_counter()
            source, read = self._source(document, affixes, observer, cancel)
            context = source
            if self.reuse or not isinstance(document, str):
                suffix, neutral = (prompt.token_ids(tokenizer, text) for text in (affixes[1], self.neutral()))
                if isinstance(source, Index):
                    found = self.homer.search(source, suffix, neutral, observer=observer, cancel=cancel)
                    context, read = found.context, found.context.prompt_len if self.reuse else found.tokens_read
                else:
                    context, read = self.homer.focus(source, suffix, neutral), read + suffix.shape[1]
            assert isinstance(context, CompactContext)
            compressed = time.perf_counter()
            settings = {"do_sample": False, "max_new_tokens": self.max_new_tokens} | self.settings
            if on_text is not None:
                settings["streamer"] = _Streamer(tokenizer, on_text)
            new = self.homer.generate(context, cancel=cancel, **settings)
            finished = time.perf_counter()
        return Answer(
            text=str(tokenizer.decode(new[0], skip_special_tokens=True)).strip(),
            tokens_read=read,
            prompt_len=context.prompt_len,
            tokens_kept=len(context),
            new_tokens=new.shape[1],
            compress_seconds=compressed - started,
            generate_seconds=finished - compressed,
            peak_bytes=peak.bytes,
            model_limit=self.homer.limit,
            token_ids=tuple(new[0].tolist()),
            context=context,
            source=source,
        )

    def check_types(self) -> None:
        """Raise `InputError` or `ConfigError` for arguments of the wrong type."""
        document, question, number = self.document, self.question, self.max_new_tokens
        if not isinstance(document, Document):
            raise InputError(
                f"document is {type(document).__name__}; it must be text, a Path to a file, an Index or a "
                "CompactContext"
            )
        if not isinstance(question, str):
            raise InputError(f"question is {type(question).__name__}; it must be text")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"max_new_tokens is {number!r}; it must be a whole number of at least 1")

    def _source(
        self,
        document: str | CompactContext | Index,
        affixes: tuple[prompt.Text, prompt.Text],
        observer: Observer | None,
        cancel: threading.Event | None,
    ) -> tuple[CompactContext | Index, int]:
        """What the question is asked of, and the tokens read for it: the document compressed for this question between
        its affixes, or, with `reuse`, read for others too."""
        if not isinstance(document, str):
            return document, 0
        if self.reuse and self.homer.keeps_keys:
            index = self.homer.read(
                document,
                instruction=self.instruction,
                chat=self.chat,
                template_options=self.template_options,
                observer=observer,
                cancel=cancel,
            )
            return index, len(index)
        if self.reuse:
            affixes = self._affixes(f"{self.question} {prompt.NEUTRAL_QUESTION}", "")
        context = compressed(self.homer, document, affixes, self.neutral(), observer, cancel)
        return context, context.prompt_len

    def neutral(self) -> prompt.Text:
        """The part after the document of a question that asks for nothing, in this one's format."""
        return prompt.neutral(_tokenizer(self.homer), chat=self._chat, template_options=self.template_options)

    def _affixes(self, question: str, answer_start: str) -> tuple[prompt.Text, prompt.Text]:
        return prompt.affixes(
            _tokenizer(self.homer),
            question,
            instruction=prompt.INSTRUCTION if self.instruction is None else self.instruction,
            answer_start=answer_start,
            chat=self._chat,
            template_options=self.template_options,
        )

    @property
    def _chat(self) -> bool | None:
        """Whether the chat template is used: as it was for an index, where nothing is said now."""
        return self.document.frame.chat if isinstance(self.document, Index) and self.chat is None else self.chat


def compressed(
    homer: Reader,
    document: str,
    affixes: tuple[prompt.Text, prompt.Text],
    neutral: prompt.Text,
    observer: Observer | None,
    cancel: threading.Event | None,
) -> CompactContext:
    """A document's text compressed between its affixes."""
    ids = prompt.encode(_tokenizer(homer), affixes[0], document, affixes[1], neutral)
    return homer.compress(
        ids.prefix, ids.context, ids.suffix, neutral_ids=ids.neutral, observer=observer, cancel=cancel
    )


class AnswerStream(Iterator[str]):
    """An answer's pieces as they are written. The work runs in a thread of its own.

    `close()`, from any thread, stops it within one chunk and one token; so does leaving a `with` block. `answer` is the
    whole record once the stream has ended; it is also the value of `yield from`.
    """

    def __init__(self, asking: Asking, observer: Observer | None = None) -> None:
        self._cancel = threading.Event()
        asking.check()
        self._outcome: list[Answer | BaseException] = []
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        work = (asking, observer, self._cancel, self._pieces, self._outcome)  # not self: dropping it stops the work
        self._worker = threading.Thread(target=_answer_into, args=work, daemon=True)
        self._worker.start()

    @property
    def answer(self) -> Answer | None:
        """The record, None before the stream's end and where it was stopped."""
        return next((outcome for outcome in self._outcome if isinstance(outcome, Answer)), None)

    def __next__(self) -> str:
        try:
            piece = None if self._cancel.is_set() else self._pieces.get()
        except BaseException:  # an interrupt while waiting
            self.close()
            raise
        if piece is not None:
            return piece
        self._pieces.put(None)  # for whoever asks again
        if not self._cancel.is_set():
            self._worker.join()
            for outcome in self._outcome:
                if isinstance(outcome, BaseException):
                    raise outcome
        raise StopIteration(self.answer)

    def close(self) -> None:
        """Stop the work and wait for its end: at most the time of one chunk or one token."""
        self._cancel.set()
        self._pieces.put(None)
        if self._worker is not threading.current_thread():
            self._worker.join()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._cancel.set()


def _answer_into(
    asking: Asking,
    observer: Observer | None,
    cancel: threading.Event,
    pieces: queue.SimpleQueue[str | None],
    outcome: list[Answer | BaseException],
) -> None:
    """What a stream's thread does."""
    try:
        outcome.append(asking.answer(on_text=pieces.put, observer=observer, cancel=cancel))
    except BaseException as error:
        outcome.append(error)
    pieces.put(None)


def _tokenizer(homer: Reader) -> PreTrainedTokenizerBase:
    if homer.tokenizer is None:
        raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer) to ask in text")
    return homer.tokenizer


class _Streamer(TextStreamer):
    """Hands on text as soon as its characters are certain."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        if text:
            self._on_text(text)
