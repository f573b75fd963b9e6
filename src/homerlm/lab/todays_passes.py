"""Stand-in for `Homer.plan(...).passes` on a core whose plan does not have them yet: to be deleted with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from homerlm.homer import Homer, voting_layers
from homerlm.merge.tree import last_layer_run
from homerlm.passes import Pass
from homerlm.score.surprisal import LEAD


def passes_of(homer: Homer, schedule: Any) -> list[Pass]:
    return list(_passes(homer, schedule))


def _passes(homer: Homer, schedule: Any) -> Iterator[Pass]:
    config, lengths, layers = homer.config, homer.lengths, schedule.layers
    queries = min(config.scoring_queries or schedule.suffix_len, schedule.suffix_len)
    voters = voting_layers(config.voters, layers, lengths.warmup_layers)
    judges = voters or range(layers - 1, layers)
    only_chooses = config.readout == "recomputed"
    stop = voters.stop if voters else layers
    kept = min(lengths.target_len, schedule.prompt_len)

    def run(kind: str, tokens: int, first: int, last: int, scoring: Any = (), logits: int = 0, **more: Any) -> Pass:
        finish = not (only_chooses and last == stop and kind in ("chunk", "merge", "rerank"))
        settings = {"rows": 1, "finish": finish, "queries": queries, "keys": tokens} | more
        return Pass(
            kind=kind,
            tokens=tokens,
            first_layer=first,
            last_layer=last,
            scoring_layers=tuple(scoring),
            logits=logits,
            **settings,
        )

    judged: dict[int, bool] = {}
    for node in schedule.root.walk():
        kind = "merge" if node.children else "chunk"
        if config.by_surprisal(schedule):
            if not node.children:
                context = node.context_stop - node.context_start
                read = schedule.prefix_len + schedule.suffix_len + min(node.context_start, LEAD) + context
                both = judges if config.chosen_by == "both" else ()
                yield run(kind, read, 0, layers, both, context + 2, finish=True)
                yield run(kind, 1, 0, layers, finish=True)
            continue
        last = last_layer_run(schedule, node, voters, keep_kv=not only_chooses)
        below = bool(node.children) and all(judged[id(child)] for child in node.children)
        heard = range(max(node.first_layer, voters.start), min(last, voters.stop)) if voters else range(0)
        if config.refinement == "per_layer_top_k":
            heard = range(node.first_layer, last)
        elif not heard and node.target < node.length and not (voters and below):
            heard = range(last - 1, last)
        judged[id(node)] = bool(heard) or below
        if last > node.first_layer:
            yield run(kind, node.length, node.first_layer, last, heard)
    if lengths.looks_again(schedule):
        yield run("rerank", schedule.root.target, 0, judges.stop, judges)
    if config.readout == "recomputed":
        yield run("read", kept, 0, layers)
    if config.readout == "reencoded":
        yield run("read", schedule.suffix_len, 0, layers, (), 1, keys=kept)
    else:
        yield run("read", 1, 0, layers, (), 1)
