"""Tables of `homer bench`: memory, time and operations by method and length, beside the paper's tables 5 and 8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from homerlm.formatting import size
from homerlm.lab import paper
from homerlm.lab.case import SOURCE, source_name
from homerlm.lab.profile import PARTS
from homerlm.lab.records import OUT_OF_MEMORY
from homerlm.lab.summary import limit_of, one_setup, ranks
from homerlm.lab.tables import DASH, Kind, Section, Table, by_length, failures, length_columns, shown_lengths

FACTS = ["model", "device", "dtype", "chat", "limit"]
_FAILED = {OUT_OF_MEMORY: "oom", "timeout": "timeout"}


def bench_sections(frame: pd.DataFrame) -> list[Section]:
    """Memory, time and operations of the cases that were measured; where the time goes, of those profiled."""
    frame = completed(frame)
    made = []
    if len(measured := _in_order(frame[frame["task"] == "bench"])):
        made.append(Section("memory", "Memory", measured, list(_memory(measured))))
        made.append(Section("time", "Time", measured, list(_times(measured))))
        made.append(Section("counts", "Counted, not timed", measured, [_operations(measured)]))
    if len(profiled := _in_order(frame[frame["task"] == "profile"])):
        made.append(Section("profile", "Where the time of reading goes", profiled, [_profile(profiled)]))
    return made


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """A case that was killed could not say what it ran on: that is taken from another of the same source (or, but for
    the model, from any), so that the row stays in the method's line."""
    source = frame["cell"].map(lambda cell: repr([cell.get(name) for name in SOURCE]))
    facts = frame.groupby(source)[FACTS].transform("first").astype(object)
    others = facts.bfill().iloc[:1].squeeze().to_dict() | {"model": frame["cell"].map(source_name)}
    for name in FACTS:
        facts[name] = facts[name].where(facts[name].notna(), others[name])
    known = frame["error"].isna()
    return frame.assign(
        **{name: frame[name].where(known, facts[name]) for name in FACTS}, batch=frame["cell"].str["batch"]
    )


def _in_order(records: pd.DataFrame) -> pd.DataFrame:
    """By batch, method and length, each set-up under a name of its own; `group` is the batch where it needs saying."""
    if not len(records):
        return records
    records = one_setup(records)
    batches = "batch " + records["batch"].astype(str) if set(records["batch"]) != {1} else ""
    records = records.assign(group=batches, first_error=records["error"], rank=ranks(records["method"]))
    return records.sort_values(["batch", "rank", "length"], kind="stable")


def _operations_of(row: Any) -> str:
    if not isinstance(row.flops, dict):
        return f"{DASH} {row.kept:,.0f}"
    total = row.flops["total"]
    places = 0 if total >= 1e14 else 2
    return f"{total / 1e12:,.{places}f} TFLOP {size(row.counted_kv_bytes)}, {row.kept:,.0f}"


TOTAL = Kind(
    "Peak memory, everything in use: total (weights, constant) (table 5)",
    lambda row: f"{size(row.total_bytes)} ({size(row.weights_bytes)}, {size(row.constant_bytes)})",
    "Weights, what any prompt leaves behind (Python's modules on a CPU, libraries' copies and workspaces), and the "
    "highest use above these while the prompt is read and new tokens are written.",
)
ABOVE = Kind(
    "Memory above the loaded model: peak (keys and values, transient)",
    lambda row: f"{size(row.peak_bytes)} ({size(row.kv_bytes)}, {size(row.transient_bytes)})",
    "Peak above the model after its first, short prompt; of it the keys and values of the finished cache.",
)
TENSORS = Kind(
    "Tensors alive at once while the prompt is read: peak (appendix A's bound)",
    lambda row: size(row.tensors_bytes) + ("" if pd.isna(row.kv_bound_bytes) else f" ({size(row.kv_bound_bytes)})"),
    "Exact, without libraries' workspaces and what an allocator keeps. Appendix A bounds the keys and values of the "
    "walk by (h/2 + 1) L C_max.",
)
FIRST_TOKEN = Kind(
    "Time to first token; tokens read a second; share of the floor",
    lambda row: (
        f"{_seconds(row.first_token_s)} {row.length * row.batch / row.prefill_s:,.0f}/s"
        + ("" if pd.isna(row.floor_share) else f", {row.floor_share:.0%}")
    ),
    "Median until the first new token is known. The floor: the counted operations at the rates that this machine "
    "reached on the model's own matrices and on attention just after; its share of the reading time in percent "
    "(above 100% if the machine was busier then).",
)
NEW_TOKEN = Kind(
    "Milliseconds for each new token; share of the floor",
    lambda row: (
        f"{row.step_s * 1e3:,.1f} ms" + ("" if pd.isna(row.step_floor_s) else f" {row.step_floor_s / row.step_s:.0%}")
    ),
    "The floor: every weight, and every key and value, read once at the machine's copy bandwidth.",
)
OPERATIONS = Kind(
    "Operations of reading; keys and values at the peak; tokens kept",
    _operations_of,
    "One multiply-add is two operations; attention counts every query with every key of its chunk.",
)


def _table(kind: Kind, records: pd.DataFrame, printed: pd.DataFrame | None = None) -> Table:
    records = records.assign(limit=limit_of(records))
    return by_length(kind._replace(cell=lambda row: _failed(row) or kind.cell(row)), records, printed)


def _failed(row: Any) -> str:
    """Why a case has no numbers, in a word; nothing where it has."""
    if pd.isna(row.error):
        return ""
    return next((short for start, short in _FAILED.items() if row.error.startswith(start)), "error")


def _memory(records: pd.DataFrame) -> Iterator[Table]:
    printed = paper.by_length("memory")
    assert printed is not None
    total = _table(TOTAL, records, printed.map(lambda value: DASH if pd.isna(value) else f"{value:.1f} GB"))
    total.note = f"{total.note} {failures(records)}".strip()
    yield total
    yield _table(ABOVE, records)
    if len(having := records[records["tensors_bytes"].notna()]):
        yield _table(TENSORS, having)


def _times(records: pd.DataFrame) -> Iterator[Table]:
    if records["requests"].notna().any():
        yield _requests(records)
    yield from (_table(kind, records) for kind in (FIRST_TOKEN, NEW_TOKEN))


def _requests(records: pd.DataFrame) -> Table:
    """Table 8: seconds of a request by new tokens, beside the plain model's."""
    printed, blocks = paper.seconds(), []
    for count in sorted({int(count) for seconds in records["requests"].dropna() for count in seconds}):
        rows = records.assign(request=records["requests"].str[str(count)])
        rows = rows[rows["request"].notna() | rows["error"].notna()]
        group = f"{count} new tokens" + (", " + rows["group"]).where(rows["group"] != "", "")
        plain = rows[rows["method"].str.split(" ").str[0].eq("plain") & rows["error"].isna()]
        plain = plain.drop_duplicates(["length", "batch"])
        rows = rows.join(plain.set_index(["length", "batch"])["request"].rename("plain"), on=["length", "batch"])
        rows = rows.assign(group=group, plain=rows["plain"].where(~rows.index.isin(plain.index)))
        texts = printed[count].apply(_paper_requests) if count in printed else None
        blocks.append(_table(Kind("", lambda row: _request(row.request, row.plain)), rows, texts).cells)
    lengths = shown_lengths(records, next(iter(printed.values())))
    columns = length_columns(lengths, records.assign(limit=limit_of(records)))
    cells = pd.concat(blocks).reindex(columns=columns).fillna("")
    return Table("Seconds of a request, reading included; times the plain model's speed (table 8)", cells)


def _paper_requests(column: pd.Series) -> list[str]:
    """The texts of a length; the first row is the plain model's."""
    plain, *ours = column
    return [_request(plain, None), *(_request(value, plain) for value in ours)]


def _request(seconds: float, plain: float | None) -> str:
    if pd.isna(seconds):
        return DASH
    return _seconds(seconds) + ("" if plain is None or pd.isna(plain) else f" {plain / seconds:.1f}×")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _operations(records: pd.DataFrame) -> Table:
    table, rates = _table(OPERATIONS, records), pd.DataFrame([*records["rates"].dropna()])
    if len(rates):
        usual = rates.median() / 1e9
        table.note += (
            f" Measured here (medians): {usual['matmul']:,.0f} GFLOP/s in matrices, {usual['attention']:,.0f} in "
            f"attention, {usual['copy']:,.0f} GB/s copied (each byte read and written)."
        )
    return table


def _profile(records: pd.DataFrame) -> Table:
    """Parts as rows, methods and lengths as columns."""
    columns = {}
    for row in records.itertuples():
        parts = row.parts if pd.isna(row.error) else {}
        whole = sum(parts.values())
        shares = {part: f"{seconds * 1e3:,.0f} {seconds / whole:.0%}" for part, seconds in parts.items()}
        texts = [_failed(row) or f"{whole * 1e3:,.0f}", *(shares.get(part, "") for part in PARTS)]
        columns[f"{row.method} ({row.length:,} tokens)"] = texts
    index = pd.MultiIndex.from_product([[""], ["whole", *PARTS]])
    note = f"Marking where parts begin and end costs a little itself. {failures(records)}".strip()
    return Table("Milliseconds of one reading; share of the whole", pd.DataFrame(columns, index), note, "part")
