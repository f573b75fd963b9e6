"""The paper's results (arXiv 2404.10308), to print beside ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

LIMIT = 4096  # of Llama-2: to compare at the same multiple of a model's limit
CHAT = "paper, Llama-2-7b-chat"
BASE = "paper, Llama-2-7b"
ABLATION_LENGTH = 16384

_BY_LENGTH = {  # task: whose numbers, where the file has them, and the table's name
    "passkey": (CHAT, ("passkey_accuracy", "Llama-2-7b-chat"), "table 1"),
    "perplexity": (BASE, ("pg19_perplexity", "Llama-2-7b"), "table 3"),
    "passkey-perplexity": (CHAT, ("passkey_perplexity",), "table 9"),
    "memory": (f"{BASE}, A100", ("peak_memory_gb_a100_llama2_7b",), "table 5, everything in use"),
}


@dataclass(frozen=True)
class PaperTable:
    """`rows` by method as the paper names it, a value for each of `lengths`, `None` where it prints NaN or nothing."""

    heading: str
    lengths: tuple[int, ...]
    rows: dict[str, list[float | None]]


@cache
def results() -> dict[str, Any]:
    text = resources.files("homerlm").joinpath("data", "paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def paper_table(task: str) -> PaperTable | None:
    """What the paper has by length for this task, or `None`."""
    if task not in _BY_LENGTH:
        return None
    who, (name, *model), number = _BY_LENGTH[task]
    found = results()[name]
    rows = found[model[0]] if model else _without_lengths(found)
    return PaperTable(f"{who}, {number} (limit {LIMIT:,})", tuple(found["lengths"]), rows)


def seconds() -> dict[int, PaperTable]:
    """Table 8: seconds of a request by the number of new tokens."""
    found = results()["seconds_a100_llama2_7b"]
    heading, lengths = f"{BASE}, A100, table 8", tuple(found["lengths"])
    return {int(new): PaperTable(heading, lengths, rows) for new, rows in _without_lengths(found).items()}


def quality() -> dict[str, float]:
    """Table 2: share right on QuALITY by method; one number for all lengths."""
    found: dict[str, float] = results()["quality_accuracy"]
    return found


def ablation() -> dict[str, float]:
    """Tables 4a and 4b: share right on passkeys at 16k, by the rows' names in an ablation here."""
    tables = results()["ablation_passkey_16k"]
    kinds = {"score": tables["pruning"], "refinement": tables["refinement"]}
    return {f"{kind}: {name}": value for kind, table in kinds.items() for name, value in table.items()}


def _without_lengths(found: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in found.items() if name != "lengths"}
