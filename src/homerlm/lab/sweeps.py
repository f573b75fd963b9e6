"""Tables of evaluations whose rows are settings: ablations and sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homerlm.lab import paper
from homerlm.lab.matrix import (
    ASKS,
    COST_TITLE,
    KEPT_TITLE,
    SCORE_TITLE,
    cost_entry,
    filled,
    kept_entry,
    matrix,
    note,
    score_entry,
)
from homerlm.lab.summary import Record, cells_of, method_rank
from homerlm.lab.tables import Entry, Grid, Row

_BETWEEN = " \0 "  # a row's name and the method it stands for, which is spelled out in the table's last column


def ablation(records: Sequence[Record], limit: int | None) -> list[Grid]:
    """Rows are what was changed: the paper's in its order with its numbers, then ours as they were run."""
    turned = [{**r, "variant": "", "method": f"{r.get('variant')}{_BETWEEN}{r.get('method')}"} for r in records]
    seen = list(dict.fromkeys(str(record["method"]) for record in turned))
    cells = sorted(
        cells_of(turned), key=lambda cell: (cell.ask, *ablation_rank(_parts(cell.method)[0], seen, cell.method))
    )
    lengths = sorted({cell.length for cell in cells})
    shown = [(SCORE_TITLE, score_entry), (KEPT_TITLE, kept_entry), (COST_TITLE, cost_entry)]
    grids = [matrix(title, cells, lengths, limit, entry, "changed") for title, entry in shown]
    printed = paper.ablation()
    for grid in grids:
        grid.note = grid.note.replace(_BETWEEN, ", ")
        if with_paper := grid is grids[0]:
            grid.columns.append((paper.CHAT, f"tables 4a, 4b; {paper.ABLATION_LENGTH:,}"))
        grid.columns.append(("method", ""))
        for k, row in enumerate(grid.rows):
            if row.kind == "ours":
                label, method = _parts(row.label)
                value = printed.get(label.removeprefix("passkey, "))
                last = (Entry("" if value is None else f"{value:.3f}"),) if with_paper else ()
                grid.rows[k] = Row(label, (*row.entries, *last, Entry("", method)))
    return [grid for grid in grids if filled(grid)]


def _parts(name: str) -> tuple[str, str]:
    label, _, method = name.partition(_BETWEEN)
    return label, method


def ablation_rank(label: str, seen: Sequence[str], name: str) -> tuple[str, int, int]:
    """Sorts by the task before a comma, if any, the paper's order, the order in which they were run."""
    rows = list(paper.ablation())
    task, _, change = label.rpartition(", ") if label.rpartition(", ")[2] in rows else ("", "", label)
    return task, rows.index(change) if change in rows else len(rows), seen.index(name)


def sweep(variant: str) -> tuple[str, float, str]:
    """(name, value as a number, value as it is) of `target_len=2048`, so that sweeps sort."""
    name, _, value = variant.rpartition("=")
    try:
        return name, float(value), value
    except ValueError:
        return name, float("inf"), value


def without_setting(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records of a sweep with the swept setting taken out of the method, so that its values make one line."""
    changed = []
    for record in records:
        method, setting = str(record.get("method")), str(record.get("variant")).rpartition(", ")[2]
        for old, new in ((f":{setting},", ":"), (f",{setting}", ""), (f":{setting}", "")):
            method = method.replace(old, new)
        changed.append({**record, "method": method})
    return changed


def sensitivity(records: Sequence[Record], _limit: int | None) -> list[Grid]:
    """A table for each swept setting, its values as rows."""
    columns = ["share right", "tokens kept", "answer kept", "peak memory", "seconds (reading)"]
    cells = sorted(cells_of(records), key=lambda c: (c.ask, method_rank(c.method), c.length, sweep(c.variant)))
    groups = {(cell.method, cell.length, cell.ask) for cell in cells}
    grids: dict[str, Grid] = {}
    for name in dict.fromkeys(sweep(cell.variant)[0] for cell in cells):
        members = [cell for cell in cells if sweep(cell.variant)[0] == name]
        grid = grids[name] = Grid(f"{name} swept", name, [(column, "") for column in columns])
        grid.note = f"{SCORE_TITLE}; in round brackets: samples. {note(members)}".strip()
        last = None
        for cell in members:
            if len(groups) > 1 and (where := (cell.method, cell.length, cell.ask)) != last:
                grid.add_group(_where(*where))
                last = where
            kept, cost = kept_entry(cell), cost_entry(cell)
            parts = (kept.main, kept.detail, cost.main, cost.detail)
            grid.rows.append(Row(sweep(cell.variant)[2], (score_entry(cell), *map(Entry, parts))))
        if len(groups) == 1:
            grid.title += f": {_where(*next(iter(groups)))}"
    return list(grids.values())


def _where(method: str, length: int, ask: str) -> str:
    return ", ".join(part for part in (method, f"{length:,} tokens", ASKS.get(ask, ask)) if part)
