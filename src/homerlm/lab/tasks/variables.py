"""Variable tracking, RULER's task of several hops: which variables get a value, along a chain of assignments."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from homerlm.lab.samples import Question, Sample, random_for
from homerlm.lab.tasks.prose import excerpt, hide, room_beside

INSTRUCTION = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text. I will ask which variables "
    "have a value in the end."
)
NAME_LEN = 5


@dataclass(frozen=True)
class Variables:
    """`chains` of `VAR A = 12345`, `VAR B = VAR A` and so on, `hops` assignments long beyond their first, in order
    and scattered over the prose; asked for are all variables of one of them."""

    prose: str = field(repr=False)
    text: str
    hops: int = 4
    chains: int = 1
    name: str = "variables"

    @property
    def variant(self) -> str:
        return f"{self.hops} hops" + (f", {self.chains} chains" if self.chains > 1 else "")

    @property
    def max_new_tokens(self) -> int:
        return 6 * (self.hops + 1) + 8

    def sample(self, tokenizer: PreTrainedTokenizerBase, length: int, index: int, seed: int) -> Sample:
        rng = random_for(seed, self.name, self.variant, length, index)
        variables = _names(self.chains * (self.hops + 1), rng)
        values = [str(value) for value in rng.sample(range(10_000, 100_000), self.chains)]
        chains = [variables[k :: self.chains] for k in range(self.chains)]
        lines = [_assignments(chain, value) for chain, value in zip(chains, values, strict=True)]
        text = f"Find all variables that are assigned the value {values[0]} in the text above."
        start = f"The {self.hops + 1} variables that are assigned the value {values[0]} are:"
        room = room_beside(tokenizer, length, [INSTRUCTION, text, start, *(line for some in lines for line in some)])
        placed = [pair for some in lines for pair in zip(_rising(len(some), rng), some, strict=True)]
        document = hide(excerpt(self.prose, tokenizer, room, rng), placed)
        question = Question(text, start, tuple(chains[0]), "share_held", evidence=tuple(lines[0]))
        return Sample(INSTRUCTION, document, (question,), placed[0][0])


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
