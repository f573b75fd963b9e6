"""Cells laid out as a table: methods by length, under the variant and the way of asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from homerlm.formatting import size
from homerlm.lab.summary import MOST_LENGTHS, PERPLEXITY_TASKS, Cell
from homerlm.lab.tables import DASH, Entry, Grid, Row

ASKS = {"now": "question known while reading", "later": "read first, asked later"}
SCORE_TITLE = "Share right, [Wilson's 95% interval]"
KEPT_TITLE = "Tokens kept, share of the answer's tokens among them"
COST_TITLE = "Peak memory above what was in use; median seconds of a request (of which reading)"

Show = Callable[[Cell], Entry]


def matrix(
    title: str, cells: Sequence[Cell], lengths: Sequence[int], limit: int | None, show: Show, corner: str = "method"
) -> Grid:
    """Methods as rows under their variant and ask, `lengths` as columns."""
    grid = Grid(title, corner, [(f"{n:,}", f"{n / limit:.2g}× limit" if limit else "") for n in lengths])
    judged = show in (score_entry, perplexity_entry)
    same_n = judged and len({(cell.n, cell.errors) for cell in cells if cell.length in lengths}) == 1
    for label, members in grouped(cells):
        grid.add_group(label)
        found = {(cell.method, cell.length): cell for cell in members}
        for method in dict.fromkeys(cell.method for cell in members):
            entries = [show(found[method, n]) if (method, n) in found else Entry() for n in lengths]
            if same_n:
                entries = [Entry(e.main, e.detail.rpartition("(")[0].strip(), e.failed) for e in entries]
            grid.rows.append(Row(method or "(none)", tuple(entries)))
    if judged:
        what = "documents" if cells and cells[0].task == "perplexity" else "samples"
        n = f"{cells[0].n} {what} in every cell." if same_n else f"In round brackets: {what}."
        grid.note = f"{n} {note(cells)}".strip()
    return grid


def shown_lengths(lengths: list[int]) -> list[int]:
    """All lengths, or, of too many, the last one up to each doubling of the first, and the longest."""
    if len(lengths) <= MOST_LENGTHS:
        return lengths
    chosen, step = {lengths[-1]}, lengths[0]
    while step < lengths[-1]:
        chosen.add(max(n for n in lengths if n <= step))
        step *= 2
    return sorted(chosen)


def grouped(cells: Sequence[Cell], asks: Mapping[str, str] = ASKS) -> list[tuple[str, list[Cell]]]:
    """Cells by variant and ask, labelled with what tells the groups apart."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.variant, cell.ask), []).append(cell)
    variants, ways = ({key[k] for key in groups} for k in (0, 1))
    return [
        (
            ", ".join(
                part
                for part, several in ((variant, len(variants) > 1), (asks.get(ask, ask), len(ways) > 1))
                if several and part
            ),
            members,
        )
        for (variant, ask), members in sorted(groups.items(), key=lambda item: item[0][1] == "later")
    ]


def note(cells: Sequence[Cell]) -> str:
    """What all cells share, and the first words of what failed."""
    variants, asks = {cell.variant for cell in cells}, {cell.ask for cell in cells if cell.task not in PERPLEXITY_TASKS}
    shared = [*(variants if len(variants) == 1 else ()), *(ASKS.get(a, a) for a in asks if len(asks) == 1)]
    listed = ", ".join(text for text in shared if text and "=" not in text)
    parts = [f"All rows: {listed}."] if listed else []
    failures: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.first_error:
            failures.setdefault(" ".join(cell.first_error.split())[:160], []).append(cell)
    for message, failed in list(failures.items())[:3]:
        where = ", ".join(dict.fromkeys(f"{cell.method} at {cell.length:,}" for cell in failed[:3]))
        parts.append(f"Failed: {where}{' and more' if len(failed) > 3 else ''}: “{message}”")
    if len(failures) > 3:
        parts.append(f"{len(failures) - 3} more messages are in the records.")
    return " ".join(parts)


def score_entry(cell: Cell) -> Entry:
    if cell.score is None or cell.low is None or cell.high is None:
        return Entry("" if cell.failed else DASH, "", cell.failed)
    places = 3 if cell.n >= 200 else 2
    detail = f"[{cell.low:.{places}f}, {cell.high:.{places}f}] ({cell.n})"
    return Entry(f"{cell.score:.{places}f}", detail, cell.failed)


def perplexity_entry(cell: Cell) -> Entry:
    value = "" if cell.perplexity is None else f"{cell.perplexity:.2f}"
    return Entry(value or ("" if cell.failed else DASH), f"({cell.n})" if value else "", cell.failed)


def kept_entry(cell: Cell) -> Entry:
    answer = "" if cell.needle_kept is None else f"{cell.needle_kept:.0%}"
    return Entry("" if cell.kept is None else f"{cell.kept:,.0f}", answer, "" if cell.n else cell.failed)


def cost_entry(cell: Cell) -> Entry:
    read = "" if cell.prefill_s is None else f" ({cell.prefill_s:.1f})"
    seconds = "" if cell.seconds is None else f"{cell.seconds:.1f} s{read}"
    return Entry("" if cell.peak_bytes is None else size(cell.peak_bytes), seconds, "" if cell.n else cell.failed)


def filled(grid: Grid) -> bool:
    return any(entry.main or entry.detail for row in grid.rows for entry in row.entries)
