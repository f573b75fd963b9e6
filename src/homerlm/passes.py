"""Stand-in for the core's module of this name, which replaces it: a pass of tokens through layers, as planned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """kind: chunk, merge, rerank or read. tokens: per row and chunk; rows: chunks run side by side; layers
    [first_layer, last_layer) run, the last one without `finish` only as far as its queries and keys. queries: scoring
    queries in each of `scoring_layers`. logits: positions whose logits are computed. keys: tokens attended to."""

    kind: str
    tokens: int
    rows: int
    first_layer: int
    last_layer: int
    finish: bool
    scoring_layers: tuple[int, ...]
    queries: int
    logits: int
    keys: int
