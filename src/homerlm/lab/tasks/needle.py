"""Facts hidden in a document: RULER's retrieval family (one, several keys, several values, several queries)."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass

from homerlm.errors import InputError
from homerlm.lab.corpora import ADJECTIVES, CITIES, NOUNS
from homerlm.lab.samples import LEAST_ROOM, Draw, Question, Sample, Task
from homerlm.lab.tasks.passkey import FILLER, repeated_tokens
from homerlm.lab.tasks.prose import excerpt, hide

OVERHEAD = 96  # tokens of instruction, question and a chat template
TOKENS_PER_NEEDLE = {"number": 30, "word": 30, "uuid": 70}
NEW_TOKENS = {"number": 16, "word": 16, "uuid": 48}  # of an answer with one value
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


def needle(variant: str, prose: str, text: str, ask: str = "now") -> Task:
    """Facts hidden in `prose`, in filler of the filler kind. variant: one of `KINDS`. Asked later, each document has
    five keys and a question for each."""
    kind, questions = KINDS[variant], 1 if ask == "now" else QUESTIONS_LATER
    filler = kind.haystack == "filler"

    def sample(draw: Draw) -> Sample:
        rng = draw.generator("needle", variant)
        keys = rng.sample(CITIES, max(kind.keys, questions))
        values = {key: [_value(kind.value, rng) for _ in range(kind.values)] for key in keys}
        asked = [rng.sample(keys, kind.asked)] if ask == "now" else [[key] for key in keys[:questions]]
        facts = [(key, value) for key in keys for value in values[key]]
        room = draw.length - OVERHEAD - TOKENS_PER_NEEDLE[kind.value] * len(facts)
        if room < LEAST_ROOM:
            raise InputError(f"a needle prompt of {draw.length} tokens has no room for text around {len(facts)} facts")
        depth = draw.depth(rng)
        depths = {fact: rng.random() for fact in facts} | {(asked[0][0], values[asked[0][0]][0]): depth}
        repeated = FILLER * int(room / repeated_tokens(draw.tokenizer, FILLER))
        haystack = repeated if filler else excerpt(prose, draw.tokenizer, room, rng)
        document = hide(haystack, [(d, _fact(kind, *fact)) for fact, d in depths.items()])
        asking = tuple(_question(kind, some, [value for key in some for value in values[key]]) for some in asked)
        others = [value for _, value in facts if value not in asking[0].expected]
        return Sample(_instruction(kind.value, len(facts)), document, asking, depth, {"others": others})

    new_tokens = NEW_TOKENS[kind.value] + 24 * (kind.values * kind.asked - 1)
    return Task("needle", variant, "filler" if filler else text, sample, new_tokens, ask, questions)


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
