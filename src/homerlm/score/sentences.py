"""Sentences in token ids, so that a fact that is kept is kept to its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # how byte-level BPE writes its tokens
_CLOSERS = "\"'”’)]」』"  # may stand between a stop and the end of its sentence
_STOPS = (".", "?", "!")  # end a sentence if white space follows: "3.14" and "U.S.A" go on
LONGEST_UNIT = 64  # tokens of a sentence, or of what is none: code, tables
BLOCK = 1 << 14  # tokens whose units are found at once
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
        return torch.nn.functional.pad(self._ends_before(input_ids, places).cumsum(1), (1, 0))

    def _ends_before(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """(B, S - 1) whether a sentence ends before each token but the first."""
        now, then = input_ids[:, :-1], input_ids[:, 1:]
        stops = self._stops[now] & self._spaces[then]
        empty_line = self._ends_line[now] & self._begins_line[then]
        apart = places[:, 1:] != places[:, :-1] + 1
        return stops | empty_line | self._ends[now] | apart

    def units(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """(B, S) the number of each token's unit, which is kept or dropped as a whole: its sentence, of which long ones
        are cut at line ends past half of `LONGEST_UNIT` tokens, or there."""
        begins = torch.zeros(input_ids.shape, dtype=torch.long)
        ends, line_ends = self._ends_before(input_ids, places), self._ends_line[input_ids[:, :-1]]
        for row, (own, lines) in enumerate(zip(ends.tolist(), line_ends.tolist(), strict=True)):
            begins[row, list(_starts(own, lines))] = 1
        return begins.cumsum(1).to(input_ids.device)

    def unit_starts(self, input_ids: Tensor) -> Iterator[Tensor]:
        """The first token of each unit of a document's ids (S,), in tensors (u,), one for each block of it."""
        start = 0
        for first in range(1, max(len(input_ids), 2), BLOCK):
            ids = input_ids[None, first - 1 : first + BLOCK]
            ends = self._ends_before(ids, torch.arange(ids.shape[1], device=ids.device)[None])[0]
            found = list(_starts(ends.tolist(), self._ends_line[ids[0, :-1]].tolist(), first, start))
            start = found[-1] if found else start
            yield torch.tensor([0, *found] if first == 1 else found, dtype=torch.long)


def _starts(ends: Iterable[bool], line_ends: Iterable[bool], first: int = 1, start: int = 0) -> Iterator[int]:
    """Tokens, from number `first` on, that begin a unit; the one before them began at `start`. ends, line_ends: whether
    before each of the tokens a sentence ends, and a line."""
    for at, (ended, line) in enumerate(zip(ends, line_ends, strict=True), first):
        length = at - start
        if ended or length >= LONGEST_UNIT or (line and length >= LONGEST_UNIT // 2):
            start = at
            yield at


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
