"""Facts about people planted in prose, asked for in other words than their own: by what everybody knows
(associations), from the other side of a relation (relations), by a paraphrase (paraphrases)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from homerlm.lab.corpora import NAMES
from homerlm.lab.samples import Question, Sample, random_for, stratified_depth
from homerlm.lab.tasks.prose import excerpt, hide, room_beside

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


@dataclass(frozen=True)
class Planted:
    """`facts` of different kinds about different people, of which one is asked for; its depth is stratified."""

    name: str
    prose: str = field(repr=False)
    text: str
    facts: int = 4
    max_new_tokens: int = 12

    @property
    def variant(self) -> str:
        return "one fact" if self.facts == 1 else f"one of {self.facts} facts"

    def sample(self, tokenizer: PreTrainedTokenizerBase, length: int, index: int, seed: int) -> Sample:
        rng = random_for(seed, self.name, self.facts, length, index)
        asked, *others = self._pairs(rng, index, seed)
        people = rng.sample(NAMES, 2 * self.facts)
        named = [{"name": people[2 * k], "other": people[2 * k + 1]} for k in range(self.facts)]
        fact, *distractors = (pair.fact.format(**who) for pair, who in zip([asked, *others], named, strict=True))
        text = asked.question.format(**named[0])
        room = room_beside(tokenizer, length, [INSTRUCTION, text, ANSWER_START, fact, *distractors])
        depth = stratified_depth(index, rng)
        places = [(depth, fact), *((rng.random(), other) for other in distractors)]
        document = hide(excerpt(self.prose, tokenizer, room, rng), places)
        question = Question(text, ANSWER_START, (named[0]["name"],), "first_name", evidence=(fact,))
        return Sample(INSTRUCTION, document, (question,), depth, {"others": [who["name"] for who in named[1:]]})

    def _pairs(self, rng: random.Random, index: int, seed: int) -> list[Pair]:
        """The pair of this sample, in an order that visits all of them, and others of other kinds."""
        order = list(pairs(self.name))
        random_for(seed, self.name).shuffle(order)
        asked = order[index % len(order)]
        kinds = rng.sample(sorted({pair.kind for pair in order} - {asked.kind}), self.facts - 1)
        return [asked, *(rng.choice([pair for pair in order if pair.kind == kind]) for kind in kinds)]
