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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor

from homerlm import Homer, HomerConfig, load_model, prompt
from homerlm.lab.corpora import python_documentation
from homerlm.lab.questions import Setup
from homerlm.lab.samples import Sample
from homerlm.lab.tasks.needle import Needle
from homerlm.model.memory import keep_freed_memory
from homerlm.passes import run_steps
from homerlm.prompt import PromptIds
from homerlm.select import recap
from homerlm.select.method import Select
from homerlm.select.plan import SelectPlan
from homerlm.select.ranking import Ranking
from homerlm.select.reading import Reading


@dataclass(frozen=True)
class Way:
    """A recap of `length` tokens: the leading sentences, `rounds` times at most, or, as before, the best runs of
    neighbouring tokens that fit, once (leading None)."""

    length: int = 96
    leading: float | None = recap.LEADING
    rounds: int = recap.ROUNDS
    min_share: float = HomerConfig.min_share
    link_len: int = HomerConfig.link_len

    def __str__(self) -> str:
        how = "runs" if self.leading is None else f"sentences of {self.leading}, {self.rounds}x"
        changed = "".join(
            f", {name} {getattr(self, name)}"
            for name in ("min_share", "link_len")
            if getattr(self, name) != getattr(HomerConfig, name)
        )
        return f"{self.length} tokens, {how}{changed}"


WAYS = (
    Way(0),
    Way(64, None),
    Way(128, None),
    Way(32, None),
    *(Way(96, leading) for leading in (0.5, 0.7, 0.8, 0.9)),
    *(Way(length) for length in (64, 128)),
    *(Way(rounds=rounds) for rounds in (1, 2)),
    Way(64, None, min_share=0.3),
    Way(min_share=0.3),
    Way(link_len=0),
)


def runs(scores: Sequence[float], units: Sequence[int], room: int) -> list[int]:
    """The former recap: whole runs of tokens that are neighbours in the document, the best last, once each. units: the
    number of each token's run."""
    if room <= 0 or not units:
        return []
    groups = [list(group) for _, group in groupby(range(len(units)), key=units.__getitem__)]
    groups.sort(key=lambda group: max(scores[i] for i in group), reverse=True)
    cut = [recap._densest(group, scores, room) for group in groups]
    fitting = [total for total in accumulate(map(len, cut)) if total <= room]
    return [i for group in reversed(cut[: len(fitting)]) for i in group]


@dataclass
class Found:
    """A document's candidates, at `places`, and their scores at the reranking, (C,) both."""

    sample: Sample
    ids: PromptIds
    plan: SelectPlan
    places: Tensor
    scores: Tensor


class Study:
    def __init__(self, homer: Homer) -> None:
        assert homer.tokenizer is not None
        self.homer, self.tokenizer = homer, homer.tokenizer

    @torch.no_grad()
    def find(self, sample: Sample) -> Found:
        method = self.method(Way())
        asked = Setup(self.homer.model, self.tokenizer, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
        ids = PromptIds(asked.prefix, asked.context, asked.suffix, asked.neutral)
        plan = method.plan(*ids.lengths)
        reading = Reading(self.homer.decoder, plan, ids, method.ranking)
        with self.homer.decoder.session():
            (places,) = run_steps(method._candidates(reading, torch.arange(plan.context_len)[None]))
            (scores,) = run_steps(reading.scoring(ids.context[:, places], plan.reranking))
        return Found(sample, ids, plan, places, scores)

    def method(self, way: Way) -> Select:
        method = self.homer.method
        assert isinstance(method, Select)
        config = replace(method.config, recap_len=way.length, min_share=way.min_share, link_len=way.link_len)
        return replace(method, config=config)

    def prompt_of(self, found: Found, way: Way) -> Tensor:
        """(1, S) ids of what is read."""
        method = self.method(way)
        document = run_steps(method._document(found.ids.context[0]))
        neighbours = replace(method.ranking, config=replace(method.config, unit="neighbours"))

        def former(_: Any, scores: Tensor, ids: Tensor, places: Tensor, room: int) -> list[int]:
            return runs(scores.tolist(), neighbours._units(ids[None], places[None])[0].tolist(), room)

        with ExitStack() as patches:
            if way.leading is None:
                patches.enter_context(mock.patch.object(Ranking, "recap", former))
            else:
                patches.enter_context(mock.patch.multiple(recap, ROUNDS=way.rounds, LEADING=way.leading))
            chosen = run_steps(method._chosen(document, found.ids.suffix[0], found.scores, found.places, found.plan))
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


def measured(study: Study, task: Needle, found: Sequence[Found], way: Way) -> Iterator[dict[str, Any]]:
    prompts = [study.prompt_of(one, way) for one in found]
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
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=3001)
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path, default=Path("results/recap"))
    options = parser.parse_args()
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "records.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(record["kind"], record["way"]) for record in known}
    study = Study(Homer(*load_model(options.model)))
    for kind, count in (
        ("keys", options.documents),
        ("values", options.documents // 4),
        ("queries", options.documents // 4),
    ):
        missing = [way for way in WAYS if (kind, str(way)) not in done]
        if not missing:
            continue
        task = Needle(kind, python_documentation(), "Python's documentation")
        samples = [task.sample(study.tokenizer, options.length, index, options.seed) for index in range(count)]
        found = [study.find(sample) for sample in samples]
        for way in missing:
            same = {"way": str(way), **asdict(way), "length_read": options.length, "seed": options.seed}
            new = [same | record for record in measured(study, task, found, way)]
            known += new
            with path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in new)
    frame = pd.DataFrame(known).groupby(["kind", "way"], sort=False)[["right", "margin", "tokens"]].mean()
    text = frame.round(3).to_markdown()
    (options.output / "summary.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
