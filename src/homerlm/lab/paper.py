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


@dataclass(frozen=True)
class PaperTable:
    """`rows` by method as the paper names it, a value for each of `lengths`, `None` where it prints NaN or nothing."""

    number: str
    who: str
    lengths: tuple[int, ...]
    rows: dict[str, tuple[float | None, ...]]


@cache
def results() -> dict[str, Any]:
    text = resources.files("homerlm").joinpath("data", "paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def paper_table(task: str) -> PaperTable | None:
    """What the paper has by length for this task, or `None`."""
    tables = results()
    if task == "passkey":
        found = tables["passkey_accuracy"]
        return PaperTable("table 1", CHAT, tuple(found["lengths"]), _rows(found["Llama-2-7b-chat"]))
    if task == "perplexity":
        found = tables["pg19_perplexity"]
        return PaperTable("table 3", BASE, tuple(found["lengths"]), _rows(found["Llama-2-7b"]))
    if task == "passkey-perplexity":
        found = dict(tables["passkey_perplexity"])
        return PaperTable("table 9", CHAT, tuple(found.pop("lengths")), _rows(found))
    if task == "memory":
        found = dict(tables["peak_memory_gb_a100_llama2_7b"])
        return PaperTable("table 5, everything in use", f"{BASE}, A100", tuple(found.pop("lengths")), _rows(found))
    return None


def seconds() -> dict[int, PaperTable]:
    """Table 8: seconds of a request by the number of new tokens."""
    found = dict(results()["seconds_a100_llama2_7b"])
    lengths = tuple(found.pop("lengths"))
    return {int(new): PaperTable("table 8", f"{BASE}, A100", lengths, _rows(rows)) for new, rows in found.items()}


def quality() -> dict[str, float]:
    """Table 2: share right on QuALITY by method; one number for all lengths."""
    found: dict[str, float] = results()["quality_accuracy"]
    return found


def ablation() -> dict[str, float]:
    """Tables 4a and 4b: share right on passkeys at 16k, by the rows' names in an ablation here."""
    tables = results()["ablation_passkey_16k"]
    kinds = {"score": tables["pruning"], "refinement": tables["refinement"]}
    return {f"{kind}: {name}": value for kind, table in kinds.items() for name, value in table.items()}


def _rows(found: dict[str, list[float | None]]) -> dict[str, tuple[float | None, ...]]:
    return {name: tuple(values) for name, values in found.items()}
