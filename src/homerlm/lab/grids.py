"""Records of cells laid out as tables: methods by length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from homerlm.lab.tables import Entry, Grid, Row

Record = dict[str, Any]
Show = Callable[[Record], Entry]
_FAILED = {"out of memory": "oom", "timeout": "timeout"}


def by_length(title: str, records: Sequence[Record], show: Show, note: str = "", lengths: Sequence[int] = ()) -> Grid:
    """Methods as rows, under their batch where there are several; lengths as columns, the records' own by default."""
    lengths = lengths or lengths_of(records)
    grid = Grid(title, "method", [(f"{n:,}", times_limit(n, records)) for n in lengths], note=note)
    add_rows(grid, records, lengths, show)
    return grid


def lengths_of(records: Sequence[Record], others: Iterable[int] = ()) -> list[int]:
    return sorted({record["length"] for record in records} | set(others))


def add_rows(grid: Grid, records: Sequence[Record], lengths: Sequence[int], show: Show, group: str = "") -> None:
    batches = list(dict.fromkeys(record["batch"] for record in records))
    for batch in batches:
        named = [group, f"batch {batch}" if batches != [1] else ""]
        grid.add_group(", ".join(part for part in named if part))
        here = [record for record in records if record["batch"] == batch]
        cells = {(record["method"], record["length"]): record for record in here}
        for method in dict.fromkeys(record["method"] for record in here):
            found = (cells.get((method, n)) for n in lengths)
            grid.rows.append(Row(method, tuple(Entry() if cell is None else entry_of(cell, show) for cell in found)))


def entry_of(record: Record, show: Show) -> Entry:
    error = record.get("error")
    if not error:
        return show(record)
    return Entry(failed=next((short for start, short in _FAILED.items() if error.startswith(start)), "error"))


def times_limit(length: int, records: Sequence[Record]) -> str:
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
