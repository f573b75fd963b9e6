"""Records of an evaluation summarised: one row of numbers for each method and length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from homerlm.lab.records import OUT_OF_MEMORY

PERPLEXITY_TASKS = ("perplexity", "passkey-perplexity")
MOST_LENGTHS = 12  # a table with more columns than this is not read
TEXTS = ("task", "variant", "ask", "method", "error", "model", "dtype", "device", "chat", "text")
MEANS = ("score", "likelihood_score", "tokens", "kept", "needle_kept")
NUMBERS = (*MEANS, "nll", "count", "depth", "prefill_s", "seconds", "peak_bytes", "limit")
ROW = ["variant", "ask", "method", "length"]
_Z95 = 1.959964
_FAMILIES = ("plain", "truncate", "streaming", "random", "bm25", "embed", "retri", "oracle", "pi", "ntk", "yarn")
_SETUP = ("model", "dtype", "device", "chat")


def frame_of(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as a table with a column for each known field; what is no finite number where one belongs is NaN."""
    frame = pd.DataFrame(list(records), dtype=object)
    frame = frame.reindex(columns=[*TEXTS, *NUMBERS, "length", "sample", "seed", "versions", "settings"])
    for name in NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
    frame["length"] = frame["length"].astype(int)
    frame["error"] = frame["error"].where(frame["error"].astype(bool), None)
    filled = {"variant": "", "ask": "", "method": "", "sample": 0, "seed": 0}
    return frame.fillna(filled).astype(dict.fromkeys(("task", "variant", "ask", "method"), str))


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant, way of asking, method and length of one task's records: means over the samples that
    did not fail, medians of times, the highest memory. `n`: scored samples (documents, of perplexity); `low` and
    `high`: Wilson's 95% interval of the score; `failed`: `oom 3/50`, `error 1/50`, both or nothing.
    """
    task = records["task"].iloc[0]
    done = records[records["error"].isna()]
    aggregates: dict[str, Any] = {name: (name, "mean") for name in MEANS}
    aggregates |= {name: (name, "median") for name in ("prefill_s", "seconds")}
    aggregates |= {"peak_bytes": ("peak_bytes", "max"), "scores": ("score", "count"), "samples": ("score", "size")}
    aggregates |= {"likelihoods": ("nll", "count"), "nll": ("nll", "sum"), "count": ("count", "sum")}
    rows = done.groupby(ROW).agg(**aggregates).join(_failures(records), how="outer")
    rows["n"] = rows["scores"].where(rows["scores"] > 0, rows["samples"])
    rows["perplexity"] = np.nan
    if task == "passkey-perplexity":
        rows["n"], rows["perplexity"] = rows["likelihoods"], _perplexity(rows["nll"], rows["count"])
    elif task == "perplexity":
        by_method = [_accumulated(windows) for _, windows in records.groupby(ROW[:-1])]
        rows = rows.drop(columns=by_method[0].columns, errors="ignore").join(pd.concat(by_method))
    counts = ["n", "errors", "out_of_memory"]
    rows[counts] = rows[counts].fillna(0).astype(int)
    rows["low"], rows["high"] = wilson(rows["score"], rows["n"])
    rows["failed"] = [_failed(row.n, row.errors, row.out_of_memory) for row in rows.itertuples()]
    return _in_order(rows.reset_index().assign(task=task), records)


def _failures(records: pd.DataFrame) -> pd.DataFrame:
    failed = records[records["error"].notna()]
    failed = failed.assign(out_of_memory=failed["error"].astype(str).str.startswith(OUT_OF_MEMORY))
    return failed.groupby(ROW).agg(
        errors=("error", "size"), out_of_memory=("out_of_memory", "sum"), first_error=("error", "first")
    )


def _failed(n: int, errors: int, out_of_memory: int) -> str:
    kinds = {"oom": out_of_memory, "error": errors - out_of_memory}
    return ", ".join(f"{kind} {k}/{n + errors}" for kind, k in kinds.items() if k)


def _in_order(rows: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Variants and ways of asking as the records have them, the later ones last; methods by family; lengths rising."""
    order = {pair: k for k, pair in enumerate(dict.fromkeys(zip(records["variant"], records["ask"], strict=True)))}
    place = {
        row.Index: (row.ask == "later", order[row.variant, row.ask], method_rank(row.method), row.length)
        for row in rows.itertuples()
    }
    return rows.loc[sorted(rows.index, key=place.__getitem__)]


def _accumulated(windows: pd.DataFrame) -> pd.DataFrame:
    """By length, of one method: documents that reach it without a failure, those that fail on the way, and the
    perplexity of all windows up to it of the former."""
    windows = windows.drop_duplicates(["length", "sample", "seed"], keep="last")
    by_document = {
        name: windows.assign(end=windows["length"]).pivot(index="length", columns=["sample", "seed"], values=name)
        for name in ("end", "error", "nll", "count")
    }
    errors = by_document["error"]
    first = errors.where(errors.notna().cumsum() == 1).ffill()
    whole = by_document["end"].bfill().notna() & first.isna()
    used = by_document["nll"].notna() & (by_document["count"] > 0)
    nll, count = ((by_document[name].where(used, 0).cumsum() * whole).sum(axis=1) for name in ("nll", "count"))
    found = pd.DataFrame({"n": whole.sum(axis=1), "errors": first.notna().sum(axis=1)})
    found["out_of_memory"] = [sum(str(text).startswith(OUT_OF_MEMORY) for text in row) for row in first.to_numpy()]
    found["first_error"] = first.bfill(axis=1).iloc[:, 0]
    found["perplexity"] = _perplexity(nll, count)
    keys = windows[ROW[:-1]].iloc[0]
    return pd.concat({tuple(keys): found}, names=ROW[:-1])


def _perplexity(nll: pd.Series, count: pd.Series) -> pd.Series:
    with np.errstate(over="ignore"):
        return np.exp(nll.where(count > 0) / count)


def wilson(share: Any, n: Any) -> tuple[Any, Any]:
    """Wilson's 95% interval of a share among n > 0 samples. For shares of a sample (2 of 4 names) it is wider than
    need be."""
    spread = _Z95**2 / n
    middle = share + spread / 2
    half = _Z95 * np.sqrt(share * (1 - share) / n + spread / (4 * n))
    return np.maximum((middle - half) / (1 + spread), 0.0), np.minimum((middle + half) / (1 + spread), 1.0)


def method_rank(method: str) -> tuple[int, int, float, str]:
    """Sorts methods: the others before HOMER, each by RoPE scaling and its factor."""
    numbers = re.findall(r"\d+(?:\.\d+)?", method)
    families = [k for k, family in enumerate(_FAMILIES) if family in re.split(r"[^a-z0-9]+", method.lower())]
    return "homer" in method, max(families, default=-1), float(numbers[-1]) if numbers else 0.0, method


def one_setup(records: pd.DataFrame) -> pd.DataFrame:
    """One task's records, with what differs (model, device, chat template ...) behind the method: nothing is mixed."""
    records = records.astype(dict.fromkeys(_SETUP, object))
    records = records.assign(**{name: records[name].where(records[name].notna(), None) for name in _SETUP})
    differing = [name for name in _SETUP if records[name].map(str).nunique() > 1]
    texts = records["text"].map(str).groupby(records["variant"]).transform("nunique") > 1
    methods = []
    for row, several in zip(records.to_dict("records"), texts, strict=True):
        behind = ", ".join(_short(name, row[name]) for name in [*differing, *(["text"] if several else [])])
        methods.append(f"{row['method']} ({behind})" if behind else row["method"])
    return records.assign(method=methods)


def _short(name: str, value: Any) -> str:
    if name == "chat":
        return "chat template" if value else "plain text"
    return str(value).rstrip("/").rsplit("/", 1)[-1]


def rounded_lengths(records: pd.DataFrame) -> pd.DataFrame:
    """Lengths raised to a power of two where there are too many to tell apart, as with real documents. A length of 0
    means that the document was not made to measure: its tokens count."""
    lengths = records["length"].where(records["length"] > 0, records["tokens"].fillna(0)).astype(int)
    if lengths.nunique() > MOST_LENGTHS:
        lengths = lengths.map(lambda n: 1 << max(n - 1, 0).bit_length())
    return records.assign(length=lengths)


def limit_of(records: pd.DataFrame) -> int | None:
    """The model's own limit: the lowest of a record, as scaled RoPE raises it; `None` for several models."""
    limits = records["limit"].dropna()
    return int(limits.min()) if len(limits) and records["model"].map(str).nunique() == 1 else None
