"""Which methods, samples and cases make which table: the plan of each `homer eval` and `homer bench` command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from homerlm.errors import InputError
from homerlm.lab.case import Case
from homerlm.lab.evaluate import Plan, SampleWork, Work
from homerlm.lab.methods import Method
from homerlm.lab.perplexity import WindowsWork
from homerlm.lab.questions import Judge, answered, likelihood_of_answer
from homerlm.lab.samples import Task
from homerlm.lab.tasks.needle import KINDS, QUESTIONS_LATER, Needle
from homerlm.lab.tasks.passkey import Passkey
from homerlm.lab.tasks.quality import Quality

RIVAL_METHODS = ("random", "bm25", "oracle", "homer")
FINDING_METHODS = tuple(
    f"{name}={budget}"
    for budget in (256, 1024)
    for name in ("random:budget", "bm25:budget", "oracle:budget", "homer:min_share=0,target_len")
)
RETRIEVAL_METHODS = ("plain", "homer-paper", "homer")
QA_METHODS = ("truncate", "truncate+pi:2", "truncate+ntk:2", "truncate+yarn:2", "homer-paper", "homer")
PERPLEXITY_METHODS = ("plain", "pi:2", "ntk:2", "yarn:2", "homer-paper", "homer")
LIKELIHOOD_METHODS = ("homer-paper", "homer")
BENCH_METHODS = ("plain", "homer-paper", "homer", "homer+yarn:2")
PROFILE_METHODS = ("plain", "homer")
CPU_PLAIN_UP_TO = 32768  # the plain model's attention takes minutes beyond

# Layers picked on the bundled model, all heads, no neutral question, neighbours kept together.
FORMER_DEFAULT = "homer:scoring_layers=middle,score=mean_square,contrast=none,unit=neighbours,link_len=0"
ABLATION = {  # the report's row: the settings that differ; tables 4a and 4b on the paper's preset, then our own
    "score: random": "homer-paper:score=random",
    "score: attention": "homer-paper:score=logit",
    "score: attention+calibration": "homer-paper",
    "refinement: none": "homer-paper:refinement=none",
    "refinement: random": "homer-paper:refinement=random",
    "refinement: layer-wise top-k": "homer-paper:refinement=per_layer_top_k",
    "refinement: propagative": "homer-paper",
    "default preset": "homer",
    "default, no reranking": "homer:rerank=never",
    "default, no recap": "homer:recap_len=0",
    "default, no least share": "homer:min_share=0",
    "default, no links": "homer:link_len=0",
    "default, neither recap nor least share": "homer:recap_len=0,min_share=0",
    "default, no neutral question": "homer:contrast=none",
    "default, neighbours instead of sentences": "homer:unit=neighbours",
    "default, layers above the middle score": "homer:scoring_layers=middle",
    "default, upper half scores": "homer:scoring_layers=upper_half",
    "default, all layers score": "homer:scoring_layers=all",
    "default, last token asks": "homer:scoring_queries=1",
    "default, mean over suffix": "homer:score=softmax",
    "former default": FORMER_DEFAULT,
}


def ablation_rows(beginnings: Sequence[str]) -> dict[str, str]:
    """The rows of `ABLATION` whose names begin with any of these; all of them for none. Raises `InputError`."""
    for start in beginnings:
        if not any(label.startswith(start) for label in ABLATION):
            raise InputError(f"no row of the ablation begins with {start!r}; they are: {', '.join(ABLATION)}")
    return {row: method for row, method in ABLATION.items() if not beginnings or row.startswith(tuple(beginnings))}


def sweep(method: str, limit: int, layers: int) -> dict[str, str]:
    """The sensitivity rows for a model: each length, the warm-up and the share kept, one at a time; of a method those
    settings that it has."""
    base = Method.parse(method)
    values: dict[str, list[float]] = {
        "max_chunk_len": [limit // n for n in (16, 8, 4, 2)],
        "target_len": [limit // n for n in (32, 16, 8, 4, 2)],
        "warmup_layers": sorted({round(layers * share) for share in (0.1, 0.25, 0.375, 0.5, 0.6)}),
        "retention": [0.125, 0.25, 0.5, 0.75, 1.0],
    }
    return {
        f"{name}={value}": str(replace(base, settings=(*base.settings, (name, value))))
        for name, choices in values.items()
        if hasattr(base.config(), name)
        for value in choices
    }


def drawn(
    tasks: Sequence[Task], lengths: Sequence[int], samples: int, seed: int, judge: Judge | None = None, **more: Any
) -> list[Work]:
    """`samples` of every task at every length (documents, where each is asked several times). Sample by sample, so that
    a run that is stopped has as many of every length."""
    return [
        SampleWork(task, length, k, seed, judge or answered(task.max_new_tokens), **more)
        for k in range(samples)
        for task in tasks
        for length in lengths
    ]


def needles(variants: Sequence[str], prose: str, text: str, ask: str = "now") -> list[Needle]:
    """The needle tasks by name; asked later, each document has five keys and a question for each."""
    for_each = QUESTIONS_LATER if ask == "later" else 1
    return [Needle(name, prose, "filler" if KINDS[name].haystack == "filler" else text, for_each) for name in variants]


def qa(quality: Quality, samples: int, seed: int) -> list[Work]:
    return drawn([quality], [0], min(samples, len(quality.items)), seed)


def perplexity(documents: Sequence[str], text: str, length: int, limit: int) -> list[Work]:
    return [WindowsWork(document, k, length, limit, text) for k, document in enumerate(documents)]


def passkey_perplexity(lengths: Sequence[int], samples: int, seed: int) -> list[Work]:
    """How likely the right key is, in place of whether it is said (table 9, figure 6)."""
    return drawn([Passkey()], lengths, samples, seed, likelihood_of_answer, row=("passkey-perplexity", ""))


def variants(
    name: str, rows: dict[str, str], tasks: Sequence[Task], lengths: Sequence[int], samples: int, seed: int
) -> Plan:
    """The same samples under changed settings: `rows` maps a report's row to the method that it stands for."""
    plan: Plan = []
    for label, method in rows.items():
        for task in tasks:
            named = f"{task.name} {task.variant}".strip() + ", " if task.variant or len(tasks) > 1 else ""
            plan.append((Method.parse(method), drawn([task], lengths, samples, seed, row=(name, named + label))))
    return plan


def cases(
    methods: Sequence[Method], lengths: Sequence[int], batches: Sequence[int], plain_up_to: int | None, like: Case
) -> list[Case]:
    """Every method at every length and batch, the short ones first, otherwise `like` one; the methods that read every
    token with every other only to `plain_up_to` tokens."""
    return [
        replace(like, method=str(method), length=length, batch=batch)
        for length in lengths
        for batch in batches
        for method in methods
        if method.is_homer or plain_up_to is None or length <= plain_up_to
    ]
