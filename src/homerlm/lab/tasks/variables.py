"""Variable tracking, RULER's task of several hops: which variables get a value, along a chain of assignments."""

from __future__ import annotations

import random
import string

from homerlm.lab.samples import Draw, Question, Sample, Task
from homerlm.lab.tasks.prose import hidden

INSTRUCTION = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text. I will ask which variables "
    "have a value in the end."
)
NAME_LEN = 5


def variables(prose: str, text: str, hops: int = 4, chains: int = 1) -> Task:
    """`chains` of `VAR A = 12345`, `VAR B = VAR A` and so on, `hops` assignments long beyond their first, in order
    and scattered over the prose; asked for are all variables of one of them."""
    variant = f"{hops} hops" + (f", {chains} chains" if chains > 1 else "")

    def sample(draw: Draw) -> Sample:
        rng = draw.generator("variables", variant)
        named = _names(chains * (hops + 1), rng)
        values = [str(value) for value in rng.sample(range(10_000, 100_000), chains)]
        lines = [_assignments(named[k::chains], value) for k, value in enumerate(values)]
        asked = f"Find all variables that are assigned the value {values[0]} in the text above."
        start = f"The {hops + 1} variables that are assigned the value {values[0]} are:"
        question = Question(asked, start, tuple(named[::chains]), "share_held", evidence=tuple(lines[0]))
        placed = [pair for some in lines for pair in zip(_rising(len(some), rng), some, strict=True)]
        return hidden(prose, draw, rng, INSTRUCTION, placed, question, depth=placed[0][0])

    return Task("variables", variant, text, sample, max_new_tokens=6 * (hops + 1) + 8)


def _assignments(chain: list[str], value: str) -> list[str]:
    sources = [value, *(f"VAR {name}" for name in chain)]
    return [f"VAR {name} = {source}." for name, source in zip(chain, sources, strict=False)]


def _names(count: int, rng: random.Random) -> list[str]:
    """Different names of capital letters."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=NAME_LEN))] = None
    return list(names)


def _rising(count: int, rng: random.Random) -> list[float]:
    return sorted(rng.random() for _ in range(count))
