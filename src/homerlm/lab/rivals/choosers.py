"""Choosers of what is read of a document: spans of its tokens for a question, at most so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.lab.rivals.embed import Embeddings
from homerlm.lab.rivals.hybrid import FusedRanks
from homerlm.lab.rivals.infini_retri import InfiniRetri
from homerlm.lab.rivals.passages import Span, best_that_fit, passages
from homerlm.lab.rivals.scorers import Scorer, bm25, chance, oracle
from homerlm.lab.samples import Asked
from homerlm.score.sentences import Sentences

Chooser = Callable[[Asked, int], list[Span]]


class BestPassages:
    """The passages of the highest scores: whole sentences, together at most `passage` tokens."""

    def __init__(
        self, scorer: Scorer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passage: int = 64
    ) -> None:
        self.scorer, self.tokenizer, self.passage = scorer, tokenizer, passage
        self._vocabulary = model.get_input_embeddings().num_embeddings

    @cached_property
    def _sentences(self) -> Sentences:
        return Sentences(self.tokenizer, self._vocabulary)

    def __call__(self, asked: Asked, room: int) -> list[Span]:
        ids = asked.context.cpu()
        numbers = self._sentences.number(ids, torch.arange(ids.shape[1])[None])[0].tolist()
        spans = passages(numbers, self.passage)
        texts = [str(self.tokenizer.decode(ids[0, start:stop])) for start, stop in spans]
        return best_that_fit(spans, self.scorer(asked, spans, texts), room)


def _passages(scorer: Scorer) -> Callable[..., Chooser]:
    return lambda model, tokenizer, **lengths: BestPassages(scorer, model, tokenizer, **lengths)


def _embedded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str, **lengths: int) -> Chooser:
    return BestPassages(Embeddings(path), model, tokenizer, **lengths)


def _hybrid(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **lengths: int) -> Chooser:
    return BestPassages(FusedRanks(model, tokenizer), model, tokenizer, **lengths)


class Rival(NamedTuple):
    """How a chooser is made of a model and a tokenizer, and the settings that it takes, with their kinds."""

    make: Callable[..., Chooser]
    settings: Mapping[str, type] = {"passage": int}


RIVALS = {
    "random": Rival(_passages(chance)),
    "bm25": Rival(_passages(bm25)),
    "hybrid": Rival(_hybrid),
    "embed": Rival(_embedded, {"passage": int, "path": str}),
    "infini-retri": Rival(InfiniRetri, {"topk": int, "window": int}),
    "oracle": Rival(_passages(oracle)),
}
