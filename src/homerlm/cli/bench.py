"""`homer bench`: memory and speed beside the plain model's, and where the time goes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homerlm.cli.console import err, note_command, out, progress_bar
from homerlm.cli.options import Lengths, Methods, Model, Output, parse_lengths, parse_methods
from homerlm.errors import InputError

if TYPE_CHECKING:
    from homerlm.lab.case import Cell, Source

app = typer.Typer(
    help="Measure memory and speed beside the plain model's, on this machine: the paper's tables 5 and 8, figure 1.",
    no_args_is_help=True,
    epilog="Methods: plain, homer, homer-paper, each with +pi:2, +ntk:4, +yarn:8 ... and with settings after a colon "
    "(homer:target_len=2048). Each cell runs in a process of its own; records are written as they come, and the same "
    "command goes on where it was stopped. Beyond its limit the plain model answers nonsense, at its usual cost.",
)


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Batches = Annotated[str, typer.Option("--batch", help="Prompts at once, by commas.")]
NewTokens = Annotated[str, typer.Option(help="New tokens after which the time is noted, by commas.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repeats of each cell; medians count, and the first one's memory.")]
Random = Annotated[
    str | None,
    typer.Option(
        help="Random weights instead of a model: llama-2-7b, llama-2-13b, llama-3-8b, qwen2.5-7b, or a config's "
        "folder or hub name.",
        show_default=False,
    ),
]
Layers = Annotated[
    int | None, typer.Option(min=1, help="Only the first layers of --random, to try it out.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default cuda where there is one.", show_default=False)]
Number = Annotated[
    Dtype, typer.Option("--dtype", help="auto: the model's own; for random weights bfloat16 where it is native.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default what torch takes.", show_default=False)]
Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Have torch.compile fuse the model; its warm-up takes minutes."),
]
PlainUpTo = Annotated[
    str | None,
    typer.Option(help="Longest prompt for the plain model; default 32k on a CPU, else no limit.", show_default=False),
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds after which a cell is stopped; 0 waits for it.")]


@app.command()
def memory(
    *,
    model: Model = None,
    random: Random = None,
    layers: Layers = None,
    methods: Methods = None,
    lengths: Lengths = "4k,8k,16k,32k,64k",
    batch: Batches = "1",
    new_tokens: NewTokens = "20",
    repeats: Repeats = 1,
    plain_up_to: PlainUpTo = None,
    device: Device = None,
    dtype: Number = Dtype.auto,
    threads: Threads = None,
    timeout: Timeout = 0,
    output: Output = Path("homer-bench/memory"),
) -> None:
    """Table 5 and figure 1: peak memory by length, split into weights, keys and values, and transient.

    Each prompt is read once more, to count what its tensors come to.
    """
    source = _source(model, random, layers, device, dtype, threads)
    _measure(source, methods, lengths, batch, new_tokens, repeats, plain_up_to, timeout, output, tensors=True)


@app.command()
def speed(
    *,
    model: Model = None,
    random: Random = None,
    layers: Layers = None,
    methods: Methods = None,
    lengths: Lengths = "8k,16k,32k",
    batch: Batches = "1",
    new_tokens: NewTokens = "20,50,100",
    repeats: Repeats = 3,
    plain_up_to: PlainUpTo = None,
    device: Device = None,
    dtype: Number = Dtype.auto,
    threads: Threads = None,
    compiled: Compiled = False,
    timeout: Timeout = 0,
    output: Output = Path("homer-bench/speed"),
) -> None:
    """Table 8: time to read a prompt and to write new tokens, beside what the arithmetic alone would take.

    Measures memory too: with --lengths 4k,8k,16k,32k,64k one run makes tables 5 and 8.
    """
    source = replace(_source(model, random, layers, device, dtype, threads), compiled=compiled)
    _measure(source, methods, lengths, batch, new_tokens, repeats, plain_up_to, timeout, output)


@app.command()
def profile(
    *,
    model: Model = None,
    random: Random = None,
    layers: Layers = None,
    methods: Methods = None,
    lengths: Lengths = "16k",
    repeats: Repeats = 1,
    device: Device = None,
    dtype: Number = Dtype.auto,
    threads: Threads = None,
    timeout: Timeout = 0,
    output: Output = Path("homer-bench/profile"),
) -> None:
    """Where the time of reading goes: attention, projections, MLP, scoring, merging copies, Python."""
    from homerlm.lab import bench_suites as suites

    source = _source(model, random, layers, device, dtype, threads)
    chosen = parse_methods(methods, suites.PROFILED)
    _run(suites.profiles(chosen, parse_lengths(lengths), source, repeats=repeats), timeout, output)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of records, as given with --output.")]) -> None:
    """Print the tables of a folder of records, and write its report, plots and ratios.json again."""
    _report(folder)


def _source(
    model: str | None, random: str | None, layers: int | None, device: str | None, dtype: Dtype, threads: int | None
) -> Source:
    """Refuses what no cell could run, before any is started."""
    from homerlm.lab.case import Source
    from homerlm.lab.shapes import shape_config

    if random:
        shape_config(random, layers)
    return Source(model=model, random=random, layers=layers, device=_device(device), dtype=str(dtype), threads=threads)


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise InputError(f"device is {name!r}; it must be cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {name!r}, but torch finds no CUDA device here: leave --device out, or say cpu")
    return name


def _measure(
    source: Source,
    methods: list[str] | None,
    lengths: str,
    batch: str,
    new_tokens: str,
    repeats: int,
    plain_up_to: str | None,
    timeout: float,
    output: Path,
    *,
    tensors: bool = False,
) -> None:
    from homerlm.lab import bench_suites as suites

    on_cpu = suites.CPU_PLAIN_UP_TO if source.device == "cpu" else None
    cells = suites.cells(
        parse_methods(methods, suites.METHODS),
        parse_lengths(lengths),
        _numbers("batch", batch),
        source,
        new_tokens=tuple(sorted(_numbers("new tokens", new_tokens))),
        repeats=repeats,
        plain_up_to=parse_lengths(plain_up_to)[0] if plain_up_to else on_cpu,
        tensors=tensors,
    )
    _run(cells, timeout, output)


def _numbers(name: str, text: str) -> list[int]:
    """`1,4,8` as numbers; raises `InputError`."""
    try:
        found = [int(item) for item in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"{name} is {text!r}; it must be whole numbers of at least 1, by commas")
    return found


def _run(cells: list[Cell], timeout: float, output: Path) -> None:
    """Run cells under a progress bar, then report; stopping it keeps what was recorded."""
    from homerlm.lab.bench_run import run
    from homerlm.lab.records import RecordFile

    records = RecordFile(output)
    note_command(output)
    with progress_bar("Starting") as progress:
        run(cells, records, progress=progress, timeout_s=timeout or None)
    _report(output)


def _report(folder: Path) -> None:
    from homerlm.lab.bench_report import terminal_tables, write_report

    for table in terminal_tables(folder):
        out.print(table)
    drawing = importlib.util.find_spec("matplotlib") is not None
    written = write_report(folder, plots=drawing)
    out.print(f"Report: {written}", style="dim")
    if not drawing:
        err.print('No plots: they need a package, pip install "homerlm\\[eval]"; then `homer bench report` draws them.')
