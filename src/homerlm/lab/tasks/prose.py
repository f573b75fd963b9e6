"""Text to hide things in: an excerpt of some length, sentences put between its own."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.lab.samples import count_tokens

TEMPLATE_TOKENS = 64  # of a chat template and of the joints between the parts of a prompt
LEAST_ROOM = 100
CHARACTERS = 8  # more than any tokenizer puts into one token on average


def room_beside(tokenizer: PreTrainedTokenizerBase, length: int, texts: Sequence[str]) -> int:
    """Tokens that a prompt of `length` leaves for prose beside these texts of its own. Raises `InputError` if they are
    too few."""
    room = length - TEMPLATE_TOKENS - sum(count_tokens(tokenizer, f"{text} ") for text in texts)
    if room < LEAST_ROOM:
        raise InputError(f"a prompt of {length} tokens has no room for text around {len(texts)} sentences of its own")
    return room


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
