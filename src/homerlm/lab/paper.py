"""The paper's results (arXiv 2404.10308), to print beside ours."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

LIMIT = 4096  # of Llama-2: to compare at the same multiple of a model's limit
CHAT = "paper, Llama-2-7b-chat"
BASE = "paper, Llama-2-7b"
ABLATION_LENGTH = 16384

_BY_LENGTH = {  # task: whose numbers and which table, then where the file has its lengths and rows
    "passkey": (f"{CHAT}, table 1", "passkey_accuracy", "Llama-2-7b-chat"),
    "perplexity": (f"{BASE}, table 3", "pg19_perplexity", "Llama-2-7b"),
    "passkey-perplexity": (f"{CHAT}, table 9", "passkey_perplexity", None),
    "memory": (f"{BASE}, A100, table 5, everything in use", "peak_memory_gb_a100_llama2_7b", None),
}


@cache
def results() -> dict[str, Any]:
    text = resources.files("homerlm").joinpath("data", "paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def by_length(task: str) -> pd.DataFrame | None:
    """The numbers of a task by (heading, method) and length, NaN where the paper prints none; `None` if it has none."""
    if task not in _BY_LENGTH:
        return None
    heading, name, model = _BY_LENGTH[task]
    found = results()[name]
    return _frame(f"{heading} (limit {LIMIT:,})", found, found[model] if model else found)


def seconds() -> dict[int, pd.DataFrame]:
    """Table 8: seconds of a request by the number of new tokens, the baselines' first."""
    found = results()["seconds_a100_llama2_7b"]
    return {int(new): _frame(f"{BASE}, A100, table 8", found, found[new]) for new in found if new != "lengths"}


def quality() -> dict[str, float]:
    """Table 2: share right on QuALITY by method; one number for all lengths."""
    found: dict[str, float] = results()["quality_accuracy"]
    return found


def ablation() -> dict[str, float]:
    """Tables 4a and 4b: share right on passkeys at 16k, by the rows' names in an ablation here."""
    tables = results()["ablation_passkey_16k"]
    kinds = {"score": tables["pruning"], "refinement": tables["refinement"]}
    return {f"{kind}: {name}": value for kind, table in kinds.items() for name, value in table.items()}


def _frame(heading: str, found: dict[str, Any], rows: dict[str, list[float | None]]) -> pd.DataFrame:
    named = {f"paper: {name}": values for name, values in rows.items() if name != "lengths"}
    index = pd.MultiIndex.from_product([[heading], named])
    return pd.DataFrame([*named.values()], index=index, columns=found["lengths"], dtype=float)
