"""Of how many documents is the whole of the asked fact among the candidates: by an index alone, among more that it
finds, left of these by reading them with the question, and where all of the document is read so (at once)?

Writes a JSON file of one row a document, with the seconds of that reading. Example:

    python benchmarks/index_candidates.py --text novels.txt --task associations --task paraphrases --seed 41 \
        --samples 8 --output results/index/candidates-smollm2-135m.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from homerlm import Homer, HomerConfig, load_model
from homerlm.index.asking import Search
from homerlm.lab.questions import Setup
from homerlm.lab.samples import Sample
from homerlm.lab.tasks.planted import planted
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.select.method import Select
from homerlm.select.reading import Reading

WIDER = (1, 2, 4)  # times the candidates; the default reads 2 of 8k tokens (a quarter), 4 of 16k and more


@torch.no_grad()
def row(homer: Homer, sample: Sample) -> dict[str, Any]:
    """Where the fact of a sample's question is found, as 0 or 1, and seconds."""
    method, tokenizer = homer.method, homer.tokenizer
    assert isinstance(method, Select)
    assert tokenizer is not None
    asked = Setup(homer.model, tokenizer, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
    gold = asked.gold_in_context
    index = homer.index(asked.prefix, asked.context, neutral_ids=asked.neutral)
    found: dict[str, Any] = {}
    with homer.decoder.session():
        plan = method.plan(*asked.lengths)
        search = Search.of(method, index, index.frame.question(asked.suffix, asked.neutral, plan.queries))
        for times in WIDER:
            best = run_steps(search.candidates(min(times * plan.candidate_room, len(index))))
            found[f"index, {len(best)}"] = _all(gold, best)
            if times > 1:
                started = time.perf_counter()
                part = replace(asked, context=asked.context[:, best])
                found[f"of {len(best)}, read"] = _all(gold, run_steps(method.candidates_among(part, plan, best)).places)
                found[f"seconds of {len(best)}"] = round(time.perf_counter() - started, 3)
        reading = Reading.on(method.decoder, plan, asked, method.ranking)
        best = run_steps(method._candidates(reading, torch.arange(len(index))[None])).row(0)
        found["at once"] = _all(gold, best.places)
    return found


def _all(gold: torch.Tensor, found: torch.Tensor) -> int:
    return int(torch.isin(gold, found).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name, folder or file; default the bundled model")
    parser.add_argument("--text", type=Path, required=True, help="a text of novels or the like")
    parser.add_argument("--task", action="append", required=True, choices=("associations", "paraphrases", "relations"))
    parser.add_argument("--length", type=int, default=8192, help="tokens of a prompt")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--embeddings", choices=("profile", "never"), default="profile", help="of sentences")
    given = parser.parse_args()
    keep_freed_memory()
    homer = Homer(*load_model(given.model), HomerConfig(embeddings=given.embeddings))
    assert homer.tokenizer is not None
    rows = []
    for task in given.task:
        made = planted(task, given.text.read_text(), given.text.name)
        for number in range(given.samples):
            sample = made.sample(homer.tokenizer, given.length, number, given.seed)
            rows.append({"task": task, "sample": number, "seed": given.seed} | row(homer, sample))
            print(json.dumps(rows[-1]), flush=True)
            given.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
