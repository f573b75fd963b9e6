"""`homer plan --cluster`: what an index of many tokens takes on machines that need not be there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.table import Table

from homerlm.cli.console import out, print_json
from homerlm.cli.errors import UsageError
from homerlm.cli.options import option, with_parameters
from homerlm.config import flag
from homerlm.formatting import rounded, size

if TYPE_CHECKING:
    from homerlm.config import HomerConfig
    from homerlm.model.shape import DecoderShape
    from homerlm.scale.cluster import ClusterPlan, Limit
    from homerlm.scale.rates import Rates

PANEL = "Cluster"


def _option(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=PANEL, show_default=False, **more)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The options of a cluster's plan."""

    cluster: Annotated[
        str | None,
        _option("Machines and workers in each (accelerators, or processes of a CPU), as 64x8: plan an index there."),
    ] = None
    rates: Annotated[
        Path | None, _option("Measured rates of one worker, as benchmarks/cluster_rates.py writes them.")
    ] = None
    accelerator: Annotated[
        str | None, _option("Assume this one in place of what was measured: a100, h100, h200 or l4.")
    ] = None
    utilisation: Annotated[
        float | None,
        _option("Share of its peak figures that --accelerator is assumed to reach. Default 0.3.", min=0.01, max=1.0),
    ] = None
    index_bytes: Annotated[float | None, _option("Bytes of the index for each token, instead of --rates'.")] = None
    read_rate: Annotated[float | None, _option("Tokens a second that one worker reads, instead of --rates'.")] = None
    scan_rate: Annotated[
        float | None, _option("Tokens a second whose keys a question meets on one worker, instead of --rates'.")
    ] = None
    memory_gb: Annotated[float | None, _option("Memory of each machine. Default 512.")] = None
    disk_tb: Annotated[float | None, _option("Disk of each machine. Default 4.")] = None
    disk_gb_s: Annotated[float | None, _option("Speed of that disk. Default 2.")] = None
    network_gbit_s: Annotated[float | None, _option("Network of each machine. Default 10.")] = None
    shard: Annotated[int | None, _option("Tokens that are read as one task. Default 1,000,000.", min=1)] = None
    new_tokens: Annotated[int | None, _option("Tokens of an answer. Default 50.", min=0)] = None
    within: Annotated[float | None, _option("Seconds that a question should take at most. Default 10.")] = None

    def check_unused(self) -> None:
        """Raise `UsageError` for an option that says nothing about one machine."""
        for name, value in asdict(self).items():
            if value is not None:
                raise UsageError(f"--{name.replace('_', '-')} has no effect without --cluster: add it, as 64x8")


def with_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `cluster` the options of a cluster's plan in its place."""
    hints = get_type_hints(ClusterOptions, include_extras=True)

    @wraps(command)
    def wrapper(**given: Any) -> None:
        options = ClusterOptions(**{field.name: given.pop(field.name) for field in fields(ClusterOptions)})
        command(**given, cluster=options)

    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    del parameters["cluster"]
    for name, annotation in hints.items():
        parameters[name] = option(name, annotation, None)
    return with_parameters(wrapper, parameters.values())


def plan_cluster(
    options: ClusterOptions, model: str, tokens: int, shape: DecoderShape, config: HomerConfig, *, as_json: bool
) -> None:
    """Print the plan. Raises `UsageError` for options that do not fit each other."""
    from homerlm.scale.cluster import ClusterPlan

    settings = {"shard": options.shard, "new_tokens": options.new_tokens, "within": options.within}
    rates, target = _rates(options, model, shape, config)
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    planned = ClusterPlan(_machines(options), rates, tokens, candidates=target, **given)
    if as_json:
        print_json(_facts(planned))
    else:
        _show(planned)


def _machines(options: ClusterOptions) -> Any:
    from homerlm.scale.cluster import Machines

    found = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,3})", options.cluster or "", re.ASCII)
    if not found:
        raise UsageError(f"--cluster is {options.cluster!r}; it must be machines x workers in each, as 64x8")
    scales = {"memory_gb": ("memory", 1e9), "disk_tb": ("disk", 1e12), "disk_gb_s": ("disk_rate", 1e9)}
    scales["network_gbit_s"] = ("network", 1e9 / 8)
    given = {}
    for given_as, (name, scale) in scales.items():
        if (value := getattr(options, given_as)) is not None:
            if not 0 < value < inf:
                raise UsageError(f"{flag(given_as)} is {value:g}; it must be above 0")
            given[name] = value * scale
    return Machines(int(found[1]), int(found[2]), **given)


def _rates(options: ClusterOptions, model: str, shape: DecoderShape, config: HomerConfig) -> tuple[Rates, int]:
    """The rates, and candidates that a worker gives."""
    from homerlm.index.keys import embedding, indexing
    from homerlm.scale.rates import ACCELERATORS, Rates, assumed
    from homerlm.select.plan import lengths, scoring

    if options.rates is None:
        raise UsageError("--cluster needs --rates FILE: make it with benchmarks/cluster_rates.py")
    measured = Rates.load(options.rates)
    chunk_len, target_len = lengths(config, shape, 20, 1 << 30, 30)
    if options.accelerator is None:
        if options.utilisation is not None:
            raise UsageError("--utilisation has no effect without --accelerator: add it, or leave it out")
        if model != measured.model and (model, measured.model) != ("default", "bundled"):
            raise UsageError(
                f"--rates were measured with {measured.model}, the model is {model}: measure it, or assume an "
                f"accelerator (--accelerator {next(iter(ACCELERATORS))})"
            )
    elif options.accelerator not in ACCELERATORS:
        raise UsageError(f"--accelerator is {options.accelerator!r}; it must be one of {', '.join(ACCELERATORS)}")
    else:
        kept, again = indexing(config, shape, chunk_len), scoring(config, shape, target_len, again=True)
        share = 0.3 if options.utilisation is None else options.utilisation
        known = ACCELERATORS[options.accelerator]
        about = embedding(config, shape)
        measured = assumed(measured, Path(model).name, known, share, shape, kept, again, about, chunk_len, target_len)
    changes = {"index_bytes": options.index_bytes, "read": options.read_rate, "scan": options.scan_rate}
    return measured.changed(**changes), target_len


def _facts(planned: ClusterPlan) -> dict[str, Any]:
    return {
        "machines": asdict(planned.machines),
        "rates": asdict(planned.rates),
        "tokens": planned.tokens,
        "shards": planned.shards,
        "index_bytes": planned.index_bytes,
        "machine_bytes": planned.machine_bytes,
        "in_memory": planned.in_memory,
        "indexing": {**planned.indexing, "all": planned.indexing_s},
        "asking": {**planned.asking, "all": planned.asking_s},
        "moved_bytes": planned.moved_bytes,
        "gathered_bytes": planned.gathered_bytes,
        "limits": [asdict(limit) for limit in planned.limits],
    }


def _show(planned: ClusterPlan) -> None:
    machines, rates = planned.machines, planned.rates
    where = "stays in memory" if planned.in_memory else "is read from the disk for each question"
    out.print(
        f"{planned.tokens:,} tokens on {machines.count:,} machines of {machines.workers:,} workers, {planned.shards:,} "
        f"shards\nOne worker: {rates.worker}, model {rates.model}: {rates.read:,.0f} tokens/s read, "
        f"{rates.scan:,.0f} tokens/s scored by their keys",
        markup=False,
    )
    if "(assumed)" in rates.worker:
        out.print(
            "Its figures are assumptions out of a data sheet, nothing was measured on it; tokenising, the search for "
            "links and the driver are as they were measured on a CPU."
        )
    out.print(
        f"Index: {size(planned.index_bytes)}, {rates.index_bytes:,.0f} bytes a token, "
        f"{size(planned.machine_bytes)} on a machine, where it {where}\n",
        markup=False,
    )
    out.print(_parts("To make the index", planned.indexing, planned.indexing_s, "at once"))
    out.print(_parts("To answer a question", planned.asking, planned.asking_s, "one after the other"))
    moved = planned.moved_bytes
    out.print(
        f"Over the network: {size(moved['index'])} for the index ({rates.text_bytes:g} bytes a token), "
        f"{size(moved['question'])} for a question, {size(planned.gathered_bytes)} of it in the largest gather\n"
    )
    out.print(_limits(planned.limits))


def _parts(title: str, seconds: dict[str, float], total: float, how: str) -> Table:
    table = Table("part", f"time, {how}", title=title, title_justify="left")
    for name, value in (*seconds.items(), ("all", total)):
        table.add_row(name, time_text(value))
    table.columns[1].justify = "right"
    return table


def _limits(limits: tuple[Limit, ...]) -> Table:
    table = Table("what ends", "when", "then", title="What ends first", title_justify="left")
    for limit in limits:
        when = "now" if limit.growth < 1 else f"{rounded(limit.growth)} x the {limit.grows}"
        table.add_row(limit.name, when, limit.then)
    return table


def time_text(seconds: float) -> str:
    """Seconds for people: 3.2 s, 12 min, 5.1 h, 3.0 days."""
    for unit, each, least in (("days", 86_400, 2), ("h", 3600, 2), ("min", 60, 3)):
        if seconds >= least * each:
            return f"{seconds / each:,.1f} {unit}"
    return f"{rounded(seconds)} s"
