"""Where a planted number stands among all tokens of its document, by layer and score: which layers can choose?

Every chunk of each document runs through all layers by itself; the figure is the share of the document's tokens that
score above the number's worst token (0: nothing does). Writes JSON and a plot. Example:

    python benchmarks/layer_ranks.py --documents 4 --output results/layer_ranks
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import matplotlib
import torch
from retrieval import ids, prose

from homerlm import load_model
from homerlm.adapter import Decoder
from homerlm.corpora import python_documentation
from homerlm.significance import SCORES, Attention, pool

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ("logit", "softmax", "peak_softmax")


@torch.no_grad()
def scores_by_layer(decoder: Decoder, prefix, context, suffix, chunk_len: int) -> dict[str, torch.Tensor]:
    """(L, C) for each score: every context token, in the chunk that holds it."""
    room = chunk_len - prefix.shape[1] - suffix.shape[1]
    found = {name: [] for name in NAMES}
    for part in context.split(room, dim=1):
        chunk = torch.cat([prefix, part, suffix], dim=1)
        positions = torch.arange(chunk.shape[1])[None]
        layers = {name: [] for name in NAMES}

        def watch(_layer, queries, keys, scaling, layers=layers, positions=positions):
            attention = Attention(queries[:, :, -suffix.shape[1] :], keys, positions, scaling)
            for name in NAMES:
                scores = SCORES[name](attention)[0]
                layers[name].append(scores[prefix.shape[1] : -suffix.shape[1]])

        with decoder.session():
            decoder.run(decoder.embed(chunk), positions, 0, len(decoder.layers), watch=watch)
        for name in NAMES:
            found[name].append(torch.stack(layers[name]))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def share_above(scores: torch.Tensor, needle: list[int], pooling: int) -> list[float]:
    """For each row of scores (L, C): the share of tokens above the needle's lowest one, after pooling."""
    pooled = pool(scores, pooling)
    worst = pooled[:, needle].amin(dim=1, keepdim=True)
    return (pooled > worst).float().mean(dim=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--chunk-len", type=int, default=2048)
    parser.add_argument("--pooling", type=int, default=31)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/layer_ranks"))
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    decoder = Decoder(model)
    text = args.text.read_text() if args.text else python_documentation()
    warmup = round(12 / 32 * len(decoder.layers))
    rows = []
    for i in range(args.documents):
        sample = prose(tokenizer, args.length, random.Random(f"{args.seed}/{i}"), text)
        prefix, context, suffix = (ids(tokenizer, part) for part in (sample.prefix, sample.context, sample.suffix))
        wanted = tokenizer(" " + sample.answer, add_special_tokens=False).input_ids[-len(sample.answer) :]
        tokens = context[0].tolist()
        start = next(j for j in range(len(tokens)) if tokens[j : j + len(wanted)] == wanted)
        needle = list(range(start, start + len(wanted)))
        for name, scores in scores_by_layer(decoder, prefix, context, suffix, args.chunk_len).items():
            voted = share_above(scores[warmup:].amax(dim=0, keepdim=True), needle, args.pooling)[0]
            rows.append(
                {"document": i, "score": name, "layers": share_above(scores, needle, args.pooling), "all": voted}
            )
        print(
            f"document {i}: " + ", ".join(f"{r['score']} voted {r['all']:.4f}" for r in rows[-len(NAMES) :]), flush=True
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    args.output.with_suffix(".json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    plot(rows, args.output.with_suffix(".png"))


def plot(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, len(NAMES), figsize=(12, 3.4), sharey=True)
    for axis, name in zip(axes, NAMES, strict=True):
        values = torch.tensor([row["layers"] for row in rows if row["score"] == name])
        axis.bar(range(values.shape[1]), values.amax(0), color="#f2b705", label="worst document")
        axis.bar(range(values.shape[1]), values.mean(0), color="#2b5d8a", label="mean")
        voted = max(row["all"] for row in rows if row["score"] == name)
        axis.axhline(voted, color="#c0392b", lw=1, label=f"vote of all layers above the warm-up, worst: {voted:.3f}")
        axis.set_title(name)
        axis.set_xlabel("layer")
        axis.legend(fontsize=7, loc="upper right")
    axes[0].set_ylim(0, 1.3)
    axes[0].set_ylabel("share of tokens above the number")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
