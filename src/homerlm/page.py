"""A self-contained page of a document: what of it the answer was read from, and what became of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homerlm.context import CompactContext
from homerlm.index.index import Index
from homerlm.storage import replacing
from homerlm.trace import READ, Fates, LevelTrace, Passage, passages, passages_at

NEAR = 8  # tokens: passages read for the answer that are nearer to each other are one in the page's list
_SNIPPET = 90  # characters of a passage in the list
_DARKEST = 0.22  # opacity of what was dropped last


@dataclass(frozen=True)
class Piece:
    """A passage as the page shows it; `number` where it is one to jump to, counted from 1."""

    text: str
    kind: str
    number: int | None = None


@dataclass(frozen=True)
class Stop:
    """A place to jump to: its number, its first words, and how far down the document it is (0 to 1)."""

    number: int
    snippet: str
    depth: float


def write_page(path: Path, text: str) -> None:
    """Write a page, complete or not at all. Raises `InputError` if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def render(tokenizer: Any, document: str, names: list[str], question: str, answer: Any, trace: LevelTrace) -> str:
    """The page, as HTML, of an `Answer` about a document (text, put together from files of these names)."""
    fates = Fates.of(trace, answer.context)
    return _rendered(list(passages(tokenizer, document, fates.levels)), names, question, answer, fates)


@dataclass(frozen=True)
class Kept:
    """What stands on the page of a document of an index, instead of an `Answer`: seconds that finding took; text: of
    the answer, empty where none was written."""

    context: CompactContext
    compress_seconds: float
    model_limit: int
    text: str = ""


def render_index(starts: Sequence[int], document: str, name: str, question: str, kept: Kept, trace: LevelTrace) -> str:
    """The page of a document that was read before. starts: the first character of each of its tokens."""
    fates = Fates.of(trace, kept.context)
    return _rendered(list(passages_at(starts, document, fates.levels)), [name], question, kept, fates)


def render_documents(index: Index, question: str, kept: Kept, trace: LevelTrace) -> str:
    """The page of all documents of an index, one after the other, each under its name where there are several."""
    starts: list[int] = []
    document = ""
    for part in index.parts:
        if len(index.parts) > 1:
            document += ("\n\n" if document else "") + f"# {part.name}\n\n"
        own = index.spans[part.first_token : part.first_token + part.tokens][:, 0]
        starts += (own + len(document)).tolist()
        document += index.text_of(part)
    fates = Fates.of(trace, kept.context)
    return _rendered(list(passages_at(starts, document, fates.levels)), list(index.names), question, kept, fates)


def _rendered(found: list[Passage], names: list[str], question: str, answer: Any, fates: Fates) -> str:
    pieces, stops = _pieces(found, len(fates.levels))
    return _template().render(
        question=question,
        answer=answer,
        names=names,
        pieces=pieces,
        stops=stops,
        total=len(fates.levels),
        read=fates.count(READ),
        shades=[(level, _DARKEST * level / fates.rounds) for level in range(1, fates.rounds + 1)],
        has_dropped=int(fates.levels.min()) < READ if len(fates.levels) else False,
    )


def _pieces(found: list[Passage], total: int) -> tuple[list[Piece], list[Stop]]:
    """Passages to show, and the places to jump to: where a passage that was read has none just before it."""
    pieces: list[Piece] = []
    stops: list[Stop] = []
    last = -NEAR - 1  # the token after the last passage that was read
    for passage, end in zip(found, [*(later.start for later in found[1:]), total], strict=True):
        number = None
        if passage.level == READ:
            if passage.start - last > NEAR:
                number = len(stops) + 1
                stops.append(Stop(number, _snippet(passage.text), passage.start / total))
            last = end
        pieces.append(Piece(passage.text, _kind(passage.level), number))
    return pieces, stops


def _kind(level: int) -> str:
    return "read" if level == READ else f"seen l{level}"


def _snippet(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SNIPPET else words[:_SNIPPET].rsplit(" ", 1)[0] + " …"


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("homerlm", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
