"""Words in token ids: which there are, and the runs of ids that they are written as."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.select.document import Run

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, Japanese, Chinese: no spaces between words
_WORD = re.compile(rf"(?=([{_UNSPACED}]{{2}}))|([^\W{_UNSPACED}]+)")
_BEFORE = ("", " ", "\n")  # behind which a word may be cut otherwise


class Words:
    """The words of texts that a tokenizer cuts into tokens. Where no spaces stand between words, every two neighbouring
    characters count as one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def of(self, ids: Tensor) -> dict[str, str]:
        """The words in ids (n,) as they are written, by how they are written in lower case."""
        found = _WORD.finditer(self._tokenizer.decode(ids.tolist()))
        return {word.lower(): word for word in (match[1] or match[2] for match in found)}

    def runs(self, words: Iterable[str]) -> list[set[Run]]:
        """The runs of ids that each word may be written as: as it is given, in lower case or with a capital, at the
        beginning of a text, behind a space or at the beginning of a line."""
        forms = [sorted({word, word.lower(), word.capitalize()}) for word in words]
        texts = sorted({before + form for same in forms for form in same for before in _BEFORE})
        written = dict(zip(texts, self._ids(texts), strict=True))
        line = self._ids(["\n"])[0]
        for text, ids in written.items():
            if text.startswith("\n") and ids[: len(line)] == line:
                written[text] = ids[len(line) :]
        runs = [{tuple(written[before + form]) for form in same for before in _BEFORE} for same in forms]
        unknown = self._tokenizer.unk_token_id
        return [{run for run in same if run and unknown not in run} for same in runs]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        return ids
