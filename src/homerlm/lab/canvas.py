"""What all plots share: matplotlib, colours, axes, files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homerlm.errors import ConfigError
from homerlm.lab.summary import method_rank

DPI = 160
SCALE = 96 / DPI  # of a page's pixels to the file's
# Okabe and Ito's colours and some that differ in lightness; a method is also told by its line and its marker
_OURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A4FA3")
_OTHERS = ("#000000", "#E69F00", "#56B4E9", "#8C8C8C", "#9C6B30", "#A5A520", "#A6CEE3")
_MARKERS = "osD^vPX"

Style = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A file that was drawn and what it shows."""

    path: Path
    caption: str


def pyplot() -> Any:
    """matplotlib.pyplot with the backend that needs no screen. Raises `ConfigError` where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed: pip install 'homerlm[eval]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def styles(methods: Iterable[str]) -> Style:
    """One look for each method in all plots: HOMER's lines are whole, the others' broken."""
    looks: Style = {}
    for method in sorted(set(methods), key=method_rank):
        ours = method.startswith("homer")
        k = sum(other.startswith("homer") == ours for other in looks)
        colours = _OURS if ours else _OTHERS
        looks[method] = {
            "color": colours[k % len(colours)],
            "marker": _MARKERS[(k + k // len(colours)) % len(_MARKERS)],
            "linestyle": "-" if ours else (0, (4, 2)),
            "zorder": 2.5 if ours else 3,  # what is broken lets through what is under it
        }
    return looks


def panels(count: int, across: int, legend_rows: int = 0) -> tuple[Any, list[Any]]:
    """A figure and `count` axes, `across` of them beside each other."""
    down = math.ceil(count / across)
    size = max(3.1 * across, 6.4), (3.0 if across > 1 else 3.6) * down + 0.22 * legend_rows
    figure, grid = pyplot().subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def save(figure: Any, path: Path, caption: str) -> Figure:
    figure.savefig(path, dpi=DPI, facecolor="white")
    pyplot().close(figure)
    return Figure(path, caption)


def length_label(tokens: int) -> str:
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if tokens and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"


def spread_out(lengths: Sequence[int]) -> list[int]:
    """Of ascending lengths those to label: the first, and each that is at least a seventh of a logarithmic axis away
    from the one before it."""
    chosen = [lengths[0]]
    apart = (lengths[-1] / lengths[0]) ** (1 / 7)
    for n in lengths[1:]:
        if n >= 0.99 * apart * chosen[-1]:
            chosen.append(n)
    return chosen


def length_axis(axis: Any, lengths: Sequence[int]) -> None:
    """A logarithmic level axis of prompt lengths."""
    axis.set_xscale("log", base=2)
    axis.minorticks_off()
    chosen = spread_out(lengths)
    axis.set_xticks(chosen, [length_label(n) for n in chosen])


def log_axis(axis: Any, low: float, high: float) -> None:
    """A logarithmic upright axis over at least one power of ten, with plain numbers."""
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    middle, half = math.sqrt(low * high), max(math.sqrt(high / low) * 1.25, math.sqrt(10))
    low, high = middle / half, middle * half
    steps = (1, 2, 5) if high / low < 300 else (1,)
    marks = [m * 10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in steps]
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
