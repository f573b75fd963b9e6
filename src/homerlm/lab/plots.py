"""Plots of a report, drawn from its records with seaborn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from homerlm.errors import ConfigError
from homerlm.lab.eval_tables import labelled, swept
from homerlm.lab.profile import PARTS
from homerlm.lab.summary import PERPLEXITY_TASKS, method_rank, summarise
from homerlm.lab.tables import Section

DPI = 160
_SHORT = {"now": "asked at once", "later": "asked later"}
_MARKERS = "osD^vPX"
SHARE, PERPLEXITY, MEMORY, SECONDS = "share right", "perplexity", "peak memory (GB)", "seconds per request"
_BENCH = {  # file: its caption, and (axis, field, scale) of its panels
    "memory": (
        "Peak memory by prompt length (the paper's figure 1).",
        ("peak memory, everything in use (GB)", "total_bytes", 1e-9),
        ("peak memory above the model (GB)", "peak_bytes", 1e-9),
    ),
    "time": (
        "Reading and writing by prompt length, medians.",
        ("time to first token (s)", "first_token_s", 1),
        ("time of each new token (ms)", "step_s", 1e3),
    ),
}
_INTERVALS = "bands: Wilson's 95% interval."


@dataclass(frozen=True)
class Figure:
    """A file that was drawn and what it shows."""

    path: Path
    caption: str


def plotting() -> tuple[Any, Any]:
    """pyplot, with the backend that needs no screen, and seaborn. Raises `ConfigError` where one is not installed."""
    try:
        import matplotlib
        import seaborn
    except ImportError as error:
        raise ConfigError(f"plots need {error.name}, which is not installed: pip install 'homerlm[eval]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    seaborn.set_theme(style="ticks", palette="colorblind", font_scale=0.8, rc={"axes.grid.axis": "y"})
    return matplotlib.pyplot, seaborn


def draw(section: Section, folder: Path) -> list[Figure]:
    """Writes the section's plots as `folder`/*.png: what the records hold and no more."""
    if section.task == "profile":
        return _bars(section.records, folder / "profile.png")
    if section.task in _BENCH:
        caption, *quantities = _BENCH[section.task]
        return _lines(_bench_points(section.records, quantities), folder / f"{section.task}.png", caption)
    if section.task in ("ablation", "counts"):
        return []
    return _eval_plots(section, folder)


def _eval_plots(section: Section, folder: Path) -> list[Figure]:
    task, records = section.task, section.records
    if task == "sensitivity":
        return _lines(_swept_points(records), folder / "sensitivity.png", f"One setting at a time; {_INTERVALS}", 3)
    summary = labelled(summarise(records), _SHORT)
    if task in PERPLEXITY_TASKS:
        what = "of the right answer" if task.startswith("passkey") else "of everything up to a length"
        figures = _lines(
            _points(summary, PERPLEXITY, summary["perplexity"]),
            folder / f"{task}.png",
            f"Perplexity {what}; lower is better.",
        )
    else:
        figures = _lines(
            _points(summary, SHARE, summary["score"]), folder / f"{task}-accuracy.png", f"Share right; {_INTERVALS}"
        )
        figures += _heat_maps(records, folder / f"{task}-depth.png")
    summary = labelled(summarise(records.assign(variant="")), _SHORT)
    costs = [_points(summary, MEMORY, summary["peak_bytes"] / 1e9), _points(summary, SECONDS, summary["seconds"])]
    caption = "Highest memory above what was in use before, and median time of a request."
    return figures + _lines(pd.concat(costs), folder / f"{task}-cost.png", caption, 2)


def _points(summary: pd.DataFrame, quantity: str, values: pd.Series) -> pd.DataFrame:
    """What `_lines` draws: a value for each method at each place of a panel."""
    named = {"quantity": quantity, "panel": summary["group"] + ": " + quantity}
    return summary.assign(value=values.where(values > 0) if quantity != SHARE else values, **named).rename(
        columns={"length": "x"}
    )


def _swept_points(records: pd.DataFrame) -> pd.DataFrame:
    """For each swept setting its accuracy, memory and time, evenly spaced values."""
    rows = swept(summarise(records)).sort_values(["setting", "number"], kind="stable")
    rows = rows.assign(value_text=rows["value"])
    where = [
        f", {length_label(n)}{', asked later' * (ask == 'later')}"
        for n, ask in zip(rows["length"], rows["ask"], strict=True)
    ]
    rows = rows.assign(method=rows["method"] + where, length=rows.groupby("setting")["value"].transform(_codes))
    quantities = {SHARE: rows["score"], MEMORY: rows["peak_bytes"] / 1e9, SECONDS: rows["seconds"]}
    made = [_points(rows.assign(group=rows["setting"]), name, values) for name, values in quantities.items()]
    return pd.concat(made).sort_values("setting", kind="stable")


def _codes(values: pd.Series) -> Any:
    return pd.factorize(values)[0]


def _bench_points(records: pd.DataFrame, quantities: Sequence[tuple[str, str, float]]) -> pd.DataFrame:
    done = records[records["error"].isna()]
    several = records["batch"].nunique() > 1
    done = done.assign(method=done["method"] + (", batch " + done["batch"].astype(str) if several else ""), group="")
    return pd.concat([_points(done, label, done[name].astype(float) * scale) for label, name, scale in quantities])


def _lines(points: pd.DataFrame, path: Path, caption: str, across: int = 3) -> list[Figure]:
    """One file with a panel for each group and quantity that has a line to show; none if none has."""
    points = points[points["value"].notna()]
    sizes = points.groupby(["panel", "method"]).size().groupby("panel").max()
    points = points[points["panel"].isin(sizes[sizes > 1].index)].reset_index(drop=True)
    if not len(points):
        return []
    _, seaborn = plotting()
    across = min(across, points["panel"].nunique())
    methods = sorted(points["method"].unique(), key=method_rank)
    grid = seaborn.relplot(
        points,
        kind="line",
        x="x",
        y="value",
        hue="method",
        style="method",
        **_styles(methods, seaborn),
        col="panel",
        col_wrap=across,
        estimator=None,
        errorbar=None,
        height=3,
        aspect=max(3.1 * across, 6.4) / across / 3,
        facet_kws={"sharex": False, "sharey": False, "legend_out": False},
    )
    grid.set_titles("")
    for panel, axis in grid.axes_dict.items():
        _dress(axis, points[points["panel"] == panel], grid.legend)
    grid.tight_layout()
    columns = max(1, int(max(3.1 * across, 6.4) / (0.8 + 0.085 * max(map(len, methods)))))
    seaborn.move_legend(grid, "lower left", bbox_to_anchor=(0, 1), ncol=columns, title=None, frameon=False)
    return [_save(grid.figure, path, caption)]


def _styles(methods: Sequence[str], seaborn: Any) -> dict[str, Any]:
    """HOMER's lines are whole, the others' broken: they let through what is under them."""
    colours = seaborn.color_palette("colorblind", len(methods))
    return {
        "hue_order": methods,
        "style_order": methods,
        "palette": dict(zip(methods, colours, strict=True)),
        "markers": {method: _MARKERS[k % len(_MARKERS)] for k, method in enumerate(methods)},
        "dashes": {method: "" if method.startswith("homer") else (4, 2) for method in methods},
    }


def _dress(axis: Any, points: pd.DataFrame, legend: Any) -> None:
    """Axes, units, intervals and the number of samples."""
    group, quantity = points["group"].iloc[0], points["quantity"].iloc[0]
    is_sweep = "setting" in points
    counts = points["n"].astype(int)
    n = f"n = {counts.min()}" if counts.nunique() == 1 else f"n = {counts.min()} to {counts.max()}"
    axis.set_title(f"{group} ({n})" if group and not is_sweep else n, loc="left")
    axis.set(xlabel=group if is_sweep else "prompt length (tokens)", ylabel=quantity)
    axis.grid(axis="y", color="#e2e2e2")
    if is_sweep:
        ticks = points.drop_duplicates("x").sort_values("x")
        axis.set_xticks(ticks["x"], ticks["value_text"], rotation=15 if ticks["value_text"].str.len().max() > 6 else 0)
    else:
        _length_axis(axis, sorted(points["x"].unique()))
    low, high = points["value"].min(), points["value"].max()
    if quantity == SHARE:
        axis.set(ylim=(-0.02, 1.02), yticks=(0, 0.25, 0.5, 0.75, 1))
        colours = dict(zip((text.get_text() for text in legend.texts), legend.legend_handles, strict=False))
        for method, line in points.groupby("method"):
            band = line.sort_values("x")
            axis.fill_between(band["x"], band["low"], band["high"], color=colours[method].get_color(), alpha=0.12, lw=0)
    elif is_sweep:
        axis.set_ylim(0, 1.15 * high)
    elif quantity != PERPLEXITY or high > 10 * low:
        _log_axis(axis, low, high)


def _length_axis(axis: Any, lengths: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.minorticks_off()
    chosen = spread_out(lengths)
    axis.set_xticks(chosen, [length_label(n) for n in chosen])


def _log_axis(axis: Any, low: float, high: float) -> None:
    """Over at least one power of ten, with plain numbers."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    middle, half = (low * high) ** 0.5, max((high / low) ** 0.5 * 1.25, 10**0.5)
    axis.set(yscale="log", ylim=(middle / half, middle * half))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if half < 15 else (1,)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.minorticks_off()


def _heat_maps(records: pd.DataFrame, path: Path) -> list[Figure]:
    """Share right by length and depth, a panel for each method and way of asking, all variants together."""
    scored = records[records["score"].notna() & records["depth"].notna()]
    if not len(scored):
        return []
    pyplot, seaborn = plotting()
    several = scored["ask"].nunique() > 1
    names = scored["method"] + (", " + scored["ask"].replace(_SHORT) if several else "")
    scored = scored.assign(panel=names, tenth=(scored["depth"] * 10).astype(int).clip(upper=9))
    order = scored.drop_duplicates("panel").sort_values(
        ["ask", "method"],
        key=lambda column: column.map(lambda v: (v == "later",) if column.name == "ask" else method_rank(v)),
    )["panel"]
    lengths = sorted(scored["length"].unique())

    def heat_map(data: pd.DataFrame, **_: Any) -> None:
        shares = data.pivot_table(index="tenth", columns="length", values="score").reindex(range(10), columns=lengths)
        axis = seaborn.heatmap(shares, vmin=0, vmax=1, cmap="cividis", cbar=False)
        axis.patch.set(facecolor="white", edgecolor="#c4c4c4", hatch="////")
        chosen = spread_out(lengths)
        axis.set_xticks([lengths.index(n) + 0.5 for n in chosen], [length_label(n) for n in chosen], rotation=0)
        axis.set_yticks([0, 5, 10], ["0%", "50%", "100%"], rotation=0)

    across = min(len(order), 3)
    grid = seaborn.FacetGrid(scored, col="panel", col_order=order, col_wrap=across, height=3, aspect=1.1)
    grid.map_dataframe(heat_map).set_titles("{col_name}").set_axis_labels("prompt length (tokens)", "depth of the fact")
    pyplot.colorbar(grid.axes.flat[0].collections[0], ax=list(grid.axes.flat), label="share right", shrink=0.8)
    counts = scored.groupby(["panel", "tenth", "length"]).size()
    n = f"{counts.min()}" if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"
    variants = records["variant"].nunique()
    together = f", all {variants} variants together" if variants > 1 else ""
    caption = (
        f"Share right by where the fact stands; n = {n} in each field{together}; hatched: no sample, or all failed."
    )
    return [_save(grid.figure, path, caption)]


def _bars(records: pd.DataFrame, path: Path) -> list[Figure]:
    """One bar for each method and length, its parts side by side in it."""
    done = records[records["error"].isna()]
    if not len(done):
        return []
    plotting()
    labels = [f"{row.method}, {row.length:,}" for row in done.itertuples()]
    parts = pd.DataFrame(list(done["parts"]), index=labels, columns=list(PARTS))
    axis = parts.plot.barh(stacked=True, figsize=(6.4, 1.6 + 0.5 * len(parts)), width=0.6)
    axis.invert_yaxis()
    axis.set_xlabel("seconds of one reading")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.02), ncols=4, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    counts = ", ".join(map(str, sorted(done["n"].unique())))
    return [_save(axis.figure, path, f"Where the time of reading goes; medians of {counts} repeats.")]


def _save(figure: Any, path: Path, caption: str) -> Figure:
    figure.savefig(path, dpi=DPI, facecolor="white", bbox_inches="tight")
    plotting()[0].close(figure)
    return Figure(path, caption)


def length_label(tokens: int) -> str:
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if tokens and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"


def spread_out(lengths: Sequence[int]) -> list[int]:
    """Of rising lengths those to label: the first, and each that is at least a seventh of a logarithmic axis away from
    the one before it."""
    chosen = [lengths[0]]
    apart = (lengths[-1] / lengths[0]) ** (1 / 7)
    for n in lengths[1:]:
        if n >= 0.99 * apart * chosen[-1]:
            chosen.append(n)
    return chosen
