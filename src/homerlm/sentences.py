"""Sentences in token ids, so that a fact that is kept is kept to its end."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_MARKS = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})  # what byte-level BPE and SentencePiece write
_STOP = re.compile(r"[.?!][\"'”’)\]]*$")  # ends a sentence if white space follows: "3.14" and "U.S.A" go on
_FULL_STOP = re.compile(r"[。！？][\"'”’」』)]*$")


class Sentences:
    """Which tokens of a vocabulary end and begin sentences: a tokenizer's, and a model's of `vocab` tokens.

    Judged token by token: an abbreviation before a space ends a sentence too. Paragraphs end at empty lines.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int) -> None:
        known = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), vocab))))
        texts = [_text(token) for token in known] + [""] * (vocab - len(known))

        def those(wanted: Callable[[str], object]) -> Tensor:
            return torch.tensor([bool(wanted(text)) for text in texts])

        self._stops = those(_STOP.search)
        self._spaces = those(lambda text: text[:1].isspace())
        self._begins_line = those(lambda text: text.startswith("\n"))
        self._ends_line = those(lambda text: text.endswith("\n"))
        self._ends = those(lambda text: "\n\n" in text or _FULL_STOP.search(text))

    def number(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """(B, S) the number of each token's sentence. input_ids: (B, S); places: (B, S), where in the document the
        tokens stand: what is not next to each other there is not one sentence either."""
        ids = input_ids.cpu()
        now, then = ids[:, :-1], ids[:, 1:]
        stops = self._stops[now] & self._spaces[then]
        empty_line = self._ends_line[now] & self._begins_line[then]
        apart = places[:, 1:] != places[:, :-1] + 1
        ends = (stops | empty_line | self._ends[now]).to(apart.device) | apart
        return torch.nn.functional.pad(ends.cumsum(1), (1, 0))


def _text(token: str | bytes | None) -> str:
    """What a token stands for, near enough for white space and stops; some tokenizers know their tokens as bytes."""
    if isinstance(token, bytes):
        return token.decode(errors="replace")
    return "\n" if token == "<0x0A>" else (token or "").translate(_MARKS)
