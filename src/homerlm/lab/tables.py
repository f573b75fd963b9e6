"""A table of texts, made of rows of numbers; the terminal's form of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table as RichTable
from rich.text import Text

DASH = "–"
MOST_LENGTHS = 12  # a table with more columns than this is not read
Cell = Callable[[Any], str]  # the text of one row of numbers


class Kind(NamedTuple):
    """A table by length: what its cells say, and a note on that."""

    title: str
    cell: Cell
    note: str = ""


@dataclass
class Table:
    """`cells`: texts by (group, row) and column. `corner` says what the rows are."""

    title: str
    cells: pd.DataFrame
    note: str = ""
    corner: str = "method"

    @property
    def columns(self) -> list[str]:
        return [self.corner, *self.cells.columns]

    @property
    def rows(self) -> list[list[str]]:
        """The name of each row with its texts; a name alone is the heading of the group that follows."""
        return list(_rows(self.cells))

    def to_rich(self) -> RichTable:
        """For the terminal, which has no room for the paper's rows: those, and what is empty without, are left out."""
        ours = self.cells[~self.cells.index.get_level_values(1).str.startswith("paper: ")]
        ours = ours.loc[:, (ours != "").any()] if len(ours) else ours
        drawn = RichTable(title=Text(self.title), caption=Text(self.note), title_justify="left", caption_justify="left")
        for k, name in enumerate([self.corner, *ours.columns]):
            drawn.add_column(Text(name.replace(" (", "\n(")), overflow="fold", justify="right" if k else "left")
        for label, *texts in _rows(ours):
            drawn.add_row(*map(Text, [label, *texts])) if texts else drawn.add_row(Text(label, style="bold"))
        return drawn


def _rows(cells: pd.DataFrame) -> Iterator[list[str]]:
    for group, members in groupby(cells.itertuples(name=None), key=lambda row: row[0][0]):
        if group:
            yield [group]
        yield from ([label, *texts] for (_, label), *texts in members)


class Section(NamedTuple):
    """One task of a report: its records (or a summary of them), ready to be drawn, and its tables."""

    task: str
    title: str
    records: pd.DataFrame
    tables: list[Table]
    note: str = ""


def by_length(kind: Kind, rows: pd.DataFrame, paper: pd.DataFrame | None = None) -> Table:
    """Methods under their `group`s as rows, lengths as columns, each beside its multiple of the model's limit. `paper`:
    the texts of its rows, which stand below at the same lengths."""
    lengths = shown_lengths(rows, paper)
    index = pd.MultiIndex.from_frame(rows[["group", "method"]].drop_duplicates(), names=[None, None])
    texts = rows.assign(text=[kind.cell(row) for row in rows.itertuples()])
    texts = texts.drop_duplicates(["group", "method", "length"], keep="last")
    wide = texts.pivot(index=["group", "method"], columns="length", values="text").reindex(index)
    cells = pd.concat([wide, paper]).reindex(columns=lengths).fillna("")
    return Table(kind.title, cells.set_axis(length_columns(lengths, rows), axis=1), kind.note)


def by_field(rows: pd.DataFrame, cells: Mapping[str, Cell]) -> pd.DataFrame:
    """The cells of a table with a column for each of these, by the rows' `group` and `method`."""
    index = pd.MultiIndex.from_frame(rows[["group", "method"]], names=[None, None])
    return pd.DataFrame({name: [cell(row) for row in rows.itertuples()] for name, cell in cells.items()}, index=index)


def shown_lengths(rows: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[int]:
    """All lengths, or, of too many, the last one up to each doubling of the first, and the longest; the paper's too."""
    lengths = sorted(rows["length"].unique().tolist())
    if len(lengths) > MOST_LENGTHS:
        first = max(lengths[0], 1)
        doublings = [first << k for k in range((lengths[-1] // first).bit_length())]
        lengths = [*(max(n for n in lengths if n <= most) for most in doublings), lengths[-1]]
    return sorted({*lengths, *(() if paper is None else paper.columns)})


def length_columns(lengths: list[int], rows: pd.DataFrame) -> list[str]:
    """`rows` have the model's `limit`, or NaN where it is not one model's."""
    limit = rows["limit"].iloc[0]
    return [f"{n:,}" if pd.isna(limit) else f"{n:,} ({n / limit:.2g}× limit)" for n in lengths]


def failures(summary: pd.DataFrame) -> str:
    """The first words of what failed, for a table's note."""
    failed = summary[summary["first_error"].notna()]
    messages = failed["first_error"].map(lambda error: " ".join(str(error).split())[:160])
    places = [f"{method} at {length:,}" for method, length in zip(failed["method"], failed["length"], strict=True)]
    parts = []
    for message, where in pd.Series(places, failed.index, dtype=object).groupby(messages, sort=False):
        more = " and more" if len(where) > 3 else ""
        parts.append(f"Failed: {', '.join(where[:3].unique())}{more}: “{message}”")
    left_out = [f"{len(parts) - 3} more messages are in the records."] if len(parts) > 3 else []
    return " ".join([*parts[:3], *left_out])
