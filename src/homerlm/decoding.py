"""Answers written side by side: one forward of the model gives the next token of each.

Rows have contexts of any length, join and leave between two steps, and each keeps its own keys and values
(`homerlm.model.rows`). An answer is the same whoever is written beside it. In float32 a greedy one has the tokens of
`homerlm.generation`; in half precision a product with several rows may round otherwise than one with a single row, so
that a near tie between two tokens can fall the other way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm.context import CompactContext
from homerlm.errors import InputError
from homerlm.model.attention import attending_by_rows
from homerlm.model.decoder import Decoder
from homerlm.model.memory import out_of_memory_explained
from homerlm.model.rows import RowLayer, RowsCache
from homerlm.sampling import Sampler
from homerlm.writing import CertainText, Finish, Piece, TokenChoice, Writing

__all__ = ["Decoding", "Piece", "Row", "Writing"]


FEWEST_ROWS = 2  # in half precision a CPU's products with one row round otherwise than those with more


class Row:
    """An answer that is being written. logits: (1, V) for its next token, None while a token of its own waits to be
    read by the model."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, context: CompactContext, writing: Writing):
        self.writing = writing
        self.layers = [
            RowLayer(keys, values, decoder.window(layer))
            for layer, (keys, values) in enumerate(zip(context.keys, context.values, strict=True))
        ]
        self.logits: Tensor | None = context.logits.to(decoder.model.dtype)
        self.written: list[int] = []
        self.length = len(context)
        self._first_position = context.next_position
        self._sampler = Sampler(decoder.model, context, writing)
        self._text = CertainText(tokenizer, writing.stop)
        self._choices: list[TokenChoice] = []  # of tokens that no piece has told of

    @property
    def position(self) -> int:
        """RoPE position of the last written token."""
        return self._first_position + len(self.written) - 1

    def choose(self) -> Piece | None:
        """Write the next token, by the logits; a piece, unless nothing new is certain."""
        assert self.logits is not None
        choice = self._sampler.choose(self.logits)
        self.logits = None
        self.written.append(choice.id)
        self._choices.append(choice)
        ended = choice.id in self._sampler.ends
        text, stopped = self._text.add(choice.id)
        finish: Finish | None = "stop" if ended or stopped else None
        if not stopped and (ended or len(self.written) == self.writing.max_new_tokens):
            rest, stopped = self._text.end()
            text, finish = text + rest, "stop" if ended or stopped else "length"
        return self._piece(text, finish) if text or finish else None

    def _piece(self, text: str, finish: Finish | None) -> Piece:
        choices, self._choices = tuple(self._choices), []
        ids = tuple(choice.id for choice in choices)
        return Piece(text, len(ids), finish, ids, choices if self.writing.logprobs is not None else ())


class Decoding:
    """The answers that one model is writing. To be used by one thread; the model may be used by others meanwhile."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decoder, self._tokenizer = Decoder(model), tokenizer
        self.rows: list[Row] = []
        self._fewest = FEWEST_ROWS if model.dtype.itemsize < 4 else 1

    def add(self, context: CompactContext, writing: Writing) -> Row:
        """Begin an answer after a context of one row, which stays as it was. Raises `InputError` for several rows."""
        if context.batch_size != 1:
            raise InputError(f"context has {context.batch_size} rows: add them one by one (CompactContext.row)")
        if context.padding is not None:
            context = context.row(0)
        with torch.no_grad():
            row = Row(self._decoder, self._tokenizer, context, writing)
        self.rows.append(row)
        return row

    def remove(self, row: Row) -> None:
        """Take an answer out, wherever it is; one that is not there is no error."""
        if row in self.rows:
            self.rows.remove(row)

    @torch.no_grad()
    def begin(self) -> list[tuple[Row, Piece | Exception]]:
        """The first token of every answer that has none, by its context's logits, without a forward of the model; as
        `step`."""
        return self._choose([row for row in self.rows if row.logits is not None])

    @torch.no_grad()
    def step(self) -> list[tuple[Row, Piece | Exception]]:
        """One token more of every answer, by one forward of the model; the new pieces. A row whose answer has ended,
        or that failed with an error, is taken out; the others do not notice."""
        failed: list[tuple[Row, Piece | Exception]] = []
        for row, error in self._read([row for row in self.rows if row.logits is None]):
            failed.append((row, error))
            self.remove(row)
        return failed + self._choose(list(self.rows))

    def _choose(self, rows: list[Row]) -> list[tuple[Row, Piece | Exception]]:
        results: list[tuple[Row, Piece | Exception]] = []
        for row in rows:
            try:
                result: Piece | Exception | None = row.choose()
            except Exception as error:
                result = error
            if result is not None:
                results.append((row, result))
            if isinstance(result, Exception) or (result is not None and result.finish is not None):
                self.remove(row)
        return results

    def _read(self, rows: list[Row]) -> list[tuple[Row, Exception]]:
        """Let the model read the last token of each of the rows: all at once, or one by one where that fails, or where
        rows would change each other's RoPE. Those that fail alone, with their errors."""
        if not rows:
            return []
        if len(rows) == 1 or not self._decoder.rope_follows_length:
            try:
                self._forward(rows)
            except Exception as error:
                if len(rows) == 1:
                    return [(rows[0], error)]
            else:
                return []
        return [failed for row in rows for failed in self._read([row])]

    def _forward(self, rows: list[Row]) -> None:
        decoder = self._decoder
        filled = [*rows, *[rows[-1]] * (self._fewest - len(rows))]
        ids = torch.tensor([[row.written[-1]] for row in filled], device=decoder.device)
        positions = torch.tensor([[row.position] for row in filled], device=decoder.device)
        numbers = [len(row.written) - 1 for row in rows]
        longest = max(row.length + number for row, number in zip(rows, numbers, strict=True))
        cache = RowsCache([row.layers for row in rows], numbers, longest)
        advice = f"{len(rows)} answers are written at once: lower their number, or their contexts' length"
        with (
            out_of_memory_explained("writing an answer", advice),
            decoder.session(),
            decoder.eager(),
            attending_by_rows(cache.attended),
        ):
            logits = decoder.model(input_ids=ids, position_ids=positions, past_key_values=cache).logits
        for row, own in zip(rows, logits[:, -1].split(1), strict=False):
            row.logits = own
