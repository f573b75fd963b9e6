"""The passages of a very long document that are read at all, by the question's words: for millions of tokens, an
option (`prefilter`) that trades what shares no word with the question for time. Not in the paper."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.score.bm25 import passage_scores, words
from homerlm.select.document import Document

PASSAGE = 256  # tokens that a passage has at least, its last sentence whole


def passages(document: Document) -> list[tuple[int, int]]:
    """Tokens `[start, stop)` of neighbouring sentences, or, where sentences are not known, of equal parts."""
    starts = document.starts if len(document.starts) else torch.arange(0, len(document.ids), PASSAGE)
    cuts = [0]
    for start in starts.tolist():
        if start - cuts[-1] >= PASSAGE:
            cuts.append(start)
    return list(zip(cuts, [*cuts[1:], len(document.ids)], strict=True))


def worth_reading(
    document: Document, tokenizer: PreTrainedTokenizerBase, suffix_ids: Tensor, neutral_ids: Tensor | None, count: int
) -> Tensor:
    """(count,) ascending: the places of the tokens in the best passages for the suffix's words, the last one cut.
    Words that the neutral suffix has too are the prompt's. Ties go to the earlier passage."""
    asked, usual = (
        words(tokenizer.decode(ids.tolist())) if ids is not None else [] for ids in (suffix_ids, neutral_ids)
    )
    spans = passages(document)
    texts = tokenizer.batch_decode([document.ids[start:stop].tolist() for start, stop in spans])
    scores = passage_scores(texts, " ".join(word for word in asked if word not in usual))
    order = torch.from_numpy(scores).argsort(descending=True, stable=True).tolist()
    return torch.cat([torch.arange(*spans[number]) for number in order])[:count].sort().values
