"""Sentence embeddings out of the model's own hidden states: they find a sentence by what it is about, where it shares
no word with the question that a head would look for. Not in the paper (docs/experiments.md)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.errors import CorruptFileError
from homerlm.model.attention import Attended, Fork
from homerlm.model.decoder import Decoder
from homerlm.score.heads import Scoring, layers_run

Ids = Sequence[int]


@dataclass(frozen=True)
class Embedding:
    """How sentences of a model are embedded: by the mean of their tokens' normed hidden states after `depth` layers. A
    question's own is read behind one token, `first`, which takes the attention that nothing else does, and less that
    of questions about nothing in particular, `usual` (E,), is the direction in which sentences lie that it asks for."""

    depth: int
    first: int
    usual: tuple[float, ...]

    def direction(self, decoder: Decoder, question: Ids) -> Tensor:
        """(E,) of a question's own ids. To be called inside the decoder's session."""
        ((mean,),) = mean_states(decoder, self.first, [question], [self.depth])
        return mean - torch.tensor(self.usual, device=mean.device)

    @classmethod
    def from_json(cls, value: Any) -> Embedding:
        """The inverse of `to_json`; raises `CorruptFileError`."""
        try:
            usual = np.frombuffer(base64.b64decode(value["usual"], validate=True), dtype="<f2")
            return cls(int(value["depth"]), int(value["first"]), tuple(usual.astype(float).tolist()))
        except (KeyError, TypeError, ValueError):
            message = f"embedding is {str(value)[:100]}; it must have depth, first and usual"
            raise CorruptFileError(message) from None

    def to_json(self) -> dict[str, Any]:
        """JSON values; `usual` as base64 of float16."""
        usual = base64.b64encode(np.array(self.usual, dtype="<f2").tobytes()).decode()
        return {"depth": self.depth, "first": self.first, "usual": usual}


@dataclass(frozen=True)
class Directions:
    """vectors: (B, E) in which sentences lie that the question of each row asks for, by the mean of their tokens'
    normed states after `depth` layers."""

    depth: int
    vectors: Tensor

    @classmethod
    def of(cls, decoder: Decoder, embedding: Embedding, suffix_ids: Tensor, neutral_ids: Tensor | None) -> Directions:
        """Of questions with suffix ids (B, S), and (B, N) those of the one that asks for nothing. To be called inside
        the decoder's session."""
        neutral = [None] * len(suffix_ids) if neutral_ids is None else neutral_ids.tolist()
        own = [own_tokens(suffix, usual) for suffix, usual in zip(suffix_ids.tolist(), neutral, strict=True)]
        return cls(embedding.depth, torch.stack([embedding.direction(decoder, ids) for ids in own]))

    def to(self, device: torch.device) -> Directions:
        return Directions(self.depth, self.vectors.to(device))

    def closeness(self, states: Tensor) -> Tensor:
        """(n * B, S) of tokens with states (n * B, S, E), n chunks of each row."""
        vectors = self.vectors.repeat(len(states) // len(self.vectors), 1)
        return torch.einsum("bse,be->bs", states, vectors)


def usual_questions(tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Ids of questions of many kinds about nothing in particular."""
    text = resources.files("homerlm").joinpath("data/usual_questions.txt").read_text(encoding="utf-8")
    return [prompt.token_ids(tokenizer, question)[0].tolist() for question in text.splitlines()]


def own_tokens(suffix: Ids, neutral: Ids | None) -> Ids:
    """A question's own tokens, of its prompt's suffix."""
    return suffix[own_span(suffix, neutral)]


def own_span(suffix: Ids, neutral: Ids | None) -> slice:
    """Where in its prompt's suffix a question's own tokens are: those that the suffix of the question that asks for
    nothing does not have at the same place, counted from either end. All of them where the two do not differ."""
    whole = slice(0, len(suffix))
    if neutral is None:
        return whole
    most = min(len(suffix), len(neutral))
    before = next((n for n in range(most) if suffix[n] != neutral[n]), most)
    after = next((n for n in range(most - before) if suffix[-1 - n] != neutral[-1 - n]), most - before)
    return slice(before, len(suffix) - after) if before + after < len(suffix) else whole


def normed(hidden: Tensor) -> Tensor:
    """Hidden states (..., E) in float32, each by the root of its mean square, so that all tokens count alike."""
    states = hidden.float()
    return states * states.square().mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()


def mean_states(decoder: Decoder, first: int, questions: Sequence[Ids], depths: Sequence[int]) -> Tensor:
    """(D, N, E) means of the states of each question's ids, read behind one token, after each number of layers,
    ascending."""
    rows = [torch.tensor([first, *ids], device=decoder.device) for ids in questions]
    means = [
        torch.stack([states[row, 1 : len(ids)].mean(0) for row, ids in enumerate(rows)])
        for states in _states_after(decoder, pad_sequence(rows, batch_first=True), depths)
    ]
    return torch.stack(means)


def _states_after(decoder: Decoder, input_ids: Tensor, depths: Sequence[int]) -> Iterator[Tensor]:
    """(B, S, E) for each of the depths."""
    positions = torch.arange(input_ids.shape[1], device=decoder.device).expand(input_ids.shape)
    hidden = decoder.embed(input_ids)
    if 0 in depths:
        yield normed(hidden)
    for step in decoder.steps(hidden, positions, 0, max(depths)):
        if step.layer + 1 in depths:
            assert step.hidden is not None
            yield normed(step.hidden)


def run_with_states(
    decoder: Decoder,
    input_ids: Tensor,
    position_ids: Tensor,
    scoring: Scoring,
    depth: int | None,
    listen: Callable[[Attended], None],
    fork: Fork | None = None,
) -> Tensor | None:
    """(B, S, E) normed states of ids (B, S) after `depth` layers, where that is given. `listen` gets what the scoring
    layers attend with; what neither needs does not run. fork: as in `Decoder.steps`."""
    hidden = decoder.embed(input_ids)
    states = normed(hidden) if depth == 0 else None
    stop = layers_run(scoring, depth)
    for step in decoder.steps(hidden, position_ids, 0, stop, finish=depth == stop, fork=fork):
        if step.layer in scoring.layers:
            listen(step.attended)
        if step.layer + 1 == depth:
            assert step.hidden is not None
            states = normed(step.hidden)
    return states


def unit_sums(states: Tensor, units: Tensor) -> Tensor:
    """(n, E) sums of the states (T, E) of each unit, by ascending numbers of units (T,) from 0."""
    sums = torch.zeros(int(units[-1]) + 1, states.shape[1], device=states.device)
    return sums.index_add_(0, units.to(states.device), states)


class UnitMeans:
    """Mean states of the units of a text, of so many tokens each, sizes (U,), whose states come in several parts."""

    def __init__(self, sizes: Tensor) -> None:
        self._sizes, self._ends = sizes, sizes.cumsum(0)
        self._read, self._open = 0, torch.empty(0)

    def add(self, sums: Tensor, tokens: int) -> Tensor:
        """(n, E) means of the units that end within the next so many tokens, by `unit_sums` of these."""
        first = int(torch.searchsorted(self._ends, self._read, right=True))
        if len(self._open):
            sums = torch.cat([self._open + sums[:1], sums[1:]])
        self._read += tokens
        done = int(torch.searchsorted(self._ends, self._read, right=True)) - first
        self._open = sums[done:]
        return sums[:done] / self._sizes[first : first + done, None]
