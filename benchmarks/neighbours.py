"""What a sentence should gain from those beside it, measured on questions about a natural text: of how many questions
all of the evidence is among the candidates, and left after the reranking, and how many tokens that takes. Beside it:
some of the candidates chosen by BM25 instead.

Writes a JSON file of one row a question, goes on where it was stopped, and prints the means. Example:

    python benchmarks/neighbours.py --questions benchmarks/questions/rust-book.jsonl --text rust-book.html \
        --output results/questions/neighbours-smollm2.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from homerlm import Homer, HomerConfig, load_model
from homerlm.documents import read_document
from homerlm.lab.corpora import json_lines
from homerlm.lab.questions import Setup
from homerlm.lab.rivals.passages import passages
from homerlm.lab.samples import Asked, Sample
from homerlm.lab.tasks.own import load_questions, questions
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.score.bm25 import passage_scores
from homerlm.select.method import Select
from homerlm.select.plan import SelectPlan
from homerlm.select.ranking import Ranking
from homerlm.select.reading import Reading

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
BY_WORDS = (64, 128, 256)  # tokens of the candidates that BM25 chooses
PASSAGE = 64
DEFAULT = HomerConfig.neighbour_share


@dataclass
class Question:
    """A question's plan and the scores (1, C) of the context's tokens. gold: (n,) places of the evidence."""

    asked: Asked
    plan: SelectPlan
    reading: Reading
    scores: Tensor
    gold: Tensor

    @property
    def places(self) -> Tensor:
        return torch.arange(self.plan.context_len)[None]


class Study:
    def __init__(self, homer: Homer) -> None:
        method = homer.method
        assert homer.tokenizer is not None
        assert isinstance(method, Select)
        self.homer, self.tokenizer, self.method = homer, homer.tokenizer, method

    @torch.no_grad()
    def rows(self, sample: Sample) -> Iterator[dict[str, Any]]:
        with self.homer.decoder.session():
            question = self._question(sample)
            for share in SHARES:
                yield self._candidates(f"share {share}", question, self._ranking(share), 0)
            for tokens in BY_WORDS:
                for share in (0.0, DEFAULT):
                    yield self._candidates(f"share {share}, BM25 {tokens}", question, self._ranking(share), tokens)
            for share in (0.0, DEFAULT):
                yield self._kept(f"share {share}", question, self._ranking(share))

    def _ranking(self, share: float) -> Ranking:
        ranking = self.method.ranking
        return replace(ranking, config=replace(ranking.config, neighbour_share=share))

    def _question(self, sample: Sample) -> Question:
        asked = Setup(self.homer.model, self.tokenizer, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
        plan = self.method.plan(*asked.lengths)
        reading = Reading(self.homer.decoder, plan, asked, self.method.ranking)
        scores = torch.cat([found.scores for _, found in reading.chunks()], dim=1)
        return Question(asked, plan, reading, scores, asked.gold_in_context)

    def _found(self, question: Question, ranking: Ranking, by_words: int) -> Tensor:
        """(n,) ascending: the candidates."""
        named = self._best_passages(question, by_words)
        scores = question.scores.clone()
        scores[:, named] = 1e6
        return ranking.candidates(scores, question.asked.context, question.places, question.plan.candidate_room)[0]

    def _best_passages(self, question: Question, tokens: int) -> Tensor:
        ids = question.asked.context
        spans = passages(self.method.ranking.units(ids, question.places)[0].tolist(), PASSAGE)
        texts = [str(self.tokenizer.decode(ids[0, start:stop])) for start, stop in spans]
        scores = passage_scores(texts, question.asked.question)
        best = [spans[k] for k in scores.argsort(kind="stable")[::-1] if scores[k] > 0]
        return torch.cat([torch.empty(0, dtype=torch.long), *(torch.arange(*span) for span in best)])[:tokens]

    def _candidates(self, way: str, question: Question, ranking: Ranking, by_words: int) -> dict[str, Any]:
        return _row("candidates", way, question, self._found(question, ranking, by_words))

    def _kept(self, way: str, question: Question, ranking: Ranking) -> dict[str, Any]:
        places = self._found(question, ranking, 0)
        plan, ids = question.plan, question.asked.context[0, places]
        (scores,) = run_steps(question.reading.scoring(ids[None], plan.reranking))
        ranked = ranking.reranked(scores, ids, places)
        return _row("kept", way, question, places[ranking.kept(ranked, plan.room - ranking.config.recap_len)])


def _row(stage: str, way: str, question: Question, places: Tensor) -> dict[str, Any]:
    found = bool(torch.isin(question.gold, places).all())
    return {"stage": stage, "way": way, "found": found, "tokens": len(places)}


def main() -> None:
    options = _options()
    keep_freed_memory()
    model, tokenizer = load_model(options.model)
    text = read_document(options.text)
    items = load_questions(options.questions, text)
    task = questions(items, text, options.text.name)
    study = Study(Homer(model, tokenizer))
    study.homer.profile()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    known = json_lines(options.output, "records of this study") if options.output.exists() else []
    done = {record["question"] for record in known}
    with options.output.open("a") as file:
        for index in range(len(items)):
            sample = task.sample(tokenizer, options.length, index, options.seed)
            asked = sample.questions[0].text
            if asked not in done:
                file.writelines(json.dumps({"question": asked} | row) + "\n" for row in list(study.rows(sample)))
                file.flush()
    rows = pd.read_json(options.output, lines=True)
    table = rows.groupby(["stage", "way"], sort=False)[["found", "tokens"]].mean()
    print(table.assign(questions=rows["question"].nunique()).round(3).to_string())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default the bundled one")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=8192, help="tokens of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
