"""Facts about people planted in prose, asked for in other words than their own: by what everybody knows
(associations), from the other side of a relation (relations), by a paraphrase (paraphrases)."""

from __future__ import annotations

import random
from functools import cache
from importlib import resources
from typing import NamedTuple

from homerlm.lab.corpora import NAMES
from homerlm.lab.samples import Draw, Question, Sample, Task
from homerlm.lab.tasks.prose import hidden

INSTRUCTION = "Facts about people are hidden within the following text. Memorize them. I will quiz you about them."
ANSWER_START = "The answer is"


class Pair(NamedTuple):
    """A fact and a question of which the person called {name} is the answer; {other} is one that both speak of. Facts
    of different kinds do not answer each other's questions."""

    kind: str
    fact: str
    question: str


@cache
def pairs(name: str) -> tuple[Pair, ...]:
    """The pairs of one set: `associations`, `relations` or `paraphrases`."""
    text = resources.files("homerlm").joinpath("data", f"{name}.tsv").read_text(encoding="utf-8")
    return tuple(Pair(*line.split("\t")) for line in text.splitlines())


def planted(name: str, prose: str, text: str, facts: int = 4) -> Task:
    """`facts` of different kinds about different people, of which one is asked for; its depth is stratified."""

    def sample(draw: Draw) -> Sample:
        rng = draw.generator(name, facts)
        chosen = _of_different_kinds(name, facts, draw, rng)
        people = rng.sample(NAMES, 2 * facts)
        named = [{"name": one, "other": other} for one, other in zip(people[::2], people[1::2], strict=True)]
        fact, *distractors = (pair.fact.format(**who) for pair, who in zip(chosen, named, strict=True))
        depth = draw.depth(rng)
        placed = [(depth, fact), *((rng.random(), other) for other in distractors)]
        answer, *others = (who["name"] for who in named)
        asked = chosen[0].question.format(**named[0])
        question = Question(asked, ANSWER_START, (answer,), "first_name", evidence=(fact,))
        return hidden(prose, draw, rng, INSTRUCTION, placed, question, depth=depth, facts={"others": others})

    variant = "one fact" if facts == 1 else f"one of {facts} facts"
    return Task(name, variant, text, sample, max_new_tokens=12)


def _of_different_kinds(name: str, count: int, draw: Draw, rng: random.Random) -> list[Pair]:
    """The pair of this sample, in an order that visits all of them, and others."""
    asked, order = draw.one_of(pairs(name), name), draw.shuffled(pairs(name), name)
    kinds = rng.sample(sorted({pair.kind for pair in order} - {asked.kind}), count - 1)
    return [asked, *(rng.choice([pair for pair in order if pair.kind == kind]) for kind in kinds)]
