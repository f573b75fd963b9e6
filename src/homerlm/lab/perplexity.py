"""Perplexity of long real text, table 3 and figure 5 (SPEC 10): each window scored with all before it compressed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from homerlm.lab.likelihood import CacheSteps
from homerlm.lab.questions import Bench, Outcome, measured
from homerlm.lab.readers import PlainReader
from homerlm.prompt import PromptIds, token_ids

AFFIX = 100  # tokens: the document's first are the prefix, those before the window the suffix


@dataclass(frozen=True)
class WindowsJob:
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

    def run(self, bench: Bench, done: Collection[int]) -> Iterator[tuple[int, Outcome]]:
        ids = token_ids(bench.tokenizer, self.document)[:, : self.length]
        bounds = [(a, b) for a, b in pairwise([0, *self.ends]) if b <= ids.shape[1]]
        plain = isinstance(bench.reader, PlainReader) and bench.reader.budget is None
        score = self._running(bench, ids) if plain else self._compressed
        for place, (start, stop) in enumerate(bounds):
            if plain or place not in done:
                outcome: Outcome = {"tokens": start, "count": stop - max(start, 1)}
                with measured(outcome, bench.model.device):
                    outcome |= score(bench, ids, start, stop)
                yield place, outcome

    def _compressed(self, bench: Bench, ids: Tensor, start: int, stop: int) -> Outcome:
        if start == 0:
            return self._running(bench, ids)(bench, ids, start, stop)
        prompt = PromptIds(ids[:, :AFFIX], ids[:, AFFIX : start - AFFIX], ids[:, start - AFFIX : start])
        reading = bench.reader.read(prompt, stop - start, "go on")
        nll = -reading.log_probs(ids[:, start:stop]).sum().item()
        return {"nll": nll, "kept": len(reading.token_indices)}

    def _running(self, bench: Bench, ids: Tensor) -> Any:
        """The plain model, which reads on from window to window over its growing cache."""
        steps = CacheSteps(bench.model, DynamicCache(config=bench.model.config), 0)
        last: list[Tensor] = []

        def score(_bench: Bench, _ids: Tensor, start: int, stop: int) -> Outcome:
            first = start or 1  # nothing predicts the first token
            if not last:
                last.append(steps.read(ids[:, :1]))
            scored = steps.score(last[0], ids[:, first:stop])
            last[0] = steps.read(ids[:, stop - 1 : stop])
            return {"nll": -scored.total, "kept": stop}

        return score


def rotations(text: str, documents: int) -> list[str]:
    """`documents` texts made of one: each begins at another place, evenly spaced, and goes around its end, so that
    every part of the text stands at every position once and no length gets the easier part."""
    step = len(text) // documents
    return [text[i * step :] + "\n\n" + text[: i * step] for i in range(documents)]
