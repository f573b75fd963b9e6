"""Where should the candidates be cut: at a share of the best one's significance, where most of the significance is
held, where it falls most, or at so many tokens? And how much should count there how likely the question is behind a
sentence? The candidates of documents with planted facts, and of questions about a natural text, are found and reranked
once; each cut then keeps some of them, which the model reads and answers from.

Appends records as JSON lines, goes on where it was stopped, prints the means and draws them beside the records.
Example:

    python benchmarks/cut.py --text novels.txt --questions benchmarks/questions/rust-book.jsonl --book rust-book.html \
        --output results/cut/smollm2.jsonl
    python benchmarks/cut.py --by likelihood ... --output results/cut/likelihood-smollm2.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

from homerlm import Homer, load_model
from homerlm.documents import read_document
from homerlm.lab.corpora import json_lines
from homerlm.lab.plots import plotting
from homerlm.lab.samples import Task
from homerlm.lab.tasks.needle import needle
from homerlm.lab.tasks.own import load_questions, questions
from homerlm.lab.tasks.planted import planted
from homerlm.lab.tasks.stories import stories
from homerlm.model.memory import keep_freed_memory
from homerlm.score.neighbours import share_of_best
from homerlm.select import likelihood
from homerlm.select.ranking import Ranking
from recap import Found, Study, Way

LEADING = 30  # units that a fall is looked for among
Cut = Callable[[Tensor], Tensor]  # of significance (C,), highest first: the lowest that is kept, ()
Change = Callable[[], AbstractContextManager[object]]  # of the default's cut


def share(ranked: Tensor, of_best: float) -> Tensor:
    """The default: so much of the best one's."""
    return share_of_best(ranked[0], of_best)


def mass(ranked: Tensor, part: float) -> Tensor:
    """So much of all the significance is held above it."""
    held = ranked.clamp(min=0).cumsum(0)
    return ranked[int((held < part * held[-1]).sum())]


def fall(ranked: Tensor) -> Tensor:
    """What stands before the largest fall among the leading units."""
    best = ranked.unique_consecutive()[: LEADING + 1].clamp(min=1e-9)
    return best[int((best[1:] / best[:-1]).argmin())]


def tokens(ranked: Tensor, count: int) -> Tensor:
    """So many, whatever their significance."""
    return ranked[min(count, len(ranked)) - 1]


CUTS: dict[str, Cut] = {
    **{f"{part:g} of the best": partial(share, of_best=part) for part in (0.05, 0.1, 0.2, 0.3)},
    **{f"{part:.0%} of the mass": partial(mass, part=part) for part in (0.5, 0.7, 0.9)},
    "the largest fall": fall,
    **{f"{count} tokens": partial(tokens, count=count) for count in (128, 256, 512)},
}


def lowest_by(cut: Cut) -> AbstractContextManager[object]:
    def lowest(_: Ranking, ranked: Tensor) -> Tensor:
        return cut(ranked.sort(descending=True).values)

    return mock.patch.object(Ranking, "lowest", lowest)


WAYS: Mapping[str, Mapping[str, Change]] = {
    "significance": {name: partial(lowest_by, cut) for name, cut in CUTS.items()},
    "likelihood": {
        f"likelihood to the power of {weight:g}": partial(mock.patch.object, likelihood, "CUT_WEIGHT", weight)
        for weight in (0, 0.2, 0.3, 0.5)
    },
}


@dataclass
class Cutting:
    """Grades what is read after each cut; what was read before has its grade."""

    study: Study
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def rows(self, task: Task, found: Sequence[Found], changed: Change) -> Iterator[dict[str, Any]]:
        with changed():
            chosen = [self.study.chosen(one, Way("the present one")) for one in found]
        prompts = [self.study.prompt_of(one, places) for one, places in zip(found, chosen, strict=True)]
        read = [tuple(ids[0].tolist()) for ids in prompts]
        if new := [number for number, ids in enumerate(read) if ids not in self.known]:
            samples = [found[number].sample for number in new]
            grades = self.study.graded([prompts[number] for number in new], samples, task.max_new_tokens)
            self.known |= {read[number]: grade for number, grade in zip(new, grades, strict=True)}
        for one, places, ids in zip(found, chosen, read, strict=True):
            share_kept = float(torch.isin(one.gold, places).float().mean())
            yield {"kept": round(share_kept, 4), "right": self.known[ids], "tokens": len(ids)}


def tasks(text: Path, asked: Path, book: Path) -> dict[str, Task]:
    novels, about = text.read_text(), read_document(book)
    return {
        **{kind: needle(kind, novels, text.name) for kind in ("keys", "values", "queries")},
        "two facts": stories("two facts", novels, text.name),
        **{name: planted(name, novels, text.name) for name in ("paraphrases", "associations")},
        "questions": questions(load_questions(asked, about), about, book.name),
    }


def main() -> None:
    by = {"choices": WAYS, "default": "significance", "help": "what the cut is changed in"}
    options = options_of(__doc__, 6, by=by)
    keep_freed_memory()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    records = json_lines(options.output, "records of this study") if options.output.exists() else []
    done = {record["task"] for record in records}
    study = Study(Homer(*load_model(options.model)))
    for name, task in tasks(options.text, options.questions, options.book).items():
        if name in done:
            continue
        count = options.documents * (2 if name == "questions" else 1)
        samples = [task.sample(study.tokenizer, options.length, index, options.seed) for index in range(count)]
        cutting, found = Cutting(study), [study.find(sample) for sample in samples]
        new = [
            {"task": name, "sample": index, "seed": options.seed, "cut": cut} | row
            for cut, changed in WAYS[options.by].items()
            for index, row in enumerate(cutting.rows(task, found, changed))
        ]
        records += new
        with options.output.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in new)
    means = pd.DataFrame(records).groupby(["cut", "task"], sort=False)[["kept", "right", "tokens"]].mean()
    print(means.round(2).unstack("task").to_string())
    draw(means.groupby("cut", sort=False).mean(), options.output.with_suffix(".png"))


def draw(means: pd.DataFrame, path: Path) -> None:
    """What is kept and right, of all tasks alike, by the tokens that are read."""
    pyplot, seaborn = plotting()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained", sharex=True)
    rule = [name.split(maxsplit=1)[-1] for name in means.index]
    for column, axis in zip(("kept", "right"), axes, strict=True):
        seaborn.lineplot(
            means,
            x="tokens",
            y=column,
            hue=rule,
            style=rule,
            markers=True,
            dashes=False,
            ax=axis,
            legend=axis is axes[0],
        )
        for name, one in means.iterrows():
            label = "" if name == "the largest fall" else str(name).split()[0]
            axis.annotate(label, (one["tokens"], one[column]), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel="tokens read", title=f"{column}, mean over the tasks", ylabel="")
    seaborn.despine(figure)
    figure.savefig(path, dpi=110)


def options_of(description: str | None, documents: int, **more: Any) -> argparse.Namespace:
    """Of a study of these tasks; more: by name, what else it asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default the bundled one")
    parser.add_argument("--text", type=Path, required=True, help="novels or the like, that facts are planted in")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--book", type=Path, required=True, help="what these are about")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    parser.add_argument("--documents", type=int, default=documents, help="of each task; twice as many questions")
    parser.add_argument("--length", type=int, default=8192, help="tokens of each prompt")
    parser.add_argument("--seed", type=int, default=79)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
