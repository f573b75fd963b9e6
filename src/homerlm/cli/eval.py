"""`homer eval`: the paper's tables, and our own, for any model: one command each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from homerlm.cli.devices import placed
from homerlm.cli.measuring import MeasuringOptions, measured_on, measuring_command, run_and_report, show_report
from homerlm.cli.options import parse_counts, parse_tokens

if TYPE_CHECKING:
    from homerlm.lab.evaluate import Plan
    from homerlm.lab.samples import Task

app = typer.Typer(
    help="Measure answers, perplexity, memory and time: every table of the paper from one command, on any model.",
    no_args_is_help=True,
    epilog="Methods: plain, truncate, streaming, random, bm25, hybrid, embed, infini-retri, oracle, homer, "
    "homer-paper, each with +pi:2, +ntk:4, +yarn:8 ... and with settings after a colon "
    "(homer:target_len=2048,pooling=1; bm25:budget=256). Records are written as they come: the same command goes on "
    "where it was stopped.",
)
app.command("report")(show_report)

Kind = StrEnum("Kind", ["single", "single-word", "single-uuid", "single-filler", "keys", "values", "queries"])
Retrieval = StrEnum("Retrieval", ["passkey", "needle"])
Puzzle = StrEnum("Puzzle", {"one": "one fact", "two": "two facts", "three": "three facts", "counting": "counting"})
Works = list[Any]  # of `homerlm.lab.evaluate.Work`
Text = Annotated[str, typer.Option(help="A text file; `python` is Python's own documentation.")]
Tasks = Annotated[list[Retrieval] | None, typer.Option("--task", help="On which task; may be repeated.")]
Ask = Annotated[
    Literal["now", "later"],
    typer.Option(help="Whether the question is known when the document is read, or comes later."),
]
NeedleKind = Annotated[Kind, typer.Option(help="What --task needle hides.")]

RETRIEVAL = "plain homer-paper homer"
RIVALS = "random bm25 oracle homer"
FINDING = " ".join(
    f"{name}={budget}"
    for budget in (256, 1024)
    for name in ("random:budget", "bm25:budget", "oracle:budget", "homer:min_share=0,target_len")
)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(MeasuringOptions):
    """The options of every task."""

    folder: ClassVar[str] = "homer-eval"

    samples: Annotated[int, typer.Option(min=1, help="Samples of each field of a table (the paper: 500).")] = 20
    seed: Annotated[int, typer.Option(help="What the samples are drawn from.")] = 0
    ask: Ask = "now"
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="Calibration file for homer-paper, one for each RoPE scaling; may be repeated."),
    ] = None
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Wrap prompts in the model's chat template.")] = False
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the model runs: cpu, cuda, cuda:1, mps ..., or auto for all devices; default cuda where there "
            "is one.",
            show_default=False,
        ),
    ] = None

    def draw(self, tasks: Sequence[Task]) -> Works:
        """Samples of every task at every length, as many as asked for."""
        from homerlm.lab.evaluate import drawn

        tasks = [replace(task, ask=self.ask) for task in tasks]
        return drawn(tasks, parse_counts(self.lengths, "length"), self.samples, self.seed)

    def run(self, plan: Plan) -> None:
        from homerlm.lab.evaluate import Models, jobs_of
        from homerlm.model.loading import load_model

        where = self.placed
        models = Models(lambda rope: load_model(self.model, rope=rope, **where), self.chat, self.calibration or ())
        run_and_report(jobs_of(plan, models), self.output, self.ray)

    @property
    def placed(self) -> dict[str, str]:
        """`load_model`'s keyword for where the model runs. Raises `UsageError`."""
        if self.device == "auto" and self.ray is None:
            return placed(self.device)
        device = measured_on(self.device, self.ray)
        return placed(None if device == "cpu" else device)


_command = partial(measuring_command, app, EvalOptions)


def _task(name: str, methods: str, without: tuple[str, ...] = (), **defaults: Any) -> Callable[..., Any]:
    """A decorator for a command that gives work, on which every method runs, by default these."""

    def decorate(work: Callable[..., Works]) -> None:
        @wraps(work)
        def command(options: EvalOptions, **own: Any) -> None:
            chosen, works = options.parsed_methods, work(options, **own)
            options.run([(method, works) for method in chosen])

        _command(name, without, methods=[methods], **defaults)(command)

    return decorate


@_task("passkey", RETRIEVAL)
def passkey(options: EvalOptions) -> Works:
    """Table 1: a five-digit key hidden in repeated filler."""
    from homerlm.lab.tasks import passkey

    return options.draw([passkey.passkey()])


@_task("needle", RETRIEVAL)
def needle(
    options: EvalOptions,
    *,
    kind: Annotated[list[Kind] | None, typer.Option(help="Kinds of facts; may be repeated.")] = None,
    text: Text = "python",
) -> Works:
    """Facts hidden in a text: one, one of four keys, four values of one key, four keys asked at once."""
    return options.draw(_needles(kind or [Kind("single"), Kind("keys")], text, options.ask))


def _planted(name: str, purpose: str) -> None:
    """The command of a set of planted facts."""

    def command(
        options: EvalOptions,
        *,
        facts: Annotated[int, typer.Option(min=1, max=6, help="Facts in a document; one is asked for.")] = 4,
        text: Text = "python",
    ) -> Works:
        from homerlm.lab.tasks.planted import planted

        return options.draw([planted(name, *_text(text), facts)])

    command.__doc__ = purpose
    _task(name, RIVALS)(command)


_planted("associations", "Facts planted in a text; only general knowledge ties them to their questions.")
_planted("relations", "How people are related, asked for from the other side, in other words.")
_planted("paraphrases", "Facts planted in a text, asked for in other words.")


@_task("stories", RIVALS)
def stories(
    options: EvalOptions,
    *,
    kind: Annotated[list[Puzzle] | None, typer.Option(help="What is asked for; may be repeated.")] = None,
    events: Annotated[int, typer.Option(min=8, max=60, help="Sentences of a story.")] = 14,
    text: Text = "python",
) -> Works:
    """Sentences of a story spread over a text: one, two or three of them put together, or counted."""
    from homerlm.lab.tasks import stories

    return options.draw([stories.stories(str(asked), *_text(text), events) for asked in kind or Puzzle])


@_task("variables", RIVALS)
def variables(
    options: EvalOptions,
    *,
    hops: Annotated[
        list[int] | None, typer.Option(min=1, max=12, help="Assignments from variable to variable.")
    ] = None,
    chains: Annotated[int, typer.Option(min=1, max=8, help="Chains in a document; one is asked for.")] = 1,
    text: Text = "python",
) -> Works:
    """RULER's variable tracking: all variables that a chain of assignments gives a value."""
    from homerlm.lab.tasks import variables

    return options.draw([variables.variables(*_text(text), count, chains) for count in hops or (2, 3, 4)])


@_task("common-words", RIVALS)
def common_words(options: EvalOptions, *, text: Text = "python") -> Works:
    """RULER's common words: the ten that stand most often in a long list, of the words of a text."""
    from homerlm.lab.tasks import common

    return options.draw([common.common_words(*_text(text))])


@_task("frequent-words", RIVALS)
def frequent_words(options: EvalOptions) -> Works:
    """RULER's frequent words: the three most frequent codes of a text of codes."""
    from homerlm.lab.tasks import common

    return options.draw([common.frequent_words()])


@_task("headings", FINDING, without=("chat",))
def headings(
    options: EvalOptions,
    *,
    corpus: Annotated[
        str,
        typer.Option(
            help="A Markdown, reStructuredText or HTML file, or a folder of these; `python` is Python's help."
        ),
    ] = "python",
) -> Works:
    """Whether the section that a heading stands above is found by the heading as a question; nothing is answered."""
    from homerlm.lab.tasks import headings

    name = "Python documentation" if corpus == "python" else Path(corpus).name
    return options.draw([headings.headings(headings.load_sections(corpus), name)])


@_task("questions", RIVALS, samples=1000)
def questions(
    options: EvalOptions,
    *,
    data: Annotated[
        Path, typer.Option(help="JSON lines: question, evidence (words of the text that answer it), answer (optional).")
    ],
    text: Annotated[str, typer.Option(help="The text: a file; `python` is Python's own documentation.")],
) -> Works:
    """Questions of your own about a text of yours: whether what answers them is kept, and read right."""
    from homerlm.lab.tasks import own

    source, name = _text(text)
    items = own.load_questions(data, source)
    task = own.questions(items, source, name)
    return replace(options, samples=min(options.samples, len(items))).draw([task])


@_task(
    "qa",
    "truncate truncate+pi:2 truncate+ntk:2 truncate+yarn:2 homer-paper homer",
    without=("lengths", "ask"),
    samples=100,
)
def qa(
    options: EvalOptions,
    *,
    data: Annotated[
        Path | None, typer.Option(help="QuALITY's file as it is released (JSON lines); default from the hub.")
    ] = None,
) -> Works:
    """Table 2: multiple-choice questions about stories (QuALITY), by generation and by likelihood."""
    from homerlm.lab.evaluate import drawn
    from homerlm.lab.tasks.quality import load_quality, quality

    items = load_quality(data)
    task = quality(items, data.name if data else "QuALITY validation")
    return drawn([task], [0], min(options.samples, len(items)), options.seed)


@_task("perplexity", "plain pi:2 ntk:2 yarn:2 homer-paper homer", without=("lengths", "samples", "seed", "chat", "ask"))
def perplexity(
    options: EvalOptions,
    *,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A document, may be repeated; `python` is Python's documentation, `pg19` the paper's books."),
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents to score; one text is begun at as many places.")] = 4,
    length: Annotated[str, typer.Option(help="Tokens of each document to score; 64k is 65,536.")] = "32k",
) -> Works:
    """Table 3 and figure 5: perplexity of long text, accumulated, with all before each window compressed."""
    from homerlm.lab.corpora import named_texts
    from homerlm.lab.perplexity import WindowsWork, rotations
    from homerlm.model.loading import load_config

    tokens = parse_tokens(length, "length")
    texts, name = named_texts(text or ["python"])
    texts = rotations(texts[0], documents) if len(texts) == 1 else texts[:documents]
    limit = load_config(options.model).max_position_embeddings
    return [WindowsWork(document, k, tokens, limit, name) for k, document in enumerate(texts)]


@_task("passkey-perplexity", "homer-paper homer", without=("ask",), lengths="2k,4k,8k,16k,32k,64k")
def passkey_perplexity(options: EvalOptions) -> Works:
    """Table 9 and figure 6: how likely the right passkey is after the prompt."""
    from homerlm.lab.tasks import passkey

    return options.draw([passkey.passkey_perplexity()])


@_command("ablation", without=("methods", "ask"), lengths="16k")
def ablation(
    options: EvalOptions,
    *,
    task: Tasks = None,
    kind: NeedleKind = Kind("single"),
    row: Annotated[
        list[str] | None, typer.Option(help="Only rows whose name begins so, such as `score`; may be repeated.")
    ] = None,
    text: Text = "python",
) -> None:
    """Tables 4a and 4b, and what each part of the default preset is worth."""
    from homerlm.lab.suites import ablation_rows

    _run_variants("ablation", options, ablation_rows(row or []), _retrieval(task, kind, text))


@_command("sensitivity", without=("methods", "ask"), lengths="16k")
def sensitivity(
    options: EvalOptions,
    *,
    task: Tasks = None,
    kind: NeedleKind = Kind("single"),
    method: Annotated[str, typer.Option(help="What is varied, one setting at a time.")] = "homer",
    text: Text = "python",
) -> None:
    """Chunk length, target length, warm-up and retention swept: answers, tokens kept, memory, time."""
    from homerlm.lab.suites import sweep
    from homerlm.model.loading import load_config

    config = load_config(options.model)
    rows = sweep(method, config.max_position_embeddings, config.num_hidden_layers)
    _run_variants("sensitivity", options, rows, _retrieval(task, kind, text))


def _run_variants(name: str, options: EvalOptions, rows: dict[str, str], tasks: list[Task]) -> None:
    """The same samples under changed settings: `rows` maps a report's row to the method that it stands for."""
    from homerlm.lab.methods import Method

    plan: Plan = []
    for label, method in rows.items():
        for task in tasks:
            named = f"{task.name} {task.variant}".strip() + ", " if task.variant or len(tasks) > 1 else ""
            plan.append((Method.parse(method), options.draw([replace(task, name=name, variant=named + label)])))
    options.run(plan)


def _retrieval(names: list[Retrieval] | None, kind: Kind, text: str) -> list[Task]:
    from homerlm.lab.tasks.passkey import passkey

    chosen = names or [Retrieval("passkey")]
    return [task for name in chosen for task in ([passkey()] if name == "passkey" else _needles([kind], text))]


def _needles(kinds: Sequence[Kind], text: str, ask: str = "now") -> list[Task]:
    from homerlm.lab.tasks.needle import needle

    return [needle(str(kind), *_text(text), ask) for kind in kinds]


def _text(name: str) -> tuple[str, str]:
    """A text and its name in records."""
    from homerlm.lab.corpora import named_texts

    texts, label = named_texts([name])
    return texts[0], label
