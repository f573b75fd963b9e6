"""Documents and questions as text: what most programs use."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homerlm import engine, prompt
from homerlm.answer import Answer, AnswerStream, Asking, Document, OnText, Prepared
from homerlm.compressor import Compressor
from homerlm.config import SELECT_TOKENS
from homerlm.context import CompactContext
from homerlm.documents import read_document
from homerlm.engine import Engine
from homerlm.errors import InputError
from homerlm.index.building import Builder, Indexer
from homerlm.index.index import Frame, Index
from homerlm.index.question import stand_in
from homerlm.model.identity import check_evaluating
from homerlm.model.memory import out_of_memory_explained
from homerlm.passes import Event, Observer, run_steps, tokenising
from homerlm.select.passages import ranking
from homerlm.selection import Selection, config_for
from homerlm.streaming import AsyncAnswerStream
from homerlm.trace import kept_indices
from homerlm.writing import Writing


class Homer(Compressor):
    """A method on one model, for documents and questions as text. Holds no state of any prompt; the model is used as it
    is and left as it was.

    Any number of threads may use one model, through one `Homer` or several, while its owner uses it too: each gets what
    it would get alone. `tokenizer` is needed for text (`ask`); `executor` reads the chunks, by default this process
    (docs/scale.md). Raises `UnsupportedModelError` for a model that cannot run HOMER, `InputError` for one in training
    mode and `ConfigError` for settings that do not fit it.
    """

    def read(
        self,
        document: str | Path,
        *,
        name: str | None = None,
        into: Index | None = None,
        path: str | os.PathLike[str] | None = None,
        int8: bool = False,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Index:
        """Read a document once, for questions to come: `ask` and `select` take the result in the document's place.

        The index keeps of every token the keys of the few heads that find what is asked for. name: of the document,
        default its file's; into: an index that the document is added to, which stays as it was: the result holds both;
        path: of the file to write it to as it is read, so that none of it is in memory; int8: keys in half of the
        space. Raises `InputError` without a tokenizer, `ConfigError` for the paper's preset, which keeps no keys.
        """
        asking = Asking(self, document, " ", instruction, "", chat, template_options, False, 1, {})
        asking.check_types()
        if not isinstance(name, str | None):
            raise InputError(f"name is {type(name).__name__}; it must be text, or None for the file's")
        if not isinstance(document, str | Path):
            raise InputError("document is read already: ask it as it is")
        named = name or (document.name if isinstance(document, Path) else "document")
        text = read_document(document) if isinstance(document, Path) else document
        return self.read_all(
            [(named, text)],
            into=into,
            path=path,
            int8=int8,
            instruction=instruction,
            chat=chat,
            template_options=template_options,
            observer=observer,
            cancel=cancel,
        )

    def read_all(
        self,
        documents: Iterable[tuple[str, str]],
        *,
        into: Index | None = None,
        path: str | os.PathLike[str] | None = None,
        int8: bool = False,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Index:
        """`read` of several documents, (name, text) each, as one collection: they are taken one by one. Raises
        `InputError` too for what is no such pair."""
        steps = self.reading(
            documents,
            into=into,
            path=path,
            int8=int8,
            instruction=instruction,
            chat=chat,
            template_options=template_options,
        )
        return run_steps(steps, observer, cancel)

    def reading(
        self,
        documents: Iterable[tuple[str, str]],
        *,
        path: str | os.PathLike[str] | None = None,
        into: Index | None = None,
        int8: bool = False,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Generator[Event, None, Index]:
        """`read_all` step by step: events as parts of the documents are read, and the index as the generator's value.
        Closing it stops the work. What cannot be read is refused at once."""
        if isinstance(documents, str | Path) or not isinstance(documents, Iterable):
            raise InputError(f"documents is {type(documents).__name__}; it must be pairs (name, text)")
        if not isinstance(int8, bool):
            raise InputError(f"int8 is {int8!r}; it must be True or False")
        if into is not None:
            if not isinstance(into, Index):
                raise InputError(f"into is {type(into).__name__}; it must be an Index, as `read` makes it")
            self.check_context(into)
            int8, chat = into.frame.int8, into.frame.chat if chat is None else chat
        asking = Asking(self, "", prompt.ASKS_NOTHING, instruction, "", chat, template_options, False, 1, {})
        prefix, neutral = asking.check()[0], asking.neutral()
        tokenizer = self.tokenizer
        assert tokenizer is not None
        prefix_ids, neutral_ids = (prompt.token_ids(tokenizer, text) for text in (prefix, neutral))

        def reads(builder: Builder) -> Iterable[Event]:
            for name, text in map(_pair, documents):
                yield from builder.text(tokenizer, name, text)

        def frame(indexer: Indexer) -> Frame:
            return indexer.frame(prefix_ids, stand_in(tokenizer), neutral_ids.shape[1], chat=chat, int8=int8)

        return self._indexing(reads, frame, into, path)

    def select(
        self,
        document: str | Path | Index,
        question: str,
        *,
        tokens: int = SELECT_TOKENS,
        min_share: float = 0.0,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
    ) -> Selection:
        """The text of a document (text, the `Path` of a file, or an index made by `read`) that the question needs most,
        for any program or model: passages with their places, at most so many tokens of them.

        They are what `ask` would read with such a target, each token once. The settings' `target_len`, `min_share` and
        `recap_len` give way to the arguments, and a reranking is done at once. Raises `InputError` without a fast
        tokenizer or for more tokens than the model can read.
        """
        steps = self.finding(
            document,
            question,
            tokens=tokens,
            min_share=min_share,
            instruction=instruction,
            chat=chat,
            template_options=template_options,
        )
        return run_steps(steps, observer, cancel)

    def finding(
        self,
        document: str | Path | Index,
        question: str,
        *,
        tokens: int = SELECT_TOKENS,
        min_share: float = 0.0,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Generator[Event, None, Selection]:
        """`select` step by step. Closing the generator stops the work. What cannot be asked is refused at once."""
        asking = Asking(self, document, question, instruction, "", chat, template_options, False, 1, {})
        affixes = asking.check()
        if isinstance(document, CompactContext):
            raise InputError("document is compressed already, and holds no text to choose from: give the text")
        assert self.tokenizer is not None
        around = [prompt.token_ids(self.tokenizer, affix) for affix in affixes]
        if isinstance(document, Index):
            around[0] = torch.tensor([document.frame.prefix])
        taken = sum(part.shape[1] for part in around)
        config = config_for(self.config, tokens, taken, min_share, self.limit)
        return self._with(config)._finding_in(document, question, affixes, asking.neutral())

    def _finding_in(
        self,
        document: str | Path | Index,
        question: str,
        affixes: tuple[prompt.Text, prompt.Text],
        neutral: prompt.Text,
    ) -> Generator[Event, None, Selection]:
        text = read_document(document) if isinstance(document, Path) else document
        if isinstance(text, Index):
            prepared = yield from self.preparing(text, (None, affixes[1]), neutral)
            return Selection.of_index(text, question, kept_indices(prepared.context), prepared.tokens_read)
        assert self.tokenizer is not None
        prepared = yield from self.preparing(text, affixes, neutral)
        spans = yield from tokenising(partial(prompt.token_spans, self.tokenizer, text), len(text))
        return Selection.of(spans, text, question, prepared.context, prepared.prompt_len - prepared.tokens_read)

    def ranking(
        self,
        question: str,
        passages: Sequence[str],
        *,
        instruction: str | None = None,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Generator[Event, None, list[float]]:
        """Step by step, how well each of some passages fits a question: numbers from 0 to 1, the best one's is 1, made
        of what the question's tokens attend to. They tell the passages apart, and not whether any of them answers the
        question. Closing the generator stops the work. Raises `InputError` for a question that
        is empty, `ConfigError` for the paper's preset."""
        asking = Asking(self, "", question, instruction, "", chat, template_options, False, 1, {})
        affixes, neutral = asking.check(), asking.neutral()
        self._finding()  # refuses the preset that finds nothing
        tokenizer = self.tokenizer
        assert tokenizer is not None
        prefix, suffix, asks_nothing = (prompt.token_ids(tokenizer, text) for text in (*affixes, neutral))
        return self._ranked((prefix, suffix, asks_nothing), passages)

    @torch.no_grad()
    def _ranked(
        self, around: tuple[Tensor, Tensor, Tensor], passages: Sequence[str]
    ) -> Generator[Event, None, list[float]]:
        check_evaluating(self.model)
        yield from self._profiled()
        method = self._finding()
        assert self.tokenizer is not None
        prefix, suffix, neutral = (part.to(self.decoder.device) for part in around)
        tokenise = partial(prompt.token_ids, self.tokenizer)
        texts = yield from tokenising(
            lambda: [tokenise(f"{text}\n\n")[0] for text in passages], sum(map(len, passages))
        )
        with self.decoder.session(), out_of_memory_explained("ranking passages", "Lower max_chunk_len"):
            contrast = None if method.config.contrast == "none" else neutral
            return (yield from ranking(method, prefix, suffix, contrast, texts))

    def preparing(
        self, document: str | Index | None, affixes: tuple[prompt.Text | None, prompt.Text], neutral: prompt.Text
    ) -> Generator[Event, None, Prepared]:
        """Step by step, what a question needs of a document: the context that its answer is written from. affixes: of
        the prompt, before and after the document, neutral: the latter for a question that asks for nothing
        (`homerlm.prompt`). No first affix, or an empty one, is that of the index; None and "" are no document. Closing
        the generator stops the work."""
        if self.tokenizer is None:
            raise InputError("this Homer has no tokenizer: pass one to Homer(model, tokenizer) to ask in text")
        if isinstance(document, Index):
            suffix, asks_nothing = (prompt.token_ids(self.tokenizer, text) for text in (affixes[1], neutral))
            first = affixes[0] if affixes[0] and affixes[0].text else None
            prefix = None if first is None else prompt.token_ids(self.tokenizer, first)
            found = yield from self._searching(document, suffix, asks_nothing, prefix)
            return Prepared(found.context, found.tokens_read, found.context.prompt_len)
        text = document or ""
        encode = partial(prompt.encode, self.tokenizer, affixes[0] or prompt.Text(""), text, affixes[1], neutral)
        ids = yield from tokenising(encode, len(text))
        context = yield from self.compressing(ids.prefix, ids.context, ids.suffix, ids.neutral)
        plan = self.method.plan(*ids.lengths)
        return Prepared(context, context.prompt_len - plan.context_len + plan.read_len, context.prompt_len)

    def ask(
        self,
        document: Document,
        question: str,
        *,
        max_new_tokens: int = 256,
        on_text: OnText | None = None,
        observer: Observer | None = None,
        cancel: threading.Event | None = None,
        instruction: str | None = None,
        answer_start: str = "",
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        reuse: bool = False,
        **settings: Any,
    ) -> Answer:
        """Answer a question about a document (text, or the `Path` of a file), or about what was read before: an index
        made by `read`, or a context made by another question.

        An empty document is answered without compression. With `reuse`, the document is read for other questions too
        (`Answer.source`, an index), and this one is asked of that. `on_text` gets the answer in pieces as it is
        generated, `observer` every step of the reading; once `cancel` is set, the work stops within one chunk or token
        and raises `Cancelled`. `template_options` go to the chat template (`{"enable_thinking": True}`); `answer_start`
        is what the answer begins with. `settings` go to transformers' `generate`; greedy unless they say otherwise.

        Raises `InputError` without a tokenizer or for a question or document that is none, `ConfigError` for a setting
        that does not exist, `MismatchError` for a context of another model; all before any work.
        """
        asking = Asking(
            self, document, question, instruction, answer_start, chat, template_options, reuse, max_new_tokens, settings
        )
        return asking.answer(on_text=on_text, observer=observer, cancel=cancel)

    def ask_stream(
        self,
        document: Document,
        question: str,
        *,
        max_new_tokens: int = 256,
        observer: Observer | None = None,
        instruction: str | None = None,
        answer_start: str = "",
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        reuse: bool = False,
        **settings: Any,
    ) -> AnswerStream:
        """`ask` as an iterator of the answer's pieces, whose `answer` is the record at its end. `close()`, from any
        thread, stops it within one chunk or token."""
        asking = Asking(
            self, document, question, instruction, answer_start, chat, template_options, reuse, max_new_tokens, settings
        )
        return AnswerStream(asking, observer)

    async def aask(
        self,
        document: Document,
        question: str,
        *,
        max_new_tokens: int = 256,
        observer: Observer | None = None,
        instruction: str | None = None,
        answer_start: str = "",
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        reuse: bool = False,
        **settings: Any,
    ) -> Answer:
        """`ask` for an event loop, which goes on with other tasks meanwhile. Answers that are written at the same time
        from one model share its forwards. Cancelling the task stops the work within one chunk or token.

        `settings` are those of `Writing` (temperature, top_p, stop, seed), not of `generate`; `observer` is called in
        the event loop.
        """
        stream = self.astream(
            document,
            question,
            max_new_tokens=max_new_tokens,
            observer=observer,
            instruction=instruction,
            answer_start=answer_start,
            chat=chat,
            template_options=template_options,
            reuse=reuse,
            **settings,
        )
        async with stream:
            async for _ in stream:
                pass
        assert stream.answer is not None
        return stream.answer

    def astream(
        self,
        document: Document,
        question: str,
        *,
        max_new_tokens: int = 256,
        observer: Observer | None = None,
        instruction: str | None = None,
        answer_start: str = "",
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        reuse: bool = False,
        **settings: Any,
    ) -> AsyncAnswerStream:
        """`aask` as an asynchronous iterator of the answer's pieces, whose `answer` is the record at its end."""
        asking = Asking(
            self, document, question, instruction, answer_start, chat, template_options, reuse, max_new_tokens, {}
        )
        return AsyncAnswerStream(self._engine, asking, Writing.of(max_new_tokens=max_new_tokens, **settings), observer)

    @cached_property
    def _engine(self) -> Engine:
        return engine.shared(self)


def _pair(document: Any) -> tuple[str, str]:
    """A document's name and text. Raises `InputError` for anything else."""
    match document:
        case (str(name), str(text)):
            return name, text
        case (_, _):
            kinds = ", ".join(type(part).__name__ for part in document)
            raise InputError(f"a document is a pair of {kinds}; it must be (name, text), both of them text")
    raise InputError(f"a document is {type(document).__name__}; it must be a pair (name, text)")
