"""`homer bench`: memory and speed beside the plain model's, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from homerlm.cli.measuring import (
    MeasuringOptions,
    parse_counts,
    run_and_report,
    show_report,
    with_options,
)
from homerlm.cli.options import parse_lengths
from homerlm.errors import InputError

if TYPE_CHECKING:
    from homerlm.lab.case import Case

app = typer.Typer(
    help="Measure memory and speed beside the plain model's, on this machine: the paper's tables 5 and 8, figure 1.",
    no_args_is_help=True,
    epilog="Methods: plain, homer, homer-paper, each with +pi:2, +ntk:4, +yarn:8 ... and with settings after a colon "
    "(homer:target_len=2048). Each measurement has a process of its own; records are written as they come, and the "
    "same command goes on where it was stopped. Beyond its limit the plain model answers nonsense, at its usual cost.",
)
app.command("report")(show_report)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(MeasuringOptions):
    """The options of every benchmark."""

    random: Annotated[
        str | None,
        typer.Option(
            help="Random weights instead of a model: llama-2-7b, llama-2-13b, llama-3-8b, qwen2.5-7b, or a config's "
            "folder or hub name.",
            show_default=False,
        ),
    ] = None
    layers: Annotated[
        int | None, typer.Option(min=1, help="Only the first layers of --random, to try it out.", show_default=False)
    ] = None
    batch: Annotated[str, typer.Option(help="Prompts at once, by commas.")] = "1"
    new_tokens: Annotated[str, typer.Option(help="New tokens after which the time is noted, by commas.")] = "20"
    repeats: Annotated[
        int, typer.Option(min=1, help="Repeats of each measurement; medians count, and the first one's memory.")
    ] = 1
    plain_up_to: Annotated[
        str | None,
        typer.Option(
            help="Longest prompt for the plain model; default 32k on a CPU, else no limit.", show_default=False
        ),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default cuda where there is one.", show_default=False)
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option(help="auto: the model's own; for random weights bfloat16 where it is native."),
    ] = "auto"
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default what torch takes.", show_default=False)
    ] = None
    compiled: Annotated[
        bool, typer.Option("--compile", help="Have torch.compile fuse the model; its warm-up takes minutes.")
    ] = False
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds after which a measurement is stopped; 0 waits for it.")
    ] = 0

    def case(self, **changes: Any) -> Case:
        """What all cases have in common. Refuses what none could run, before any is started."""
        from homerlm.lab.case import Case
        from homerlm.lab.random_weights import shape_config

        if self.random:
            shape_config(self.random, self.layers)
        same = {name: getattr(self, name) for name in ("model", "random", "layers", "threads", "compiled", "repeats")}
        return Case(**same, device=_device(self.device), dtype=self.dtype, **changes)

    def measure(self, **changes: Any) -> None:
        from homerlm.lab import suites

        new_tokens = tuple(sorted(parse_counts("new tokens", self.new_tokens)))
        like = self.case(new_tokens=new_tokens, **changes)
        on_cpu = suites.CPU_PLAIN_UP_TO if like.device == "cpu" else None
        methods, lengths = self.methods_or(suites.BENCH_METHODS), parse_lengths(self.lengths)
        plain_up_to = parse_lengths(self.plain_up_to)[0] if self.plain_up_to else on_cpu
        self.run(suites.cases(methods, lengths, parse_counts("batch", self.batch), plain_up_to, like))

    def run(self, cases: Sequence[Case]) -> None:
        from homerlm.lab.isolated import IsolatedJob

        run_and_report([IsolatedJob(case, self.timeout or None) for case in cases], self.output)


@app.command()
@with_options(BenchOptions, without=("compiled",), lengths="4k,8k,16k,32k,64k", output=Path("homer-bench/memory"))
def memory(options: BenchOptions) -> None:
    """Table 5 and figure 1: peak memory by length, split into weights, keys and values, and transient.

    Each prompt is read once more, to count what its tensors come to.
    """
    options.measure(tensors=True)


@app.command()
@with_options(BenchOptions, lengths="8k,16k,32k", new_tokens="20,50,100", repeats=3, output=Path("homer-bench/speed"))
def speed(options: BenchOptions) -> None:
    """Table 8: time to read a prompt and to write new tokens, beside what the arithmetic alone would take.

    Measures memory too: with --lengths 4k,8k,16k,32k,64k one run makes tables 5 and 8.
    """
    options.measure()


@app.command()
@with_options(
    BenchOptions,
    without=("batch", "new_tokens", "plain_up_to", "compiled"),
    lengths="16k",
    output=Path("homer-bench/profile"),
)
def profile(options: BenchOptions) -> None:
    """Where the time of reading goes: attention, projections, MLP, scoring, merging copies, Python."""
    from homerlm.lab import suites
    from homerlm.lab.case import PROFILE

    methods, lengths = options.methods_or(suites.PROFILE_METHODS), parse_lengths(options.lengths)
    options.run(suites.cases(methods, lengths, [1], None, options.case(job=PROFILE, new_tokens=(1,))))


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
