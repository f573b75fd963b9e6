"""What should a question run behind, when it is asked of an index and the text is not there? The profile's probes are
scored by keys of a text that was read without the question, and by questions behind several stand-ins for it: none,
prose (the one that ships), documentation, code, of 64 and 256 tokens, and the mean over two of them. Reported for each
is the best choice of heads, graded on texts that they were not chosen on, beside the question read with the text.

    python benchmarks/stand_in.py --model default --texts 42 --output results/index/stand-in-smollm2-135m.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homerlm import load_model, prompt
from homerlm.index.question import Question, stand_in
from homerlm.model.decoder import Decoder
from homerlm.profiling.choice import choose
from homerlm.profiling.measure import CHARACTERS, SEED, Bench, Row, together
from homerlm.profiling.probes import Probe, kinds, probes, sources
from homerlm.score.heads import Scoring
from homerlm.score.reading import Chunk, Scorer
from homerlm.score.scores import SCORES

AT_ONCE = "at once"
FROM = 100_000  # character of a source where its stand-in begins


def stand_ins(tokenizer: Any) -> dict[str, list[Tensor]]:
    """Ids (1, n) by name; of two, the mean of the scores is taken."""
    prose = stand_in(tokenizer)
    docs, code = (
        prompt.token_ids(tokenizer, sources()[name][FROM : FROM + 4000])[:, :256] for name in ("documentation", "code")
    )
    return {
        "none": [prose[:, :0]],
        "prose 64": [prose[:, :64]],
        "prose 256": [prose],
        "docs 64": [docs[:, :64]],
        "docs 256": [docs],
        "code 256": [code],
        "prose+docs 256": [prose, docs],
        "prose+code 256": [prose, code],
    }


@torch.no_grad()
def rows_of(bench: Bench, probe: Probe, chat: bool, behind: dict[str, list[Tensor]]) -> dict[str, Row]:
    """Scores of one text's units, by stand-in, and at once."""
    decoder, tokenizer, score = bench.decoder, bench.tokenizer, SCORES["peak_softmax"]
    before, after = prompt.affixes(tokenizer, probe.question, chat=chat)
    ids = prompt.encode(tokenizer, before, probe.text, after, prompt.neutral(tokenizer, chat=chat))
    (p, c, s, _), neutral = ids.lengths, ids.neutral
    assert neutral is not None
    asked = {
        name: [
            {one.layer: one for one in Question(ids.prefix, text, ids.suffix, neutral, s, c).ask(decoder, bench.layers)}
            for text in texts
        ]
        for name, texts in behind.items()
    }
    chunk = Chunk.of(ids.prefix, ids.context, ids.suffix, neutral)
    scorer = Scorer(decoder, score, Scoring(bench.layers), s, chunk)
    scores: dict[str, list[Tensor]] = {name: [] for name in (*behind, AT_ONCE)}
    hidden, last = decoder.embed(chunk.input_ids), bench.layers[-1] + 1
    for step in decoder.steps(hidden, chunk.position_ids, 0, last, finish=False, fork=chunk.fork):
        if step.layer in bench.layers:
            scores[AT_ONCE].append(scorer.of_layer(step.attended)[0, :, p:].float())
            keys = step.attended.keys[:, :, p : p + c]
            for name, questions in asked.items():
                found = [question[step.layer].scores(keys, score)[0].float() for question in questions]
                scores[name].append(torch.stack(found).mean(0))
    units = bench.units_of(ids)
    apart = torch.empty(0, int(units.max()) + 1)  # embeddings are not looked at
    heads = {name: torch.cat(parts) for name, parts in scores.items()}
    return {name: bench.row_of(probe, units, own, own, apart) for name, own in heads.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--texts", type=int, default=42)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    model, tokenizer = load_model(None if args.model == "default" else args.model, dtype=torch.bfloat16)
    bench, behind = Bench(Decoder(model), tokenizer), stand_ins(tokenizer)
    texts, rows = probes(CHARACTERS, args.texts, SEED), []
    for number, probe in enumerate(texts, 1):
        with bench.decoder.session():
            rows.append(rows_of(bench, probe, bench.has_template and number % 2 == 0, behind))
    result = {}
    for name in rows[0]:
        shallow, best = choose(together([row[name] for row in rows], bench.layers_of_heads), bench.decoder.shape.heads)
        by_kind = {kind: [i for i, probe in enumerate(texts) if probe.kind == kind] for kind in kinds()}
        result[name] = {
            way: [round(choice.loss, 3), round(float(choice.shares.mean()), 4), [str(head) for head in choice.heads]]
            for way, choice in (("shallow", shallow), ("best", best))
        } | {
            "by_kind_shallow": {kind: round(float(shallow.shares[at].mean()), 4) for kind, at in by_kind.items() if at}
        }
        print(name, result[name], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
