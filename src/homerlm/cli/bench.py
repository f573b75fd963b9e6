"""`homer bench`: memory and speed beside the plain model's, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from homerlm.cli.console import err
from homerlm.cli.devices import DType
from homerlm.cli.measuring import MeasuringOptions, measured_on, measuring_command, run_and_report, show_report
from homerlm.cli.options import parse_counts, parse_tokens

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

METHODS = ["plain homer-paper homer homer+yarn:2"]
DISTURBED = "Workers that share a machine disturb each other's times: to compare times, give each a machine of its own."
CPU_PLAIN_UP_TO = "32k"  # the plain model's attention takes minutes beyond


@dataclass(frozen=True, kw_only=True)
class BenchOptions(MeasuringOptions):
    """The options of every benchmark."""

    folder: ClassVar[str] = "homer-bench"

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
        DType, typer.Option(help="auto: the model's own; for random weights bfloat16 where it is native.")
    ] = DType.auto
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
        return Case(**same, device=measured_on(self.device, self.ray), dtype=str(self.dtype), **changes)

    def measure(self, **changes: Any) -> None:
        like = self.case(new_tokens=tuple(sorted(parse_counts(self.new_tokens, "new tokens"))), **changes)
        batches, longest = parse_counts(self.batch, "batch"), self.plain_up_to
        if longest is None and like.device == "cpu":
            longest = CPU_PLAIN_UP_TO
        self.run(like, batches, None if longest is None else parse_tokens(longest, "--plain-up-to"))

    def run(self, like: Case, batches: Sequence[int] = (1,), plain_up_to: int | None = None) -> None:
        """Cases like this one, of every method, length and batch."""
        from homerlm.lab.case import cases
        from homerlm.lab.isolated import IsolatedJob

        lengths = parse_counts(self.lengths, "length")
        made = cases(self.parsed_methods, lengths, batches, plain_up_to, like)
        if self.ray and self.ray.workers > 1:
            err.print(DISTURBED, style="yellow", soft_wrap=True)
        run_and_report([IsolatedJob(case, self.timeout or None) for case in made], self.output, self.ray)


_command = partial(measuring_command, app, BenchOptions)


@_command("memory", without=("compiled",), methods=METHODS, lengths="4k,8k,16k,32k,64k")
def memory(options: BenchOptions) -> None:
    """Table 5 and figure 1: peak memory by length, split into weights, keys and values, and transient.

    Each prompt is read once more, to count what its tensors come to.
    """
    options.measure(tensors=True)


@_command("speed", methods=METHODS, lengths="8k,16k,32k", new_tokens="20,50,100", repeats=3)
def speed(options: BenchOptions) -> None:
    """Table 8: time to read a prompt and to write new tokens, beside what the arithmetic alone would take.

    Measures memory too: with --lengths 4k,8k,16k,32k,64k one run makes tables 5 and 8.
    """
    options.measure()


@_command("profile", without=("batch", "new_tokens", "plain_up_to", "compiled"), methods=["plain homer"], lengths="16k")
def profile(options: BenchOptions) -> None:
    """Where the time of reading goes: attention, projections, MLP, scoring, merging copies, Python."""
    from homerlm.lab.case import PROFILE

    options.run(options.case(job=PROFILE, new_tokens=(1,)))
