"""Table and plot of the records of retrieval.py: right answers by length, and each sample by depth.

python benchmarks/plot_retrieval.py results/retrieval/*.jsonl --output results/retrieval/retrieval
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/retrieval/retrieval"))
    args = parser.parse_args()
    cells: dict[tuple, list[dict]] = defaultdict(list)
    for path in args.records:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            cells[path.stem, record["task"], record["length"]].append(record)
    args.output.with_suffix(".md").write_text(table(cells))
    plot(cells, args.output.with_suffix(".png"))
    print(table(cells))


def table(cells: dict[tuple, list[dict]]) -> str:
    lengths = sorted({length for *_, length in cells})
    lines = [
        "| records | task | " + " | ".join(f"{n:,} tokens" for n in lengths) + " |",
        "| --- " * (len(lengths) + 2) + "|",
    ]
    for name, task in dict.fromkeys((name, task) for name, task, _ in cells):
        row = []
        for length in lengths:
            records = cells.get((name, task, length), [])
            row.append(f"{sum(r['right'] for r in records)}/{len(records)}" if records else "")
        lines.append(f"| {name} | {task} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def plot(cells: dict[tuple, list[dict]], path: Path) -> None:
    groups = list(dict.fromkeys((name, task) for name, task, _ in cells))
    lengths = sorted({length for *_, length in cells})
    figure, axes = plt.subplots(1, len(groups), figsize=(3.4 * len(groups), 3.2), sharey=True, squeeze=False)
    for axis, (name, task) in zip(axes[0], groups, strict=True):
        for x, length in enumerate(lengths):
            for i, record in enumerate(cells.get((name, task, length), [])):
                colour = "#2b8a3e" if record["right"] else "#c0392b"
                axis.plot(x + (i % 5 - 2) * 0.08, record["depth"], "o", color=colour, markersize=5)
        axis.set_xticks(range(len(lengths)), [f"{n // 1024}k" for n in lengths])
        axis.set_title(f"{name}: {task}", fontsize=9)
        axis.set_xlabel("tokens")
    axes[0][0].set_ylabel("depth of the fact (green: answered right)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
