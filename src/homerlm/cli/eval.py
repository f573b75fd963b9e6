"""`homer eval`: the paper's tables, and our own, for any model: one command each."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from homerlm.cli.console import err, out
from homerlm.cli.options import Model
from homerlm.errors import InputError

if TYPE_CHECKING:
    from homerlm.evaluation.run import Plan

app = typer.Typer(
    help="Measure answers, perplexity, memory and time: every table of the paper from one command, on any model.",
    no_args_is_help=True,
    epilog="Methods: plain, truncate, streaming, homer, homer-paper, each with +pi:2, +ntk:4, +yarn:8 ... and with "
    "settings after a colon (homer:target_len=2048,pooling=1). Records are written as they come: the same command goes "
    "on where it was stopped.",
)


class Kind(StrEnum):
    single = "single"
    single_word = "single-word"
    single_uuid = "single-uuid"
    single_filler = "single-filler"
    keys = "keys"
    values = "values"
    queries = "queries"


class Ask(StrEnum):
    now = "now"
    later = "later"


class Retrieval(StrEnum):
    passkey = "passkey"
    needle = "needle"


Methods = Annotated[
    list[str] | None, typer.Option(help="Methods, by spaces or by repeating the option.", show_default=False)
]
Lengths = Annotated[str, typer.Option(help="Prompt lengths in tokens, by commas; 8k is 8,192.")]
Samples = Annotated[int, typer.Option(min=1, help="Samples of each cell (the paper: 500).")]
Seed = Annotated[int, typer.Option(help="What the samples are drawn from.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for records and reports.")]
Chat = Annotated[bool, typer.Option("--chat/--no-chat", help="Wrap prompts in the model's chat template.")]
Calibrations = Annotated[
    list[Path] | None,
    typer.Option("--calibration", help="Calibration file for homer-paper, one for each RoPE scaling; may be repeated."),
]
Text = Annotated[str, typer.Option(help="A text file; `python` is Python's own documentation.")]


@app.command()
def passkey(
    *,
    model: Model = None,
    methods: Methods = None,
    lengths: Lengths = "4k,8k,16k,32k",
    samples: Samples = 20,
    seed: Seed = 0,
    output: Output = Path("homer-eval/passkey"),
    calibration: Calibrations = None,
    chat: Chat = False,
) -> None:
    """Table 1: a five-digit key hidden in repeated filler."""
    from homerlm.evaluation import suites
    from homerlm.evaluation.passkey import Passkey

    plan = suites.retrieval([Passkey()], _methods(methods, suites.RETRIEVAL_METHODS), _lengths(lengths), samples, seed)
    _evaluate(plan, model, output, chat, calibration)


@app.command()
def needle(
    *,
    kind: Annotated[list[Kind] | None, typer.Option(help="Kinds of facts; may be repeated.")] = None,
    ask: Annotated[
        Ask, typer.Option(help="Whether the question is known when the document is read, or comes later.")
    ] = Ask.now,
    model: Model = None,
    methods: Methods = None,
    lengths: Lengths = "4k,8k,16k,32k",
    samples: Samples = 20,
    seed: Seed = 0,
    output: Output = Path("homer-eval/needle"),
    calibration: Calibrations = None,
    text: Text = "python",
    chat: Chat = False,
) -> None:
    """Facts hidden in a text: one, one of four keys, four values of one key, four keys asked at once."""
    from homerlm.evaluation import suites

    kinds = [str(k) for k in kind or (Kind.single, Kind.keys)]
    tasks = suites.needles(kinds, *_text(text), ask=str(ask))
    chosen = _methods(methods, suites.RETRIEVAL_METHODS)
    _evaluate(
        suites.retrieval(tasks, chosen, _lengths(lengths), samples, seed, str(ask)), model, output, chat, calibration
    )


@app.command()
def qa(
    *,
    data: Annotated[
        Path | None, typer.Option(help="QuALITY's file as it is released (JSON lines); default from the hub.")
    ] = None,
    model: Model = None,
    methods: Methods = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions; the validation set has 2,086.")] = 100,
    seed: Seed = 0,
    output: Output = Path("homer-eval/qa"),
    calibration: Calibrations = None,
    chat: Chat = False,
) -> None:
    """Table 2: multiple-choice questions about stories (QuALITY), by generation and by likelihood."""
    from homerlm.evaluation import suites
    from homerlm.evaluation.quality import Quality, load_quality

    quality = Quality(load_quality(data), data.name if data else "QuALITY validation")
    _evaluate(suites.qa(quality, _methods(methods, suites.QA_METHODS), samples, seed), model, output, chat, calibration)


@app.command()
def perplexity(
    *,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A document, may be repeated; `python` is Python's documentation, `pg19` the paper's books."),
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents to score; one text is begun at as many places.")] = 4,
    length: Annotated[str, typer.Option(help="Tokens of each document to score; 64k is 65,536.")] = "32k",
    model: Model = None,
    methods: Methods = None,
    output: Output = Path("homer-eval/perplexity"),
    calibration: Calibrations = None,
) -> None:
    """Table 3 and figure 5: perplexity of long text, accumulated, with all before each window compressed."""
    from homerlm.evaluation import suites
    from homerlm.evaluation.perplexity import rotations
    from homerlm.loading import load_config

    texts, name = _documents(text or ["python"])
    texts = rotations(texts[0], documents) if len(texts) == 1 else texts[:documents]
    limit = load_config(model).max_position_embeddings
    chosen = _methods(methods, suites.PERPLEXITY_METHODS)
    _evaluate(suites.perplexity(texts, name, chosen, _lengths(length)[0], limit), model, output, False, calibration)


@app.command("passkey-perplexity")
def passkey_perplexity(
    *,
    model: Model = None,
    methods: Methods = None,
    lengths: Lengths = "2k,4k,8k,16k,32k,64k",
    samples: Samples = 20,
    seed: Seed = 0,
    output: Output = Path("homer-eval/passkey-perplexity"),
    calibration: Calibrations = None,
    chat: Chat = False,
) -> None:
    """Table 9 and figure 6: how likely the right passkey is after the prompt."""
    from homerlm.evaluation import suites

    chosen = _methods(methods, ("homer-paper", "homer"))
    _evaluate(suites.passkey_perplexity(chosen, _lengths(lengths), samples, seed), model, output, chat, calibration)


@app.command()
def ablation(
    *,
    task: Annotated[list[Retrieval] | None, typer.Option(help="On which task; may be repeated.")] = None,
    model: Model = None,
    lengths: Lengths = "16k",
    samples: Samples = 20,
    seed: Seed = 0,
    output: Output = Path("homer-eval/ablation"),
    calibration: Calibrations = None,
    text: Text = "python",
    chat: Chat = False,
) -> None:
    """Tables 4a and 4b, and what each part of the default preset is worth."""
    from homerlm.evaluation import suites

    plan = suites.variants("ablation", suites.ABLATION, _tasks(task, text), _lengths(lengths), samples, seed)
    _evaluate(plan, model, output, chat, calibration)


@app.command()
def sensitivity(
    *,
    task: Annotated[list[Retrieval] | None, typer.Option(help="On which task; may be repeated.")] = None,
    method: Annotated[str, typer.Option(help="What is varied, one setting at a time.")] = "homer",
    model: Model = None,
    lengths: Lengths = "16k",
    samples: Samples = 20,
    seed: Seed = 0,
    output: Output = Path("homer-eval/sensitivity"),
    calibration: Calibrations = None,
    text: Text = "python",
    chat: Chat = False,
) -> None:
    """Chunk length, target length, warm-up and retention swept: answers, tokens kept, memory, time."""
    from homerlm.evaluation import suites
    from homerlm.loading import load_config

    config = load_config(model)
    rows = suites.sweep(method, config.max_position_embeddings, config.num_hidden_layers)
    plan = suites.variants("sensitivity", rows, _tasks(task, text), _lengths(lengths), samples, seed)
    _evaluate(plan, model, output, chat, calibration)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of records, as given with --output.")]) -> None:
    """Print the tables of a folder of records, and write its report.md, report.html and plots again."""
    _report(folder)


def _evaluate(plan: Plan, model: str | None, output: Path, chat: bool, calibrations: list[Path] | None) -> None:
    """Run a plan under a progress bar, then report; stopping it keeps what was recorded."""
    from homerlm.evaluation.records import RecordFile
    from homerlm.evaluation.run import run
    from homerlm.loading import load_model

    records = RecordFile(output)
    _note_command(output)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("Loading", total=None)
        run(
            plan,
            lambda rope: load_model(model, rope=rope),
            records,
            chat=chat,
            calibrations=calibrations or (),
            progress=lambda label, done, total: bar.update(task, description=label, completed=done, total=total),
        )
    _report(output)


def _report(folder: Path) -> None:
    from homerlm.evaluation.report import terminal_tables, write_report

    for table in terminal_tables(folder):
        out.print(table)
    drawing = importlib.util.find_spec("matplotlib") is not None
    written = write_report(folder, plots=drawing)
    out.print(f"Report: {written}", style="dim")
    if not drawing:
        err.print('No plots: they need a package, pip install "homerlm\\[eval]"; then `homer eval report` draws them.')


def _note_command(folder: Path) -> None:
    """Keep the command beside its records: a number comes with its command."""
    line = "homer " + shlex.join(sys.argv[1:])
    path = folder / "command.txt"
    known = path.read_text().splitlines() if path.exists() else []
    if line not in known:
        path.write_text("\n".join([*known, line]) + "\n")


def _methods(given: list[str] | None, default: tuple[str, ...]) -> list[Any]:
    from homerlm.evaluation.methods import Method

    names = [name for item in given or default for name in item.split()]
    return [Method.parse(name) for name in dict.fromkeys(names)]


def _lengths(text: str) -> list[int]:
    """`8k, 16384` as numbers; raises `InputError`."""
    try:
        found = [int(item[:-1]) * 1024 if item[-1] in "kK" else int(item) for item in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"length is {text!r}; it must be token counts such as 8192 or 8k, by commas")
    return found


def _text(name: str) -> tuple[str, str]:
    """A text and its name in records."""
    texts, label = _documents([name])
    return texts[0], label


def _documents(names: list[str]) -> tuple[list[str], str]:
    from homerlm.corpora import pg19, python_documentation
    from homerlm.documents import read_document

    named: dict[str, Callable[[], list[str]]] = {"python": lambda: [python_documentation()], "pg19": pg19}
    texts = [text for name in names for text in (named[name]() if name in named else [read_document(name)])]
    return texts, ", ".join("Python documentation" if name == "python" else Path(name).name for name in names)


def _tasks(kinds: list[Retrieval] | None, text: str) -> list[Any]:
    from homerlm.evaluation import suites
    from homerlm.evaluation.passkey import Passkey

    made: dict[str, Callable[[], list[Any]]] = {
        "passkey": lambda: [Passkey()],
        "needle": lambda: suites.needles(["single"], *_text(text), ask="now"),
    }
    return [task for kind in kinds or [Retrieval.passkey] for task in made[str(kind)]()]
