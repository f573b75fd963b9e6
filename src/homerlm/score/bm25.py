"""BM25, the ranking by words that search engines use, through the package bm25s."""

from __future__ import annotations

import numpy as np

from homerlm.errors import ConfigError

STOP_WORDS = "english"  # the package's own list; nothing is stemmed


def passage_scores(passages: list[str], query: str) -> np.ndarray:
    """BM25 scores (passages,) for the words of a query, case aside. Raises `ConfigError` without the package."""
    try:
        import bm25s
    except ImportError as error:
        raise ConfigError('bm25 needs the package bm25s: pip install bm25s') from error
    given = {"stopwords": STOP_WORDS, "token_pattern": r"(?u)\b\w+\b", "return_ids": False, "show_progress": False}
    asked, *texts = bm25s.tokenize([query, *passages], **given)
    if not set(asked) & {word for words in texts for word in words}:
        return np.zeros(len(passages))
    index = bm25s.BM25()
    index.index(texts, show_progress=False)
    scores: np.ndarray = index.get_scores(asked)
    return scores
