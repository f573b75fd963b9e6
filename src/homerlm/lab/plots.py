"""Plots of a report, drawn from its records with seaborn."""

from __future__ import annotations

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
SHORT = {"now": "asked at once", "later": "asked later"}
SHARE, PERPLEXITY, MEMORY, SECONDS = "share right", "perplexity", "peak memory (GB)", "seconds per request"
FIELDS = {SHARE: ("score", 1), PERPLEXITY: ("perplexity", 1), MEMORY: ("peak_bytes", 1e-9), SECONDS: ("seconds", 1)}
BENCH = {  # of a benchmark, by the section's task: the caption, then what each panel shows
    "memory": "Peak memory by prompt length (the paper's figure 1).",
    "time": "Reading and writing by prompt length, medians.",
}
BENCH_FIELDS = {
    "memory": {
        "peak memory, everything in use (GB)": ("total_bytes", 1e-9),
        "peak memory above the model (GB)": ("peak_bytes", 1e-9),
    },
    "time": {"time to first token (s)": ("first_token_s", 1), "time of each new token (ms)": ("step_s", 1e3)},
}
INTERVALS = "bands: Wilson's 95% interval."
MARKERS = "osD^vPX"


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

    seaborn.set_theme(style="ticks", palette="colorblind", font_scale=0.8)
    return matplotlib.pyplot, seaborn


def draw(section: Section, folder: Path) -> list[Figure]:
    """Writes the section's plots as `folder`/*.png: what the records hold and no more."""
    task, records = section.task, section.records
    if task == "profile":
        return _bars(records, folder / "profile.png")
    if task in BENCH:
        points = _points(_benchmarked(records), BENCH_FIELDS[task])
        return _lines(points, folder / f"{task}.png", BENCH[task])
    if task == "sensitivity":
        points = _points(_sweeps(records), {name: FIELDS[name] for name in (SHARE, MEMORY, SECONDS)})
        return _lines(points, folder / "sensitivity.png", f"One setting at a time; {INTERVALS}")
    if task in ("ablation", "counts"):
        return []
    summary = labelled(summarise(records), SHORT)
    if task in PERPLEXITY_TASKS:
        what = "of the right answer" if task.startswith("passkey") else "of everything up to a length"
        points, caption = _points(summary, {PERPLEXITY: FIELDS[PERPLEXITY]}), f"Perplexity {what}; lower is better."
        figures = _lines(points, folder / f"{task}.png", caption)
    else:
        points = _points(summary, {SHARE: FIELDS[SHARE]})
        figures = _lines(points, folder / f"{task}-accuracy.png", f"Share right; {INTERVALS}")
        figures += _heat_maps(records, folder / f"{task}-depth.png")
    summary = labelled(summarise(records.assign(variant="")), SHORT)
    points = _points(summary, {name: FIELDS[name] for name in (MEMORY, SECONDS)})
    caption = "Highest memory above what was in use before, and median time of a request."
    return figures + _lines(points, folder / f"{task}-cost.png", caption, across=2)


def _points(summary: pd.DataFrame, fields: dict[str, tuple[str, float]]) -> pd.DataFrame:
    """What `_lines` draws: a panel for each group and quantity, in it a value for each method and length."""
    made = [
        summary.assign(
            quantity=quantity, panel=summary["group"] + ": " + quantity, y=summary[name].astype(float) * scale
        )
        for quantity, (name, scale) in fields.items()
    ]
    return pd.concat(made).sort_values("group", kind="stable", key=lambda groups: pd.factorize(groups)[0])


def _benchmarked(records: pd.DataFrame) -> pd.DataFrame:
    done = records[records["error"].isna()]
    several = records["batch"].nunique() > 1
    return done.assign(method=done["method"] + (", batch " + done["batch"].astype(str) if several else ""), group="")


def _sweeps(records: pd.DataFrame) -> pd.DataFrame:
    """A group for each swept setting, whose values are `ticks`, evenly spaced."""
    rows = swept(summarise(records)).sort_values(["setting", "number"], kind="stable")
    later = rows["ask"].map(lambda ask: ", asked later" if ask == "later" else "")
    method = rows["method"] + ", " + rows["length"].map(length_label) + later
    place = rows.groupby("setting")["value"].transform(lambda values: pd.factorize(values)[0])
    return rows.assign(method=method, ticks=rows["value"], length=place, group=rows["setting"])


def _lines(points: pd.DataFrame, path: Path, caption: str, across: int = 3) -> list[Figure]:
    """One file of all panels that have a line to show; none if none has."""
    points = points[points["y"].notna()]
    most = points.groupby(["panel", "method"]).size().groupby("panel").max()
    points = points[points["panel"].map(most) > 1].reset_index(drop=True)
    if not len(points):
        return []
    _, seaborn = plotting()
    across = min(across, points["panel"].nunique())
    width = max(3.1 * across, 6.4)
    methods = sorted(points["method"].unique(), key=method_rank)
    grid = seaborn.relplot(
        points,
        kind="line",
        x="length",
        y="y",
        hue="method",
        hue_order=methods,
        style="method",
        style_order=methods,
        markers={method: MARKERS[k % len(MARKERS)] for k, method in enumerate(methods)},
        dashes={method: "" if method.startswith("homer") else (4, 2) for method in methods},
        palette=dict(zip(methods, seaborn.color_palette("colorblind", len(methods)), strict=True)),
        col="panel",
        col_wrap=across,
        estimator=None,
        height=3,
        aspect=width / across / 3,
        facet_kws={"sharex": False, "sharey": False, "legend_out": False},
    )
    grid.set_titles("")
    colours = {
        text.get_text(): line.get_color()
        for text, line in zip(grid.legend.texts, grid.legend.legend_handles, strict=True)
    }
    for panel, axis in grid.axes_dict.items():
        _dress(axis, points[points["panel"] == panel], colours)
    grid.tight_layout()
    columns = max(1, int(width / (0.8 + 0.085 * max(map(len, methods)))))
    seaborn.move_legend(grid, "lower left", bbox_to_anchor=(0, 1), ncol=columns, title=None, frameon=False)
    return [_save(grid.figure, path, caption)]


def _dress(axis: Any, points: pd.DataFrame, colours: dict[str, Any]) -> None:
    """Axes, units, intervals and the number of samples."""
    group, quantity, is_sweep = points["group"].iloc[0], points["quantity"].iloc[0], "ticks" in points
    n = f"n = {_span(points['n'])}"
    axis.set_title(f"{group} ({n})" if group and not is_sweep else n, loc="left")
    axis.set(xlabel=group if is_sweep else "prompt length (tokens)", ylabel=quantity)
    axis.grid(axis="y", color="#e2e2e2")
    low, high = points["y"].min(), points["y"].max()
    if is_sweep:
        ticks = points.drop_duplicates("length")
        axis.set_xticks(ticks["length"], ticks["ticks"])
        axis.set_ylim(0, 1.15 * high or 1)
    else:
        from matplotlib.ticker import FuncFormatter, LogLocator

        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: length_label(int(tokens))))
    if quantity == SHARE:
        axis.set(ylim=(-0.02, 1.02), yticks=(0, 0.25, 0.5, 0.75, 1))
        for method, line in points.sort_values("length").groupby("method"):
            axis.fill_between(line["length"], line["low"], line["high"], color=colours[str(method)], alpha=0.12, lw=0)
    elif not is_sweep and low > 0 and (quantity != PERPLEXITY or high > 10 * low):
        _log_axis(axis, low, high)
    axis.minorticks_off()


def _log_axis(axis: Any, low: float, high: float) -> None:
    """Over at least one power of ten, with plain numbers."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    middle, half = (low * high) ** 0.5, max((high / low) ** 0.5 * 1.25, 10**0.5)
    axis.set(yscale="log", ylim=(middle / half, middle * half))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if half < 15 else (1,)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _heat_maps(records: pd.DataFrame, path: Path) -> list[Figure]:
    """Share right by length and depth, a panel for each method and way of asking, all variants together."""
    scored = records[records["score"].notna() & records["depth"].notna()]
    if not len(scored):
        return []
    pyplot, seaborn = plotting()
    asked = ", " + scored["ask"].replace(SHORT) if scored["ask"].nunique() > 1 else ""
    scored = scored.assign(panel=scored["method"] + asked, tenth=(scored["depth"] * 10).astype(int).clip(upper=9))
    panels = scored.drop_duplicates("panel")
    place = {row.panel: (row.ask == "later", method_rank(row.method)) for row in panels.itertuples()}
    lengths = sorted(scored["length"].unique())

    def heat_map(data: pd.DataFrame, **_: Any) -> None:
        shares = data.pivot_table(index="tenth", columns="length", values="score").reindex(range(10), columns=lengths)
        axis = seaborn.heatmap(shares.rename(columns=length_label), vmin=0, vmax=1, cmap="cividis", cbar=False)
        axis.patch.set(facecolor="white", edgecolor="#c4c4c4", hatch="////")
        axis.set_yticks([0, 5, 10], ["0%", "50%", "100%"], rotation=0)

    across = min(len(place), 3)
    order = sorted(place, key=place.__getitem__)
    grid = seaborn.FacetGrid(scored, col="panel", col_order=order, col_wrap=across, height=3, aspect=1.1)
    grid.map_dataframe(heat_map).set_titles("{col_name}")
    grid.set_axis_labels("prompt length (tokens)", "depth of the fact")
    pyplot.colorbar(grid.axes.flat[0].collections[0], ax=list(grid.axes.flat), label="share right", shrink=0.8)
    n = _span(scored.groupby(["panel", "tenth", "length"]).size())
    variants = records["variant"].nunique()
    together = f", all {variants} variants together" if variants > 1 else ""
    where = f"Share right by where the fact stands; n = {n} in each field{together}"
    return [_save(grid.figure, path, f"{where}; hatched: no sample, or all failed.")]


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


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def length_label(tokens: int) -> str:
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if tokens and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"
