"""Plots of a benchmark, drawn from its records; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homerlm.lab.canvas import Figure, panels, save, styles
from homerlm.lab.grids import Record
from homerlm.lab.plots import Panel, Quantity, draw_panels
from homerlm.lab.profile import PARTS
from homerlm.lab.sections import Section

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#A5A520", "#D55E00", "#CC79A7", "#8C8C8C", "#d4d4d4")


@dataclass(frozen=True)
class Point:
    """One measured cell as a point of a line; `n`: repeats."""

    n: int
    value: float | None


_VALUE: dict[str, Any] = {"value": lambda point: point.value}
_TOTAL = Quantity("peak memory, everything in use (GB)", **_VALUE)
_ABOVE = Quantity("peak memory above the model (GB)", **_VALUE)
_FIRST = Quantity("time to first token (s)", **_VALUE)
_STEP = Quantity("time of each new token (ms)", **_VALUE)


def draw(section: Section, directory: Path) -> list[Figure]:
    """Writes the section's plots as `directory`/*.png: what the records hold and no more."""
    style = styles(line for record in section.records for line in [_line(record, section.records)])
    if section.task == "memory":
        shown = [_panel(section, _TOTAL, "total_bytes", 1e-9), _panel(section, _ABOVE, "peak_bytes", 1e-9)]
        return draw_panels(
            shown, directory / "memory.png", style, "Peak memory by prompt length (the paper's figure 1)."
        )
    if section.task == "time":
        shown = [_panel(section, _FIRST, "first_token_s", 1), _panel(section, _STEP, "step_s", 1e3)]
        return draw_panels(shown, directory / "time.png", style, "Reading and writing by prompt length, medians.")
    if section.task == "profile":
        return _bars(section.records, directory / "profile.png")
    return []


def _panel(section: Section, quantity: Quantity, name: str, scale: float) -> Panel:
    lines: dict[str, list[tuple[float, Any]]] = {}
    for record in section.records:
        if not record.get("error"):
            point = Point(record["n"], record[name] * scale)
            lines.setdefault(_line(record, section.records), []).append((record["length"], point))
    return Panel("", quantity, lines)


def _line(record: Record, records: Sequence[Record]) -> str:
    several = len({other["batch"] for other in records}) > 1
    return f"{record['method']}, batch {record['batch']}" if several else record["method"]


def _bars(records: Sequence[Record], path: Path) -> list[Figure]:
    """One bar for each method and length, its parts side by side in it."""
    done = [record for record in records if not record.get("error")]
    if not done:
        return []
    figure, (axis,) = panels(1, 1, 2)
    labels = [f"{record['method']}, {record['length']:,}" for record in done]
    left = [0.0] * len(done)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        widths = [record["parts"][part] for record in done]
        axis.barh(labels, widths, left=left, color=colour, label=part, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("seconds of one reading", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, fontsize=9, frameon=False)
    counts = sorted({record["n"] for record in done})
    return [save(figure, path, f"Where the time of reading goes; medians of {', '.join(map(str, counts))} repeats.")]
