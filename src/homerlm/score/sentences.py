"""Sentences in token ids, so that a fact that is kept is kept to its end."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # how byte-level BPE writes its tokens
_CLOSERS = "\"'”’)]」』"  # may stand between a stop and the end of its sentence
_STOPS = (".", "?", "!")  # end a sentence if white space follows: "3.14" and "U.S.A" go on
LONGEST_UNIT = 64  # tokens of a sentence, or of what is none: code, tables
_FULL_STOPS = ("。", "！", "？")


class Sentences:
    """Which tokens of a vocabulary end and begin sentences: a tokenizer's, and a model's of `vocab` tokens. The tokens
    that are asked about shall be on `device`, so that nothing waits for it.

    Judged token by token: an abbreviation before a space ends a sentence too. Paragraphs end at empty lines.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab: int, device: torch.device | str | None = None
    ) -> None:
        known = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), vocab))))
        facts = [_facts(_text(token)) for token in known] + [_facts("")] * (vocab - len(known))
        table = torch.tensor(facts, device=device)
        self._stops, self._ends, self._spaces, self._ends_line, self._begins_line = table.unbind(1)

    def number(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """(B, S) the number of each token's sentence. input_ids: (B, S); places: (B, S), where in the document the
        tokens stand: what is not next to each other there is not one sentence either."""
        now, then = input_ids[:, :-1], input_ids[:, 1:]
        stops = self._stops[now] & self._spaces[then]
        empty_line = self._ends_line[now] & self._begins_line[then]
        apart = places[:, 1:] != places[:, :-1] + 1
        ends = stops | empty_line | self._ends[now] | apart
        return torch.nn.functional.pad(ends.cumsum(1), (1, 0))

    def units(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """(B, S) the number of each token's unit, which is kept or dropped as a whole: its sentence, of which long ones
        are cut at line ends past half of `LONGEST_UNIT` tokens, or there."""
        numbers, line_ends = self.number(input_ids, places).tolist(), self._ends_line[input_ids].tolist()
        rows = [_cut(*row) for row in zip(numbers, line_ends, strict=True)]
        return torch.tensor(rows, dtype=torch.long, device=input_ids.device).view(input_ids.shape)


def _cut(sentences: list[int], line_ends: list[bool]) -> list[int]:
    """Numbers of one row's units, by its tokens' sentences and whether they end a line."""
    units, unit, start = [], 0, 0
    for at, sentence in enumerate(sentences):
        length = at - start
        line = length >= LONGEST_UNIT // 2 and line_ends[at - 1]
        if at and (sentence != sentences[at - 1] or length >= LONGEST_UNIT or line):
            unit, start = unit + 1, at
        units.append(unit)
    return units


def _facts(text: str) -> tuple[bool, ...]:
    """Whether a token ends a sentence if white space follows, ends one in any case, begins with white space, ends a
    line, begins with a line's end."""
    body = text.rstrip(_CLOSERS)
    ends = "\n\n" in text or body.endswith(_FULL_STOPS)
    return body.endswith(_STOPS), ends, text[:1].isspace(), text.endswith("\n"), text.startswith("\n")


def _text(token: str | bytes | None) -> str:
    """What a token stands for: tokenizers write them as byte-level BPE does, as SentencePiece does, or as bytes."""
    if not isinstance(token, str):
        return (token or b"").decode(errors="replace")
    try:
        return bytes(map(_BYTES.__getitem__, token)).decode(errors="replace").replace("<0x0A>", "\n")
    except KeyError:
        return token.replace("\u2581", " ")
