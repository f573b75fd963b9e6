"""What the recap before the question is worth. The candidates of documents with planted facts are found and reranked
once; what is left of them is then read with one recap after another.

Of one number among four, `margin` is how much likelier the right one is than the likeliest of the others, in nats, and
`right` whether it is; several facts are graded by what the model writes. Appends records as JSON lines, goes on where
it was stopped, and prints the means. Example:

    python benchmarks/recap.py --documents 40 --seed 3001 --output results/recap
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

from homerlm import Homer, HomerConfig, load_model, prompt
from homerlm.lab.corpora import json_lines, python_documentation
from homerlm.lab.questions import Setup
from homerlm.lab.samples import Sample, Task
from homerlm.lab.tasks.needle import needle
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.prompt import PromptIds
from homerlm.score.neighbours import share_of_best
from homerlm.select import recap
from homerlm.select.likelihood import Candidates
from homerlm.select.method import Select
from homerlm.select.plan import SelectPlan
from homerlm.select.ranking import Ranking
from homerlm.select.reading import Reading

KINDS = {"keys": 1, "values": 4, "queries": 4}  # of facts; several are asked of so many times fewer documents
Recap = Callable[[Sequence[float], Sequence[int], int], list[int]]  # as `homerlm.select.recap.recap`


def runs(scores: Sequence[float], units: Sequence[int], room: int) -> list[int]:
    """The first recap: whole runs of tokens that are neighbours in the document, the best last, once each. units: the
    number of each token's run."""
    if room <= 0 or not units:
        return []
    return _last_is_best(_best(scores, units, room, len(units)), room)


def repeated(scores: Sequence[float], units: Sequence[int], room: int, leading: float, rounds: int) -> list[int]:
    """The second: leading sentences, the best last, over and over while all of them fit."""
    if room <= 0 or not units:
        return []
    once = _last_is_best(_best(scores, units, room, _leads(scores, units, leading)), room)
    return once * min(rounds, room // len(once))


def listed(scores: Sequence[float], units: Sequence[int], room: int, beside: float) -> list[int]:
    """The present one, but of several the best comes last."""
    leads = _leads(scores, units, recap.LEADING)
    if room <= 0 or leads < 2:
        return recap.recap(scores, units, room)
    return _last_is_best(_best(scores, units, room, _leads(scores, units, beside)), room)


def until_the_gap(scores: Sequence[float], units: Sequence[int], room: int) -> list[int]:
    """Sentences down to where scores fall most, of the best nine, the best last; one alone three times."""
    best = [score for score, _ in recap._by_best_token(scores, units)[:9]]
    falls = [later / earlier if earlier > 0 else 1 for earlier, later in pairwise(best)]
    if room <= 0 or not falls:
        return recap.recap(scores, units, room)
    chosen = _best(scores, units, room, falls.index(min(falls)) + 1)
    once = _last_is_best(chosen, room)
    return once * (min(recap.ROUNDS, room // len(once)) if len(chosen) == 1 else 1)


def _leads(scores: Sequence[float], units: Sequence[int], share: float) -> int:
    best = [score for score, _ in recap._by_best_token(scores, units)]
    return sum(score >= share_of_best(best[0], share) for score in best)


def _best(scores: Sequence[float], units: Sequence[int], room: int, count: int) -> list[list[int]]:
    return [recap._densest(unit, scores, room) for _, unit in recap._by_best_token(scores, units)[:count]]


def _last_is_best(units: Sequence[Sequence[int]], room: int) -> list[int]:
    """Those of the best first that fit together."""
    fitting = [total for total in accumulate(map(len, units)) if total <= room]
    return [i for unit in reversed(units[: len(fitting)]) for i in unit]


@dataclass(frozen=True)
class Way:
    """A recap of at most `length` tokens."""

    name: str
    of: Recap = recap.recap
    length: int = HomerConfig.recap_len
    min_share: float = HomerConfig.min_share
    link_len: int = HomerConfig.link_len

    def __str__(self) -> str:
        changed = "".join(
            f", {name} {getattr(self, name)}"
            for name in ("min_share", "link_len")
            if getattr(self, name) != getattr(HomerConfig, name)
        )
        return f"{self.length} tokens, {self.name}{changed}"


def sentences(leading: float = 0.7, rounds: int = 3, **changes: Any) -> Way:
    return Way(f"sentences of {leading}, {rounds}x", partial(repeated, leading=leading, rounds=rounds), **changes)


WAYS = (
    sentences(length=0),
    *(Way("runs", runs, length) for length in (64, 128, 32)),
    *(sentences(leading) for leading in (0.5, 0.7, 0.8, 0.9)),
    *(sentences(length=length) for length in (64, 128)),
    *(sentences(rounds=rounds) for rounds in (1, 2)),
    Way("runs", runs, 64, min_share=0.3),
    sentences(min_share=0.3),
    sentences(link_len=0),
    Way("the present one"),
    *(Way(f"several once of {beside}, best last", partial(listed, beside=beside)) for beside in (0.7, 0.5, 0.35)),
    Way("until the gap", until_the_gap),
)


@dataclass
class Found:
    """A document's candidates and their scores (C,) at the reranking. gold: (n,) places of what answers."""

    sample: Sample
    ids: PromptIds
    plan: SelectPlan
    candidates: Candidates
    scores: Tensor
    gold: Tensor


class Study:
    def __init__(self, homer: Homer) -> None:
        assert homer.tokenizer is not None
        self.homer, self.tokenizer = homer, homer.tokenizer

    @torch.no_grad()
    def find(self, sample: Sample) -> Found:
        method = self.method(Way("the present one"))
        asked = Setup(self.homer.model, self.tokenizer, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
        plan = method.plan(*asked.lengths)
        with self.homer.decoder.session():
            reading = Reading.on(self.homer.decoder, plan, asked, method.ranking)
            found = run_steps(method._candidates(reading, torch.arange(plan.context_len)[None])).row(0)
            (scores,) = run_steps(reading.scoring(asked.context[:, found.places], plan.reranking))
        return Found(sample, asked, plan, found, scores, asked.gold_in_context)

    def method(self, way: Way) -> Select:
        method = self.homer.method
        assert isinstance(method, Select)
        config = replace(method.config, recap_len=way.length, min_share=way.min_share, link_len=way.link_len)
        return replace(method, config=config)

    def chosen(self, found: Found, way: Way) -> Tensor:
        """Context indices (n,) of what is read."""
        method = self.method(way)
        document = run_steps(method._document(found.ids.context[0]))
        units_by = method.ranking
        if way.of is runs:
            units_by = replace(units_by, config=replace(method.config, unit="neighbours"))

        def recap_of(_: Any, scores: Tensor, ids: Tensor, places: Tensor, room: int) -> list[int]:
            return way.of(scores.tolist(), units_by.units(ids[None], places[None])[0].tolist(), room)

        reading = Reading(self.homer.decoder, found.plan, found.ids, method.ranking)
        with mock.patch.object(Ranking, "recap", recap_of), self.homer.decoder.session():
            return run_steps(method._chosen(reading, document, found.scores, found.candidates))

    def prompt_of(self, found: Found, chosen: Tensor) -> Tensor:
        """(1, S) ids of what is read."""
        return torch.cat([found.ids.prefix, found.ids.context[:, chosen], found.ids.suffix], dim=1)

    @torch.no_grad()
    def margin(self, ids: Tensor, sample: Sample) -> float:
        """How much likelier the right number is than the likeliest other one, nats."""
        texts = [*sample.questions[0].expected, *sample.facts["others"]]
        values = torch.cat([prompt.token_ids(self.tokenizer, f" {text}") for text in texts])
        read: Any = self.homer.model(ids, use_cache=True, logits_to_keep=1)
        read.past_key_values.batch_repeat_interleave(len(values))
        more = self.homer.model(values[:, :-1], past_key_values=read.past_key_values).logits
        logits = torch.cat([read.logits.expand(len(values), -1, -1), more], dim=1).float().log_softmax(-1)
        sums = logits.gather(2, values[..., None]).sum((1, 2))
        return float(sums[0] - sums[1:].max())

    @torch.no_grad()
    def graded(self, prompts: Sequence[Tensor], samples: Sequence[Sample], new_tokens: int) -> list[float]:
        """Share right of what is written after each, all of them side by side."""
        longest = max(ids.shape[1] for ids in prompts)
        padded = torch.cat([torch.nn.functional.pad(ids, (longest - ids.shape[1], 0)) for ids in prompts])
        mask = torch.stack([torch.arange(longest) >= longest - ids.shape[1] for ids in prompts]).long()
        model: Any = self.homer.model
        written = model.generate(padded, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)[:, longest:]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [sample.questions[0].grade(text) for sample, text in zip(samples, texts, strict=True)]


def measured(study: Study, task: Task, found: Sequence[Found], way: Way) -> Iterator[dict[str, Any]]:
    prompts = [study.prompt_of(one, study.chosen(one, way)) for one in found]
    if task.variant == "keys":
        margins = [study.margin(ids, one.sample) for ids, one in zip(prompts, found, strict=True)]
        results = [{"right": float(margin > 0), "margin": margin} for margin in margins]
    else:
        rights = study.graded(prompts, [one.sample for one in found], task.max_new_tokens)
        results = [{"right": right} for right in rights]
    for index, (ids, result) in enumerate(zip(prompts, results, strict=True)):
        yield {"kind": task.variant, "sample": index, "tokens": ids.shape[1]} | result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=40, help="with one number of four; of several facts a quarter")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ways", nargs="+", choices=[str(way) for way in WAYS], default=[str(way) for way in WAYS])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=3001)
    parser.add_argument("--text", type=Path, help="that facts are planted in; default Python's documentation")
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path, default=Path("results/recap"))
    options = parser.parse_args()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "records.jsonl"
    known = json_lines(path, "records of this study") if path.exists() else []
    done = {(record["kind"], record["way"]) for record in known}
    study = Study(Homer(*load_model(options.model)))
    text = options.text.read_text() if options.text else python_documentation()
    name = options.text.name if options.text else "Python's documentation"
    for kind in options.kinds:
        missing = [way for way in WAYS if str(way) in options.ways and (kind, str(way)) not in done]
        if not missing:
            continue
        task = needle(kind, text, name)
        count = options.documents // KINDS[kind]
        samples = [task.sample(study.tokenizer, options.length, index, options.seed) for index in range(count)]
        found = [study.find(sample) for sample in samples]
        for way in missing:
            same = {"way": str(way), "length_read": options.length, "seed": options.seed, "text": name}
            new = [same | record for record in measured(study, task, found, way)]
            known += new
            with path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in new)
    frame = pd.DataFrame(known).groupby(["kind", "way"], sort=False)[["right", "margin", "tokens"]].mean()
    table = frame.round(3).to_markdown()
    (options.output / "summary.md").write_text(f"{table}\n")
    print(table)


if __name__ == "__main__":
    main()
