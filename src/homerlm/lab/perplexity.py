"""Perplexity of long real text, table 3 and figure 5: each window scored with all before it compressed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor

from homerlm.lab.facts import Outcome, measured
from homerlm.lab.likelihood import Prefill
from homerlm.lab.questions import Setup
from homerlm.lab.readers import PlainReader, everything
from homerlm.lab.samples import Asked
from homerlm.prompt import token_ids

AFFIX = 100  # tokens: the document's first are the prefix, those before the window the suffix


@dataclass(frozen=True)
class WindowsWork:
    """Document `index`, scored up to `length` tokens: first a window of the model's unscaled limit by the plain
    model, then windows of half of that. A record is a window, under the length at which it ends."""

    document: str
    index: int
    length: int
    limit: int
    text: str
    name: str = "perplexity"

    @property
    def ends(self) -> list[int]:
        """Window ends in tokens."""
        return [self.limit, *range(self.limit * 3 // 2, self.length + 1, self.limit // 2)]

    @property
    def keys(self) -> list[dict[str, Any]]:
        key = {"task": self.name, "variant": "", "ask": "now", "sample": self.index, "seed": 0, "text": self.text}
        return [key | {"length": end} for end in self.ends]

    def run(self, setup: Setup, done: Collection[int]) -> Iterator[tuple[int, Outcome]]:
        ids = token_ids(setup.tokenizer, self.document)[:, : self.length]
        bounds = [(a, b) for a, b in pairwise([0, *self.ends]) if b <= ids.shape[1]]
        plain = isinstance(setup.reader, PlainReader) and setup.reader.keep is everything
        score = self._running(setup) if plain else partial(self._compressed, setup)
        for place, (start, stop) in enumerate(bounds):
            if plain or place not in done:
                outcome: Outcome = {"tokens": start, "count": stop - max(start, 1)}
                with measured(outcome, setup.model.device):
                    outcome |= score(ids, start, stop)
                yield place, outcome

    def _compressed(self, setup: Setup, ids: Tensor, start: int, stop: int) -> Outcome:
        if start == 0:
            return self._running(setup)(ids, start, stop)
        prefix, context, suffix = ids[:, :start].tensor_split([AFFIX, start - AFFIX], dim=1)
        prompt = Asked(prefix, context, suffix, question=setup.tokenizer.decode(suffix[0]))
        reading = setup.reader.read(prompt, stop - start, "go on")
        nll = -reading.prefill().score(ids[:, start:stop]).total
        return {"nll": nll, "kept": len(reading.token_indices)}

    def _running(self, setup: Setup) -> Callable[[Tensor, int, int], Outcome]:
        """The plain model, which reads on from window to window over its growing cache."""
        read: list[Prefill] = []

        def score(ids: Tensor, start: int, stop: int) -> Outcome:
            if not read:
                read.append(Prefill.of(setup.model, ids[:, :1]))  # nothing predicts the first token
            scored = read[0].score(ids[:, start or 1 : stop])
            read[0].read(ids[:, stop - 1 : stop])
            return {"nll": -scored.total, "kept": stop}

        return score


def rotations(text: str, documents: int) -> list[str]:
    """`documents` texts made of one: each begins at another place, evenly spaced, and goes around its end, so that
    every part of the text stands at every position once and no length gets the easier part."""
    step = len(text) // documents
    return [text[i * step :] + "\n\n" + text[: i * step] for i in range(documents)]
