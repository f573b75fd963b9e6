"""A question about a document, from text to text, and the record of what it took."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TextStreamer

from homerlm import prompt
from homerlm.errors import InputError
from homerlm.model.memory import PeakMemory

if TYPE_CHECKING:
    from homerlm.context import CompactContext
    from homerlm.homer import Homer
    from homerlm.merge.tree import Observer

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """An answer and its price. Tokens are the whole prompt's; `peak_bytes` is memory above what was in use before
    (the loaded model); `model_limit` the tokens that the plain model was made to read. `token_ids`: the new ids.
    `context`: what was read for this answer; `source`: what can be asked again."""

    text: str
    tokens_read: int
    tokens_kept: int
    new_tokens: int
    compress_seconds: float
    generate_seconds: float
    peak_bytes: int
    model_limit: int
    token_ids: tuple[int, ...]
    context: CompactContext
    source: CompactContext

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the contexts left out."""
        return {name: value for name, value in vars(self).items() if name not in ("context", "source", "token_ids")}


def read(
    homer: Homer,
    document: str,
    question: str = prompt.NEUTRAL_QUESTION,
    *,
    observer: Observer | None = None,
    instruction: str = prompt.INSTRUCTION,
    chat: bool | None = None,
) -> CompactContext:
    """Compress a document once, for questions to come: `ask` takes the result in the document's place.

    `question` tells what the later questions will be about; beside that, what the model could not have predicted is
    kept. The context holds as much as one chunk of `Homer.for_later()`. Raises `InputError` without a tokenizer.
    """
    before, after = _affixes(homer, question, instruction, "", chat)
    return _compressed(homer.for_later(), document, before, after, observer)


def ask(
    homer: Homer,
    document: str | CompactContext,
    question: str,
    *,
    max_new_tokens: int = 256,
    on_text: OnText | None = None,
    observer: Observer | None = None,
    instruction: str = prompt.INSTRUCTION,
    answer_start: str = "",
    chat: bool | None = None,
    reuse: bool = False,
    **settings: Any,
) -> Answer:
    """Answer a question about a document, or about one compressed before, by `read` or by another question.

    An empty document is answered without compression. With `reuse`, the document is read for other questions too
    (`Answer.source`), and this one is asked of what was kept for all. `on_text` gets the answer in pieces as it is
    generated, `observer` every node of the tree. `settings` go to transformers' `generate`; greedy unless they say
    otherwise. Raises `InputError` without a tokenizer or for an empty question.
    """
    before, after = _affixes(homer, question, instruction, answer_start, chat)
    settings = {"do_sample": False} | settings
    assert homer.tokenizer is not None
    with PeakMemory(homer.decoder.device) as peak:
        started = time.perf_counter()
        if isinstance(document, str) and reuse:
            broad = f"{question} {prompt.NEUTRAL_QUESTION}"
            document = read(homer, document, broad, observer=observer, instruction=instruction, chat=chat)
        if isinstance(document, str):
            source = context = _compressed(homer, document, before, after, observer)
        else:
            source, context = document, homer.focus(document, prompt.token_ids(homer.tokenizer, after))
        compressed = time.perf_counter()
        streamer = _Streamer(homer.tokenizer, on_text) if on_text else None
        new = homer.generate(context, max_new_tokens=max_new_tokens, streamer=streamer, **settings)
        finished = time.perf_counter()
    return Answer(
        text=homer.tokenizer.decode(new[0], skip_special_tokens=True).strip(),
        tokens_read=context.prompt_len,
        tokens_kept=len(context),
        new_tokens=new.shape[1],
        compress_seconds=compressed - started,
        generate_seconds=finished - compressed,
        peak_bytes=peak.bytes,
        model_limit=homer.limit,
        token_ids=tuple(new[0].tolist()),
        context=context,
        source=source,
    )


def ask_stream(
    homer: Homer, document: str | CompactContext, question: str, **options: Any
) -> Generator[str, None, Answer]:
    """`ask` as a generator of the answer's pieces; its return value (`yield from`) is the `Answer`.

    The work runs in a thread of its own and stops at the next token if the generator is closed.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    outcome: list[Answer | BaseException] = []
    closed = threading.Event()

    def put(piece: str) -> None:
        if closed.is_set():
            raise _Closed
        pieces.put(piece)

    def work() -> None:
        try:
            outcome.append(ask(homer, document, question, on_text=put, **options))
        except BaseException as error:
            outcome.append(error)
        pieces.put(None)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (piece := pieces.get()) is not None:
            yield piece
    finally:
        closed.set()
        worker.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _affixes(homer: Homer, question: str, instruction: str, answer_start: str, chat: bool | None) -> tuple[str, str]:
    if homer.tokenizer is None:
        raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer) to ask in text")
    return prompt.affixes(homer.tokenizer, question, instruction=instruction, answer_start=answer_start, chat=chat)


def _compressed(homer: Homer, document: str, before: str, after: str, observer: Observer | None) -> CompactContext:
    assert homer.tokenizer is not None
    ids = prompt.encode(homer.tokenizer, before, document, after)
    return homer.compress(ids.prefix, ids.context, ids.suffix, observer=observer)


class _Closed(Exception):
    """The reader of a stream has gone."""


class _Streamer(TextStreamer):
    """Hands on text as soon as its characters are certain."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        if text:
            self._on_text(text)
