"""The report of one evaluation: Markdown and one self-contained page, with plots."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from homerlm.errors import InputError
from homerlm.lab.canvas import SCALE, Figure, pyplot, styles
from homerlm.lab.plots import draw
from homerlm.lab.records import read_records
from homerlm.lab.sections import Section, sections
from homerlm.lab.tables import to_html, to_markdown, to_rich

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5d5d66; --paper: #fff; --line: #d9d9de; --band: #f3f3f6;
        --bad: #a3260c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --soft: #a5a5b0; --paper: #17171b; --line: #3a3a42;
        --band: #222228; --bad: #ff9d80; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
       margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .8rem;
       border-top: 2px solid var(--line); } h3 { font-size: .95rem; margin: 1.5rem 0 .4rem; }
nav a { margin-right: 1rem; color: inherit; } .note, figcaption { color: var(--soft); font-size: .85rem;
       margin: .4rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; } code { font-size: .85em; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; font-variant-numeric: tabular-nums;
        min-width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; font-weight: 500; }
thead th { font-weight: 600; } tbody th, tbody td { border-top: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
.group th:first-child { position: static; background: var(--band); font-weight: 600; }
.group span { position: sticky; left: .7rem; }
.paper th:first-child, .paper td { color: var(--soft); font-weight: 400; font-style: italic; }
.below, .detail, .failed { display: block; font-size: .75rem; font-weight: 400; color: var(--soft); }
.failed { color: var(--bad); }
figure { margin: 1.5rem 0; } figure .scroll { background: #fff; width: fit-content; max-width: 100%; }
figure img { display: block; }
@media (prefers-color-scheme: dark) { figure .scroll { filter: brightness(.88); border: 0; } }
@media (max-width: 40rem) { dl { display: block; } dd { margin-bottom: .4rem; } th, td { padding: .3rem .5rem; }
       th:first-child { min-width: 5rem; max-width: 9.5rem; white-space: normal; overflow-wrap: break-word; }
       .group th:first-child { max-width: none; white-space: nowrap; } }
@media print { .scroll { overflow: visible; } }
"""


def terminal_tables(directory: Path) -> list[Table]:
    """The tables of the records in `directory`, without the paper's rows. Raises `InputError` if there are none."""
    return [to_rich(grid) for section in sections(read_records(directory)[0]) for grid in section.grids]


def write_report(directory: Path, *, plots: bool = True) -> Path:
    """Writes report.md, report.html and the plots beside the records in `directory`; the page's path.

    Raises `InputError` for a directory without records or one that cannot be written, and `ConfigError` before
    anything is written if matplotlib is missing; `plots=False` does without.
    """
    records, notes = read_records(directory)
    if plots:
        pyplot()
    parts = sections(records)
    style = styles(str(record.get("method")) for part in parts for record in part.records)
    return write_pages(
        directory,
        "HOMER evaluation",
        parts,
        lambda part: draw(part, directory, style) if plots else [],
        what_was_run(records, directory),
        notes,
    )


def write_pages(
    directory: Path,
    title: str,
    parts: Sequence[Section],
    draw_part: Callable[[Section], list[Figure]],
    facts: list[tuple[str, str]],
    notes: list[str],
) -> Path:
    """Writes report.md and report.html of these parts into `directory`; the page's path. Raises `InputError`."""
    page = directory / "report.html"
    try:
        figures = {part.task: draw_part(part) for part in parts}
        page.with_suffix(".md").write_text(_markdown(title, parts, figures, facts, notes), encoding="utf-8")
        page.write_text(_page(title, parts, figures, facts, notes), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report could not be written into {directory}: {error.strerror}") from error
    return page


def what_was_run(records: Sequence[dict[str, Any]], directory: Path) -> list[tuple[str, str]]:
    """(name, value) of what a number needs to be read: model, machine, versions, settings, command."""
    facts = []
    limits = sorted({str(limit) for record in records if (limit := record.get("limit"))}, key=len)
    for label, name in (("Model", "model"), ("Device", "device"), ("Numbers", "dtype"), ("Threads", "threads")):
        facts.append((label, _listed(record.get(name) for record in records)))
    facts.insert(1, ("Model's limit", f"{', '.join(limits)} tokens" if limits else ""))
    facts.append(("Texts", _listed(record.get("text") for record in records)))
    facts.append(
        ("Chat template", _listed({"True": "yes", "False": "no"}.get(str(record.get("chat"))) for record in records))
    )
    versions = _listed(_compact(record.get("versions")) for record in records)
    failed = sum(bool(record.get("error")) for record in records)
    facts += [("Versions", versions), ("Records", f"{len(records):,}, of which {failed:,} failed")]
    by_settings: dict[str, dict[str, None]] = {}
    for record in records:
        if settings := _compact(record.get("settings")):
            by_settings.setdefault(settings, {})[str(record.get("method"))] = None
    for settings, methods in by_settings.items():
        facts.append(("Settings", f"{settings}: {', '.join(methods)}"))
    command = directory / "command.txt"
    if command.is_file():
        lines = command.read_text(encoding="utf-8", errors="replace").splitlines()
        facts.append(("Command", " && ".join(lines)))
    return [(name, value) for name, value in facts if value]


def _listed(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _compact(found: Any) -> str:
    if not isinstance(found, dict):
        return ""
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in found.items() if v is not None)


def _markdown(
    title: str,
    parts: Sequence[Section],
    figures: dict[str, list[Figure]],
    facts: list[tuple[str, str]],
    notes: list[str],
) -> str:
    lines = [f"# {title}", "", *(f"- {name}: `{' '.join(value.split())}`" for name, value in facts), ""]
    lines += [f"> {note}\n" for note in notes]
    for part in parts:
        lines += [
            f"## {part.title}",
            "",
            *([part.note, ""] if part.note else []),
            *(to_markdown(grid) for grid in part.grids),
        ]
        lines += [f"![{figure.caption}]({figure.path.name})\n\n{figure.caption}\n" for figure in figures[part.task]]
    return "\n".join(lines)


def _page(
    title: str,
    parts: Sequence[Section],
    figures: dict[str, list[Figure]],
    facts: list[tuple[str, str]],
    notes: list[str],
) -> str:
    links = "".join(f'<a href="#{escape(part.task)}">{escape(part.title)}</a>' for part in parts)
    nav = f"<nav>{links}</nav>" if len(parts) > 1 else ""
    run = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    warned = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    body = "\n".join(_html_section(part, figures[part.task]) for part in parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>{nav}<dl>{run}</dl>{warned}
<main>{body}</main></body></html>
"""


def _html_section(part: Section, figures: Sequence[Figure]) -> str:
    grids = [to_html(grid) for grid in part.grids]
    pictures = "".join(_html_figure(figure) for figure in figures)
    note = f'<p class="note">{escape(part.note)}</p>' if part.note else ""
    shown = [grids[0], pictures, *grids[1:]] if grids else [pictures]
    return f'<section id="{escape(part.task)}"><h2>{escape(part.title)}</h2>{note}{"".join(shown)}</section>'


def _html_figure(figure: Figure) -> str:
    png = figure.path.read_bytes()
    width = round(int.from_bytes(png[16:20]) * SCALE)  # the picture's own width, from its header
    data = base64.b64encode(png).decode("ascii")
    caption = escape(figure.caption)
    image = f'<img width="{width}" alt="{caption}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="scroll" tabindex="0">{image}</div><figcaption>{caption}</figcaption></figure>'
