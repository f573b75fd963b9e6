"""A table of texts, filled from a summary of records; the terminal's form of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.table import Table as RichTable
from rich.text import Text

from homerlm.lab.paper import PaperTable

DASH = "–"
Show = Callable[[Any], str]  # of a row of a summary


@dataclass
class Table:
    """The first of `columns` names the rows. A row that is a label alone is a heading over those that follow."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    @property
    def filled(self) -> bool:
        return any(any(row[1:]) for row in self.rows)

    def add_heading(self, *parts: str) -> None:
        if label := ", ".join(filter(None, parts)):
            self.rows.append([label])

    def add_methods(self, summary: pd.DataFrame, show: Show, lengths: Sequence[int], heading: str = "") -> None:
        """A row for each method, an entry for each length, under the `group` of the summary's rows."""
        for group, members in summary.groupby("group", sort=False):
            self.add_heading(heading, str(group))
            members = members.drop_duplicates(["method", "length"], keep="last")
            entries = members.assign(entry=[show(row) for row in members.itertuples()])
            wide = entries.pivot(index="method", columns="length", values="entry")
            wide = wide.reindex(index=members["method"].unique(), columns=list(lengths)).fillna("")
            self.rows += [[method or "(none)", *row] for method, row in zip(wide.index, wide.to_numpy(), strict=True)]

    def add_paper(self, table: PaperTable, lengths: Sequence[int], show: Callable[[str, int, float], str]) -> None:
        """The paper's rows under ours, at the same lengths; `show` makes entries of a row's name, a length, a value."""
        self.add_heading(table.heading)
        for name, values in table.rows.items():
            known = dict(zip(table.lengths, values, strict=True))
            shown = {n: DASH if value is None else show(name, n, value) for n, value in known.items()}
            self.rows.append([f"paper: {name}", *(shown.get(n, "") for n in lengths)])


@dataclass
class Section:
    """One task of a report: its records (or a summary of them), ready to be drawn, and its tables."""

    task: str
    title: str
    records: pd.DataFrame
    tables: list[Table] = field(default_factory=list)
    note: str = ""


def by_length(
    title: str,
    summary: pd.DataFrame,
    show: Show,
    lengths: Sequence[int],
    limit: int | None,
    note: str = "",
    corner: str = "method",
) -> Table:
    """Methods as rows, lengths as columns, each beside its multiple of the model's limit."""
    table = Table(title, [corner, *length_columns(lengths, limit)], note=note)
    table.add_methods(summary, show, lengths)
    return table


def length_columns(lengths: Sequence[int], limit: int | None) -> list[str]:
    return [f"{n:,} ({n / limit:.2g}× limit)" if limit else f"{n:,}" for n in lengths]


def failures(summary: pd.DataFrame) -> str:
    """The first words of what failed, for a table's note."""
    failed = summary[summary["first_error"].notna()]
    messages: dict[str, list[str]] = {}
    for row in failed.itertuples():
        messages.setdefault(" ".join(str(row.first_error).split())[:160], []).append(f"{row.method} at {row.length:,}")
    parts = []
    for message, where in list(messages.items())[:3]:
        more = " and more" if len(where) > 3 else ""
        parts.append(f"Failed: {', '.join(dict.fromkeys(where[:3]))}{more}: “{message}”")
    if len(messages) > 3:
        parts.append(f"{len(messages) - 3} more messages are in the records.")
    return " ".join(parts)


def to_rich(table: Table) -> RichTable:
    """For the terminal, which has no room for the paper's rows: those, and columns of theirs alone, are left out."""
    rows = [row for row in table.rows if not row[0].startswith("paper")]
    used = [k for k in range(len(table.columns)) if k == 0 or not rows or any("".join(row[k : k + 1]) for row in rows)]
    drawn = RichTable(title=Text(table.title), caption=Text(table.note), title_justify="left", caption_justify="left")
    for k in used:
        drawn.add_column(Text(table.columns[k].replace(" (", "\n(")), overflow="fold", justify="right" if k else "left")
    for row in rows:
        drawn.add_row(*(Text(row[k] if k < len(row) else "", style="" if row[1:] else "bold") for k in used))
    return drawn
