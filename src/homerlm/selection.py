"""The text of a document that is chosen for a question, with its places, for whatever is to read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from homerlm.config import Config, MergeConfig
from homerlm.context import CompactContext
from homerlm.documents import DocumentSpan
from homerlm.errors import ConfigError, InputError
from homerlm.index.index import Index
from homerlm.trace import kept_indices


@dataclass(frozen=True)
class Excerpt:
    """A passage of a document: characters `[start, end)` of its text; document: its name, where there are several."""

    start: int
    end: int
    text: str
    document: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Selection:
    """What of a document was chosen for a question: passages in the document's order. tokens: of the chosen ones,
    document_tokens: of the whole document; tokens_read: for this question, few where it had been read before."""

    question: str
    tokens: int
    document_tokens: int
    passages: tuple[Excerpt, ...]
    tokens_read: int = 0

    @classmethod
    def of(
        cls,
        spans: Sequence[tuple[int, int]],
        document: str,
        question: str,
        context: CompactContext,
        unread: int = 0,
    ) -> Selection:
        """What is left of a document in the context that it was compressed to. spans: characters `[start, end)` of each
        of its tokens; unread: tokens that were filtered out before."""
        kept = kept_indices(context)
        return cls(question, len(kept), len(spans), tuple(excerpts(document, spans, kept)), len(spans) - unread)

    @classmethod
    def of_index(cls, index: Index, question: str, kept_tokens: Sequence[int], tokens_read: int) -> Selection:
        """What of an index's documents a question was given, tokens in ascending order (`kept_indices`). Raises
        `InputError` for an index without text."""
        kept = torch.tensor(kept_tokens, dtype=torch.long)
        passages: list[Excerpt] = []
        for number in index.part_of(kept).unique().tolist():
            part = index.parts[number]
            own = kept[(kept >= part.first_token) & (kept < part.first_token + part.tokens)]
            spans = index.spans[own].tolist()
            name = part.name if len(index.parts) > 1 else None
            inside = excerpts(index.text_of(part), spans, range(len(spans)))
            passages += [replace(one, document=name) for one in inside]
        return cls(question, len(kept), len(index), tuple(passages), tokens_read)

    def by_document(self, spans: Sequence[DocumentSpan]) -> Selection:
        """Passages of a text of several documents as those of each one's own text, less what is none of theirs; without
        `spans` as they are."""
        if not spans:
            return self
        return replace(self, passages=tuple(own for passage in self.passages for own in _cut(passage, spans)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"passages": [passage.to_dict() for passage in self.passages]}


def config_for(config: Config, tokens: int, affixes: int, min_share: float, limit: int) -> Config:
    """The settings with which a compression leaves so many tokens of a document between affixes, each of them once.

    Raises `InputError` for a number of tokens that cannot be left, `ConfigError` for a share that has no effect.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= limit - affixes:
        raise InputError(
            f"tokens is {tokens!r}; beside the instruction and the question, which take {affixes}, the model can read "
            f"1 to {limit - affixes}"
        )
    length = tokens + affixes
    if isinstance(config, MergeConfig):
        if min_share:
            raise ConfigError(f"min_share is {min_share!r}, but the paper's preset has no such setting: leave it out")
        return replace(config, target_len=length, target_share=0.5)
    rerank = "never" if config.rerank == "never" else "now"
    return replace(config, target_len=length, rerank=rerank, min_share=min_share, recap_len=0)


def excerpts(document: str, spans: Sequence[Sequence[int]], kept: Sequence[int]) -> Iterator[Excerpt]:
    """Passages of the kept tokens, ascending indices; spans: `[start, end)` characters of every token. Tokens with
    nothing but white space between them are one passage, and white space around it is left out."""
    runs: list[tuple[int, int]] = []
    for start, end in (spans[index] for index in kept):
        if runs and not document[runs[-1][1] : start].strip():
            first, last = runs.pop()
            runs.append((first, max(last, end)))
        else:
            runs.append((start, end))
    for start, end in runs:
        yield from _bare(start, document[start:end])


def _cut(passage: Excerpt, spans: Sequence[DocumentSpan]) -> Iterator[Excerpt]:
    """What of a passage is in each of the documents."""
    for span in spans:
        inside = range(max(passage.start, span.start), min(passage.end, span.end))
        text = passage.text[inside.start - passage.start : inside.stop - passage.start] if inside else ""
        yield from _bare(inside.start - span.start + span.first, text, span.name)


def _bare(start: int, text: str, name: str | None = None) -> Iterator[Excerpt]:
    """A passage without white space around it, unless it is nothing else."""
    if bare := text.strip():
        start += text.index(bare)
        yield Excerpt(start, start + len(bare), bare, name)
