"""Tables of `homer bench`: memory, time and operations by method and length, beside the paper's tables 5 and 8."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from homerlm.formatting import size
from homerlm.lab import paper
from homerlm.lab.case import SOURCE, source_name
from homerlm.lab.profile import PARTS
from homerlm.lab.records import OUT_OF_MEMORY
from homerlm.lab.summary import limit_of, method_rank, one_setup
from homerlm.lab.tables import DASH, Section, Show, Table, by_length, failures, length_columns

FACTS = ("model", "device", "dtype", "chat", "limit")
COLUMNS = (
    *("task", "method", "error", *FACTS, "variant", "text", "cell", "batch", "length", "n", "kept"),
    *("weights_bytes", "constant_bytes", "peak_bytes", "kv_bytes", "transient_bytes", "total_bytes", "tensors_bytes"),
    *("kv_bound_bytes", "counted_kv_bytes", "prefill_s", "first_token_s", "step_s", "floor_share", "step_floor_s"),
    *("seconds", "flops", "rates", "parts"),
)
_FAILED = {OUT_OF_MEMORY: "oom", "timeout": "timeout"}


def bench_sections(records: Sequence[dict[str, Any]]) -> list[Section]:
    """Memory, time and operations of the cases that were measured; where the time goes, of those profiled."""
    frame = pd.DataFrame(completed(records), dtype=object).reindex(columns=list(COLUMNS))
    measured, profiled = (frame[frame["task"] == task] for task in ("bench", "profile"))
    made = []
    if len(measured):
        measured = _in_order(measured)
        times = [_requests(measured), _table(*FIRST_TOKEN, measured), _table(*STEP, measured)]
        made.append(Section("memory", "Memory", measured, _memory(measured)))
        made.append(Section("time", "Time", measured, times))
        made.append(Section("counts", "Counted, not timed", measured, [_operations(measured)]))
    if len(profiled):
        profiled = _in_order(profiled)
        made.append(Section("profile", "Where the time of reading goes", profiled, [_profile(profiled)]))
    return made


def completed(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A case that was killed could not say what it ran on: that is taken from another of the same source (or, but for
    the model, from any), so that the row stays in the method's line."""

    def source(record: dict[str, Any]) -> str:
        return repr([record["cell"].get(name) for name in SOURCE])

    done = [record for record in records if not record.get("error")]
    known = {source(record): {name: record.get(name) for name in FACTS} for record in done}
    some = next(iter(known.values()), {})
    made = []
    for record in records:
        other = some | {"model": source_name(record["cell"])}
        facts = known.get(source(record), other) if record.get("error") else {}
        made.append({**facts, **record, "batch": record["cell"]["batch"]})
    return made


def _in_order(records: pd.DataFrame) -> pd.DataFrame:
    """By batch, method and length, each set-up under a name of its own; `group` is the batch where it needs saying."""
    records = one_setup(records.fillna({"variant": ""}))
    several = set(records["batch"]) != {1}
    records = records.assign(
        group=[f"batch {batch}" if several else "" for batch in records["batch"]],
        first_error=records["error"],
        rank=records["method"].map(method_rank),
    )
    return records.sort_values(["batch", "rank", "length"], kind="stable")


def _lengths(records: pd.DataFrame, others: Sequence[int] = ()) -> list[int]:
    return sorted({*records["length"], *others})


def _unless_failed(show: Show) -> Show:
    def entry(row: Any) -> str:
        if pd.isna(row.error):
            return show(row)
        return next((short for start, short in _FAILED.items() if row.error.startswith(start)), "error")

    return entry


def _table(title: str, show: Show, note: str, records: pd.DataFrame, others: Sequence[int] = ()) -> Table:
    return by_length(title, records, _unless_failed(show), _lengths(records, others), limit_of(records), note)


TOTAL = (
    "Peak memory, everything in use: total (weights, constant) (table 5)",
    lambda row: f"{size(row.total_bytes)} ({size(row.weights_bytes)}, {size(row.constant_bytes)})",
    "Weights, what any prompt leaves behind (Python's modules on a CPU, libraries' copies and workspaces), and the "
    "highest use above these while the prompt is read and new tokens are written.",
)
ABOVE = (
    "Memory above the loaded model: peak (keys and values, transient)",
    lambda row: f"{size(row.peak_bytes)} ({size(row.kv_bytes)}, {size(row.transient_bytes)})",
    "Peak above the model after its first, short prompt; of it the keys and values of the finished cache.",
)
TENSORS = (
    "Tensors alive at once while the prompt is read: peak (appendix A's bound)",
    lambda row: size(row.tensors_bytes) + ("" if pd.isna(row.kv_bound_bytes) else f" ({size(row.kv_bound_bytes)})"),
    "Exact, without libraries' workspaces and what an allocator keeps. Appendix A bounds the keys and values of the "
    "walk by (h/2 + 1) L C_max.",
)
FIRST_TOKEN = (
    "Time to first token; tokens read a second; share of the floor",
    lambda row: (
        f"{_seconds(row.first_token_s)} {row.length * row.batch / row.prefill_s:,.0f}/s"
        + ("" if pd.isna(row.floor_share) else f", {row.floor_share:.0%}")
    ),
    "Median until the first new token is known. The floor: the counted operations at the rates that this machine "
    "reached on the model's own matrices and on attention just after; its share of the reading time in percent (above "
    "100% if the machine was busier then).",
)
STEP = (
    "Milliseconds for each new token; share of the floor",
    lambda row: (
        f"{row.step_s * 1e3:,.1f} ms" + ("" if pd.isna(row.step_floor_s) else f" {row.step_floor_s / row.step_s:.0%}")
    ),
    "The floor: every weight, and every key and value, read once at the machine's copy bandwidth.",
)


def _memory(records: pd.DataFrame) -> list[Table]:
    printed = paper.paper_table("memory")
    assert printed is not None
    total = _table(*TOTAL, records, printed.lengths)
    total.note = f"{total.note} {failures(records)}".strip()
    total.add_paper(printed, _lengths(records, printed.lengths), lambda _name, _length, value: f"{value:.1f} GB")
    counted = records[records["tensors_bytes"].notna()]
    return [total, _table(*ABOVE, records), *([_table(*TENSORS, counted)] if len(counted) else [])]


def _requests(records: pd.DataFrame) -> Table:
    """Table 8: seconds of a request by new tokens, beside the plain model's."""
    printed = paper.seconds()
    lengths = _lengths(records, next(iter(printed.values())).lengths)
    title = "Seconds of a request, reading included; times the plain model's speed (table 8)"
    table = Table(title, ["method", *length_columns(lengths, limit_of(records))])
    done = records[records["error"].isna()]
    plain = done[done["method"].str.split(" ").str[0] == "plain"].drop_duplicates(["length", "batch"])
    base = {(row.length, row.batch): row.seconds for row in plain.itertuples()}
    for count in sorted({int(count) for seconds in done["seconds"] for count in seconds}):

        def show(row: Any, count: str = str(count)) -> str:
            other = base.get((row.length, row.batch), {})
            compared = other is not row.seconds and count in other
            return _seconds(row.seconds[count]) + (f" {other[count] / row.seconds[count]:.1f}×" if compared else "")

        having = [not pd.isna(row.error) or str(count) in row.seconds for row in records.itertuples()]
        table.add_methods(records[having], _unless_failed(show), lengths, f"{count} new tokens")
        if count in printed:
            table.add_paper(printed[count], lengths, _paper_seconds(printed[count]))
    return table


def _paper_seconds(table: paper.PaperTable) -> Callable[[str, int, float], str]:
    base = dict(zip(table.lengths, table.rows["baselines"], strict=True))

    def show(name: str, length: int, value: float) -> str:
        plain = base[length]
        return _seconds(value) + (f" {plain / value:.1f}×" if plain and name != "baselines" else "")

    return show


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _operations(records: pd.DataFrame) -> Table:
    rates = list(records["rates"].dropna())
    note = "One multiply-add is two operations; attention counts every query with every key of its chunk."
    if rates:
        usual = {name: statistics.median(rate[name] for rate in rates) / 1e9 for name in rates[0]}
        note += (
            f" Measured here (medians): {usual['matmul']:,.0f} GFLOP/s in matrices, {usual['attention']:,.0f} in "
            f"attention, {usual['copy']:,.0f} GB/s copied (each byte read and written)."
        )

    def show(row: Any) -> str:
        if not isinstance(row.flops, dict):
            return f"{DASH} {row.kept:,}"
        total = row.flops["total"]
        places = 0 if total >= 1e14 else 2
        return f"{total / 1e12:,.{places}f} TFLOP {size(row.counted_kv_bytes)}, {row.kept:,}"

    return _table("Operations of reading; keys and values at the peak; tokens kept", show, note, records)


def _profile(records: pd.DataFrame) -> Table:
    """Parts as rows, methods and lengths as columns."""
    columns = [f"{row.method} ({row.length:,} tokens)" for row in records.itertuples()]
    table = Table("Milliseconds of one reading; share of the whole", ["part", *columns])
    parts = [row.parts if pd.isna(row.error) else {} for row in records.itertuples()]
    wholes = [sum(found.values()) for found in parts]
    whole = _unless_failed(lambda row: f"{sum(row.parts.values()) * 1e3:,.0f}")
    table.rows.append(["whole", *(whole(row) for row in records.itertuples())])
    for part in PARTS:
        shares = zip((found.get(part) for found in parts), wholes, strict=True)
        table.rows.append([part, *("" if s is None else f"{s * 1e3:,.0f} {s / total:.0%}" for s, total in shares)])
    table.note = f"Marking where parts begin and end costs a little itself. {failures(records)}".strip()
    return table
