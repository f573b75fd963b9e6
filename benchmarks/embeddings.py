"""Of how many facts that share no word with their question is the whole among the first tokens of an index: by the keys
of its heads, by its sentences' embeddings, by both in turn?

Several facts of different kinds are planted in each novel, and each is asked for. Writes a JSON file of one row a fact.
Example:

    python benchmarks/embeddings.py --text novels.txt --documents 16 --output results/index/embeddings-smollm2-135m.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm import Homer, load_model, prompt
from homerlm.index.asking import Search
from homerlm.index.index import Index
from homerlm.index.units import best_units, tokens_of
from homerlm.lab.corpora import NAMES
from homerlm.lab.tasks.planted import Pair, pairs
from homerlm.lab.tasks.prose import excerpt, hide
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.prompt import PromptIds
from homerlm.select.method import Select

FACTS = {"associations": 5, "paraphrases": 2}  # of a document
TOKENS = 7700  # of a document beside them
FIRST = (990, 1980)  # tokens: the candidates of a question, and what it reads of 8k tokens to find them


@dataclass(frozen=True)
class Fact:
    task: str
    text: str
    question: str


def facts(rng: random.Random) -> list[Fact]:
    """Of different kinds about different people."""
    chosen: list[tuple[str, Pair]] = []
    for task, count in FACTS.items():
        for kind in rng.sample(sorted({pair.kind for pair in pairs(task)}), count):
            chosen.append((task, rng.choice([pair for pair in pairs(task) if pair.kind == kind])))
    people = iter(rng.sample(NAMES, 2 * len(chosen)))
    named = [(task, pair, {"name": next(people), "other": next(people)}) for task, pair in chosen]
    return [Fact(task, pair.fact.format(**who), pair.question.format(**who)) for task, pair, who in named]


@dataclass(frozen=True)
class Case:
    """A fact asked for in a document. gold: (n,) the places of its tokens; row: what a record says of it."""

    ids: PromptIds
    gold: Tensor
    row: dict[str, Any]


def cases(
    tokenizer: PreTrainedTokenizerBase, novels: str, number: int, seed: int, tokens: int = TOKENS
) -> Iterator[Case]:
    """The facts of one document of so many tokens beside them."""
    rng = random.Random(f"{seed} {number}")
    planted = facts(rng)
    text = hide(excerpt(novels, tokenizer, tokens, rng), [(rng.random(), fact.text) for fact in planted])
    spans, nothing = prompt.token_spans(tokenizer, text), prompt.neutral(tokenizer)
    for fact in planted:
        before, after = prompt.affixes(tokenizer, fact.question)
        ids = prompt.encode(tokenizer, before, text, after, nothing)
        start = text.index(fact.text)
        gold = torch.tensor(prompt.tokens_within(spans, [(start, start + len(fact.text))]))
        row = {"task": fact.task, "document": number, "seed": seed, "question": fact.question}
        yield Case(ids, gold, row)


@torch.no_grad()
def rows(homer: Homer, novels: str, tokens: int, number: int, seed: int) -> Iterator[dict[str, Any]]:
    """Of each fact of a document, 0 or 1 by each way and number of tokens."""
    method, index = homer.method, None
    assert isinstance(method, Select)
    assert homer.tokenizer is not None
    for case in cases(homer.tokenizer, novels, number, seed, tokens):
        ids, gold, found = case.ids, case.gold, dict(case.row)
        index = index or homer.index(ids.prefix, ids.context, neutral_ids=ids.neutral)
        with homer.decoder.session():
            search = Search.of(method, index, index.frame.question(ids.suffix, ids.neutral, ids.suffix.shape[1]))
            for count in FIRST:
                by_keys = run_steps(replace(search, direction=None).candidates(count))
                ways = {"keys": by_keys, "embeddings": by_embeddings(index, search, count)}
                ways["in turn"] = run_steps(search.candidates(count))
                found |= {f"{way}, {count}": int(torch.isin(gold, best).all()) for way, best in ways.items()}
        yield found


def by_embeddings(index: Index, search: Search, count: int) -> Tensor:
    assert index.embeddings is not None
    assert search.direction is not None
    sizes = torch.diff(index.units, append=torch.tensor([len(index)]))
    order = best_units(index.embeddings.float() @ search.direction, sizes, count)
    return tokens_of(index.units[order], sizes[order], count)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name, folder or file; default the bundled model")
    parser.add_argument("--text", type=Path, required=True, help="a text of novels or the like")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a document beside the facts")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--output", type=Path, required=True)
    return parser


def main() -> None:
    given = arguments(__doc__).parse_args()
    keep_freed_memory()
    homer = Homer(*load_model(given.model))
    novels = given.text.read_text()
    made: list[dict[str, Any]] = []
    for number in range(given.documents):
        made += rows(homer, novels, given.tokens, number, given.seed)
        given.output.write_text(json.dumps(made, indent=1) + "\n")
    for task in FACTS:
        own = [row for row in made if row["task"] == task]
        for name in (name for name in own[0] if ", " in name):
            print(f"{task}, {name}: {sum(row[name] for row in own) / len(own):.2f} of {len(own)}")


if __name__ == "__main__":
    main()
