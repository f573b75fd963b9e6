"""RULER's aggregation: the most common words of a list, the most frequent codes of a text. There is nothing to find."""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.lab.samples import Draw, Question, Sample, Task, count_tokens
from homerlm.lab.tasks.prose import cut

COMMON, COMMON_TIMES, OTHER_TIMES = 10, 30, 3
FREQUENT, ZETA, CODE_LEN = 3, 2.0, 6
CODES = 2000  # the tail beyond is rarer than one in a million
DOTS = "..."
WORDS_INSTRUCTION = "Below is a numbered list of words. Some of them appear more often than others. Memorize these."
CODES_INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. Ignore the dots."
)


def common_words(source: str, text: str) -> Task:
    """A numbered list, shuffled, in which `COMMON` words stand 30 times each and all others 3 times: so many others as
    the length has room for. The words are those of a text."""

    def sample(draw: Draw) -> Sample:
        rng = draw.generator("common-words")
        words = sorted(set(re.findall(r"\b[a-z]\w{3,9}\b", source)))
        rng.shuffle(words)
        question = f"What are the {COMMON} most common words in the above list?"
        start = f"The {COMMON} words that appear most often in the list are:"
        others = _others(draw.tokenizer, words, draw.room_beside([WORDS_INSTRUCTION, question, start]))
        listed = words[:COMMON] * COMMON_TIMES + words[COMMON : COMMON + others] * OTHER_TIMES
        rng.shuffle(listed)
        asked = Question(question, start, tuple(words[:COMMON]), "share_held")
        return Sample(WORDS_INSTRUCTION, _numbered(listed), (asked,))

    return Task("common-words", "", text, sample, max_new_tokens=60)


def _others(tokenizer: PreTrainedTokenizerBase, words: list[str], room: int) -> int:
    """How many uncommon words there is room for. Raises `InputError` for none, or more than the text has."""
    entry = count_tokens(tokenizer, _numbered(words[:200], 1000)) / min(len(words), 200)
    others = int((room / (1.05 * entry) - COMMON * COMMON_TIMES) / OTHER_TIMES)
    if others < COMMON:
        least = math.ceil(COMMON * (COMMON_TIMES + OTHER_TIMES) * 1.05 * entry)
        raise InputError(
            f"a list of {room:,} tokens has no room for words beside the {COMMON} common ones, a list of {least:,} "
            "tokens has: take longer prompts (--lengths)"
        )
    if COMMON + others > len(words):
        raise InputError(
            f"the text has {len(words):,} words; a list of {room:,} tokens needs {COMMON + others:,}: take shorter "
            "prompts (--lengths), or a longer text"
        )
    return others


def frequent_words() -> Task:
    return Task("frequent-words", "", "codes", _coded_text, max_new_tokens=40)


def _coded_text(draw: Draw) -> Sample:
    """Codes drawn from a zeta distribution, the most frequent of them written as dots; asked for are the next three."""
    rng = draw.generator("frequent-words")
    codes = list(_codes(rng))
    question = "What are the three most frequently appeared coded words in the above coded text?"
    start = "The three most frequently appeared coded words are:"
    room = draw.room_beside([CODES_INSTRUCTION, question, start])
    weights = [rank**-ZETA for rank in range(1, CODES + 1)]
    text = cut(" ".join(rng.choices([DOTS, *codes], weights, k=room)), draw.tokenizer, room).rpartition(" ")[0]
    expected = sorted(codes, key=lambda code: -text.split().count(code))[:FREQUENT]
    return Sample(CODES_INSTRUCTION, text, (Question(question, start, tuple(expected), "share_held"),))


def _numbered(words: list[str], first: int = 1) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, first))


def _codes(rng: random.Random) -> Iterator[str]:
    """Different codes, one for every rank below the dots."""
    seen: set[str] = set()
    while len(seen) < CODES - 1:
        code = "".join(rng.choices(string.ascii_lowercase, k=CODE_LEN))
        if code not in seen:
            seen.add(code)
            yield code
