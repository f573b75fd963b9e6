"""Plots of a report, drawn from its records with seaborn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from homerlm.errors import ConfigError
from homerlm.lab.eval_tables import labelled, swept
from homerlm.lab.profile import PARTS
from homerlm.lab.summary import PERPLEXITY_TASKS, method_rank, summarise
from homerlm.lab.tables import Section

DPI = 160
SHORT = {"now": "asked at once", "later": "asked later"}
MARKERS = "osD^vPX"


class Quantity(NamedTuple):
    """What stands on a y axis: a field of the summary, times `scale`."""

    label: str
    field: str
    scale: float = 1


class Figure(NamedTuple):
    """A file that was drawn and what it shows."""

    path: Path
    caption: str


SHARE, PERPLEXITY = Quantity("share right", "score"), Quantity("perplexity", "perplexity")
MEMORY, REQUEST = Quantity("peak memory (GB)", "peak_bytes", 1e-9), Quantity("seconds per request", "seconds")
SHOWN: dict[str, tuple[str, list[Quantity]]] = {  # kind of plot: caption, and what its panels show
    "memory": (
        "Peak memory by prompt length (the paper's figure 1).",
        [
            Quantity("peak memory, everything in use (GB)", "total_bytes", 1e-9),
            Quantity("peak memory above the model (GB)", "peak_bytes", 1e-9),
        ],
    ),
    "time": (
        "Reading and writing by prompt length, medians.",
        [Quantity("time to first token (s)", "first_token_s"), Quantity("time of each new token (ms)", "step_s", 1e3)],
    ),
    "perplexity": ("Perplexity of everything up to a length; lower is better.", [PERPLEXITY]),
    "passkey-perplexity": ("Perplexity of the right answer; lower is better.", [PERPLEXITY]),
    "sensitivity": ("One setting at a time; bands: Wilson's 95% interval.", [SHARE, MEMORY, REQUEST]),
    "accuracy": ("Share right; bands: Wilson's 95% interval.", [SHARE]),
    "cost": ("Highest memory above what was in use before, and median time of a request.", [MEMORY, REQUEST]),
}


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
    path = folder / f"{task}.png"
    if task == "profile":
        return _bars(records, path)
    if task in ("memory", "time"):
        return _lines(_benchmarked(records), task, path)
    if task == "sensitivity":
        return _lines(_sweeps(records), task, path)
    if task in ("ablation", "counts"):
        return []
    judged = labelled(summarise(records), SHORT)
    costs = labelled(summarise(records.assign(variant="")), SHORT)  # the variants of a task are read alike
    if task in PERPLEXITY_TASKS:
        figures = _lines(judged, task, path)
    else:
        figures = _lines(judged, "accuracy", folder / f"{task}-accuracy.png")
        figures += _heat_maps(records, folder / f"{task}-depth.png")
    return figures + _lines(costs, "cost", folder / f"{task}-cost.png", across=2)


def _benchmarked(records: pd.DataFrame) -> pd.DataFrame:
    done = records[records["error"].isna()]
    batch = ", batch " + done["batch"].astype(str) if records["batch"].nunique() > 1 else ""
    return done.assign(method=done["method"] + batch, group="")


def _sweeps(records: pd.DataFrame) -> pd.DataFrame:
    """A group for each swept setting, whose values take the place of the length."""
    rows = swept(summarise(records))
    asked = rows["ask"].map({"later": ", asked later"}).fillna("")
    method = rows["method"] + ", " + rows["length"].map(length_label) + asked
    return rows.assign(method=method, length=rows["number"], group=rows["setting"])


def _lines(rows: pd.DataFrame, kind: str, path: Path, across: int = 3) -> list[Figure]:
    """One file with a panel for each group and quantity that has a line to show; none if none has."""
    caption, quantities = SHOWN[kind]
    rows = rows.assign(place=pd.factorize(rows["group"])[0])
    points = pd.concat(rows.assign(quantity=q.label, y=rows[q.field] * q.scale) for q in quantities)
    points = points.assign(panel=points["group"] + points["quantity"]).dropna(subset="y")
    points = points.sort_values("place", kind="stable")
    sizes = points.groupby(["panel", "method"])["y"].transform("size")
    points = points[sizes.groupby(points["panel"]).transform("max") > 1]
    if not len(points):
        return []
    _, seaborn = plotting()
    methods = sorted(points["method"].unique(), key=method_rank)
    styles = {
        "marker": [MARKERS[k % len(MARKERS)] for k in range(len(methods))],
        "linestyle": ["-" if method.startswith("homer") else "--" for method in methods],
    }
    across = min(across, points["panel"].nunique())
    width = max(3.1 * across, 6.4)
    panels = {"col": "panel", "col_wrap": across, "height": 3, "aspect": width / across / 3}
    lines = {"hue": "method", "hue_order": methods, "hue_kws": styles}
    grid = seaborn.FacetGrid(points, **panels, **lines, sharex=False, sharey=False)
    grid.map_dataframe(_line).set_titles("")
    for panel, axis in grid.axes_dict.items():
        _dress(axis, points[points["panel"] == panel])
    grid.tight_layout()
    columns = max(1, int(width / (0.8 + 0.085 * max(map(len, methods)))))
    grid.add_legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=columns, title="", frameon=False)
    return [_save(grid.figure, path, caption)]


def _line(data: pd.DataFrame, color: Any, label: str, **style: Any) -> None:
    axis, data = plotting()[0].gca(), data.sort_values("length")
    axis.plot(data["length"], data["y"], color=color, label=label, **style)
    if (data["quantity"] == SHARE.label).all():
        axis.fill_between(data["length"], data["low"], data["high"], color=color, alpha=0.12, lw=0)


def _dress(axis: Any, points: pd.DataFrame) -> None:
    """Axes, units and the number of samples."""
    from matplotlib.ticker import FuncFormatter, LogLocator, StrMethodFormatter

    group, quantity, n = points["group"].iloc[0], points["quantity"].iloc[0], f"n = {_span(points['n'])}"
    swept_setting = group if "setting" in points else ""
    axis.set_title(f"{group} ({n})" if group and not swept_setting else n, loc="left")
    axis.set(xlabel=swept_setting or "prompt length (tokens)", ylabel=quantity)
    axis.grid(axis="y", color="#e2e2e2")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: length_label(tokens)))
    low, high = points["y"].min(), points["y"].max()
    if quantity == SHARE.label:
        axis.set(ylim=(-0.02, 1.02), yticks=(0, 0.25, 0.5, 0.75, 1))
    elif high > 10 * low > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    elif quantity != PERPLEXITY.label:
        axis.set_ylim(0, 1.15 * high or 1)
    axis.minorticks_off()


def _heat_maps(records: pd.DataFrame, path: Path) -> list[Figure]:
    """Share right by length and depth, a panel for each method and way of asking, all variants together."""
    scored = records[records["score"].notna() & records["depth"].notna()]
    if not len(scored):
        return []
    pyplot, seaborn = plotting()
    asked = ", " + scored["ask"].replace(SHORT) if scored["ask"].nunique() > 1 else ""
    scored = scored.assign(panel=scored["method"] + asked, tenth=(scored["depth"] * 10).astype(int).clip(upper=9))
    lengths = sorted(scored["length"].unique())

    def heat_map(data: pd.DataFrame, **_: Any) -> None:
        shares = data.pivot_table(index="tenth", columns="length", values="score").reindex(range(10), columns=lengths)
        axis = seaborn.heatmap(shares.rename(columns=length_label), vmin=0, vmax=1, cmap="cividis", cbar=False)
        axis.patch.set(facecolor="white", edgecolor="#c4c4c4", hatch="////")
        axis.set_yticks([0, 5, 10], ["0%", "50%", "100%"], rotation=0)

    order = sorted(scored["panel"].unique(), key=lambda panel: (panel.endswith(SHORT["later"]), method_rank(panel)))
    grid = seaborn.FacetGrid(scored, col="panel", col_order=order, col_wrap=min(len(order), 3), height=3, aspect=1.1)
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
    _, seaborn = plotting()
    labels = [f"{row.method}, {row.length:,}" for row in done.itertuples()]
    parts = pd.DataFrame(list(done["parts"]), index=labels, columns=list(PARTS))
    axis = parts.plot.barh(
        stacked=True, figsize=(6.4, 1.6 + 0.5 * len(parts)), width=0.6, xlabel="seconds of one reading"
    )
    axis.invert_yaxis()
    seaborn.despine()
    axis.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.02), ncols=4, frameon=False)
    return [_save(axis.figure, path, f"Where the time of reading goes; medians of {_span(done['n'])} repeats.")]


def _save(figure: Any, path: Path, caption: str) -> Figure:
    figure.savefig(path, dpi=DPI, facecolor="white", bbox_inches="tight")
    plotting()[0].close(figure)
    return Figure(path, caption)


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def length_label(tokens: float) -> str:
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if tokens and tokens % size == 0:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:,g}" if tokens < 1 else f"{tokens:,.0f}"
