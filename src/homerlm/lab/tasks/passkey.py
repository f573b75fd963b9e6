"""The passkey task of table 1: a five-digit key in repeated filler."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError
from homerlm.lab.questions import likelihood_of_answer
from homerlm.lab.samples import Draw, Question, Sample, Task, count_tokens

INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION, ANSWER_START = "What is the pass key?", "The pass key is"
OVERHEAD = 64  # tokens of instruction, needle, question and a chat template, with some to spare


def passkey() -> Task:
    return Task("passkey", "", "filler", _sample, max_new_tokens=20)


def passkey_perplexity() -> Task:
    """The same samples, judged by how likely the right answer is."""
    return replace(passkey(), name="passkey-perplexity", judge=likelihood_of_answer)


def _sample(draw: Draw) -> Sample:
    """Filler repeated so that the whole prompt has at most `length` tokens, the key at a stratified depth."""
    rng = draw.generator("passkey")
    key = str(rng.randint(10000, 99999))
    needle = f"The pass key is {key}. Remember it. {key} is the pass key. "
    depth = draw.depth(rng)
    fixed = count_tokens(draw.tokenizer, INSTRUCTION + needle + QUESTION + ANSWER_START) + OVERHEAD
    repeats = int((draw.length - fixed) / repeated_tokens(draw.tokenizer, FILLER))
    if repeats < 1:
        raise InputError(f"a passkey prompt of {draw.length} tokens has no room for filler: it needs {fixed} and more")
    before = round(depth * repeats)
    document = (FILLER * before + needle + FILLER * (repeats - before)).strip()
    question = Question(QUESTION, ANSWER_START, (key,), "first_integer")
    return Sample(INSTRUCTION, document, (question,), before / repeats)


def repeated_tokens(tokenizer: PreTrainedTokenizerBase, text: str, times: int = 32) -> float:
    """Tokens that one more repetition adds."""
    return (count_tokens(tokenizer, text * (times + 1)) - count_tokens(tokenizer, text)) / times
