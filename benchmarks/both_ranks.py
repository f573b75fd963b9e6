"""How many tokens rank before a fact that shares no word with its question, in a text that is read with the question:
by the heads, by what sentences are about, by both in turn, by both ranks with several weights of the second?

Several facts of different kinds are planted in each novel, and each is asked for. Writes a JSON file of one row a fact
and prints the share of the facts whose whole is among the first tokens. Example:

    python benchmarks/both_ranks.py --text novels.txt --documents 8 --output results/heads/both-ranks-smollm2-135m.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from embeddings import FACTS, arguments, cases
from homerlm import Homer, load_model
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
    method = homer.method
    assert isinstance(method, Select)
    assert homer.tokenizer is not None
    for case in cases(homer.tokenizer, novels, number, seed, tokens):
        ranks = {
            way: int(tokens_before(ranked, sizes)[0, units[0, case.gold]].max())
            for way, ranked, sizes, units in ways(method, case.ids)
        }
        yield case.row | ranks


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
        for way in (way for way in own[0] if isinstance(own[0][way], int) and way not in ("document", "seed")):
            shares = [sum(row[way] < count for row in own) / len(own) for count in FIRST]
            print(f"{task}, {way}: {' '.join(f'{share:.2f}' for share in shares)} of {len(own)}")


if __name__ == "__main__":
    main()
