"""One prompt of an evaluation, its questions, and what counts as a right answer."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.lab.corpora import COUNTS, NAMES
from homerlm.prompt import PromptIds, token_spans

if TYPE_CHECKING:
    from homerlm.lab.questions import Judge

Item = TypeVar("Item")
TEMPLATE_TOKENS = 64  # of a chat template and of the joints between the parts of a prompt
LEAST_ROOM = 100
DEPTHS, DEPTH_STEP = 10, 3


@dataclass(frozen=True)
class Question:
    """`text` asks; `answer_start` is put into the model's mouth. `expected` holds what the answer must hold, judged by
    the function `grading` of `GRADINGS`. `choices`: continuations of which the likeliest is chosen, or empty.
    `evidence`: what of the document must be kept to answer; what is expected, if nothing is given."""

    text: str
    answer_start: str
    expected: tuple[str, ...]
    grading: str
    choices: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """Strings of the document whose tokens must be kept."""
        return self.evidence or self.expected

    def grade(self, answer: str) -> float:
        """Share of what is expected that the answer holds, 0 to 1."""
        return GRADINGS[self.grading](answer, self.expected)


@dataclass(frozen=True)
class Sample:
    """A document between its instruction and its questions. `depth` (0 to 1): where the first question's fact is.
    `facts` go into its records. `sections`: texts that follow each other in the document, if it is made of such."""

    instruction: str
    document: str
    questions: tuple[Question, ...]
    depth: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    sections: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked(PromptIds):
    """A prompt's ids with what methods need that choose passages by their text. `question` and `document`: their texts
    alone, or nothing where there are none but ids. `gold`: indices in the prompt of the tokens that answer; only the
    oracle, and whoever counts what was kept, may use them. `sections`: tokens [start, stop) of the document's sections,
    if it is made of such."""

    question: str = ""
    gold: tuple[int, ...] = ()
    document: str = ""
    sections: tuple[tuple[int, int], ...] = ()

    @property
    def gold_in_context(self) -> Tensor:
        """(n,) places in the context of the gold tokens."""
        return torch.tensor(self.gold) - self.prefix.shape[1]


@dataclass(frozen=True)
class Draw:
    """Which sample of a task is made: the one of this index, of a prompt of at most `length` tokens."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    index: int
    seed: int

    def generator(self, *names: Any) -> random.Random:
        """One that depends on these names and the draw alone: samples can be made in any order, and again."""
        return random_for(self.seed, *names, self.length, self.index)

    def depth(self, rng: random.Random) -> float:
        """0 to 1: every ten samples visit every tenth of the document once, and a few of them already spread."""
        return (self.index * DEPTH_STEP % DEPTHS + rng.random()) / DEPTHS

    def shuffled(self, items: Iterable[Item], name: str) -> list[Item]:
        """In an order that the seed decides."""
        order = list(items)
        random_for(self.seed, name).shuffle(order)
        return order

    def one_of(self, items: Iterable[Item], name: str) -> Item:
        """The next of them, shuffled, from sample to sample: all before one comes again."""
        order = self.shuffled(items, name)
        return order[self.index % len(order)]

    def room_beside(self, texts: Sequence[str]) -> int:
        """Tokens left for prose beside these texts of the task's own. Raises `InputError` if they are too few."""
        room = self.length - TEMPLATE_TOKENS - sum(count_tokens(self.tokenizer, f"{text} ") for text in texts)
        if room < LEAST_ROOM:
            raise InputError(
                f"a prompt of {self.length} tokens has no room for text around {len(texts)} sentences of its own"
            )
        return room


@dataclass(frozen=True)
class Task:
    """What samples are made of, and how they are asked and judged; records have the first three. `variant` tells apart
    what `name` does not; `text` names the source of the documents.

    make: a sample, the same for the same draw. max_new_tokens: of an answer. ask: "now", every question while its
    document is read, or "later", of what was read without it. questions: of each document. judge: by default what is
    generated.
    """

    name: str
    variant: str
    text: str
    make: Callable[[Draw], Sample] = field(repr=False)
    max_new_tokens: int = 0
    ask: str = "now"
    questions: int = 1
    judge: Judge | None = None

    def sample(self, tokenizer: PreTrainedTokenizerBase, length: int, index: int, seed: int) -> Sample:
        """Raises `InputError` where the length has no room for one."""
        return self.make(Draw(tokenizer, length, index, seed))


Grading = Callable[[str, tuple[str, ...]], float]


def first(pattern: str, read: Callable[[str], str] = str, meant: Callable[[str], str] = str) -> Grading:
    """Whether the first of an answer's texts of this pattern means what is expected."""

    def grade(answer: str, expected: tuple[str, ...]) -> float:
        found = re.search(pattern, read(answer))
        return float(found is not None and meant(found[0]) == expected[0])

    return grade


def share_held(answer: str, expected: tuple[str, ...]) -> float:
    """Share of the expected strings that occur in the answer, case aside: RULER's rule."""
    return sum(wanted.lower() in answer.lower() for wanted in expected) / len(expected)


def _count(said: str) -> str:
    if said.isdecimal():
        return COUNTS[int(said)] if int(said) < len(COUNTS) else said
    return "nothing" if said in ("no", "zero") else said


GRADINGS: dict[str, Grading] = {
    "first_integer": first(r"\d+", lambda answer: answer.replace(",", "")),  # the passkey's rule
    "share_held": share_held,
    "first_letter": first(r"\b[A-D]\b"),  # standing by itself
    "first_name": first(rf"\b({'|'.join(NAMES)})\b"),
    "first_count": first(rf"\b(\d+|nothing|no|zero|{'|'.join(COUNTS[1:])})\b", str.lower, _count),
}


def random_for(seed: int, *names: Any) -> random.Random:
    """A generator that depends on the names alone."""
    return random.Random("/".join(map(str, (seed, *names))))


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def token_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Characters [begin, end) of each of a text's tokens; none from a tokenizer that does not tell."""
    return token_spans(tokenizer, text) if tokenizer.is_fast else []


def token_span(offsets: list[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """The tokens [start, stop) that hold the characters [begin, end)."""
    return bisect_right(offsets, begin, key=lambda token: token[1]), bisect_left(
        offsets, end, key=lambda token: token[0]
    )
