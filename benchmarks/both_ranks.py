"""How many tokens rank before a fact that shares no word with its question, in a text that is read with the question:
by the heads, by what sentences are about, by both in turn, by both ranks with several weights of the second?

Several facts of different kinds are planted in each novel, and each is asked for. Writes a JSON file of one row a fact
and prints the share of the facts whose whole is among the first tokens. Example:

    python benchmarks/both_ranks.py --text novels.txt --documents 8 --output results/heads/both-ranks-smollm2-135m.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embeddings import FACTS, facts
from homerlm import Homer, load_model, prompt
from homerlm.lab.tasks.prose import excerpt, hide
from homerlm.model.memory import keep_freed_memory
from homerlm.prompt import PromptIds
from homerlm.score.neighbours import better_of, log_share_above, tokens_before, unit_means, unit_significance
from homerlm.select.method import Select
from homerlm.select.reading import Reading, Scored

WEIGHTS = (0.25, 0.5, 1.0)  # of closeness; the default's is one of them
FIRST = (400, 800, 990)  # tokens; the last are the candidates of a question


@torch.no_grad()
def rows(homer: Homer, novels: str, tokens: int, number: int, seed: int) -> Iterator[dict[str, Any]]:
    """Of each fact of a document of so many tokens, those that rank before its last sentence, by each way."""
    method, tokenizer, rng = homer.method, homer.tokenizer, random.Random(f"{seed} {number}")
    assert isinstance(method, Select)
    assert tokenizer is not None
    planted = facts(rng)
    text = hide(excerpt(novels, tokenizer, tokens, rng), [(rng.random(), fact.text) for fact in planted])
    spans, nothing = prompt.token_spans(tokenizer, text), prompt.neutral(tokenizer)
    for fact in planted:
        before, after = prompt.affixes(tokenizer, fact.question)
        ids = prompt.encode(tokenizer, before, text, after, nothing)
        start = text.index(fact.text)
        gold = torch.tensor(prompt.tokens_within(spans, [(start, start + len(fact.text))]))
        found: dict[str, Any] = {"task": fact.task, "document": number, "seed": seed, "question": fact.question}
        for way, ranked, sizes, units in ways(method, ids):
            found[way] = int(tokens_before(ranked, sizes)[0, units[0, gold]].max())
        yield found


def ways(method: Select, ids: PromptIds) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """The units' scores (1, U) by each way, their sizes (1, U), and the number of each token's unit, (1, C)."""
    assert method.sentences is not None
    with method.decoder.session():
        reading = Reading.on(method.decoder, method.plan(*ids.lengths), ids, method.ranking)
        scored = Scored.joined([found for _, found in reading.chunks()])
    assert scored.closeness is not None
    places = torch.arange(ids.context.shape[1])[None]
    units = method.sentences.units(ids.context, places)
    sizes = torch.bincount(units[0])[None].float()
    first = sizes.long().cumsum(1) - sizes.long()
    share = method.config.neighbour_share
    heads = unit_significance(scored.scores, units, places, share).gather(1, first)
    close = unit_means(scored.closeness, units)
    yield "heads", heads, sizes, units
    yield "embeddings", close, sizes, units
    yield "in turn", better_of(heads, close, sizes), sizes, units
    by_heads, by_closeness = (log_share_above(each, sizes) for each in (heads, close))
    for weight in WEIGHTS:
        yield f"both ranks, {weight:g}", -(by_heads + weight * by_closeness), sizes, units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name, folder or file; default the bundled model")
    parser.add_argument("--text", type=Path, required=True, help="a text of novels or the like")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=7700, help="of a document beside the facts")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    keep_freed_memory()
    homer = Homer(*load_model(given.model))
    novels = given.text.read_text()
    made: list[dict[str, Any]] = []
    for number in range(given.documents):
        made += rows(homer, novels, given.tokens, number, given.seed)
        given.output.write_text(json.dumps(made, indent=1) + "\n")
    for task in FACTS:
        own = [row for row in made if row["task"] == task]
        for way in (way for way in own[0] if isinstance(own[0][way], int) and way not in ("document", "seed")):
            shares = [sum(row[way] < count for row in own) / len(own) for count in FIRST]
            print(f"{task}, {way}: {' '.join(f'{share:.2f}' for share in shares)} of {len(own)}")


if __name__ == "__main__":
    main()
