"""Candidates by a tournament or by one ranking? The chunks of a document are scored once; the candidates are then
chosen both ways: by halving neighbours up a binary tree (the former default), or flat, from all scores at once. Facts
are planted in Python's documentation; reported are the share of the asked facts' tokens among the candidates and in the
final cache, and right answers.

Appends records as JSON lines, goes on where it was stopped, and writes a summary. Example:

    python benchmarks/ranking.py --lengths 15360,61440 --samples 50 --output results/ranking
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from homerlm import Homer, HomerConfig, load_model
from homerlm.lab.corpora import json_lines, python_documentation
from homerlm.lab.questions import token_spots
from homerlm.lab.tasks.needle import needle
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.prompt import Text, encode
from homerlm.score.neighbours import significance, top_tokens
from homerlm.select.method import Select
from homerlm.select.reading import Reading

KINDS = ("single", "keys", "single-uuid", "values")
FORMER = HomerConfig(
    scoring_layers="middle", score="mean_square", contrast="none", unit="neighbours"
)  # the default then
CHECKS = ("tournament", "flat")


def tournament(method: Select, reading: Reading, scores: list[Tensor], count: int) -> Tensor:
    """Context indices (1, count) of the candidates that a binary tree leaves: each node keeps half of its children's
    room, its tokens' neighbours being those that are left beside them."""
    room = reading.plan.chunk_len - reading.plan.prefix_len - reading.plan.suffix_len
    starts = [start for start, _ in reading.plan.spans]
    level = [
        (chunk, torch.arange(start, start + chunk.shape[1])[None]) for chunk, start in zip(scores, starts, strict=True)
    ]

    def reduced(chunk: Tensor, places: Tensor, target: int) -> tuple[Tensor, Tensor]:
        if chunk.shape[1] <= target:
            return chunk, places
        ranked = significance(
            chunk,
            reading.context_ids.gather(1, places),
            places,
            pooling=method.config.candidate_pooling,
            sentence_weight=method.config.sentence_weight,
            sentences=method.sentences,
        )
        keep = top_tokens(ranked, target)
        return chunk.gather(1, keep), places.gather(1, keep)

    while len(level) > 1:
        halves = [reduced(*node, room // 2) for node in level]
        pairs = [halves[i : i + 2] for i in range(0, len(halves), 2)]
        level = [tuple(torch.cat(part, dim=1) for part in zip(*pair, strict=True)) for pair in pairs]  # type: ignore[misc]
    return reduced(*level[0], count)[1]


@torch.no_grad()
def trial(homer: Homer, kind: str, length: int, index: int, seed: int) -> Iterator[dict[str, Any]]:
    """Records of one document, one for each way."""
    method, tokenizer = homer.method, homer.tokenizer
    assert isinstance(method, Select)
    assert tokenizer is not None
    task = needle(kind, python_documentation(), "Python's documentation")
    sample = task.sample(tokenizer, length, index, seed)
    (question,) = sample.questions
    suffix = Text(f"\n\n{question.text} {question.answer_start}")
    ids = encode(tokenizer, Text(f"{sample.instruction}\n\n"), sample.document, suffix)
    asked = torch.tensor(token_spots(tokenizer, sample.document, question.expected, 0))
    plan = method.plan(*ids.lengths)
    reading = Reading(homer.decoder, plan, ids, method.ranking)
    count = plan.candidate_room
    with homer.decoder.session():
        scores = [new.scores for _, new in reading.chunks()]
    for way in CHECKS:
        if way == "flat":
            kept = method.ranking.candidates(
                torch.cat(scores, dim=1), ids.context, torch.arange(ids.context.shape[1])[None], count
            )
        else:
            kept = tournament(method, reading, scores, count)
        with homer.decoder.session():
            (chosen,) = run_steps(method._rerank(reading, [run_steps(method._document(ids.context[0]))], kept))
            context = run_steps(method._read(reading, chosen))
        answer = homer.generate(context, max_new_tokens=task.max_new_tokens, do_sample=False)
        yield {
            "candidates": torch.isin(asked, kept[0]).float().mean().item(),
            "kept": torch.isin(asked, chosen).float().mean().item(),
            "tokens": len(context),
            "right": question.grade(str(tokenizer.decode(answer[0], skip_special_tokens=True))),
            "way": way,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="15360,61440")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2031)
    parser.add_argument("--output", type=Path, default=Path("results/ranking"))
    options = parser.parse_args()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    records = options.output / "records.jsonl"
    known = json_lines(records, "records of this study") if records.exists() else []
    done = {(r["kind"], r["length"], r["sample"], r["seed"]) for r in known}
    homer = Homer(*load_model(), FORMER)
    cells = [
        (kind, int(length), index)
        for index in range(options.samples)
        for length in options.lengths.split(",")
        for kind in KINDS
    ]
    with records.open("a") as file:
        for kind, length, index in cells:
            if (kind, length, index, options.seed) not in done:
                key = {"kind": kind, "length": length, "sample": index, "seed": options.seed}
                for record in trial(homer, kind, length, index, options.seed):
                    file.write(json.dumps(key | record) + "\n")
                file.flush()
    table = pd.read_json(records, lines=True).groupby(["kind", "length", "way"])
    summary = table[["candidates", "kept", "right", "tokens"]].mean().round(3).assign(n=table.size())
    (options.output / "summary.md").write_text(summary.reset_index().to_markdown(index=False) + "\n")
    print(summary.to_string())


if __name__ == "__main__":
    main()
