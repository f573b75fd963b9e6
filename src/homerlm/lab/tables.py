"""A table as a value, and its three forms: terminal, Markdown, HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from rich.table import Table
from rich.text import Text

DASH = "–"


@dataclass(frozen=True)
class Entry:
    """One cell: what is read first, what qualifies it, and what failed."""

    main: str = ""
    detail: str = ""
    failed: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.main} {self.detail}".strip(), self.failed) if part)


@dataclass(frozen=True)
class Row:
    """`kind`: `ours`, `paper` (another's numbers) or `group` (a heading over the rows that follow)."""

    label: str
    entries: tuple[Entry, ...] = ()
    kind: str = "ours"


@dataclass
class Grid:
    """`corner` names the rows; `columns` are (heading, smaller print under it)."""

    title: str
    corner: str
    columns: list[tuple[str, str]]
    rows: list[Row] = field(default_factory=list)
    note: str = ""

    def add_group(self, label: str) -> None:
        if label:
            self.rows.append(Row(label, kind="group"))


def to_rich(grid: Grid) -> Table:
    """For the terminal, which has no room for the paper's rows: those, and columns of theirs alone, are left out."""
    ours = [row for row in grid.rows if row.kind == "ours"]
    used = [k for k in range(len(grid.columns)) if not ours or any(str(row.entries[k]) for row in ours)]
    table = Table(title=Text(grid.title), caption=Text(grid.note), title_justify="left", caption_justify="left")
    table.add_column(grid.corner, overflow="fold")  # two methods may begin alike
    for heading, below in (grid.columns[k] for k in used):
        table.add_column(f"{heading}\n{below}" if below else heading, justify="right")
    for row in grid.rows:
        if row.kind == "group" and not row.label.startswith("paper"):
            table.add_row(Text(row.label, style="bold"))
        elif row.kind == "ours":
            table.add_row(Text(row.label), *(_rich_entry(row.entries[k]) for k in used))
    return table


def _rich_entry(entry: Entry) -> Text:
    parts = ((entry.main, ""), (entry.detail, "dim"), (entry.failed, "red"))
    return Text("\n").join(Text(text, style=style) for text, style in parts if text)


def to_markdown(grid: Grid) -> str:
    headings = [grid.corner, *(f"{heading} ({below})" if below else heading for heading, below in grid.columns)]
    lines = [f"**{_plain(grid.title)}**", "", _line(headings), "|---|" + "---:|" * len(grid.columns)]
    for row in grid.rows:
        if row.kind == "group":
            lines.append(_line([f"**{_plain(row.label)}**", *([""] * len(grid.columns))], ready=True))
        else:
            lines.append(_line([row.label, *map(str, row.entries)]))
    return "\n".join([*lines, *(["", _plain(grid.note)] if grid.note else [])]) + "\n"


def _line(cells: list[str], ready: bool = False) -> str:
    return "| " + " | ".join(cell if ready else _plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for mark in "\\|*_`<":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def to_html(grid: Grid) -> str:
    heads = "".join(
        f'<th scope="col">{escape(heading)}{_small(below, "below")}</th>' for heading, below in grid.columns
    )
    body = "\n".join(_html_row(row, len(grid.columns)) for row in grid.rows)
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    return f"""<h3>{escape(grid.title)}</h3>
<div class="scroll" tabindex="0"><table>
<thead><tr><th scope="col">{escape(grid.corner)}</th>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>
{note}"""


def _html_row(row: Row, width: int) -> str:
    if row.kind == "group":
        return (
            f'<tr class="group"><th colspan="{width + 1}" scope="colgroup"><span>{escape(row.label)}</span></th></tr>'
        )
    head = f'<th scope="row">{escape(row.label)}</th>'
    cells = "".join(
        f"<td>{escape(entry.main)}{_small(entry.detail, 'detail')}{_small(entry.failed, 'failed')}</td>"
        for entry in row.entries
    )
    return f'<tr class="{row.kind}">{head}{cells}</tr>'


def _small(text: str, name: str) -> str:
    return f'<span class="{name}">{escape(text)}</span>' if text else ""
