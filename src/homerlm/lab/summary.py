"""Records of an evaluation summarised: one row of numbers for each method and length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from homerlm.lab.records import OUT_OF_MEMORY
from homerlm.lab.tables import MOST_LENGTHS

PERPLEXITY_TASKS = ("perplexity", "passkey-perplexity")
MEANS = ("score", "likelihood_score", "tokens", "kept", "needle_kept")
NUMBERS = (
    *(*MEANS, "nll", "count", "depth", "prefill_s", "seconds", "peak_bytes", "limit"),
    *("weights_bytes", "constant_bytes", "kv_bytes", "transient_bytes", "total_bytes", "tensors_bytes"),
    *("kv_bound_bytes", "counted_kv_bytes", "first_token_s", "step_s", "floor_share", "step_floor_s", "n"),
)
OTHERS = ("error", "model", "dtype", "device", "chat", "text", "requests", "flops", "rates", "parts", "cell")
FILLED = {"task": "", "variant": "", "ask": "", "method": "(none)", "length": 0, "sample": 0, "seed": 0, "batch": 1}
ROW = ["variant", "ask", "method", "length"]
_Z95 = 1.959964
_FAMILIES = ("plain", "truncate", "streaming", "random", "bm25", "embed", "retri", "oracle", "pi", "ntk", "yarn")
_SETUP = ("model", "dtype", "device", "chat")


def frame_of(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as a table with a column for each known field; what is no finite number where one belongs is NaN.
    `requests`: a benchmark's seconds by new tokens."""
    frame = pd.DataFrame(list(records), dtype=object)
    frame = frame.assign(requests=frame.get("seconds")).reindex(columns=[*FILLED, *NUMBERS, *OTHERS])
    numbers = frame[[*NUMBERS]].apply(pd.to_numeric, errors="coerce").astype(float)
    frame[[*NUMBERS]] = numbers.replace([np.inf, -np.inf], np.nan)
    frame["error"] = frame["error"].where(frame["error"].astype(bool), None)
    types = {name: type(value) for name, value in FILLED.items() if name not in ("sample", "seed")}
    return frame.fillna(FILLED).astype(types)


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant, way of asking, method and length of one task's records: means over the samples that
    did not fail, medians of times, the highest memory. `n`: scored samples (documents, of perplexity); `low` and
    `high`: Wilson's 95% interval of the score; `failed`: `oom 3/50`, `error 1/50`, both or nothing.
    """
    task = records["task"].iloc[0]
    done, failed = (records[records["error"].isna() == whole] for whole in (True, False))
    aggregates: dict[str, Any] = {name: (name, "mean") for name in MEANS}
    aggregates |= {name: (name, "median") for name in ("prefill_s", "seconds")}
    aggregates |= {"peak_bytes": ("peak_bytes", "max"), "scores": ("score", "count"), "samples": ("score", "size")}
    aggregates |= {"likelihoods": ("nll", "count"), "nll": ("nll", "sum"), "count": ("count", "sum")}
    failures = {"errors": ("error", "size"), "out_of_memory": ("oom", "sum"), "first_error": ("error", "first")}
    failed = failed.assign(oom=failed["error"].astype(str).str.startswith(OUT_OF_MEMORY))
    rows = done.groupby(ROW).agg(**aggregates).join(failed.groupby(ROW).agg(**failures), how="outer")
    rows["n"] = rows["scores"].where(rows["scores"] > 0, rows["samples"])
    if task == "passkey-perplexity":
        rows["n"] = rows["likelihoods"]
    elif task == "perplexity":
        accumulated = _accumulated(records)
        rows = rows.drop(columns=accumulated.columns).join(accumulated)
    with np.errstate(over="ignore"):
        rows["perplexity"] = np.exp(rows["nll"].where(rows["count"] > 0) / rows["count"])
    counts = ["n", "errors", "out_of_memory"]
    rows[counts] = rows[counts].fillna(0).astype(int)
    rows["low"], rows["high"] = wilson(rows["score"], rows["n"])
    rows["failed"] = [_failed(row.n, row.errors, row.out_of_memory) for row in rows.itertuples()]
    return _in_order(rows.reset_index().assign(task=task, limit=limit_of(records)), records)


def _failed(n: int, errors: int, out_of_memory: int) -> str:
    kinds = {"oom": out_of_memory, "error": errors - out_of_memory}
    return ", ".join(f"{kind} {k}/{n + errors}" for kind, k in kinds.items() if k)


def _in_order(rows: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Variants and ways of asking as the records have them, the later ones last; methods by family; lengths rising."""
    pairs = list(dict.fromkeys(zip(records["variant"], records["ask"], strict=True)))
    order = [pairs.index(pair) for pair in zip(rows["variant"], rows["ask"], strict=True)]
    keys = {"later": rows["ask"] == "later", "order": order, "rank": ranks(rows["method"])}
    return rows.assign(**keys).sort_values([*keys, "length"])


def _accumulated(windows: pd.DataFrame) -> pd.DataFrame:
    """By method and length: documents that reach it without a failure, those that fail on the way, and the sums over
    all windows up to it of the former."""
    windows = windows.drop_duplicates([*ROW, "sample", "seed"], keep="last").sort_values("length")
    scored = windows["nll"].notna() & (windows["count"] > 0)
    windows = windows.assign(nll=windows["nll"].where(scored), count=windows["count"].where(scored))
    found = {}
    for key, method in windows.groupby(ROW[:-1]):
        ends = method.groupby(["sample", "seed"])["length"].max()
        for length in method["length"].unique():
            documents = method[method["length"] <= length].groupby(["sample", "seed"])
            errors = documents["error"].first()
            sums = documents[["nll", "count"]].sum()[errors.isna() & (ends.loc[errors.index] >= length)]
            found[(*key, length)] = {
                "n": len(sums),
                "errors": errors.count(),
                "out_of_memory": errors.astype(str).str.startswith(OUT_OF_MEMORY).sum(),
                "first_error": next(iter(errors.dropna()), None),
                **sums.sum(),
            }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(ROW)


def wilson(share: Any, n: Any) -> tuple[Any, Any]:
    """Wilson's 95% interval of a share among n > 0 samples. For shares of a sample (2 of 4 names) it is wider than
    need be."""
    spread = _Z95**2 / n
    middle = share + spread / 2
    half = _Z95 * np.sqrt(share * (1 - share) / n + spread / (4 * n))
    return np.maximum((middle - half) / (1 + spread), 0.0), np.minimum((middle + half) / (1 + spread), 1.0)


def method_rank(method: str) -> tuple[bool, int, float, str]:
    """Sorts methods: the others before HOMER, each by RoPE scaling and its factor."""
    numbers = re.findall(r"\d+(?:\.\d+)?", method)
    families = [k for k, family in enumerate(_FAMILIES) if family in re.split(r"[^a-z0-9]+", method.lower())]
    return "homer" in method, max(families, default=-1), float(numbers[-1]) if numbers else 0.0, method


def ranks(methods: pd.Series) -> pd.Series:
    """The place of each in the order of `method_rank`."""
    return methods.map(sorted(methods.unique(), key=method_rank).index)


def one_setup(records: pd.DataFrame) -> pd.DataFrame:
    """One task's records, with what differs (model, device, chat template ...) behind the method: nothing is mixed."""
    told = records[[*_SETUP, "text"]].astype(object)
    told = told.where(told.notna(), None).map(str)
    told["chat"] = told["chat"].map({"True": "chat template"}).fillna("plain text")
    several = told["text"].groupby(records["variant"]).transform("nunique") > 1
    differing = [told[name] for name in _SETUP if told[name].nunique() > 1] + [told["text"].where(several, "")]
    parts = [values.str.rstrip("/").str.rsplit("/", n=1).str[-1] for values in differing]  # names without their folders
    behind = [", ".join(filter(None, row)) for row in zip(*parts, strict=True)]
    methods = zip(records["method"], behind, strict=True)
    return records.assign(method=[f"{method} ({parts})" if parts else method for method, parts in methods])


def rounded_lengths(records: pd.DataFrame) -> pd.DataFrame:
    """Lengths raised to a power of two where there are too many to tell apart, as with real documents. A length of 0
    means that the document was not made to measure: its tokens count."""
    lengths = records["length"].where(records["length"] > 0, records["tokens"].fillna(0)).astype(int)
    if lengths.nunique() > MOST_LENGTHS:
        lengths = lengths.map(lambda n: 1 << max(n - 1, 0).bit_length())
    return records.assign(length=lengths)


def limit_of(records: pd.DataFrame) -> float:
    """The model's own limit: the lowest of a record, as scaled RoPE raises it; NaN for several models."""
    return records["limit"].min() if records["model"].map(str).nunique() == 1 else np.nan
