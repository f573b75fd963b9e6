"""A plot of the results of `serve_load.py` and `serve_timing.py`: what the server holds under load, how long answers
take, and the gaps in streams beside readers of long documents.

    python benchmarks/serve_plots.py results/serve
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from homerlm.lab.plots import plotting


def held(axes: Any, load: dict[str, Any]) -> None:
    seconds = [one["seconds"] for one in load["samples"]]
    for name, scale in (("uss", 1 << 20), ("files", 1), ("threads", 1)):
        label = {"uss": "memory of its own, MB", "files": "open files"}.get(name, name)
        axes.plot(seconds, [one[name] / scale for one in load["samples"]], label=label)
    axes.set(
        xlabel="seconds", ylim=0, title=f"{load['clients']} clients at once, {load['requests']:,} requests, 20% leave"
    )
    axes.legend()


def answers(axes: Any, seaborn: Any, load: dict[str, Any]) -> None:
    pairs = [(kind, second) for kind, seconds in load["seconds"].items() for second in seconds]
    seaborn.boxplot(x=[second for _, second in pairs], y=[kind for kind, _ in pairs], ax=axes, showfliers=False)
    axes.set(xlabel="seconds until the whole answer", xlim=0, title="tiny model")


def gaps(axes: Any, seaborn: Any, timing: dict[str, Any]) -> None:
    beside = timing["beside"]
    seaborn.histplot([1000 * gap for gap in beside["gaps"]], bins=60, ax=axes)
    longest = beside["chunk"]["most_ms"] + beside["step"]["most_ms"]
    for place, label in (
        (beside["chunk"]["median_ms"], "a chunk alone"),
        (longest, "longest chunk + longest step alone"),
    ):
        axes.axvline(place, color="black", linestyle=":" if place < longest else "--", label=label)
    axes.set(xlabel="ms between two tokens of a stream", title="4 streams beside 2 readers of 64k tokens")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/serve"))
    folder = parser.parse_args().folder
    pyplot, seaborn = plotting()
    load, timing = (json.loads((folder / f"{name}.json").read_text()) for name in ("load", "timing"))
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    held(axes[0], load)
    answers(axes[1], seaborn, load)
    gaps(axes[2], seaborn, timing)
    seaborn.despine(figure)
    figure.savefig(folder / "load.png", dpi=110)


if __name__ == "__main__":
    main()
