"""Questions asked of a sample that a method has read: the answers, judged and measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.lab.facts import Outcome, measured
from homerlm.lab.readers import IndexReading, PlainReading, Reader, Reading, RivalReader
from homerlm.lab.samples import Asked, Question, Sample, token_offsets, token_span


@dataclass(frozen=True)
class Setup:
    """A method on a model. `chat`: whether prompts are wrapped in the model's chat template."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reader: Reader
    chat: bool = False

    def ids(self, sample: Sample, question: Question) -> Asked:
        """The sample's prompt, asking `question`."""
        before, after = prompt.affixes(
            self.tokenizer,
            question.text,
            instruction=sample.instruction,
            answer_start=question.answer_start,
            chat=self.chat,
        )
        neutral = prompt.neutral(self.tokenizer, chat=self.chat)
        ids = prompt.encode(self.tokenizer, before, sample.document, after, neutral)
        offset = ids.prefix.shape[1]
        gold = token_spots(self.tokenizer, sample.document, question.needed, offset)
        sections = section_spans(self.tokenizer, sample, offset)
        parts = ids.prefix, ids.context, ids.suffix, ids.neutral
        told = {"question": question.text, "document": sample.document}
        return Asked(*parts, **told, gold=tuple(gold), sections=tuple(sections))


Judge = Callable[[Setup, Question, Asked, Reading], Outcome]


def ask_now(setup: Setup, sample: Sample, room: int, judge: Judge) -> Iterator[Outcome]:
    """Every question with a reading of its own, as HOMER is meant to be used: it is known when the document is read."""
    for question in sample.questions:
        ids = setup.ids(sample, question)
        yield _measured(setup, question, ids, partial(setup.reader.read, ids, room), judge)


def ask_later(setup: Setup, sample: Sample, room: int, judge: Judge) -> Iterator[Outcome]:
    """The document read once with a neutral question, then asked each of the sample's. For who keeps the whole text
    later is now."""
    if isinstance(setup.reader, RivalReader):
        yield from ask_now(setup, sample, room, judge)
        return
    needed = tuple(text for question in sample.questions for text in question.needed)
    neutral = setup.ids(sample, Question(prompt.NEUTRAL_QUESTION, "", (), "share_held", evidence=needed))
    kept: list[IndexReading | PlainReading] = []

    def read(suffix_ids: torch.Tensor) -> Reading:
        if not kept:
            kept.append(setup.reader.read_for_later(neutral, room))
        return kept[0].ask_again(suffix_ids)

    for question in sample.questions:
        ids = setup.ids(sample, question)
        yield _measured(setup, question, ids, partial(read, ids.suffix), judge)


ASKING = {"now": ask_now, "later": ask_later}


def _measured(setup: Setup, question: Question, ids: Asked, read: Callable[[], Reading], judge: Judge) -> Outcome:
    tokens = sum(part.shape[1] for part in (ids.prefix, ids.context, ids.suffix))
    outcome: Outcome = {"tokens": tokens, "expected": list(question.expected)}
    with measured(outcome, setup.model.device):
        reading = read()
        outcome["kept"] = len(reading.token_indices)
        left = torch.isin(torch.tensor(ids.gold), reading.token_indices.cpu())
        outcome["needle_kept"] = left.float().mean().item() if ids.gold else None
        outcome |= judge(setup, question, ids, reading)
    return outcome


def answered(max_new_tokens: int) -> Judge:
    """Judge by what is generated."""

    def judge(setup: Setup, question: Question, _asked: Asked, reading: Reading) -> Outcome:
        answer = setup.tokenizer.decode(reading.generate(max_new_tokens), skip_special_tokens=True)
        return {"answer": answer, "score": question.grade(answer)} | _by_likelihood(setup, question, reading)

    return judge


def likelihood_of_answer(setup: Setup, question: Question, _asked: Asked, reading: Reading) -> Outcome:
    """Judge by how likely the right answer is: its summed negative log-likelihood in nats, and its tokens."""
    log_probs = reading.prefill().score(prompt.token_ids(setup.tokenizer, f" {question.expected[0]}.")).log_probs
    return {"nll": -log_probs.sum().item(), "count": len(log_probs)}


def _by_likelihood(setup: Setup, question: Question, reading: Reading) -> Outcome:
    if not question.choices:
        return {}
    ids = [prompt.token_ids(setup.tokenizer, choice) for choice in question.choices]
    sums = [reading.prefill().score(choice).total for choice in ids]
    chosen = question.choices[sums.index(max(sums))].strip()
    return {"likelihood_score": float(chosen == question.expected[0]), "likelihoods": [round(s, 3) for s in sums]}


def token_spots(tokenizer: PreTrainedTokenizerBase, document: str, wanted: tuple[str, ...], offset: int) -> list[int]:
    """Indices in the prompt of the document's tokens that spell any of `wanted`; none without a tokenizer's offsets."""
    spans = [found.span() for text in wanted if len(text) > 1 for found in re.finditer(re.escape(text), document)]
    found = prompt.tokens_within(token_offsets(tokenizer, document) if spans else [], spans)
    return [index + offset for index in found]


def section_spans(tokenizer: PreTrainedTokenizerBase, sample: Sample, offset: int) -> list[tuple[int, int]]:
    """Tokens [start, stop) in the prompt of each of the sample's sections; none without a tokenizer's offsets."""
    offsets = token_offsets(tokenizer, sample.document) if sample.sections else []
    spans, at = [], 0
    for section in sample.sections if offsets else ():
        at = sample.document.index(section, at)
        start, stop = token_span(offsets, at, at + len(section))
        spans.append((start + offset, stop + offset))
        at += len(section)
    return spans
