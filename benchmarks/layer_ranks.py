"""Which layers can choose? Four numbers are planted in a document, one is asked for, and every layer scores the text.

Two figures by layer and score: the share of the document's tokens above the asked number's worst one (0: nothing is),
and how often the asked number stands above the three others. Every chunk runs through all layers by itself. Writes
JSON and a plot. Example:

    python benchmarks/layer_ranks.py --documents 8 --output results/layer_ranks
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from homerlm import Homer, load_model
from homerlm.config import VOTERS
from homerlm.documents.reading import read_document
from homerlm.homer import voting_layers
from homerlm.lab.corpora import python_documentation
from homerlm.lab.needle import Needle
from homerlm.lab.passkey import Passkey
from homerlm.lab.questions import Setup, token_spots
from homerlm.model.decoder import Decoder
from homerlm.prompt import PromptIds
from homerlm.score.scores import SCORES, Attention, pool

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ("logit", "softmax", "peak_softmax", "mean_square")


@torch.no_grad()
def scores_by_layer(decoder: Decoder, ids: PromptIds, chunk_len: int) -> dict[str, Tensor]:
    """(L, C) for each score: every context token, in the chunk that holds it."""
    p, s = ids.prefix.shape[1], ids.suffix.shape[1]
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for part in ids.context.split(chunk_len - p - s, dim=1):
        chunk = torch.cat([ids.prefix, part, ids.suffix], dim=1)
        positions = torch.arange(chunk.shape[1])[None]
        layers: dict[str, list[Tensor]] = {name: [] for name in NAMES}

        def watch(
            _layer: int,
            queries: Tensor,
            keys: Tensor,
            scaling: float,
            layers: dict[str, list[Tensor]] = layers,
            positions: Tensor = positions,
        ) -> None:
            attention = Attention(queries[:, :, -s:], keys, positions, scaling)
            for name in NAMES:
                layers[name].append(SCORES[name](attention)[0, p:-s])

        with decoder.session():
            decoder.run(decoder.embed(chunk), positions, 0, len(decoder.layers), watch=watch)
        for name in NAMES:
            found[name].append(torch.stack(layers[name]))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def judged(scores: Tensor, asked: list[int], others: list[list[int]], pooling: int) -> tuple[list, list]:
    """For each row of scores (L, C): the share of tokens above the asked fact's worst one, and whether its best one is
    above the other facts'."""
    pooled = pool(scores, pooling)
    above = (pooled > pooled[:, asked].amin(dim=1, keepdim=True)).float().mean(dim=1)
    rivals = [pooled[:, spots].amax(dim=1) for spots in others]
    first = torch.stack([pooled[:, asked].amax(dim=1) > rival for rival in rivals]).all(0) if rivals else above < 0
    return above.tolist(), first.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--documents", type=int, default=8, help="of each task")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--chunk-len", type=int, default=1080, help="what the default preset's first chunks have")
    parser.add_argument("--pooling", type=int, default=31)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--text", help="default Python's documentation")
    parser.add_argument("--output", type=Path, default=Path("results/layer_ranks"))
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    decoder, bench = Decoder(model), Setup(model, tokenizer, None)  # type: ignore[arg-type]
    depth, warmup = len(decoder.layers), Homer(model).lengths.warmup_layers
    voters = {name: found for name in VOTERS if (found := voting_layers(name, depth, warmup))}
    prose = read_document(args.text) if args.text else python_documentation()
    rows = []
    for task in (Needle("keys", prose, args.text or "Python documentation"), Passkey()):
        for i in range(args.documents):
            sample = task.sample(tokenizer, args.length, i, args.seed)
            (question,) = sample.questions
            ids = bench.ids(sample, question)
            asked = token_spots(tokenizer, sample.document, question.expected, 0)
            rivals = [(value,) for value in sample.facts.get("others", ())]
            others = [token_spots(tokenizer, sample.document, value, 0) for value in rivals]
            for name, scores in scores_by_layer(decoder, ids, args.chunk_len).items():
                above, first = judged(scores, asked, others, args.pooling)
                row = {"task": task.name, "document": i, "score": name, "above": above, "first": first}
                for who, layers in voters.items():
                    one_above, one_first = judged(
                        scores[list(layers)].sum(0, keepdim=True), asked, others, args.pooling
                    )
                    row[who] = {"layers": [layers.start, layers.stop], "above": one_above[0], "first": one_first[0]}
                rows.append(row)
            best = rows[-1]
            print(task.name, i, {who: (round(best[who]["above"], 4), best[who]["first"]) for who in voters}, flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    args.output.with_suffix(".json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    plot(rows, args.output.with_suffix(".png"))
    summarise(rows, list(voters))


def summarise(rows: list[dict], voters: list[str]) -> None:
    """Print, by score and voters: the worst share above, and the share of documents whose asked number is first."""
    for name in NAMES:
        for who in voters:
            for task in ("passkey", "needle"):
                mine = [row[who] for row in rows if row["score"] == name and row["task"] == task]
                first = sum(one["first"] for one in mine) / len(mine)
                print(f"{name:13} {who:14} {task:8} worst above {max(o['above'] for o in mine):.4f} first {first:.2f}")


def plot(rows: list[dict], path: Path) -> None:
    needles = [row for row in rows if row["task"] == "needle"]
    figure, axes = plt.subplots(2, len(NAMES), figsize=(13, 5.6), sharey="row", sharex=True)
    for column, name in zip(axes.T, NAMES, strict=True):
        above = torch.tensor([row["above"] for row in needles if row["score"] == name])
        first = torch.tensor([row["first"] for row in needles if row["score"] == name]).float()
        column[0].bar(range(above.shape[1]), above.amax(0), color="#e69f00", label="worst document")
        column[0].bar(range(above.shape[1]), above.mean(0), color="#0072b2", label="mean")
        column[0].set_title(name)
        column[1].bar(range(first.shape[1]), first.mean(0), color="#009e73")
        column[1].axhline(0.25, color="#777777", lw=1, ls="--")
        column[1].set_xlabel("layer")
    axes[0, 0].legend(fontsize=8)
    axes[0, 0].set_ylabel("share of tokens above\nthe asked number")
    axes[1, 0].set_ylabel(f"asked number first of four\n({len(needles) // len(NAMES)} documents; dashed: chance)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
