"""After how many layers could half of a chunk go? Facts are planted in one chunk of text and asked for; at each layer,
how many of the chunk's tokens stand above the fact's worst one: by that layer alone, by the highest score of the layers
so far, and by their sum, neighbours and sentences counted as the default preset's tree does.

Writes JSON and a plot. Example:

    python benchmarks/early_layers.py --documents 20 --output results/early_layers
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from homerlm import Homer, load_model
from homerlm.documents.reading import read_document
from homerlm.lab.corpora import python_documentation
from homerlm.lab.needle import Needle
from homerlm.lab.passkey import Passkey
from homerlm.lab.questions import Setup, token_spots
from homerlm.lab.samples import Task
from homerlm.merge.chunk import Chunk
from homerlm.prompt import PromptIds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = ("single", "keys", "single-uuid")
FIRST = 3  # layers before it tell little by themselves, and are left out of maximum and sum
WAYS = ("that layer alone", f"highest of the layers from {FIRST} on", f"sum of the layers from {FIRST} on")


@torch.no_grad()
def places(homer: Homer, ids: PromptIds, asked: list[int]) -> dict[str, list[float]]:
    """For each way of counting, by layer: the share of the context's tokens above the worst of those `asked` for."""
    prompt = torch.cat([ids.prefix, ids.context, ids.suffix], dim=1)
    positions = torch.arange(prompt.shape[1])[None]
    selection = homer._generous(homer._selection(ids.suffix.shape[1]))
    layers: list[Tensor] = []

    def watch(layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
        layers.append(selection.judge(layer, queries, keys, scaling, positions))

    with homer.decoder.session():
        homer.decoder.run(homer.decoder.embed(prompt), positions, 0, len(homer.decoder.layers), watch=watch)
    empty = torch.empty(*prompt.shape, 0)
    chunk = Chunk(empty, positions, positions, ids.prefix.shape[1], ids.suffix.shape[1])

    def place(scores: Tensor) -> float:
        worth = selection.worth(replace(chunk, scores=scores), prompt)[0]
        return (worth > worth[asked].amin()).float().mean().item()

    scores = torch.stack(layers)
    stops = [max(stop, FIRST + 1) for stop in range(1, len(scores) + 1)]
    by_way = (scores, [scores[FIRST:stop].amax(0) for stop in stops], [scores[FIRST:stop].sum(0) for stop in stops])
    return {way: [place(one) for one in each] for way, each in zip(WAYS, by_way, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--documents", type=int, default=20, help="of each kind of fact and text")
    parser.add_argument("--length", type=int, default=1100, help="tokens of a chunk, question included")
    parser.add_argument("--seed", type=int, default=9000)
    parser.add_argument("--text", nargs="*", default=[], help="files beside Python's documentation")
    parser.add_argument("--output", type=Path, default=Path("results/early_layers"))
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    homer, bench = Homer(model, tokenizer), Setup(model, tokenizer, None)  # type: ignore[arg-type]
    texts = {"Python documentation": python_documentation()} | {name: read_document(name) for name in args.text}
    tasks: list[Task] = [Passkey(), *(Needle(kind, text, name) for name, text in texts.items() for kind in KINDS)]
    rows = []
    for task in tasks:
        for index in range(args.documents):
            sample = task.sample(tokenizer, args.length, index, args.seed)
            (question,) = sample.questions
            asked = token_spots(tokenizer, sample.document, question.expected, 0)
            found = places(homer, bench.ids(sample, question), asked)
            rows.append({"task": task.name, "variant": task.variant, "text": task.text, "document": index} | found)
        print(task.name, task.variant, task.text, flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    args.output.with_suffix(".json").write_text(json.dumps({"settings": settings, "rows": rows}))
    summarise(rows, args.output.with_suffix(".png"))


def summarise(rows: list[dict], path: Path) -> None:
    """Print and plot, by layer, the worst fact's place, and print how many facts would go with half of the chunk."""
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for way in WAYS:
        by_layer = torch.tensor([row[way] for row in rows])
        axis.plot(by_layer.amax(0), marker=".", label=way)
        for layer, (worst, lost) in enumerate(zip(by_layer.amax(0), (by_layer > 0.5).sum(0), strict=True)):
            print(f"{way:32} layer {layer:2}: worst {worst:.3f}, in the lower half {lost} of {len(rows)}")
    axis.axhline(0.5, color="#777777", lw=1, ls="--")
    axis.set(xlabel="layer", ylabel=f"share of the chunk above\nthe worst of {len(rows)} facts", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
