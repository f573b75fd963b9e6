"""Which tables each task gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from homerlm.lab import paper
from homerlm.lab.matrix import (
    COST_TITLE,
    KEPT_TITLE,
    SCORE_TITLE,
    cost_entry,
    filled,
    grouped,
    kept_entry,
    matrix,
    note,
    perplexity_entry,
    score_entry,
    shown_lengths,
)
from homerlm.lab.records import unique
from homerlm.lab.summary import (
    PERPLEXITY_TASKS,
    Record,
    cells_of,
    merged_variants,
    one_setup,
    rounded_lengths,
)
from homerlm.lab.sweeps import ablation, sensitivity, without_setting
from homerlm.lab.tables import DASH, Entry, Grid, Row

TITLES = {
    "passkey": "Passkey retrieval",
    "needle": "Facts planted in a document",
    "qa": "Question answering",
    "perplexity": "Perplexity",
    "passkey-perplexity": "Passkey perplexity",
    "ablation": "Ablation",
    "sensitivity": "Sensitivity to settings",
    "memory": "Memory and time",
}


@dataclass
class Section:
    """One task: its records, ready to be drawn, and its tables."""

    task: str
    title: str
    records: list[dict[str, Any]]
    grids: list[Grid] = field(default_factory=list)
    note: str = ""


def sections(records: Iterable[Record]) -> list[Section]:
    """One section for each task that has records, in a fixed order."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in unique(records):
        by_task.setdefault(str(record["task"]), []).append(record)
    order = [*(task for task in TITLES if task in by_task), *(task for task in by_task if task not in TITLES)]
    return [_section(task, one_setup(by_task[task])) for task in order]


def _section(task: str, records: list[dict[str, Any]]) -> Section:
    if task == "sensitivity":
        records = without_setting(records)
    ready = records if task in PERPLEXITY_TASKS else rounded_lengths(records)
    section = Section(task, TITLES.get(task, task), ready)
    make = {"qa": _qa, "ablation": ablation, "sensitivity": sensitivity, "memory": _memory}.get(task, _by_length)
    section.grids = make(ready, _limit(records))
    if {record["length"] for record in ready} != {record["length"] for record in records}:
        section.note = "Lengths are those of the documents, rounded up to a power of two."
    return section


def _by_length(records: Sequence[Record], limit: int | None) -> list[Grid]:
    cells = cells_of(records)
    task = cells[0].task
    table = paper.paper_table(task)
    ours = {cell.length for cell in cells}
    lengths = sorted(set(shown_lengths(sorted(ours))) | set(table.lengths if table else ()))
    if task in PERPLEXITY_TASKS:
        title = "Perplexity of the right answer" if task.startswith("passkey") else "Perplexity up to a length"
        grid = matrix(title, cells, lengths, limit, perplexity_entry)
    else:
        grid = matrix(SCORE_TITLE, cells, lengths, limit, score_entry)
    if not ours <= set(lengths):
        grid.note += " The plot has the lengths between."
    if table:
        add_paper(grid, table, lengths, 2 if task in PERPLEXITY_TASKS else 3)
    return [grid, *_costs(merged_variants(records), limit)]


def add_paper(grid: Grid, table: paper.PaperTable, lengths: Sequence[int], places: int, unit: str = "") -> None:
    """The paper's rows under ours, at the same lengths; its model's limit is 4,096 tokens."""
    grid.rows.append(Row(f"{table.who}, {table.number} (limit {paper.LIMIT:,})", kind="group"))
    for name, values in table.rows.items():
        known = dict(zip(table.lengths, values, strict=True))
        entries = [_printed(known[n], places, unit) if n in known else Entry() for n in lengths]
        grid.rows.append(Row(f"paper: {name}", tuple(entries), kind="paper"))


def _qa(records: Sequence[Record], limit: int | None) -> list[Grid]:
    whole = cells_of([{**record, "length": 0} for record in records])
    grid = Grid(f"{SCORE_TITLE}, all lengths", "method", [("answer", ""), ("likeliest choice", "")])
    for label, cells in grouped(whole):
        grid.add_group(label)
        for cell in cells:
            choice = "" if cell.likelihood_score is None else f"{cell.likelihood_score:.3f}"
            grid.rows.append(Row(cell.method, (score_entry(cell), Entry(choice))))
    grid.add_group(f"{paper.CHAT}, table 2")
    for name, value in paper.quality().items():
        grid.rows.append(Row(f"paper: {name}", (_printed(value, 3), Entry()), kind="paper"))
    grid.note = f"In round brackets: samples. {note(whole)}".replace(" at 0", "")
    by_length = _by_length(records, limit)
    return [grid, *(by_length if len({record["length"] for record in records}) > 1 else by_length[1:])]


def _memory(records: Sequence[Record], limit: int | None) -> list[Grid]:
    return _costs(records, limit, paper.paper_table("memory"))


def _costs(records: Sequence[Record], limit: int | None, table: paper.PaperTable | None = None) -> list[Grid]:
    """Tokens kept, memory and time by length. The variants of a task read alike and share a row."""
    cells = cells_of(records)
    lengths = shown_lengths(sorted({cell.length for cell in cells}))
    kept = matrix(KEPT_TITLE, cells, lengths, limit, kept_entry)
    cost = matrix(COST_TITLE, cells, lengths, limit, cost_entry)
    if table:
        add_paper(cost, table, lengths, 1, " GB")
    return [grid for grid in (kept, cost) if filled(grid)]


def _printed(value: float | None, places: int, unit: str = "") -> Entry:
    return Entry(DASH if value is None else f"{value:.{places}f}{unit}")


def _limit(records: Sequence[Record]) -> int | None:
    """The model's own limit: the lowest that a record has, as scaled RoPE raises it; `None` for several models."""
    limits = [limit for record in records if isinstance(limit := record.get("limit"), int) and limit > 0]
    return min(limits) if limits and len({record.get("model") for record in records}) == 1 else None
