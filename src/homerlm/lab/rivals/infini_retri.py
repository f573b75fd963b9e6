"""InfiniRetri, sentences by the last layer's attention window after window, through the package infini-retri."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.errors import ConfigError, HomerError
from homerlm.lab.rivals.passages import Span
from homerlm.lab.samples import Asked, token_offsets, token_span

PROMPT = "Read the text and answer the question.\n\n{context}\n\nQuestion:\n\n{question}\n\nAnswer:"


class InfiniRetri:
    """The sentences that the package leaves of a document, read `window` tokens at a time: those of the `topk` tokens
    with the highest attention; what exceeds the room is cut. It needs a chat template, and attention that gives its
    weights, which the model has while the package chooses. Raises `ConfigError` without the package."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, topk: int = 300, window: int = 1024
    ) -> None:
        try:
            from infini_retri.pipline import Pipline
        except ImportError as error:
            raise ConfigError(
                f"infini-retri needs {error.name}: pip install infini-retri tiktoken (which it does not ask for itself)"
            ) from error
        self.model, self.tokenizer = model, tokenizer
        settings = {"topk": topk, "chunk_size": window}
        with _eager(model):
            self._pipeline = Pipline(model=model, tokenizer=tokenizer, config=settings)

    def __call__(self, asked: Asked, room: int) -> list[Span]:
        offsets = token_offsets(self.tokenizer, asked.document)
        chosen: list[Span] = []
        for begin, end in located(self._retrieved(asked), asked.document):
            start, stop = token_span(offsets, begin, end)
            start = max(start, chosen[-1][1] if chosen else 0)
            if (taken := min(stop - start, room)) > 0:
                chosen.append((start, start + taken))
                room -= taken
        return chosen

    def _retrieved(self, asked: Asked) -> str:
        """The text that the package would read in the end. It fails by assertions and unset variables."""
        given = {"context": asked.document, "question": asked.question}
        try:
            with _eager(self.model), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                self._pipeline.generate2(given, PROMPT, "homerlm", max_new_tokens=1)
        except Exception as error:
            raise HomerError(f"infini-retri failed: {type(error).__name__}: {str(error)[:200]}") from error
        return given["context"]


def located(chosen: str, document: str) -> Iterator[tuple[int, int]]:
    """Characters [begin, end) of a document's sentences that a text is put together from, in order."""
    at = 0
    for sentence in filter(None, map(str.strip, re.split(r"(?<=[.?!。！？])|\n\n", chosen))):
        if (begin := document.find(sentence, at)) >= 0:
            at = begin + len(sentence)
            yield begin, at


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention that gives its weights, until the block ends."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
