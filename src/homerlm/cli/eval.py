"""`homer eval`: the paper's tables, and our own, for any model: one command each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from homerlm.cli.measuring import MeasuringOptions, run_and_report, show_report, with_options
from homerlm.cli.options import parse_lengths

if TYPE_CHECKING:
    from homerlm.lab.evaluate import Plan, Work

app = typer.Typer(
    help="Measure answers, perplexity, memory and time: every table of the paper from one command, on any model.",
    no_args_is_help=True,
    epilog="Methods: plain, truncate, streaming, random, bm25, embed, infini-retri, oracle, homer, homer-paper, each "
    "with +pi:2, +ntk:4, +yarn:8 ... and with settings after a colon (homer:target_len=2048,pooling=1; "
    "bm25:budget=256). Records are written as they come: the same command goes on where it was stopped.",
)
app.command("report")(show_report)

Kind = StrEnum("Kind", ["single", "single-word", "single-uuid", "single-filler", "keys", "values", "queries"])
Retrieval = StrEnum("Retrieval", ["passkey", "needle"])

Puzzle = StrEnum("Puzzle", {"one": "one fact", "two": "two facts", "three": "three facts", "counting": "counting"})
SETS = {
    "associations": "Facts planted in a text; only general knowledge ties them to their questions.",
    "relations": "How people are related, asked for from the other side, in other words.",
    "paraphrases": "Facts planted in a text, asked for in other words.",
}
Text = Annotated[str, typer.Option(help="A text file; `python` is Python's own documentation.")]
Tasks = Annotated[list[Retrieval] | None, typer.Option("--task", help="On which task; may be repeated.")]
NeedleKind = Annotated[Kind, typer.Option(help="What --task needle hides.")]


@dataclass(frozen=True, kw_only=True)
class EvalOptions(MeasuringOptions):
    """The options of every task."""

    samples: Annotated[int, typer.Option(min=1, help="Samples of each field of a table (the paper: 500).")] = 20
    seed: Annotated[int, typer.Option(help="What the samples are drawn from.")] = 0
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="Calibration file for homer-paper, one for each RoPE scaling; may be repeated."),
    ] = None
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Wrap prompts in the model's chat template.")] = False

    @property
    def drawn(self) -> tuple[list[int], int, int]:
        """Lengths, samples and seed."""
        return parse_lengths(self.lengths), self.samples, self.seed

    def run_each(self, default: tuple[str, ...], works: list[Work]) -> None:
        """Every method, by default these, on all of the work."""
        self.run([(method, works) for method in self.methods_or(default)])

    def run(self, plan: Plan) -> None:
        from homerlm.lab.evaluate import Models, jobs_of
        from homerlm.model.loading import load_model

        models = Models(lambda rope: load_model(self.model, rope=rope), self.chat, self.calibration or ())
        run_and_report(jobs_of(plan, models), self.output)


def _task(name: str, without: tuple[str, ...] = (), **defaults: Any) -> Callable[..., Any]:
    """A decorator for the command of a task."""
    options = with_options(EvalOptions, without, output=Path(f"homer-eval/{name}"), **defaults)
    return lambda command: app.command(name)(options(command))


@_task("passkey")
def passkey(options: EvalOptions) -> None:
    """Table 1: a five-digit key hidden in repeated filler."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.passkey import Passkey

    options.run_each(suites.RETRIEVAL_METHODS, suites.drawn([Passkey()], *options.drawn))


@_task("needle")
def needle(
    options: EvalOptions,
    *,
    kind: Annotated[list[Kind] | None, typer.Option(help="Kinds of facts; may be repeated.")] = None,
    ask: Annotated[
        Literal["now", "later"],
        typer.Option(help="Whether the question is known when the document is read, or comes later."),
    ] = "now",
    text: Text = "python",
) -> None:
    """Facts hidden in a text: one, one of four keys, four values of one key, four keys asked at once."""
    from homerlm.lab import suites

    drawn, kinds = options.drawn, [str(chosen) for chosen in kind or ("single", "keys")]
    tasks = suites.needles(kinds, *_text(text), ask=ask)
    options.run_each(suites.RETRIEVAL_METHODS, suites.drawn(tasks, *drawn, ask=ask))


def _planted(name: str, purpose: str) -> None:
    """The command of a set of planted facts."""

    def command(
        options: EvalOptions,
        *,
        facts: Annotated[int, typer.Option(min=1, max=6, help="Facts in a document; one is asked for.")] = 4,
        text: Text = "python",
    ) -> None:
        from homerlm.lab import suites
        from homerlm.lab.tasks.planted import Planted

        options.run_each(suites.RIVAL_METHODS, suites.drawn([Planted(name, *_text(text), facts)], *options.drawn))

    command.__doc__ = purpose
    _task(name)(command)


for _name, _purpose in SETS.items():
    _planted(_name, _purpose)


@_task("stories")
def stories(
    options: EvalOptions,
    *,
    kind: Annotated[list[Puzzle] | None, typer.Option(help="What is asked for; may be repeated.")] = None,
    events: Annotated[int, typer.Option(min=8, max=60, help="Sentences of a story.")] = 14,
    text: Text = "python",
) -> None:
    """Sentences of a story spread over a text: one, two or three of them put together, or counted."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.stories import Story

    tasks = [Story(str(variant), *_text(text), events) for variant in kind or Puzzle]
    options.run_each(suites.RIVAL_METHODS, suites.drawn(tasks, *options.drawn))


@_task("variables")
def variables(
    options: EvalOptions,
    *,
    hops: Annotated[
        list[int] | None, typer.Option(min=1, max=12, help="Assignments from variable to variable.")
    ] = None,
    chains: Annotated[int, typer.Option(min=1, max=8, help="Chains in a document; one is asked for.")] = 1,
    text: Text = "python",
) -> None:
    """RULER's variable tracking: all variables that a chain of assignments gives a value."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.variables import Variables

    tasks = [Variables(*_text(text), count, chains) for count in hops or (2, 3, 4)]
    options.run_each(suites.RIVAL_METHODS, suites.drawn(tasks, *options.drawn))


@_task("common-words")
def common_words(options: EvalOptions, *, text: Text = "python") -> None:
    """RULER's common words: the ten that stand most often in a long list, of the words of a text."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.common import CommonWords

    options.run_each(suites.RIVAL_METHODS, suites.drawn([CommonWords(*_text(text))], *options.drawn))


@_task("frequent-words")
def frequent_words(options: EvalOptions) -> None:
    """RULER's frequent words: the three most frequent codes of a text of codes."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.common import FrequentWords

    options.run_each(suites.RIVAL_METHODS, suites.drawn([FrequentWords()], *options.drawn))


@_task("headings", without=("chat",))
def headings(
    options: EvalOptions,
    *,
    corpus: Annotated[
        str,
        typer.Option(
            help="A Markdown, reStructuredText or HTML file, or a folder of these; `python` is Python's help."
        ),
    ] = "python",
) -> None:
    """Whether the section that a heading stands above is found by the heading as a question; nothing is answered."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.headings import Headings, found, load_sections

    name = "Python documentation" if corpus == "python" else Path(corpus).name
    task = Headings(tuple(load_sections(corpus)), name)
    options.run_each(suites.FINDING_METHODS, suites.drawn([task], *options.drawn, judge=found))


@_task("qa", without=("lengths",), samples=100)
def qa(
    options: EvalOptions,
    *,
    data: Annotated[
        Path | None, typer.Option(help="QuALITY's file as it is released (JSON lines); default from the hub.")
    ] = None,
) -> None:
    """Table 2: multiple-choice questions about stories (QuALITY), by generation and by likelihood."""
    from homerlm.lab import suites
    from homerlm.lab.tasks.quality import Quality, load_quality

    quality = Quality(load_quality(data), data.name if data else "QuALITY validation")
    options.run_each(suites.QA_METHODS, suites.qa(quality, options.samples, options.seed))


@_task("perplexity", without=("lengths", "samples", "seed", "chat"))
def perplexity(
    options: EvalOptions,
    *,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A document, may be repeated; `python` is Python's documentation, `pg19` the paper's books."),
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents to score; one text is begun at as many places.")] = 4,
    length: Annotated[str, typer.Option(help="Tokens of each document to score; 64k is 65,536.")] = "32k",
) -> None:
    """Table 3 and figure 5: perplexity of long text, accumulated, with all before each window compressed."""
    from homerlm.lab import suites
    from homerlm.lab.perplexity import rotations
    from homerlm.model.loading import load_config

    tokens = parse_lengths(length)[0]
    texts, name = _documents(text or ["python"])
    texts = rotations(texts[0], documents) if len(texts) == 1 else texts[:documents]
    limit = load_config(options.model).max_position_embeddings
    options.run_each(suites.PERPLEXITY_METHODS, suites.perplexity(texts, name, tokens, limit))


@_task("passkey-perplexity", lengths="2k,4k,8k,16k,32k,64k")
def passkey_perplexity(options: EvalOptions) -> None:
    """Table 9 and figure 6: how likely the right passkey is after the prompt."""
    from homerlm.lab import suites

    options.run_each(suites.LIKELIHOOD_METHODS, suites.passkey_perplexity(*options.drawn))


@_task("ablation", without=("methods",), lengths="16k")
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
    from homerlm.lab import suites

    rows, drawn = suites.ablation_rows(row or []), options.drawn
    options.run(suites.variants("ablation", rows, _tasks(task, kind, text), *drawn))


@_task("sensitivity", without=("methods",), lengths="16k")
def sensitivity(
    options: EvalOptions,
    *,
    task: Tasks = None,
    kind: NeedleKind = Kind("single"),
    method: Annotated[str, typer.Option(help="What is varied, one setting at a time.")] = "homer",
    text: Text = "python",
) -> None:
    """Chunk length, target length, warm-up and retention swept: answers, tokens kept, memory, time."""
    from homerlm.lab import suites
    from homerlm.model.loading import load_config

    drawn, config = options.drawn, load_config(options.model)
    rows = suites.sweep(method, config.max_position_embeddings, config.num_hidden_layers)
    options.run(suites.variants("sensitivity", rows, _tasks(task, kind, text), *drawn))


def _text(name: str) -> tuple[str, str]:
    """A text and its name in records."""
    texts, label = _documents([name])
    return texts[0], label


def _documents(names: list[str]) -> tuple[list[str], str]:
    from homerlm.documents.reading import read_document
    from homerlm.lab.corpora import pg19, python_documentation

    named: dict[str, Callable[[], list[str]]] = {"python": lambda: [python_documentation()], "pg19": pg19}
    texts = [text for name in names for text in (named[name]() if name in named else [read_document(name)])]
    return texts, ", ".join("Python documentation" if name == "python" else Path(name).name for name in names)


def _tasks(names: list[Retrieval] | None, kind: Kind, text: str) -> list[Any]:
    from homerlm.lab.suites import needles
    from homerlm.lab.tasks.passkey import Passkey

    made: dict[str, Callable[[], list[Any]]] = {
        "passkey": lambda: [Passkey()],
        "needle": lambda: list(needles([str(kind)], *_text(text))),
    }
    return [task for name in names or [Retrieval("passkey")] for task in made[name]()]
