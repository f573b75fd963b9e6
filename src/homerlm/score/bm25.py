"""BM25, the ranking by words that search engines use, through the package bm25s."""

from __future__ import annotations

import numpy as np

STOP_WORDS = "english"  # the package's own list; nothing is stemmed


def passage_scores(passages: list[str], query: str) -> np.ndarray:
    """BM25 scores (passages,) for the words of a query, case aside."""
    import bm25s

    asked, *texts = _words([query, *passages])
    if not set(asked) & {word for words in texts for word in words}:
        return np.zeros(len(passages))
    index = bm25s.BM25()
    index.index(texts, show_progress=False)
    scores: np.ndarray = index.get_scores(asked)
    return scores


def words(text: str) -> list[str]:
    """The words of a text that count, in lower case."""
    return _words([text])[0]


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    given = {"stopwords": STOP_WORDS, "token_pattern": r"(?u)\b\w+\b", "return_ids": False, "show_progress": False}
    found: list[list[str]] = bm25s.tokenize(texts, **given)
    return found
