"""A heading as a question: does what is kept come from the section below it? The author of the text decides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from homerlm.documents.html import read_html
from homerlm.documents.reading import read_document
from homerlm.errors import InputError
from homerlm.lab.corpora import python_topics
from homerlm.lab.facts import Outcome
from homerlm.lab.questions import Setup
from homerlm.lab.readers import Reading
from homerlm.lab.samples import Asked, Draw, Question, Sample, Task, count_tokens
from homerlm.lab.tasks.prose import cut

INSTRUCTION = "Read the following documentation. A question about it follows at its end."
PASSAGE = 64  # tokens of a section that make it found
LEAST = 512  # characters of a section that is asked for, some 128 tokens
SUFFIXES = (".md", ".markdown", ".rst", ".txt", ".html", ".htm")
_MARKED = re.compile(
    r"^#{1,6}[ \t]+(?P<marked>\S.*?)[ \t#]*$|^(?P<lined>\S.*)\n(?P<line>[*=\-~^\"])(?P=line){2,}$", re.M
)


class Section(NamedTuple):
    heading: str
    body: str


def sections(text: str) -> Iterator[Section]:
    """The sections of Markdown or reStructuredText without the lines of their headings, those under a deeper heading
    by themselves."""
    found = list(_MARKED.finditer(text))
    for this, after in zip(found, [*found[1:], None], strict=True):
        body = text[this.end() : after.start() if after else len(text)].strip()
        if body:
            yield Section((this["marked"] or this["lined"]).strip(), body)


def load_sections(source: str) -> list[Section]:
    """Of Python's documentation (`python`), of a file, or of all files of a folder; every heading and text once."""
    texts = python_topics() if source == "python" else [_text(path) for path in _files(Path(source))]
    by_heading = {section.heading: section for text in texts for section in sections(text)}
    found = list({section.body: section for section in by_heading.values()}.values())
    if len(found) < 3:
        raise InputError(
            f"{source} has {len(found)} headings with text below; it must be Markdown, reStructuredText or HTML"
        )
    return found


def _files(path: Path) -> list[Path]:
    inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return inside if path.is_dir() else [path]


def _text(path: Path) -> str:
    """A file's text; an HTML page's with its headings marked as those of Markdown."""
    if path.suffix.lower() not in (".html", ".htm"):
        return read_document(str(path))
    marked = re.sub(rb"(<h[1-6]\b[^>]*>)", rb"\1# ", path.read_bytes(), flags=re.I)
    return read_html(marked, path.name, title=False)


def headings(corpus: Sequence[Section], text: str) -> Task:
    """Sections side by side, without their headings; one heading is asked about. Its section stands at a stratified
    depth and has at most as many characters as the prompt has tokens, about a quarter of it. Nothing is answered:
    `found` says what the choice is good for."""

    def sample(draw: Draw) -> Sample:
        rng = draw.generator("headings")
        fitting = [section for section in corpus if LEAST <= len(section.body) <= draw.length]
        if not fitting:
            raise InputError(
                f"a prompt of {draw.length} tokens has no room for any section of {LEAST} characters or more"
            )
        gold = draw.one_of(fitting, "headings")
        question = f"What does the documentation say about “{gold.heading}”?"
        room = draw.room_beside([INSTRUCTION, question, gold.body])
        bodies = [section.body for section in rng.sample(corpus, len(corpus)) if section != gold]
        others = list(_up_to(room, bodies, draw.tokenizer))
        depth = draw.depth(rng)
        place = round(depth * len(others))
        parts = (*others[:place], gold.body, *others[place:])
        asked = Question(question, "", (), "share_held", evidence=(gold.body,))
        return Sample(INSTRUCTION, "\n\n".join(parts), (asked,), depth, {"heading": gold.heading}, sections=parts)

    return Task("headings", "", text, sample, judge=found)


def _up_to(room: int, bodies: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Texts, each whole but the last, of `room` tokens in all. Raises `InputError` if they have fewer."""
    for body in bodies:
        tokens = count_tokens(tokenizer, f"{body}\n\n")
        yield body if tokens <= room else cut(body, tokenizer, room)
        room -= tokens
        if room <= 0:
            return
    raise InputError(f"the sections are too few for this length: {room} tokens are missing")


def found(_setup: Setup, _question: Question, asked: Asked, reading: Reading) -> Outcome:
    """Judge by what was kept. `needle_kept`, whether 64 tokens of the section that answers are (or all, of a shorter
    one): its recall at the budget. `score`, whether no other section has as many. `gold_share`: of all tokens kept of
    the document, those in that section."""
    kept = reading.token_indices.cpu()
    counts = [int(((start <= kept) & (kept < stop)).sum()) for start, stop in asked.sections]
    gold = next(k for k, (start, stop) in enumerate(asked.sections) if start <= asked.gold[0] < stop)
    others = max(counts[:gold] + counts[gold + 1 :])
    return {
        "needle_kept": float(counts[gold] >= min(PASSAGE, len(asked.gold))),
        "score": float(counts[gold] > others),
        "gold_share": round(counts[gold] / max(sum(counts), 1), 4),
    }
