"""Facts hidden in a document: RULER's retrieval family (one, several keys, several values, several queries)."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.lab.corpora import ADJECTIVES, CITIES, NOUNS
from homerlm.lab.samples import Question, Sample, random_for, stratified_depth
from homerlm.lab.tasks.passkey import FILLER, repeated_tokens
from homerlm.lab.tasks.prose import excerpt, hide

OVERHEAD = 96  # tokens of instruction, question and a chat template
TOKENS_PER_NEEDLE = {"number": 30, "word": 30, "uuid": 70}
QUESTIONS_LATER = 5


@dataclass(frozen=True)
class Kind:
    """How many keys are hidden, how many values each has, how many of the keys one question asks for."""

    keys: int = 1
    values: int = 1
    asked: int = 1
    value: str = "number"
    haystack: str = "prose"


KINDS = {
    "single": Kind(),
    "single-word": Kind(value="word"),
    "single-uuid": Kind(value="uuid"),
    "single-filler": Kind(haystack="filler"),
    "keys": Kind(keys=4),
    "values": Kind(values=4),
    "queries": Kind(keys=4, asked=4),
}


@dataclass(frozen=True)
class Needle:
    """`prose` is the text to hide facts in (unused by the filler kinds), `source` its name in records.

    `questions` above 1 makes documents that are asked several times, one question for each of so many more keys.
    """

    variant: str
    prose: str = field(repr=False)
    source: str
    questions: int = 1
    name: str = "needle"

    @property
    def kind(self) -> Kind:
        return KINDS[self.variant]

    @property
    def text(self) -> str:
        return "filler" if self.kind.haystack == "filler" else self.source

    @property
    def max_new_tokens(self) -> int:
        per_value = {"number": 16, "word": 16, "uuid": 48}[self.kind.value]
        return per_value + 24 * (self.kind.values * self.kind.asked - 1)

    def sample(self, tokenizer: PreTrainedTokenizerBase, length: int, index: int, seed: int) -> Sample:
        kind, rng = self.kind, random_for(seed, self.name, self.variant, length, index)
        keys = rng.sample(CITIES, max(kind.keys, self.questions))
        values = {key: [_value(kind.value, rng) for _ in range(kind.values)] for key in keys}
        asked = [rng.sample(keys, kind.asked)] if self.questions == 1 else [[key] for key in keys[: self.questions]]
        facts = [(key, value) for key in keys for value in values[key]]
        room = length - OVERHEAD - TOKENS_PER_NEEDLE[kind.value] * len(facts)
        if room < 100:
            raise InputError(f"a needle prompt of {length} tokens has no room for text around {len(facts)} facts")
        depth = stratified_depth(index, rng)
        depths = {fact: rng.random() for fact in facts} | {(asked[0][0], values[asked[0][0]][0]): depth}
        document = hide(self._haystack(tokenizer, room, rng), [(d, _fact(kind, *fact)) for fact, d in depths.items()])
        questions = tuple(_question(kind, some, [value for key in some for value in values[key]]) for some in asked)
        others = [value for _, value in facts if value not in questions[0].expected]
        return Sample(_instruction(kind.value, len(facts)), document, questions, depth, {"others": others})

    def _haystack(self, tokenizer: PreTrainedTokenizerBase, tokens: int, rng: random.Random) -> str:
        if self.kind.haystack == "filler":
            return FILLER * int(tokens / repeated_tokens(tokenizer, FILLER))
        return excerpt(self.prose, tokenizer, tokens, rng)


def _instruction(value: str, facts: int) -> str:
    if facts == 1:
        return f"A special magic {value} is hidden within the following text. Memorize it. I will quiz you about it."
    return f"Special magic {value}s are hidden within the following text. Memorize them. I will quiz you about them."


def _value(kind: str, rng: random.Random) -> str:
    if kind == "number":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _fact(kind: Kind, key: str, value: str) -> str:
    one = "One of the special magic" if kind.values > 1 else "The special magic"
    return f"{one} {kind.value}{'s' * (kind.values > 1)} for {key} is: {value}."


def _question(kind: Kind, keys: list[str], expected: list[str]) -> Question:
    many = len(expected) > 1
    what = f"special magic {kind.value}{'s' * many}"
    whom = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    verb = "are" if many else "is"
    text = f"What {verb} {'all ' * (kind.values > 1)}the {what} for {whom} mentioned in the provided text?"
    grading = "first_integer" if kind.value == "number" and not many else "share_held"
    return Question(text, f"The {what} for {whom} mentioned in the provided text {verb}", tuple(expected), grading)
