"""The benchmark's tables, the paper's rows in them, and what a folder of its records holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from homerlm.bench.cell import Source
from homerlm.bench.profile import PARTS
from homerlm.evaluation import paper
from homerlm.evaluation.records import unique
from homerlm.evaluation.sections import Section, add_paper
from homerlm.evaluation.summary import method_rank, one_setup
from homerlm.evaluation.tables import DASH, Entry, Grid, Row
from homerlm.units import size

Record = dict[str, Any]
Show = Callable[[Record], Entry]
_FACTS = ("model", "device", "dtype", "chat")
_FAILED = {"out of memory": "oom", "timeout": "timeout"}


def sections(records: Iterable[Record]) -> list[Section]:
    """Memory, time and counts of the cells that were measured; where the time goes, of those that were profiled."""
    ready = completed(unique(records))
    measured = _in_order(one_setup([record for record in ready if record["task"] == "bench"]))
    profiled = _in_order(one_setup([record for record in ready if record["task"] == "profile"]))
    made = []
    if measured:
        made.append(Section("memory", "Memory", measured, [_total_memory(measured), _memory_parts(measured)]))
        made.append(Section("time", "Time", measured, [_requests(measured), _prefill(measured), _steps(measured)]))
        made.append(Section("counts", "Counted, not timed", measured, [_counts(measured)]))
    if profiled:
        made.append(Section("profile", "Where the time of reading goes", profiled, [_profile(profiled)]))
    return made


def completed(records: Iterable[Record]) -> list[Record]:
    """A cell that was killed could not say what it ran on: that is taken from another of the same source (or, but for
    the model, from any), so that the row stays in the method's line."""
    records = list(records)
    known: dict[str, Record] = {}
    for record in records:
        if not record.get("error"):
            known[str(_source(record))] = {name: record.get(name) for name in _FACTS}
    some = next(iter(known.values()), {})
    made = []
    for record in records:
        source = _source(record)
        facts = known.get(str(source), some | {"model": source.name}) if record.get("error") else {}
        made.append({**facts, **record, "batch": record["cell"]["batch"]})
    return made


def _source(record: Record) -> Source:
    return Source(**{name: record["cell"].get(name) for name in Source.__dataclass_fields__})


def _in_order(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record["batch"], method_rank(record["method"]), record["length"]))


def by_length(title: str, records: Sequence[Record], show: Show, note: str = "", lengths: Sequence[int] = ()) -> Grid:
    """Methods as rows, under their batch where there are several; lengths as columns, the records' own by default."""
    lengths = lengths or _lengths(records)
    grid = Grid(title, "method", [(f"{n:,}", _times_limit(n, records)) for n in lengths], note=note)
    _add_rows(grid, records, lengths, show)
    return grid


def _lengths(records: Sequence[Record], others: Iterable[int] = ()) -> list[int]:
    return sorted({record["length"] for record in records} | set(others))


def _add_rows(grid: Grid, records: Sequence[Record], lengths: Sequence[int], show: Show, group: str = "") -> None:
    batches = list(dict.fromkeys(record["batch"] for record in records))
    for batch in batches:
        named = [group, f"batch {batch}" if batches != [1] else ""]
        grid.add_group(", ".join(part for part in named if part))
        here = [record for record in records if record["batch"] == batch]
        cells = {(record["method"], record["length"]): record for record in here}
        for method in dict.fromkeys(record["method"] for record in here):
            found = (cells.get((method, n)) for n in lengths)
            grid.rows.append(Row(method, tuple(Entry() if cell is None else _entry(cell, show) for cell in found)))


def _entry(record: Record, show: Show) -> Entry:
    error = record.get("error")
    if not error:
        return show(record)
    return Entry(failed=next((short for start, short in _FAILED.items() if error.startswith(start)), "error"))


def _times_limit(length: int, records: Sequence[Record]) -> str:
    """The lowest limit is the model's own: scaled RoPE raises it."""
    limits = [record["limit"] for record in records if record.get("limit")]
    one_model = len({record.get("model") for record in records}) == 1
    return f"{length / min(limits):.2g}× limit" if limits and one_model else ""


def failures(records: Sequence[Record]) -> str:
    """The first words of what failed, for a table's note."""
    messages: dict[str, list[str]] = {}
    for record in records:
        if error := record.get("error"):
            where = f"{record['method']} at {record['length']:,}"
            messages.setdefault(" ".join(error.split())[:160], []).append(where)
    return " ".join(f"Failed: {', '.join(where)}: “{message}”" for message, where in messages.items())


def _total_memory(records: Sequence[Record]) -> Grid:
    table = paper.paper_table("memory")
    assert table is not None
    note = (
        "Weights, what any prompt leaves behind (Python's modules on a CPU, libraries' copies and workspaces), and the "
        f"highest use above these while the prompt is read and new tokens are written. {failures(records)}"
    )
    lengths = _lengths(records, table.lengths)
    grid = by_length(
        "Peak memory, everything in use: total (weights, constant) (table 5)", records, _total, note.strip(), lengths
    )
    add_paper(grid, table, lengths, 1, " GB")
    return grid


def _total(record: Record) -> Entry:
    return Entry(size(record["total_bytes"]), f"({size(record['weights_bytes'])}, {size(record['constant_bytes'])})")


def _memory_parts(records: Sequence[Record]) -> Grid:
    note = "Peak above the model after its first, short prompt; of it the keys and values of the finished cache."
    return by_length("Memory above the loaded model: peak (keys and values, transient)", records, _parts, note)


def _parts(record: Record) -> Entry:
    detail = f"({size(record['kv_bytes'])}, {size(record['transient_bytes'])})"
    return Entry(size(record["peak_bytes"]), detail)


def _requests(records: Sequence[Record]) -> Grid:
    """Table 8: seconds of a request by new tokens, beside the plain model's."""
    tables = paper.seconds()
    lengths = _lengths(records, next(iter(tables.values())).lengths)
    columns = [(f"{n:,}", _times_limit(n, records)) for n in lengths]
    grid = Grid("Seconds of a request, reading included; times the plain model's speed (table 8)", "method", columns)
    plain = _plain(records)
    counts = sorted({int(count) for record in records for count in record.get("seconds", ())})
    for count in counts:
        having = [record for record in records if record.get("error") or str(count) in record["seconds"]]
        _add_rows(grid, having, lengths, partial(_request, new_tokens=count, plain=plain), f"{count} new tokens")
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


def _prefill(records: Sequence[Record]) -> Grid:
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


def _steps(records: Sequence[Record]) -> Grid:
    note = "The floor: every weight, and every key and value, read once at the machine's copy bandwidth."
    return by_length("Milliseconds for each new token; share of the floor", records, _step, note)


def _step(record: Record) -> Entry:
    share = f"{record['step_floor_s'] / record['step_s']:.0%}" if "step_floor_s" in record else ""
    return Entry(f"{record['step_s'] * 1e3:,.1f} ms", share)


def _counts(records: Sequence[Record]) -> Grid:
    rates = [record["rates"] for record in records if "rates" in record]
    note = "One multiply-add is two operations; attention counts every query with every key of its chunk."
    if rates:
        best = {name: max(rate[name] for rate in rates) for name in rates[0]}
        note += (
            f" Measured here: {best['matmul'] / 1e9:,.0f} GFLOP/s in matrices, {best['attention'] / 1e9:,.0f} in "
            f"attention, {best['copy'] / 1e9:,.0f} GB/s copied (each byte read and written)."
        )
    return by_length("Operations of reading; keys and values at the peak; tokens kept", records, _counted, note)


def _counted(record: Record) -> Entry:
    kept = f"{record['kept']:,}"
    if "flops" not in record:
        return Entry(DASH, kept)
    total = record["flops"]["total"]
    return Entry(f"{total / 1e12:,.{0 if total >= 1e14 else 2}f} TFLOP", f"{size(record['counted_kv_bytes'])}, {kept}")


def _profile(records: Sequence[Record]) -> Grid:
    """Parts as rows, methods and lengths as columns."""
    columns = [(record["method"], f"{record['length']:,} tokens") for record in records]
    grid = Grid("Milliseconds of one reading; share of the whole", "part", columns)
    wholes = [sum(record.get("parts", {}).values()) for record in records]
    grid.rows.append(Row("whole", tuple(_entry(record, _whole) for record in records)))
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
