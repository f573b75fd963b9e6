"""How likely a question is right behind a sentence: a reader asks about what was just said, in whatever words.

Heads and embeddings find what resembles the question. A whole model also knows that "takes the red light for the green
one" makes "colour-blind" likelier. That is the query likelihood of information retrieval (Ponte and Croft, SIGIR 1998)
by a language model (Sachan et al., arXiv 2204.07496), which takes all layers: so it is for the best sentences alone.
Not in the paper (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from homerlm.model.decoder import Decoder
from homerlm.score.surprisal import nats

LONGEST = 64  # tokens of a question, its last ones


@dataclass(frozen=True)
class Asked:
    """A question as it follows a text. before: (P,) ids that stand before the text; ids: (Q,) of the question, and of
    the prompt between text and question; counted: of these, the last ones whose likelihood counts."""

    before: Tensor
    ids: Tensor
    counted: int

    @classmethod
    def of(cls, before: Tensor, suffix: Tensor, own: slice) -> Asked:
        """Of a prompt's suffix, ids (S,), the question's own ones in a slice of it."""
        ids = suffix[: own.stop][-LONGEST:]
        return cls(before, ids, min(own.stop - own.start, len(ids)))

    def __len__(self) -> int:
        """Tokens around the text."""
        return len(self.before) + len(self.ids)

    def behind(self, texts: Sequence[Tensor], most: int) -> Iterator[Batch]:
        """Texts, ids (n,) each, with the question behind them, in batches of at most so many tokens, or of one."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        batch: list[int] = []
        for number in order:
            if batch and (len(batch) + 1) * (len(texts[number]) + len(self)) > most:
                yield self._batch(batch, texts)
                batch = []
            batch.append(number)
        if batch:
            yield self._batch(batch, texts)

    def _batch(self, numbers: list[int], texts: Sequence[Tensor]) -> Batch:
        rows = [torch.cat([self.before, texts[number], self.ids]) for number in numbers]
        last = torch.tensor([len(row) - 1 for row in rows], device=self.ids.device)
        return Batch(numbers, pad_sequence(rows, batch_first=True), last, self.counted)


@dataclass(frozen=True)
class Batch:
    """Rows of ids (B, S), padded on the right, where nothing before them looks. numbers: of the texts in them; last:
    (B,) where each row ends; counted: of the ids before that, it included, those whose likelihood counts."""

    numbers: list[int]
    input_ids: Tensor
    last: Tensor
    counted: int

    @property
    def position_ids(self) -> Tensor:
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand(self.input_ids.shape)

    def log_likelihood(self, decoder: Decoder, hidden: Tensor) -> Tensor:
        """(B,) float32 in nats, after final states (B, S, E)."""
        places = self.last[:, None] + torch.arange(1 - self.counted, 1, device=self.last.device)
        rows = torch.arange(len(places), device=places.device)[:, None]
        states = hidden[rows.to(hidden.device), (places - 1).to(hidden.device)]
        return -nats(decoder, states, self.input_ids[rows, places]).sum(1)
