"""Plots of one evaluation, drawn from its records; needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homerlm.lab.canvas import (
    Figure,
    Style,
    length_axis,
    length_label,
    log_axis,
    panels,
    save,
    spread_out,
    styles,
)
from homerlm.lab.matrix import grouped
from homerlm.lab.sections import Section
from homerlm.lab.summary import PERPLEXITY_TASKS, Cell, cells_of, merged_variants, method_rank
from homerlm.lab.sweeps import sweep

DEPTH_BINS = 10
_ACROSS = 3  # panels beside each other
_SHORT = {"now": "asked at once", "later": "asked later"}


@dataclass(frozen=True)
class Quantity:
    """What a panel's upright axis shows; `band` for a share with its interval."""

    label: str
    value: Callable[[Cell], float | None]
    band: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines by name, each over (place, cell); `ticks` names the places, or they are lengths."""

    title: str
    quantity: Quantity
    lines: dict[str, list[tuple[float, Cell]]]
    across: str = "prompt length (tokens)"
    ticks: tuple[str, ...] = ()

    @property
    def drawable(self) -> bool:
        return any(len(points) > 1 for points in map(self.points, self.lines))

    def points(self, name: str) -> list[tuple[float, float, Cell]]:
        """(place, value, cell) where there is a value."""
        values = ((x, self.quantity.value(cell), cell) for x, cell in self.lines.get(name, ()))
        return [(x, y, cell) for x, y, cell in values if y is not None and math.isfinite(y)]


_SCORE = Quantity("share right", lambda cell: cell.score, band=True)
_PERPLEXITY = Quantity("perplexity", lambda cell: cell.perplexity)
_MEMORY = Quantity("peak memory (GB)", lambda cell: cell.peak_bytes / 1e9 if cell.peak_bytes else None)
_SECONDS = Quantity("seconds per request", lambda cell: cell.seconds or None)


def draw(section: Section, directory: Path, style: Style) -> list[Figure]:
    """Writes the section's plots as `directory`/TASK-*.png: what the records hold and no more."""
    if section.task == "ablation":
        return []
    if section.task == "sensitivity":
        swept, style = _sweeps(section)
        return draw_panels(
            swept, directory / "sensitivity.png", style, "One setting at a time; bands: Wilson's 95% interval."
        )
    path = directory / section.task
    groups = grouped(cells_of(section.records), _SHORT)
    if section.task in PERPLEXITY_TASKS:
        what = "of the right answer" if section.task.startswith("passkey") else "of everything up to a length"
        shown = [_by_length(title, _PERPLEXITY, cells) for title, cells in groups]
        figures = draw_panels(shown, Path(f"{path}.png"), style, f"Perplexity {what}; lower is better.")
    else:
        shown = [_by_length(title, _SCORE, cells) for title, cells in groups]
        figures = draw_panels(shown, Path(f"{path}-accuracy.png"), style, "Share right; bands: Wilson's 95% interval.")
        figures += _heat_maps(section, Path(f"{path}-depth.png"))
    costs = grouped(cells_of(merged_variants(section.records)), _SHORT)
    shown = [_by_length(title, what, cells) for title, cells in costs for what in (_MEMORY, _SECONDS)]
    caption = "Highest memory above what was in use before, and median time of a request."
    return figures + draw_panels(shown, Path(f"{path}-cost.png"), style, caption)


def _by_length(title: str, quantity: Quantity, cells: Sequence[Cell]) -> Panel:
    lines: dict[str, list[tuple[float, Cell]]] = {}
    for cell in cells:
        lines.setdefault(cell.method, []).append((cell.length, cell))
    return Panel(title, quantity, lines)


def _sweeps(section: Section) -> tuple[list[Panel], Style]:
    """For each swept setting its accuracy, memory and time, evenly spaced values."""
    names: dict[str, list[Cell]] = {}
    for cell in sorted(cells_of(section.records), key=lambda cell: sweep(cell.variant)):
        names.setdefault(sweep(cell.variant)[0], []).append(cell)
    made: list[Panel] = []
    for name, cells in names.items():
        ticks = tuple(dict.fromkeys(sweep(cell.variant)[2] for cell in cells))
        lines: dict[str, list[tuple[float, Cell]]] = {}
        for cell in cells:
            label = f"{cell.method}, {length_label(cell.length)}{', asked later' if cell.ask == 'later' else ''}"
            lines.setdefault(label, []).append((ticks.index(sweep(cell.variant)[2]), cell))
        made += [Panel("", quantity, lines, name, ticks) for quantity in (_SCORE, _MEMORY, _SECONDS)]
    return made, styles(label for panel in made for label in panel.lines)


def draw_panels(shown: Sequence[Panel], path: Path, style: Style, caption: str) -> list[Figure]:
    """One file of all panels that have a line to show; none if no panel has."""
    shown = [panel for panel in shown if panel.drawable]
    if not shown:
        return []
    names = [name for name in style if any(panel.points(name) for panel in shown)]
    across = 3 if shown[0].ticks else 2 if shown[0].quantity is _MEMORY else min(len(shown), _ACROSS)
    columns = max(1, int(max(3.1 * across, 6.4) / (0.8 + 0.085 * max(map(len, names)))))
    figure, axes = panels(len(shown), across, math.ceil(len(names) / columns))
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes, shown, strict=True):
        for name in panel.lines:
            if points := panel.points(name):
                handles[name] = _line(axis, points, panel.quantity.band, style[name])
        _dress(axis, panel)
    entries = [handles[name] for name in names]
    figure.legend(entries, names, loc="outside upper left", ncols=columns, fontsize=9, frameon=False)
    return [save(figure, path, caption)]


def _line(axis: Any, points: Sequence[tuple[float, float, Cell]], band: bool, look: dict[str, Any]) -> Any:
    xs, ys, cells = zip(*points, strict=True)
    size = 6 if len(points) <= 12 else 0
    (handle,) = axis.plot(xs, ys, **look, markersize=size, markeredgecolor="white", linewidth=1.8, clip_on=False)
    if band:
        low, high = [cell.low for cell in cells], [cell.high for cell in cells]
        axis.fill_between(xs, low, high, color=look["color"], alpha=0.12, linewidth=0)
    return handle


def _dress(axis: Any, panel: Panel) -> None:
    """Axes, units and the number of samples."""
    points = [point for name in panel.lines for point in panel.points(name)]
    counts = [cell.n for _, _, cell in points]
    n = f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}"
    axis.set_title(f"{panel.title} ({n})" if panel.title else n, loc="left", fontsize=9)
    axis.set_xlabel(panel.across, fontsize=9)
    axis.set_ylabel(panel.quantity.label, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color="#e2e2e2", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.ticks:
        axis.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=15 if max(map(len, panel.ticks)) > 6 else 0)
    else:
        length_axis(axis, sorted({int(x) for x, _, _ in points}))
    values = [y for _, y, _ in points]
    if panel.quantity.band:
        axis.set(ylim=(-0.02, 1.02), yticks=(0, 0.25, 0.5, 0.75, 1))
    elif panel.ticks:
        axis.set_ylim(0, 1.15 * max(values))
    elif panel.quantity is not _PERPLEXITY or max(values) > 10 * min(values):
        log_axis(axis, min(values), max(values))


def _heat_maps(section: Section, path: Path) -> list[Figure]:
    """Share right by length and depth, a panel for each method and way of asking, all variants together."""
    shares: dict[tuple[str, str], dict[tuple[int, int], list[float]]] = {}
    for record in section.records:
        depth, score = record.get("depth"), record.get("score")
        if isinstance(depth, (int, float)) and isinstance(score, (int, float)):
            panel = shares.setdefault((str(record.get("ask") or ""), str(record.get("method"))), {})
            place = (min(int(depth * DEPTH_BINS), DEPTH_BINS - 1), record["length"])
            panel.setdefault(place, []).append(float(score))
    if not shares:
        return []
    lengths = sorted({length for panel in shares.values() for _, length in panel})
    figure, axes = panels(len(shares), min(len(shares), _ACROSS))
    order = sorted(shares, key=lambda key: (key[0] == "later", method_rank(key[1])))
    for axis, (ask, method) in zip(axes, order, strict=True):
        label = method if len({ask for ask, _ in shares}) == 1 else f"{method}, {_SHORT.get(ask, ask)}"
        image = _heat_map(axis, shares[ask, method], lengths, label)
    figure.colorbar(image, ax=axes, label="share right", shrink=0.8, pad=0.02, aspect=25)
    counts = [len(cell) for panel in shares.values() for cell in panel.values()]
    n = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    variants = len({str(record.get("variant")) for record in section.records})
    together = f", all {variants} variants together" if variants > 1 else ""
    caption = (
        f"Share right by where the fact stands; n = {n} in each field{together}; hatched: no sample, or all failed."
    )
    return [save(figure, path, caption)]


def _heat_map(axis: Any, found: dict[tuple[int, int], list[float]], lengths: list[int], label: str) -> Any:
    means = {place: sum(scores) / len(scores) for place, scores in found.items()}
    rows = [[means.get((depth, length), math.nan) for length in lengths] for depth in range(DEPTH_BINS)]
    axis.patch.set(facecolor="white", edgecolor="#c4c4c4", hatch="////")
    image = axis.imshow(rows, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    axis.set_title(label, loc="left", fontsize=9)
    chosen = spread_out(lengths)
    axis.set_xticks([lengths.index(n) for n in chosen], [length_label(n) for n in chosen])
    axis.set_yticks([-0.5, DEPTH_BINS / 2 - 0.5, DEPTH_BINS - 0.5], ["0%", "50%", "100%"])
    axis.set_xlabel("prompt length (tokens)", fontsize=9)
    axis.set_ylabel("depth of the fact", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[:].set_visible(False)
    return image
