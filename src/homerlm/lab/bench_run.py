"""Runs cells one after another, each in a fresh process; what is recorded already is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from homerlm.lab.case import Cell
from homerlm.lab.isolated import run_isolated
from homerlm.lab.records import RecordFile

Progress = Callable[[str, int, int], None]  # the cell at work, cells done, cells there are


def run(
    cells: Sequence[Cell],
    records: RecordFile,
    *,
    progress: Progress,
    timeout_s: float | None = None,
) -> None:
    """Append a record for each cell. A cell that failed has one too, with its `error`, and is tried again by the next
    run; one that was measured is not."""
    for done, cell in enumerate(cells):
        batch = f", batch {cell.batch}" if cell.batch > 1 else ""
        progress(f"{cell.method}, {cell.length:,} tokens{batch}", done, len(cells))
        if cell.key not in records:
            records.append(run_isolated(cell, timeout_s))
    progress("done", len(cells), len(cells))
