"""Which candidates does the question's likelihood find? Documents with planted facts, and questions about a natural
text, are read once, and the question is asked behind their best sentences once; each way of ranking these then chooses
400 and as many tokens as become candidates. A sample counts where all that answers it is among them.

Appends records as JSON lines, goes on where it was stopped, and prints the shares. Example:

    python benchmarks/likelihood.py --text novels.txt --questions benchmarks/questions/rust-book.jsonl \
        --book rust-book.html --output results/likelihood/smollm2.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

from cut import options_of, tasks
from homerlm import Homer, load_model
from homerlm.lab.corpora import json_lines
from homerlm.lab.questions import Setup
from homerlm.lab.samples import Sample
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import Event, run_steps
from homerlm.score.neighbours import top_tokens
from homerlm.select import likelihood
from homerlm.select.method import Select
from homerlm.select.reading import Reading

FEW = 400  # tokens
ALONE = 1e6  # a weight beside which nothing else counts
WAYS = {
    "alone": (ALONE, 0.3),
    **{f"to the power of {weight:g}": (weight, 0.3) for weight in (0.25, 0.5, 1, 2)},
    "to the power of 1, nothing for neighbours": (1, 0.0),
}  # weight, share of a neighbour's


class Study:
    def __init__(self, homer: Homer) -> None:
        assert isinstance(homer.method, Select)
        self.homer, self.method = homer, homer.method

    @torch.no_grad()
    def rows(self, sample: Sample) -> Iterator[dict[str, Any]]:
        """Whether the whole of what answers is among the tokens that each way chooses."""
        asked = Setup(self.homer.model, self.homer.tokenizer, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
        plan = self.method.plan(*asked.lengths)
        places = torch.arange(plan.context_len)[None]
        with self.homer.decoder.session():
            reading = Reading.on(self.homer.decoder, plan, asked, self.method.ranking)
            ranked = run_steps(self.method._ranked(reading, places, lambda _: plan.pause))
            likelihoods = Known(reading)
            for count in (FEW, plan.candidate_room):
                chosen = {"without": top_tokens(ranked, count)[0]}
                for name, (weight, share) in WAYS.items():
                    config = replace(plan.config, neighbour_share=share)
                    one = replace(reading, plan=replace(plan, config=config))
                    with likelihoods.patched(), mock.patch.object(likelihood, "CHOICE_WEIGHT", weight):
                        chosen[name] = run_steps(likelihood.likely(one, ranked, places, count)).places[0]
                for name, found in chosen.items():
                    yield {"way": name, "tokens": count, "found": bool(torch.isin(asked.gold_in_context, found).all())}


class Known:
    """The likelihoods of a reading, computed once."""

    def __init__(self, reading: Reading) -> None:
        self._ask = reading.likelihoods
        self._found: Tensor | None = None

    def patched(self) -> Any:
        def likelihoods(_reading: Reading, *asked: Any) -> Generator[Event, None, Tensor]:
            if self._found is None:
                self._found = yield from self._ask(*asked)
            return self._found

        return mock.patch.object(Reading, "likelihoods", likelihoods)


def main() -> None:
    chosen = {"nargs": "+", "default": ["associations", "paraphrases", "questions"]}
    options = options_of(__doc__, 12, tasks=chosen)
    keep_freed_memory()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    records = json_lines(options.output, "records of this study") if options.output.exists() else []
    done = {(record["task"], record["sample"]) for record in records}
    study = Study(Homer(*load_model(options.model)))
    for name, task in tasks(options.text, options.questions, options.book).items():
        for index in range(options.documents * (2 if name == "questions" else 1)):
            if name not in options.tasks or (name, index) in done:
                continue
            sample = task.sample(study.homer.tokenizer, options.length, index, options.seed)  # type: ignore[arg-type]
            new = [{"task": name, "sample": index, "seed": options.seed} | row for row in study.rows(sample)]
            records += new
            with options.output.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in new)
    shares = pd.DataFrame(records).groupby(["way", "task", "tokens"], sort=False)["found"].mean()
    print(shares.round(2).unstack(["task", "tokens"]).to_string())


if __name__ == "__main__":
    main()
