"""Texts with planted facts and a question about one of them: what a model's attention heads are measured on."""

from __future__ import annotations

import json
import random
import re
import string
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

OTHERS = 3  # facts of the asked one's kind that stand in the same text
HOP = " | "  # between the sentences of a fact that is told in several places
RECORDS = "records"  # a text of nothing but facts
SHORTEST_FACT = 20  # characters
CODE = ("argparse", "textwrap", "csv", "heapq", "calendar", "shlex", "fractions", "statistics")


@dataclass(frozen=True)
class Probe:
    """kind: of the fact; source: of the text around it; spans: characters `[start, stop)` of the sentences that answer
    the question."""

    kind: str
    source: str
    text: str
    question: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fact:
    """sentences: what is told, in one or several places; question: what it answers."""

    sentences: tuple[str, ...]
    question: str


def kinds() -> tuple[str, ...]:
    """Names of the kinds of facts there are."""
    return tuple(_data()["kinds"])


def probes(characters: int, count: int, seed: int) -> list[Probe]:
    """`count` probes with texts of about so many characters: kinds and sources of text in turn, the same for the same
    arguments."""
    names, texts = kinds(), (*sources(), RECORDS)
    made = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind, source = names[(number // len(texts) + number) % len(names)], texts[number % len(texts)]
        made.append(_probe(kind, source, characters, rng))
    return made


@cache
def sources() -> dict[str, str]:
    """Texts that are on every machine with Python, by name: its documentation and its library."""
    from pydoc_data.topics import topics

    code = (Path(str(__import__(name).__file__)) for name in CODE)
    return {
        "documentation": "\n\n".join(topics.values()),
        "code": "\n\n".join(path.read_text(encoding="utf-8") for path in code),
    }


def _probe(kind: str, source: str, characters: int, rng: random.Random) -> Probe:
    templates = _data()["kinds"][kind]
    template = rng.choice(templates)
    asked = _fact(template, rng)
    alike = [other for other in templates if other != template] if template[0].count("{") == 1 else [template]
    others = [_fact(rng.choice(alike), rng) for _ in range(OTHERS)]
    planted = [
        (rng.random(), sentence, False)
        for fact in others
        if fact.question != asked.question
        for sentence in fact.sentences
    ]
    planted += [(rng.random(), sentence, True) for sentence in asked.sentences]
    full, spans = _plant(_text(source, template, characters, rng), planted)
    return Probe(kind, source, full, asked.question, spans)


def _text(source: str, asked: Sequence[str], characters: int, rng: random.Random) -> str:
    """An excerpt of so many characters; of records, none of the asked template."""
    if source == RECORDS:
        templates = [template for kind in kinds() for template in _data()["kinds"][kind] if template != asked]
        facts = (_fact(rng.choice(templates), rng) for _ in range(characters // SHORTEST_FACT))
        return " ".join(sentence for fact in facts for sentence in fact.sentences)[:characters]
    start = rng.randrange(len(sources()[source]) - characters)
    return sources()[source][start : start + characters]


def _plant(text: str, planted: list[tuple[float, str, bool]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text with each sentence at the break nearest to its depth (0 to 1), and the spans of the asked ones."""
    breaks = [match.end() for match in re.finditer(r"[.?!:]\s+|\n\s*", text)] or [0]
    pieces: list[str] = []
    spans, at, length = [], 0, 0
    for depth, sentence, asked in sorted(planted):
        place = min(breaks, key=lambda end: abs(end - depth * len(text)))
        pieces += [text[at:place], sentence, " "]
        length += place - at
        if asked:
            spans.append((length, length + len(sentence)))
        length += len(sentence) + 1
        at = place
    return "".join([*pieces, text[at:]]), tuple(spans)


def _fact(template: Sequence[str], rng: random.Random) -> Fact:
    sentences, question = template
    values = _values(rng)
    return Fact(tuple(sentences.format(**values).split(HOP)), question.format(**values))


def _values(rng: random.Random) -> dict[str, str]:
    slots = {name: rng.choice(choices) for name, choices in _data()["slots"].items()}
    first, second = rng.sample(_data()["slots"]["name"], 2)
    return slots | {
        "name": first,
        "name2": second,
        "number": str(rng.randrange(10_000, 10_000_000)),
        "short": f"{rng.choice(string.ascii_uppercase)}{rng.randrange(100, 1000)}",
        "uuid": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    }


@cache
def _data() -> Any:
    return json.loads(resources.files("homerlm").joinpath("data/profile_facts.json").read_text(encoding="utf-8"))
