"""Which scores find a fact? Planted facts are read as chunks are, with the question and a neutral one behind them; the
attention of all heads is kept, and ways to score a text's tokens and units are compared on it: heads, joined over
the question's tokens, these weighted or not, with and without the neutral question, in windows or sentences, with BM25
beside them. Reported is the share of the text that scores above the fact asked for (0 is best), on texts that chose no
heads.

    python benchmarks/heads.py collect --model default --texts 96 --seed 1 --attention attention.pt    (1.7 GB)
    python benchmarks/heads.py compare --model default --attention attention.pt --output results/heads/smollm2.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homerlm import load_model, prompt
from homerlm.lab.likelihood import Prefill
from homerlm.model.decoder import Decoder
from homerlm.profiling.choice import Found, greedy, loss
from homerlm.profiling.probes import Probe, probes
from homerlm.score.attention import Attention
from homerlm.score.bm25 import passage_scores
from homerlm.score.embedding import own_span
from homerlm.score.neighbours import pool
from homerlm.score.reading import Chunk
from homerlm.score.sentences import Sentences

CHARACTERS = 4400
Joined = Callable[[Tensor], Tensor]  # (H, Q, C) attention to (H, C)
Row = dict[str, Any]  # what is kept of a text
Asked = Callable[[Row, Tensor], Tensor]  # a text and the question's (H, Q, C) attention to it, to (H, C)
Weights = Callable[[Row, Tensor], Tensor]  # the same, to (Q,) or (H, Q)

OVER_QUESTION: dict[str, Joined] = {
    "mean": lambda a: a.mean(1),
    "highest": lambda a: a.amax(1),
    "mean of 3 highest": lambda a: a.topk(3, 1).values.mean(1),
    "mean of squares": lambda a: a.square().mean(1),
    "root of highest": lambda a: a.amax(1).sqrt(),
}


def concentration(_: Row, attention: Tensor) -> Tensor:
    """(H, Q): how far from even a token's attention to the text is, 0 to 1: 1 less its share of the highest entropy."""
    shares = attention / attention.sum(-1, keepdim=True).clamp(min=1e-9)
    return 1 - torch.special.entr(shares).sum(-1) / torch.tensor(float(attention.shape[-1])).log()


WEIGHTS: dict[str, Weights] = {  # of the tokens of the prompt's suffix, by how much they tell
    "the question's own tokens": lambda row, _: row["own"].float(),
    "own tokens by surprisal": lambda row, _: row["own"] * row["surprisal"],
    "own tokens by rarity in the text": lambda row, _: row["own"] * row["rarity"],
    "all by concentration": concentration,
    "own tokens by concentration": lambda row, attention: row["own"] * concentration(row, attention),
}
WEIGHTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (H, Q, C) attention, weights (Q,) or (H, Q), to (H, C)
    "mean": lambda a, w: (a * w[..., None]).sum(1) / w.sum(-1, keepdim=True),
    "highest": lambda a, w: (a * w[..., None]).amax(1) * (w > 0).sum(-1, keepdim=True) / w.sum(-1, keepdim=True),
}
UNITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # sums (H, U) and sizes (U,)
    "sentence, sum": lambda sums, _: sums,
    "sentence, sum / root of length": lambda sums, sizes: sums / sizes.sqrt(),
    "sentence, mean": lambda sums, sizes: sums / sizes,
}


@torch.no_grad()
def attention_of(decoder: Decoder, tokenizer: Any, probe: Probe, chat: bool) -> Row:
    """Attention (L, H, Q, C) float16 of the question's and the neutral question's tokens to the text's; `asked` (C,):
    1, 2, ... in the fact's sentences, else 0; of the suffix's tokens (Q,) `suffix`: ids, `own`: whether they are the
    question's, and `surprisal`: nats, behind the prefix alone."""
    before, after = prompt.affixes(tokenizer, probe.question, chat=chat)
    ids = prompt.encode(tokenizer, before, probe.text, after, prompt.neutral(tokenizer, chat=chat))
    p, c, s, n = ids.lengths
    assert ids.neutral is not None
    chunk = Chunk.of(ids.prefix, ids.context, ids.suffix, ids.neutral)
    assert chunk.fork is not None
    layers: list[list[Tensor]] = [[], []]
    with decoder.session():
        hidden = decoder.embed(chunk.input_ids)
        for step in decoder.steps(hidden, chunk.position_ids, 0, len(decoder.layers), finish=False, fork=chunk.fork):
            for kept, ending, queries in zip(layers, step.attended.endings(chunk.fork), (s, n), strict=True):
                places = chunk.position_ids[:, : ending.keys.shape[2]]
                attention = Attention.of(ending, queries, places, decoder.window(step.layer))
                kept.append(attention.probabilities()[0, :, :, p : p + c].half())
    asked = torch.zeros(c, dtype=torch.long)
    spans = prompt.token_spans(tokenizer, probe.text)
    for number, span in enumerate(probe.spans, 1):
        asked[prompt.tokens_within(spans, [span])] = number
    question, neutral = (torch.stack(kept) for kept in layers)
    own = torch.zeros(s, dtype=torch.bool)
    own[own_span(ids.suffix[0].tolist(), ids.neutral[0].tolist())] = True
    told = {"asked": asked, "kind": probe.kind, "q": probe.question, "ids": ids.context[0], "suffix": ids.suffix[0]}
    surprisal = -Prefill.of(decoder.model, ids.prefix).score(ids.suffix).log_probs
    return {"A": question, "B": neutral, "own": own, "surprisal": surprisal} | told


def collect(model: Any, tokenizer: Any, texts: int, seed: int) -> list[Row]:
    has_template = getattr(tokenizer, "chat_template", None) is not None
    made = probes(CHARACTERS, texts, seed)
    return [
        attention_of(Decoder(model), tokenizer, probe, has_template and number % 2 == 0)
        for number, probe in enumerate(made)
    ]


class Texts:
    """The texts of a collection, with their units, by the heads that see the whole of them."""

    def __init__(self, rows: list[Row], tokenizer: Any, decoder: Decoder) -> None:
        self.rows, self.tokenizer = rows, tokenizer
        self.heads = decoder.shape.heads
        self.seeing = decoder.shape.layers_seeing(min(CHARACTERS, decoder.shape.sight))
        sentences = Sentences(tokenizer, decoder.model.get_input_embeddings().weight.shape[0])
        self.units = [sentences.units(r["ids"][None], torch.arange(len(r["ids"]))[None])[0] for r in rows]
        self.sizes = [torch.bincount(units).float() for units in self.units]
        self.kinds = [row["kind"] for row in rows]
        for row, units in zip(rows, self.units, strict=True):
            row["rarity"] = rarity(row["suffix"], row["ids"], units)

    def scores(self, join: Joined, neutral: float, asked: Asked | None = None) -> Iterator[Tensor]:
        """(H, C) of each text: of the question, by `asked` if given, less `neutral` times the neutral question's, at
        least 0."""
        for row in self.rows:
            a, b = (row[name][list(self.seeing)].float().flatten(0, 1) for name in ("A", "B"))
            question = join(a) if asked is None else asked(row, a)
            yield (question - neutral * join(b)).clamp(min=0)

    def found(self, by_token: Iterator[Tensor], unit: Callable[[Tensor, Tensor], Tensor]) -> Found:
        """Scores of units, as the profile's measurement has them."""
        sums = [
            unit(torch.zeros(len(s), len(sizes)).index_add_(1, units, s), sizes)
            for s, units, sizes in zip(by_token, self.units, self.sizes, strict=True)
        ]
        return self._padded(sums)

    def windows(self, by_token: Iterator[Tensor], width: int) -> Found:
        """Every token a unit of its own, with the maximum over its neighbours."""
        return self._padded([pool(s, width) for s in by_token], tokens=True)

    def bm25(self) -> list[Tensor]:
        """(U,) of each text's units."""
        found = []
        for row, units in zip(self.rows, self.units, strict=True):
            groups: list[list[int]] = [[] for _ in range(int(units.max()) + 1)]
            for token, unit in zip(row["ids"].tolist(), units.tolist(), strict=True):
                groups[unit].append(token)
            found.append(torch.as_tensor(passage_scores([self.tokenizer.decode(g) for g in groups], row["q"])))
        return found

    def _padded(self, scores: list[Tensor], *, tokens: bool = False) -> Found:
        most = max(s.shape[1] for s in scores)
        sizes = [torch.ones(s.shape[1]) for s in scores] if tokens else self.sizes
        asked = []
        for row, units in zip(self.rows, self.units, strict=True):
            marks = row["asked"] > 0
            asked.append(marks if tokens else torch.zeros(int(units.max()) + 1).index_add_(0, units, marks.float()) > 0)

        def pad(parts: list[Tensor]) -> Tensor:
            return torch.stack([torch.nn.functional.pad(part, (0, most - part.shape[-1])) for part in parts])

        layers = torch.tensor(self.seeing).repeat_interleave(self.heads)
        return Found(pad(scores), pad(sizes), pad(asked), layers)


def weighing(weights: Weights, weighted: Callable[[Tensor, Tensor], Tensor]) -> Asked:
    """The question's tokens joined by their weights."""
    return lambda row, attention: weighted(attention, weights(row, attention))


def rarity(suffix: Tensor, ids: Tensor, units: Tensor) -> Tensor:
    """(Q,) of the suffix's tokens: the logarithm of the text's units by those that have the token, as BM25 has it."""
    count = int(units.max()) + 1
    having = torch.tensor([len(units[ids == token].unique()) for token in suffix.tolist()])
    return (1 + (count - having + 0.5) / (having + 0.5)).log()


def graded(found: Found, depth: int, count: int) -> tuple[Tensor, list[str], list[tuple[list[int], list[int]]]]:
    """Shares (N,) above the facts with `count` heads up to a layer, chosen on the other half of the texts."""
    halves = [[i for i in range(len(found.scores)) if i // 2 % 2 == half] for half in (0, 1)]
    shares, picks = torch.empty(len(found.scores)), []
    for own, other in (halves, halves[::-1]):
        picked = greedy(found.of(own), depth, count)
        rest = found.of(other)
        shares[other] = rest.share_above(rest.scores[:, picked].sum(1, keepdim=True))[:, 0]
        picks.append((picked, other))
    first = int(found.layers[0])
    per_layer = int((found.layers == first).sum())
    names = [f"{int(found.layers[h])}.{h % per_layer}" for h in picks[0][0]]
    return shares, names, picks


def summary(shares: Tensor, kinds: list[str]) -> dict[str, Any]:
    return {
        "mean": round(float(shares.mean()), 4),
        "loss": round(float(loss(shares[:, None])), 3),
        "among_best_3%": round(float((shares < 0.03).float().mean()), 3),
        "by_kind": {
            kind: round(float(torch.stack([s for s, k in zip(shares, kinds, strict=True) if k == kind]).mean()), 3)
            for kind in dict.fromkeys(kinds)
        },
    }


def compare(texts: Texts) -> Iterator[dict[str, Any]]:
    """One record for each way."""
    root = UNITS["sentence, sum / root of length"]
    last, layers = texts.seeing[-1], sorted(texts.seeing)

    def row(way: str, found: Found, depth: int = last, count: int = 4) -> dict[str, Any]:
        shares, names, _ = graded(found, depth, count)
        return {"way": way, "up_to_layer": depth, "heads": names} | summary(shares, texts.kinds)

    highest = OVER_QUESTION["highest"]
    yield row(
        "best head, mean over the question, windows of 31",
        texts.windows(texts.scores(OVER_QUESTION["mean"], 0), 31),
        count=1,
    )
    for name, unit in UNITS.items():
        yield row(f"4 heads, highest, less 1.5 neutral; {name}", texts.found(texts.scores(highest, 1.5), unit))
    yield row("4 heads, highest, less 1.5 neutral; windows of 31", texts.windows(texts.scores(highest, 1.5), 31))
    for neutral in (0.0, 0.5, 1.0, 1.5, 2.0):
        yield row(f"4 heads, highest, less {neutral:g} neutral", texts.found(texts.scores(highest, neutral), root))
    for name, join in OVER_QUESTION.items():
        yield row(f"4 heads, {name}, less 1.5 neutral", texts.found(texts.scores(join, 1.5), root))
    for name, weighted in WEIGHTED.items():
        for of_what, weights in WEIGHTS.items():
            scores = texts.scores(OVER_QUESTION[name], 1.5, weighing(weights, weighted))
            yield row(f"4 heads, {name}, less 1.5 neutral; {of_what}", texts.found(scores, root))
    best = texts.found(texts.scores(highest, 1.5), root)
    for depth in layers[:: max(len(layers) // 8, 1)]:
        yield row(f"4 heads up to layer {depth}", best, depth)
    for count in (1, 2, 4, 8, 16):
        yield row(f"{count} heads", best, count=count)
    yield from fused(texts, best)


def fused(texts: Texts, found: Found) -> Iterator[dict[str, Any]]:
    """The heads, BM25, and both: ranks fused, or scores added."""
    lexical = torch.nn.utils.rnn.pad_sequence(texts.bm25(), batch_first=True).float()
    by_heads = torch.empty_like(lexical)
    for picked, other in graded(found, texts.seeing[-1], 4)[2]:
        by_heads[other] = found.scores[other][:, picked].sum(1)

    def rank(scores: Tensor) -> Tensor:
        return scores.argsort(dim=1, descending=True).argsort(dim=1).float()

    def share_of_best(scores: Tensor) -> Tensor:
        return scores / scores.amax(1, keepdim=True).clamp(min=1e-9)

    ways = {"heads": by_heads, "BM25": lexical}
    for k in (5, 60):
        ways[f"ranks fused, k = {k}"] = 1 / (k + rank(by_heads)) + (lexical > 0) / (k + rank(lexical))
    for weight in (0.2, 0.5, 1.0):
        ways[f"heads + {weight:g} BM25"] = share_of_best(by_heads) + weight * share_of_best(lexical)
    for name, scores in ways.items():
        yield {"way": f"beside BM25: {name}"} | summary(found.share_above(scores[:, None])[:, 0], texts.kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("collect", "compare"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attention", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_model(None if args.model == "default" else args.model, dtype=torch.bfloat16)
    if args.step == "collect":
        torch.save(collect(model, tokenizer, args.texts, args.seed), args.attention)
        return
    texts = Texts(torch.load(args.attention), tokenizer, Decoder(model))
    records = []
    for record in compare(texts):
        records.append(record)
        print(re.sub(r"[{}\"]", "", json.dumps({k: v for k, v in record.items() if k != "by_kind"})), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": model.config._name_or_path, "texts": len(texts.rows), "seed": args.seed}
    args.output.write_text(json.dumps(facts | {"ways": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
