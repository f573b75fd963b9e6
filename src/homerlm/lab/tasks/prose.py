"""Text to hide things in: an excerpt of some length, sentences put between its own."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from homerlm.lab.samples import Draw, Question, Sample

CHARACTERS = 8  # more than any tokenizer puts into one token on average


def hidden(
    prose: str,
    draw: Draw,
    rng: random.Random,
    instruction: str,
    placed: Sequence[tuple[float, str]],
    question: Question,
    **more: Any,
) -> Sample:
    """A sample of sentences, each with its depth, in as much prose as the prompt has room for beside them."""
    own = [instruction, question.text, question.answer_start, *(sentence for _, sentence in placed)]
    text = excerpt(prose, draw.tokenizer, draw.room_beside(own), rng)
    return Sample(instruction, hide(text, placed), (question,), **more)


def excerpt(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int, rng: random.Random) -> str:
    """At most `tokens` tokens of the text from a random place; from its start on again where it ends before."""
    characters = tokens * CHARACTERS
    start = rng.randrange(len(text))
    around = text[start:] + "\n" + text * (characters // len(text) + 1)
    return cut(around[:characters], tokenizer, tokens)


def cut(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """The text's beginning, at most `tokens` tokens."""
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    if len(encoded.input_ids) <= tokens:
        return text
    if tokenizer.is_fast:
        return text[: encoded.offset_mapping[tokens][0]]
    return str(tokenizer.decode(encoded.input_ids[:tokens]))


def hide(text: str, facts: Sequence[tuple[float, str]]) -> str:
    """The text with each sentence at the sentence end nearest to its depth (0 to 1); those at the same end in their
    order here."""
    ends = [0, *(match.end() for match in re.finditer(r"[.?!]\s+", text))]
    places = [(min(ends, key=lambda end: abs(end - depth * len(text))), sentence) for depth, sentence in facts]
    for place, sentence in sorted(places, key=lambda fact: fact[0])[::-1]:
        text = f"{text[:place]}{sentence} {text[place:]}"
    return text
