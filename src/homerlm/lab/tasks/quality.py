"""QuALITY, multiple-choice questions about stories, table 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homerlm.errors import InputError
from homerlm.lab.corpora import from_hub, json_lines
from homerlm.lab.samples import Draw, Question, Sample, Task

INSTRUCTION = (
    "You are provided a story and a multiple-choice question with 4 possible answers (marked by A, B, C, D). "
    "Choose the best answer by writing its corresponding letter (either A, B, C, or D). Do not provide any explanation."
)
LETTERS = "ABCD"
FORMAT = (
    "QuALITY as it is released: a JSON object a line with `article` and `questions`, each with `question`, four "
    "`options` and a `gold_label` from 1 to 4"
)


@dataclass(frozen=True)
class Item:
    article: str
    question: str
    options: tuple[str, ...]
    gold: int  # 0 to 3


def quality(items: Sequence[Item], text: str) -> Task:
    """A sample is a question of the data set about its whole story; a length has no say."""

    def sample(draw: Draw) -> Sample:
        item = draw.one_of(items, "qa")
        options = "\n".join(f"({letter.lower()}) {text}" for letter, text in zip(LETTERS, item.options, strict=True))
        question = Question(
            f"Question and Possible Answers:\n{item.question}\n{options}\n",
            "Answer:",
            (LETTERS[item.gold],),
            "first_letter",
            choices=tuple(f" {letter}" for letter in LETTERS),
        )
        return Sample(INSTRUCTION, item.article, (question,))

    return Task("qa", "", text, sample, max_new_tokens=8)


def load_quality(path: Path | None) -> tuple[Item, ...]:
    """The questions of a local file, or of the hub's copy of the validation set. Raises `InputError`."""
    if path is None:
        rows = from_hub("QuALITY", "tasksource/QuALITY", split="validation", otherwise="give a file with --data")
        return tuple(_items(rows, "the hub's copy"))
    return tuple(_items(json_lines(path, FORMAT), str(path)))


def _items(rows: Any, source: str) -> list[Item]:
    """One item a question, whether a row holds a story's questions or one of them."""
    items = []
    for number, row in enumerate(rows, 1):
        try:
            for question in row.get("questions") or [row]:
                options, gold = tuple(question["options"]), int(question["gold_label"]) - 1
                if len(options) != 4 or not 0 <= gold < 4:
                    raise ValueError("it needs 4 options and a gold_label from 1 to 4")
                items.append(Item(row["article"], question["question"], options, gold))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{source}, row {number}: {error!r}; the file must be {FORMAT}") from None
    if not items:
        raise InputError(f"{source} holds no questions; it must be {FORMAT}")
    return items
