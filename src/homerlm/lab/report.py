"""The report of a folder of records: Markdown, and the same as one page with its plots inside."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from rich.table import Table as RichTable

from homerlm.errors import InputError
from homerlm.lab.bench_tables import bench_sections
from homerlm.lab.eval_tables import eval_sections
from homerlm.lab.plots import DPI, draw, plotting
from homerlm.lab.ratios import RATIOS, ratios
from homerlm.lab.records import read_records
from homerlm.lab.summary import frame_of
from homerlm.lab.tables import Section

_BENCH_TASKS = ("bench", "profile")
_LABELS = {"Device": "device", "Processor": "processor", "Numbers": "dtype", "Threads": "threads", "Texts": "text"}


def sections(records: Sequence[dict[str, Any]]) -> list[Section]:
    """What the records hold: what was evaluated, task by task, then what was benchmarked."""
    frame = frame_of(records)
    benched = frame["task"].isin(_BENCH_TASKS)
    return eval_sections(frame[~benched]) + (bench_sections(frame[benched]) if benched.any() else [])


def terminal_tables(folder: Path) -> list[RichTable]:
    """The tables of the records in a folder, without the paper's rows. Raises `InputError` if there are none."""
    return [table.to_rich() for section in sections(read_records(folder)[0]) for table in section.tables]


def write_report(folder: Path, *, plots: bool = True) -> Path:
    """Writes report.md, report.html, the plots and, of a benchmark, ratios.json beside the records; the page's path.

    Raises `InputError` for a folder without records or one that cannot be written, and `ConfigError` before anything
    is written if seaborn is missing; `plots=False` does without.
    """
    records, notes = read_records(folder)
    if plots:
        plotting()
    parts = sections(records)
    title = "HOMER benchmark" if records[0]["task"] in _BENCH_TASKS else "HOMER evaluation"
    page = folder / "report.html"
    try:
        drawn = [(part, draw(part, folder) if plots else []) for part in parts]
        text = _rendered("report.md.j2", title=title, facts=what_was_run(records, folder), notes=notes, parts=drawn)
        page.with_suffix(".md").write_text(text, encoding="utf-8")
        page.write_text(_rendered("report.html.j2", title=title, body=_html(text, folder)), encoding="utf-8")
        for part in parts:
            if part.task == "memory":
                compared = ratios(part.records.to_dict("records"))
                (folder / RATIOS).write_text(json.dumps(compared, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report could not be written into {folder}: {error.strerror}") from error
    return page


def what_was_run(records: Sequence[dict[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """(name, value) of what a number needs to be read: model, machine, versions, settings, command."""

    def listed(name: str, said: Callable[[Any], Any] = str) -> str:
        found = (record.get(name) for record in records)
        return "; ".join(dict.fromkeys(said(value) for value in found if value not in (None, "")))

    limits = sorted({record["limit"] for record in records if record.get("limit")})
    failed = sum(bool(record.get("error")) for record in records)
    command = folder / "command.txt"
    commands = command.read_text(encoding="utf-8", errors="replace").splitlines() if command.is_file() else []
    facts = [
        ("Model", listed("model")),
        ("Model's limit", f"{', '.join(map(str, limits))} tokens" if limits else ""),
        *((label, listed(name)) for label, name in _LABELS.items()),
        ("Chat template", listed("chat", {True: "yes", False: "no"}.get)),
        ("Versions", listed("versions", lambda found: ", ".join(f"{name} {value}" for name, value in found.items()))),
        ("Records", f"{len(records):,}, of which {failed:,} failed"),
        ("Command", " && ".join(commands)),
    ]
    return [(name, value) for name, value in facts if value]


def _rendered(template: str, **values: Any) -> str:
    return _ENVIRONMENT.get_template(template).render(values).rstrip() + "\n"


def _for_markdown(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return " ".join(re.sub(r"([\\|*_`<])", r"\\\1", text).split())


def _html(markdown: str, folder: Path) -> str:
    """Markdown as HTML, its pictures inside, as wide as a page shows them: their own width is in their header."""

    def inlined(found: re.Match[str]) -> str:
        png = (folder / found[1]).read_bytes()
        data = base64.b64encode(png).decode("ascii")
        return f'<img width="{round(int.from_bytes(png[16:20]) * 96 / DPI)}" src="data:image/png;base64,{data}"'

    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    return re.sub(r'<img src="([\w-]+\.png)"', inlined, html)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("homerlm.lab"),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_ENVIRONMENT.filters["md"] = _for_markdown
