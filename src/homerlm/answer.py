"""A question about a document, from text to text, and the record of what it took."""

from __future__ import annotations

import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedTokenizerBase, TextStreamer

from homerlm import prompt
from homerlm.checks import check_whole
from homerlm.context import CompactContext
from homerlm.documents import read_document
from homerlm.errors import ConfigError, InputError
from homerlm.generation import check_settings, check_together, setting
from homerlm.index.index import Index
from homerlm.model.memory import PeakMemory
from homerlm.passes import Event, Observer, check_callbacks, run_steps

if TYPE_CHECKING:
    from torch import Tensor

OnText = Callable[[str], None]
Document = str | Path | CompactContext | Index
GREEDY = {"do_sample": False}  # unless the settings say otherwise
ONE_TEXT = {"num_return_sequences": 1, "return_dict_in_generate": False}  # whatever the generation config says


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
    def preparing(
        self, document: str | Index | None, affixes: tuple[prompt.Text | None, prompt.Text], neutral: prompt.Text
    ) -> Generator[Event, None, Prepared]: ...
    def reading(
        self,
        documents: Iterable[tuple[str, str]],
        *,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Generator[Event, None, Index]: ...
    def focus(
        self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None = None
    ) -> CompactContext: ...
    def generate(
        self, context: CompactContext, *, cancel: threading.Event | None = None, **settings: Any
    ) -> Tensor: ...
    def check_context(self, context: CompactContext | Index) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """What an answer is written from. tokens_read: that the model read for it, prompt_len: of the whole prompt; source:
    what can be asked again, where that is not the context itself."""

    context: CompactContext
    tokens_read: int
    prompt_len: int
    source: CompactContext | Index | None = None


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
        for name, value in ONE_TEXT.items():
            if self.settings.get(name, value) != value:
                raise ConfigError(
                    f"{name} is {self.settings[name]!r}, but an answer is one text: leave it out, or take `generate` "
                    "with the answer's context"
                )
        check_settings(self.homer.model, GREEDY | self.settings)
        return self._affixes(self.question, self.answer_start)

    def answer(self, *, on_text: OnText | None, observer: Observer | None, cancel: threading.Event | None) -> Answer:
        """The answer, its pieces to `on_text` as they are written. Raises `Cancelled` once `cancel` is set."""
        steps, settings = self.preparing(), self._settings(on_text)
        with PeakMemory(self.homer.model) as peak:
            started = time.perf_counter()
            prepared = run_steps(steps, observer, cancel)
            compressed = time.perf_counter()
            new = self.homer.generate(prepared.context, cancel=cancel, **settings)
            finished = time.perf_counter()
        seconds = compressed - started, finished - compressed
        text = str(_tokenizer(self.homer).decode(new[0], skip_special_tokens=True))
        return self.record(prepared, text, new[0].tolist(), seconds, peak.bytes)

    def _settings(self, on_text: OnText | None) -> dict[str, Any]:
        """What `generate` is given. Raises `ConfigError` for what it would refuse."""
        check_callbacks(on_text=on_text)
        settings = GREEDY | ONE_TEXT | {"max_new_tokens": self.max_new_tokens} | self.settings
        if setting(self.homer.model, settings, "stop_strings"):
            settings = {"tokenizer": _tokenizer(self.homer)} | settings
        if on_text is not None:
            if settings.get("streamer") is not None:
                raise ConfigError(
                    "streamer has no effect where the answer's pieces are asked for: leave one of them out"
                )
            settings["streamer"] = _Streamer(_tokenizer(self.homer), on_text)
        check_together(self.homer.model, settings)
        return settings

    def preparing(self) -> Generator[Event, None, Prepared]:
        """Events of all that comes before the answer's first token. What cannot be asked is refused at once, before any
        work (`check`)."""
        return self._preparing(self.check())

    def _preparing(self, affixes: tuple[prompt.Text, prompt.Text]) -> Generator[Event, None, Prepared]:
        document = read_document(self.document) if isinstance(self.document, Path) else self.document
        if isinstance(document, CompactContext):
            return self._again(document, affixes[1], 0)
        if isinstance(document, Index):
            return replace(
                (yield from self.homer.preparing(document, (None, affixes[1]), self.neutral())), source=document
            )
        if not self.reuse:
            return (yield from self.homer.preparing(document, affixes, self.neutral()))
        if not self.homer.keeps_keys:
            both = self._affixes(f"{self.question} {prompt.NEUTRAL_QUESTION}", "")
            first = yield from self.homer.preparing(document, both, self.neutral())
            return self._again(first.context, affixes[1], first.tokens_read)
        index = yield from self.homer.reading(
            [("document", document)],
            instruction=self.instruction,
            chat=self.chat,
            template_options=self.template_options,
        )
        found = yield from self.homer.preparing(index, (None, affixes[1]), self.neutral())
        return replace(found, tokens_read=found.prompt_len, source=index)

    def _again(self, source: CompactContext, suffix: prompt.Text, read: int) -> Prepared:
        """What the question needs of a document compressed before, for which `read` tokens were read."""
        ids, neutral = (prompt.token_ids(_tokenizer(self.homer), text) for text in (suffix, self.neutral()))
        context = self.homer.focus(source, ids, neutral)
        return Prepared(context, read + ids.shape[1], context.prompt_len, source)

    def record(
        self,
        prepared: Prepared,
        text: str,
        token_ids: Sequence[int],
        seconds: tuple[float, float],
        peak_bytes: int,
    ) -> Answer:
        """The answer that was written; seconds: of preparing and of writing."""
        context = prepared.context
        return Answer(
            text=text.strip(),
            tokens_read=prepared.tokens_read,
            prompt_len=prepared.prompt_len,
            tokens_kept=len(context),
            new_tokens=len(token_ids),
            compress_seconds=seconds[0],
            generate_seconds=seconds[1],
            peak_bytes=peak_bytes,
            model_limit=self.homer.limit,
            token_ids=tuple(token_ids),
            context=context,
            source=context if prepared.source is None else prepared.source,
        )

    def check_types(self) -> None:
        """Raise `InputError` or `ConfigError` for arguments of the wrong type."""
        document, question = self.document, self.question
        if not isinstance(document, Document):
            raise InputError(
                f"document is {type(document).__name__}; it must be text, a Path to a file, an Index or a "
                "CompactContext"
            )
        if isinstance(document, str) and os.path.isfile(document):
            warnings.warn(f"{document!r} is read as text, but names a file: pass Path({document!r})", stacklevel=2)
        if not isinstance(question, str):
            raise InputError(f"question is {type(question).__name__}; it must be text")
        if not isinstance(self.instruction, str | None):
            raise InputError(
                f"instruction is {type(self.instruction).__name__}; it must be text, or None for the usual one"
            )
        if not isinstance(self.answer_start, str):
            raise InputError(f"answer_start is {type(self.answer_start).__name__}; it must be text")
        if not isinstance(self.chat, bool | None):
            raise ConfigError(f"chat is {self.chat!r}; it must be True, False, or None for what the tokenizer has")
        if not isinstance(self.reuse, bool):
            raise ConfigError(f"reuse is {self.reuse!r}; it must be True or False")
        if not isinstance(self.template_options, Mapping | None):
            raise ConfigError(
                f"template_options is {self.template_options!r}; it must be a dict such as {{'enable_thinking': True}}"
            )
        check_whole("max_new_tokens", self.max_new_tokens, 1)

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
