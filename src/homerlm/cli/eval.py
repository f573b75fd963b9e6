"""`homer eval`: the paper's tables, and our own, for any model: one command each."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homerlm.cli.console import err, note_command, out, progress_bar
from homerlm.cli.options import Lengths, Methods, Model, Output, parse_lengths, parse_methods

if TYPE_CHECKING:
    from homerlm.lab.run import Plan

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


NeedleKind = Annotated[Kind, typer.Option(help="What --task needle hides.")]
Samples = Annotated[int, typer.Option(min=1, help="Samples of each cell (the paper: 500).")]
Seed = Annotated[int, typer.Option(help="What the samples are drawn from.")]
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
    from homerlm.lab import suites
    from homerlm.lab.passkey import Passkey

    plan = suites.retrieval(
        [Passkey()], parse_methods(methods, suites.RETRIEVAL_METHODS), parse_lengths(lengths), samples, seed
    )
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
    from homerlm.lab import suites

    kinds = [str(k) for k in kind or (Kind.single, Kind.keys)]
    tasks = suites.needles(kinds, *_text(text), ask=str(ask))
    chosen = parse_methods(methods, suites.RETRIEVAL_METHODS)
    _evaluate(
        suites.retrieval(tasks, chosen, parse_lengths(lengths), samples, seed, str(ask)),
        model,
        output,
        chat,
        calibration,
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
    from homerlm.lab import suites
    from homerlm.lab.quality import Quality, load_quality

    quality = Quality(load_quality(data), data.name if data else "QuALITY validation")
    _evaluate(
        suites.qa(quality, parse_methods(methods, suites.QA_METHODS), samples, seed), model, output, chat, calibration
    )


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
    from homerlm.lab import suites
    from homerlm.lab.perplexity import rotations
    from homerlm.model.loading import load_config

    texts, name = _documents(text or ["python"])
    texts = rotations(texts[0], documents) if len(texts) == 1 else texts[:documents]
    limit = load_config(model).max_position_embeddings
    chosen = parse_methods(methods, suites.PERPLEXITY_METHODS)
    _evaluate(
        suites.perplexity(texts, name, chosen, parse_lengths(length)[0], limit), model, output, False, calibration
    )


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
    from homerlm.lab import suites

    chosen = parse_methods(methods, ("homer-paper", "homer"))
    _evaluate(
        suites.passkey_perplexity(chosen, parse_lengths(lengths), samples, seed), model, output, chat, calibration
    )


@app.command()
def ablation(
    *,
    task: Annotated[list[Retrieval] | None, typer.Option(help="On which task; may be repeated.")] = None,
    kind: NeedleKind = Kind.single,
    row: Annotated[
        list[str] | None, typer.Option(help="Only rows whose name begins so, such as `score`; may be repeated.")
    ] = None,
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
    from homerlm.lab import suites

    rows = suites.ablation_rows(row or [])
    plan = suites.variants("ablation", rows, _tasks(task, kind, text), parse_lengths(lengths), samples, seed)
    _evaluate(plan, model, output, chat, calibration)


@app.command()
def sensitivity(
    *,
    task: Annotated[list[Retrieval] | None, typer.Option(help="On which task; may be repeated.")] = None,
    kind: NeedleKind = Kind.single,
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
    from homerlm.lab import suites
    from homerlm.model.loading import load_config

    config = load_config(model)
    rows = suites.sweep(method, config.max_position_embeddings, config.num_hidden_layers)
    plan = suites.variants("sensitivity", rows, _tasks(task, kind, text), parse_lengths(lengths), samples, seed)
    _evaluate(plan, model, output, chat, calibration)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of records, as given with --output.")]) -> None:
    """Print the tables of a folder of records, and write its report.md, report.html and plots again."""
    _report(folder)


def _evaluate(plan: Plan, model: str | None, output: Path, chat: bool, calibrations: list[Path] | None) -> None:
    """Run a plan under a progress bar, then report; stopping it keeps what was recorded."""
    from homerlm.lab.records import RecordFile
    from homerlm.lab.run import run
    from homerlm.model.loading import load_model

    records = RecordFile(output)
    note_command(output)
    with progress_bar("Loading") as progress:
        run(
            plan,
            lambda rope: load_model(model, rope=rope),
            records,
            chat=chat,
            calibrations=calibrations or (),
            progress=progress,
        )
    _report(output)


def _report(folder: Path) -> None:
    from homerlm.lab.report import terminal_tables, write_report

    for table in terminal_tables(folder):
        out.print(table)
    drawing = importlib.util.find_spec("matplotlib") is not None
    written = write_report(folder, plots=drawing)
    out.print(f"Report: {written}", style="dim")
    if not drawing:
        err.print('No plots: they need a package, pip install "homerlm\\[eval]"; then `homer eval report` draws them.')


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
    from homerlm.lab import suites
    from homerlm.lab.passkey import Passkey

    made: dict[str, Callable[[], list[Any]]] = {
        "passkey": lambda: [Passkey()],
        "needle": lambda: suites.needles([str(kind)], *_text(text), ask="now"),
    }
    return [task for name in names or [Retrieval.passkey] for task in made[str(name)]()]
