"""Scores of passages: by words, by chance, by the answer."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from homerlm.lab.rivals.passages import Span
from homerlm.lab.samples import Asked
from homerlm.score.bm25 import passage_scores

Scorer = Callable[[Asked, Sequence[Span], list[str]], np.ndarray]  # (passages,), of spans in the context, their texts


def bm25(asked: Asked, _spans: Sequence[Span], texts: list[str]) -> np.ndarray:
    """By the words of the question."""
    return passage_scores(texts, asked.question)


def chance(asked: Asked, spans: Sequence[Span], _texts: list[str]) -> np.ndarray:
    """By chance, the same for the same prompt."""
    seed = zlib.crc32(b"".join(part.cpu().numpy().tobytes() for part in (asked.context, asked.suffix)))
    return np.random.default_rng(seed).random(len(spans))


def oracle(asked: Asked, spans: Sequence[Span], texts: list[str]) -> np.ndarray:
    """What answers the question first, then by chance: what a reader makes of a perfect choice."""
    offset = asked.prefix.shape[1]
    gold = np.array(asked.gold) - offset
    answers = [bool(((start <= gold) & (gold < stop)).any()) for start, stop in spans]
    return np.array(answers) + chance(asked, spans, texts)
