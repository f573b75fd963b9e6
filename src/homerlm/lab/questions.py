"""One measured sample: a prompt read by a method, its questions answered, judged and recorded."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import __version__, prompt
from homerlm.errors import HomerError, OutOfMemoryError
from homerlm.lab.readers import Reader, Reading, indices_kept
from homerlm.lab.samples import Question, Sample
from homerlm.model.memory import PeakMemory, out_of_memory_explained

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What a trial runs on. `chat`: whether prompts are wrapped in the model's chat template."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reader: Reader
    chat: bool = False

    def ids(self, sample: Sample, question: Question) -> prompt.PromptIds:
        """The sample's prompt, asking `question`."""
        before, after = prompt.affixes(
            self.tokenizer,
            question.text,
            instruction=sample.instruction,
            answer_start=question.answer_start,
            chat=self.chat,
        )
        return prompt.encode(self.tokenizer, before, sample.document, after)


def facts_of(model: PreTrainedModel, chat: bool) -> Outcome:
    """What every record says: the model and its limit in tokens, the machine, and the versions."""
    versions = {"homerlm": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    device = model.device
    return {
        "model": model.config._name_or_path or type(model).__name__,
        "limit": model.config.get_text_config(decoder=True).max_position_embeddings,
        "device": f"{device.type} {platform.machine()}" if device.type != "cuda" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "chat": chat,
        "versions": versions | {"python": platform.python_version()},
    }


Judge = Callable[[Bench, Question, Reading], Outcome]


def ask_now(bench: Bench, sample: Sample, room: int, judge: Judge) -> Iterator[Outcome]:
    """Every question with a reading of its own, as HOMER is meant to be used: it is known when the document is read."""
    for question in sample.questions:
        ids = bench.ids(sample, question)
        yield _measured(bench, sample, question, ids, partial(bench.reader.read, ids, room), judge)


def ask_later(bench: Bench, sample: Sample, room: int, judge: Judge) -> Iterator[Outcome]:
    """The document read once with a neutral question, then asked each of the sample's."""
    neutral = bench.ids(sample, Question(prompt.NEUTRAL_QUESTION, "", (), "share_held"))
    readings: list[Reading] = []

    def read(suffix_ids: torch.Tensor) -> Reading:
        if not readings:
            readings.append(bench.reader.read(neutral, room, "other questions"))
        return readings[0].ask_again(suffix_ids)

    for question in sample.questions:
        ids = bench.ids(sample, question)
        yield _measured(bench, sample, question, ids, partial(read, ids.suffix), judge)


ASKING = {"now": ask_now, "later": ask_later}


def _measured(
    bench: Bench, sample: Sample, question: Question, ids: prompt.PromptIds, read: Callable[[], Reading], judge: Judge
) -> Outcome:
    tokens = sum(part.shape[1] for part in (ids.prefix, ids.context, ids.suffix))
    outcome: Outcome = {"tokens": tokens, "expected": list(question.expected)}
    spots = token_spots(bench.tokenizer, sample.document, question.expected, ids.prefix.shape[1])
    with measured(outcome, bench.model.device):
        reading = read()
        outcome["kept"] = len(reading.token_indices)
        outcome["needle_kept"] = indices_kept(spots, reading.token_indices)
        outcome |= judge(bench, question, reading)
    return outcome


@contextmanager
def measured(outcome: Outcome, device: torch.device) -> Iterator[None]:
    """Seconds and peak memory of the block into `outcome`; a failure of the library or of memory as its "error"."""
    started, peak = time.perf_counter(), PeakMemory(device)
    try:
        with peak, out_of_memory_explained("evaluating a sample", "lower the length or the cache"):
            yield
        outcome["error"] = None
    except HomerError as error:
        outcome["error"] = failure(error)
    outcome |= {"seconds": round(time.perf_counter() - started, 3), "peak_bytes": peak.bytes}


def failure(error: HomerError) -> str:
    """What a record says of a failure; reports tell those of memory from the others by how it begins."""
    kind = "out of memory" if isinstance(error, OutOfMemoryError) else type(error).__name__
    return f"{kind}: {error}"


def answered(max_new_tokens: int) -> Judge:
    """Judge by what is generated."""

    def judge(bench: Bench, question: Question, reading: Reading) -> Outcome:
        answer = bench.tokenizer.decode(reading.generate(max_new_tokens), skip_special_tokens=True)
        return {"answer": answer, "score": question.grade(answer)} | _by_likelihood(bench, question, reading)

    return judge


def likelihood_of_answer(bench: Bench, question: Question, reading: Reading) -> Outcome:
    """Judge by how likely the right answer is: its summed negative log-likelihood in nats, and its tokens."""
    log_probs = reading.log_probs(prompt.token_ids(bench.tokenizer, f" {question.expected[0]}."))
    return {"nll": -log_probs.sum().item(), "count": len(log_probs)}


def _by_likelihood(bench: Bench, question: Question, reading: Reading) -> Outcome:
    if not question.choices:
        return {}
    sums = [reading.log_probs(prompt.token_ids(bench.tokenizer, choice)).sum().item() for choice in question.choices]
    chosen = question.choices[sums.index(max(sums))].strip()
    return {"likelihood_score": float(chosen == question.expected[0]), "likelihoods": [round(s, 3) for s in sums]}


def token_spots(tokenizer: PreTrainedTokenizerBase, document: str, wanted: tuple[str, ...], offset: int) -> list[int]:
    """Indices in the prompt of the document's tokens that spell any of `wanted`; none without a tokenizer's offsets."""
    if not tokenizer.is_fast:
        return []
    spans = []
    for text in wanted:
        start = document.find(text) if len(text) > 1 else -1
        while start >= 0:
            spans.append((start, start + len(text)))
            start = document.find(text, start + 1)
    if not spans:
        return []
    encoded = tokenizer(document, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    found = []
    for index, (begin, end) in enumerate(encoded.offset_mapping):
        if any(begin < last and end > first for first, last in spans):
            found.append(index + offset)
    return found
