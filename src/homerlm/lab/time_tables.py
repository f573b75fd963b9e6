"""What a request and its parts take and cost, beside the plain model's, the paper's table 8 and the counted floor."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

from homerlm.formatting import size
from homerlm.lab import paper
from homerlm.lab.grids import Record, add_rows, by_length, entry_of, failures, lengths_of, times_limit
from homerlm.lab.profile import PARTS
from homerlm.lab.tables import DASH, Entry, Grid, Row


def requests(records: Sequence[Record]) -> Grid:
    """Table 8: seconds of a request by new tokens, beside the plain model's."""
    tables = paper.seconds()
    lengths = lengths_of(records, next(iter(tables.values())).lengths)
    columns = [(f"{n:,}", times_limit(n, records)) for n in lengths]
    grid = Grid("Seconds of a request, reading included; times the plain model's speed (table 8)", "method", columns)
    plain = _plain(records)
    numbers = sorted({int(count) for record in records for count in record.get("seconds", ())})
    for count in numbers:
        having = [record for record in records if record.get("error") or str(count) in record["seconds"]]
        add_rows(grid, having, lengths, partial(_request, new_tokens=count, plain=plain), f"{count} new tokens")
        if count in tables:
            _add_paper_seconds(grid, tables[count], lengths)
    return grid


def _plain(records: Sequence[Record]) -> dict[tuple[int, int], Record]:
    """The plain model's records by length and batch; the first where there are several set-ups."""
    found: dict[tuple[int, int], Record] = {}
    for record in records:
        if not record.get("error") and record["method"].partition(" ")[0] == "plain":
            found.setdefault((record["length"], record["batch"]), record)
    return found


def _request(record: Record, new_tokens: int, plain: dict[tuple[int, int], Record]) -> Entry:
    seconds = record["seconds"][str(new_tokens)]
    base = plain.get((record["length"], record["batch"]))
    compared = base is not None and base is not record and str(new_tokens) in base["seconds"]
    speed_up = f"{base['seconds'][str(new_tokens)] / seconds:.1f}×" if base and compared else ""
    return Entry(_seconds(seconds), speed_up)


def _add_paper_seconds(grid: Grid, table: paper.PaperTable, lengths: Sequence[int]) -> None:
    grid.rows.append(Row(f"{table.who}, {table.number}", kind="group"))
    base = dict(zip(table.lengths, table.rows["baselines"], strict=True))
    for name, values in table.rows.items():
        known = dict(zip(table.lengths, values, strict=True))
        entries = []
        for n in lengths:
            value, plain = known.get(n), base.get(n)
            speed_up = f"{plain / value:.1f}×" if value and plain and name != "baselines" else ""
            entries.append(Entry(_seconds(value) if value else DASH if n in known else "", speed_up))
        grid.rows.append(Row(f"paper: {name}", tuple(entries), kind="paper"))


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def prefill(records: Sequence[Record]) -> Grid:
    note = (
        "Median until the first new token is known. The floor: the counted operations at the rates that this machine "
        "reached on the model's own matrices and on attention just after; its share of the reading time in percent "
        "(above 100% if the machine was busier then)."
    )
    return by_length("Time to first token; tokens read a second; share of the floor", records, _first_token, note)


def _first_token(record: Record) -> Entry:
    speed = record["length"] * record["batch"] / record["prefill_s"]
    share = f", {record['floor_share']:.0%}" if "floor_share" in record else ""
    return Entry(_seconds(record["first_token_s"]), f"{speed:,.0f}/s{share}")


def steps(records: Sequence[Record]) -> Grid:
    note = "The floor: every weight, and every key and value, read once at the machine's copy bandwidth."
    return by_length("Milliseconds for each new token; share of the floor", records, _step, note)


def _step(record: Record) -> Entry:
    share = f"{record['step_floor_s'] / record['step_s']:.0%}" if "step_floor_s" in record else ""
    return Entry(f"{record['step_s'] * 1e3:,.1f} ms", share)


def counts(records: Sequence[Record]) -> Grid:
    rates = [record["rates"] for record in records if "rates" in record]
    note = "One multiply-add is two operations; attention counts every query with every key of its chunk."
    if rates:
        usual = {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}
        note += (
            f" Measured here (medians): {usual['matmul'] / 1e9:,.0f} GFLOP/s in matrices, "
            f"{usual['attention'] / 1e9:,.0f} in attention, {usual['copy'] / 1e9:,.0f} GB/s copied (each byte "
            "read and written)."
        )
    return by_length("Operations of reading; keys and values at the peak; tokens kept", records, _counted, note)


def _counted(record: Record) -> Entry:
    kept = f"{record['kept']:,}"
    if "flops" not in record:
        return Entry(DASH, kept)
    total = record["flops"]["total"]
    return Entry(f"{total / 1e12:,.{0 if total >= 1e14 else 2}f} TFLOP", f"{size(record['counted_kv_bytes'])}, {kept}")


def profile(records: Sequence[Record]) -> Grid:
    """Parts as rows, methods and lengths as columns."""
    columns = [(record["method"], f"{record['length']:,} tokens") for record in records]
    grid = Grid("Milliseconds of one reading; share of the whole", "part", columns)
    wholes = [sum(record.get("parts", {}).values()) for record in records]
    grid.rows.append(Row("whole", tuple(entry_of(record, _whole) for record in records)))
    for part in PARTS:
        spent = [record.get("parts", {}).get(part) for record in records]
        entries = (
            Entry() if seconds is None else Entry(f"{seconds * 1e3:,.0f}", f"{seconds / whole:.0%}")
            for seconds, whole in zip(spent, wholes, strict=True)
        )
        grid.rows.append(Row(part, tuple(entries)))
    grid.note = f"Marking where parts begin and end costs a little itself. {failures(records)}".strip()
    return grid


def _whole(record: Record) -> Entry:
    return Entry(f"{sum(record['parts'].values()) * 1e3:,.0f}")
