"""The report of one benchmark: tables, page, plots and ratios from a folder of records."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from homerlm.lab.bench_plots import draw
from homerlm.lab.bench_sections import sections
from homerlm.lab.canvas import pyplot
from homerlm.lab.ratios import ratios
from homerlm.lab.records import read_records
from homerlm.lab.report import what_was_run, write_pages
from homerlm.lab.tables import to_rich

RATIOS = "ratios.json"


def terminal_tables(directory: Path) -> list[Table]:
    """The tables of the records in `directory`, without the paper's rows. Raises `InputError` if there are none."""
    return [to_rich(grid) for section in sections(read_records(directory)[0]) for grid in section.grids]


def write_report(directory: Path, *, plots: bool = True) -> Path:
    """Writes report.md, report.html, ratios.json and the plots beside the records in `directory`; the page's path.

    Raises `InputError` for a directory without records or one that cannot be written, and `ConfigError` before
    anything is written if matplotlib is missing; `plots=False` does without.
    """
    records, notes = read_records(directory)
    if plots:
        pyplot()
    parts = sections(records)
    facts = what_was_run(records, directory)
    page = write_pages(
        directory, "HOMER benchmark", parts, lambda part: draw(part, directory) if plots else [], facts, notes
    )
    compared = ratios(record for part in parts if part.task == "memory" for record in part.records)
    (directory / RATIOS).write_text(json.dumps(compared, indent=1) + "\n", encoding="utf-8")
    return page
