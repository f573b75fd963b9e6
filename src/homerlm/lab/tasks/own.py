"""Questions of one's own about a text of one's own: is what answers them found, and read?"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.lab.corpora import json_lines
from homerlm.lab.samples import Draw, Question, Sample, Task, token_offsets
from homerlm.lab.tasks.prose import CHARACTERS

INSTRUCTION = "Read the following text. A question about it follows at its end."
FORMAT = (
    "JSON lines with `question`, `evidence` (words of the text that answer it; they must stand there once) and, if the "
    "answer is to be judged, `answer` (what it must hold)"
)


class Item(NamedTuple):
    """start, stop: where in the text the evidence stands."""

    question: str
    start: int
    stop: int
    answer: str


def questions(items: Sequence[Item], source: str, text: str) -> Task:
    """Of each question as much of the text around its evidence as the prompt has room for; the evidence stands at a
    stratified depth of it, as far as the text goes on."""

    def sample(draw: Draw) -> Sample:
        item = draw.one_of(items, "questions")
        depth = draw.depth(draw.generator("questions"))
        room = draw.room_beside([INSTRUCTION, item.question])
        start, stop = _around(source, draw.tokenizer, item, room, depth)
        evidence = source[item.start : item.stop]
        asked = Question(item.question, "", (item.answer,), "share_held", evidence=(evidence,))
        return Sample(INSTRUCTION, source[start:stop], (asked,), (item.start - start) / max(stop - start, 1))

    return Task("questions", "", text, sample, max_new_tokens=32)


def load_questions(path: Path, text: str) -> tuple[Item, ...]:
    """The questions of a file about a text. Raises `InputError` for another format, and for evidence that is not there
    or stands there more than once; runs of white space count as one space."""
    rows = enumerate(json_lines(path, FORMAT), 1)
    items = tuple(_item(row, text, f"{path}, question {number}") for number, row in rows)
    if not items:
        raise InputError(f"{path} holds no questions; it must be {FORMAT}")
    return items


def _item(row: Any, text: str, where: str) -> Item:
    names = "question", "evidence", "answer"
    given = [row.get(name, "") for name in names] if isinstance(row, dict) else []
    if not given or not all(isinstance(value, str) for value in given) or not all(map(str.strip, given[:2])):
        raise InputError(f"{where}: {row!r}; it must be one of {FORMAT}")
    question, evidence, answer = given
    found = list(re.finditer(r"\s+".join(map(re.escape, evidence.split())), text))
    if len(found) != 1:
        stands = f"stands {len(found)} times" if found else "is not"
        raise InputError(f"{where}: the evidence {evidence!r} {stands} in the text; it must stand there once")
    return Item(question, *found[0].span(), answer or found[0][0])


def _around(text: str, tokenizer: PreTrainedTokenizerBase, item: Item, room: int, depth: float) -> tuple[int, int]:
    """`[start, stop)` of the text's characters with the evidence, about `room` tokens, at least the evidence."""
    first = max(item.start - room * CHARACTERS, 0)
    near = text[first : item.stop + room * CHARACTERS]
    tokens = token_offsets(tokenizer, near) or [(at, at + 4) for at in range(0, len(near), 4)]
    begin, end = (bisect(tokens, (place - first, -1)) for place in (item.start, item.stop))
    start = max(min(begin - round(depth * (room - end + begin)), len(tokens) - room), 0)
    stop = max(min(start + room, len(tokens)), end)
    return first + tokens[start][0], first + tokens[stop - 1][1]
