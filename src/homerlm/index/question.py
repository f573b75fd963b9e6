"""A question that runs alone: what its heads would ask of any chunk, without the chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.model.attention import Attended, Fork
from homerlm.model.decoder import Decoder
from homerlm.score.attention import Attention
from homerlm.score.embedding import own_tokens
from homerlm.score.scores import Score

STAND_IN_LEN = 256  # tokens in a chunk's place (docs/index.md)


@dataclass(frozen=True)
class Ending:
    """queries: (1, H, Q, D) of a question's last tokens in one layer; keys: (1, K, S, D) of all of its tokens."""

    queries: Tensor
    keys: Tensor

    @classmethod
    def of(cls, attended: Attended, queries: int, length: int) -> Ending:
        """The last `queries` and the keys of the last `length` tokens."""
        return cls(attended.queries[:, :, -queries:], attended.keys[:, :, -length:])


@dataclass(frozen=True)
class LayerQuestion:
    """What a question asks in one layer. prefix: (1, K, P, D) keys of the tokens that come before every chunk; neutral:
    of the question that asks for nothing, or None; window, scaling, softcap, sinks: as in `Attention`."""

    layer: int
    prefix: Tensor
    asked: Ending
    neutral: Ending | None
    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def only(self, heads: Sequence[int]) -> LayerQuestion:
        """Of some query heads alone, each with keys of its own."""
        chosen, group = list(heads), self.asked.queries.shape[1] // self.prefix.shape[1]
        shared = [head // group for head in chosen]

        def cut(ending: Ending) -> Ending:
            return Ending(ending.queries[:, chosen], ending.keys[:, shared])

        return replace(
            self,
            prefix=self.prefix[:, shared],
            asked=cut(self.asked),
            neutral=None if self.neutral is None else cut(self.neutral),
            sinks=None if self.sinks is None else self.sinks[chosen],
        )

    def scores(self, keys: Tensor, score: Score) -> Tensor:
        """(B, N, C) scores by head of the tokens with keys (B, K, C, D), above the neutral question's: as if those of
        each row stood between the prefix and the question."""
        asked = self._by_head(self.asked, keys, score)
        return asked if self.neutral is None else score.above_neutral(asked, self._by_head(self.neutral, keys, score))

    def _by_head(self, ending: Ending, keys: Tensor, score: Score) -> Tensor:
        rows, before, count = len(keys), self.prefix.shape[2], keys.shape[2]
        prefix, own = (part.expand(rows, -1, -1, -1) for part in (self.prefix, ending.keys))
        whole = torch.cat([prefix, keys.to(prefix), own], dim=2)
        places = torch.arange(whole.shape[2], device=whole.device).expand(rows, -1)
        attention = Attention(
            ending.queries.expand(rows, -1, -1, -1),
            whole,
            places,
            self.scaling,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        return score.by_head(attention)[..., before : before + count]


@dataclass(frozen=True)
class Question:
    """Ids (1, n) of what runs in a chunk's place: prefix, stand-in, suffix and the neutral question's suffix. queries:
    how many of the suffix's last tokens ask; chunk_len: tokens of the chunk that the question stands behind."""

    prefix: Tensor
    stand_in: Tensor
    suffix: Tensor
    neutral: Tensor | None
    queries: int
    chunk_len: int

    @property
    def own_tokens(self) -> Sequence[int]:
        """Ids of the question itself, of its suffix."""
        return own_tokens(self.suffix[0].tolist(), None if self.neutral is None else self.neutral[0].tolist())

    def ask(self, decoder: Decoder, layers: Sequence[int]) -> list[LayerQuestion]:
        """What it asks in each of the layers. To be called inside the decoder's session."""
        return [asked for (asked,) in ask_together(decoder, layers, [self])]

    def positions(self, endings: Sequence[Tensor]) -> Tensor:
        """(1, tokens): the prefix's first, each ending right behind a whole chunk, and the stand-in before them."""
        before, behind = self.prefix.shape[1], self.prefix.shape[1] + max(self.chunk_len, self.stand_in.shape[1])
        starts = [(0, before), (behind - self.stand_in.shape[1], self.stand_in.shape[1])]
        starts += [(behind, ending.shape[1]) for ending in endings]
        return torch.cat([torch.arange(start, start + count) for start, count in starts])[None]

    def of_layer(self, attended: Attended, neutral: Ending | None, window: int | None) -> LayerQuestion:
        """What it asks in a layer where it attended, without other questions."""
        return LayerQuestion(
            attended.layer,
            attended.keys[:, :, : self.prefix.shape[1]],
            Ending.of(attended, self.queries, self.suffix.shape[1]),
            neutral,
            attended.scaling,
            window,
            attended.softcap,
            attended.sinks,
        )


def ask_together(
    decoder: Decoder, layers: Sequence[int], questions: Sequence[Question]
) -> Iterator[list[LayerQuestion]]:
    """For each of the layers, what each of some questions asks in it, which differ in their suffixes alone and do not
    see each other: the rest runs once for all. To be called inside the decoder's session."""
    prefix, stand_in, neutral = questions[0].prefix, questions[0].stand_in, questions[0].neutral
    endings = [each.suffix for each in questions] + ([] if neutral is None else [neutral])
    fork = Fork.of(prefix.shape[1] + stand_in.shape[1], [ending.shape[1] for ending in endings])
    hidden = decoder.embed(torch.cat([part.to(decoder.device) for part in (prefix, stand_in, *endings)], dim=1))
    positions = questions[0].positions(endings).to(decoder.device)
    for step in decoder.steps(hidden, positions, 0, max(layers) + 1, finish=False, fork=fork):
        if step.layer in layers:
            attended = list(step.attended.endings(fork))
            asks_nothing = None if neutral is None else Ending.of(attended.pop(), neutral.shape[1], neutral.shape[1])
            window = decoder.window(step.layer)
            yield [each.of_layer(own, asks_nothing, window) for each, own in zip(questions, attended, strict=True)]


def stand_in(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(1, n) ids of a text about nothing in particular, which a question runs behind."""
    text = resources.files("homerlm").joinpath("data/stand_in.txt").read_text(encoding="utf-8")
    return prompt.token_ids(tokenizer, text)[:, :STAND_IN_LEN]
