"""What `homer eval` and `homer bench` share: bundles of options, a run with its report."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer

from homerlm.cli.console import err, note_command, out, progress_bar
from homerlm.cli.devices import check_device
from homerlm.cli.errors import UsageError
from homerlm.cli.options import Model, option, with_parameters
from homerlm.cli.workers import CpusPerWorker, GpusPerWorker, NumWorkers, WorkerOptions, Workers
from homerlm.errors import ConfigError

if TYPE_CHECKING:
    from homerlm.lab.methods import Method
    from homerlm.lab.run import Doing, Job
    from homerlm.scale.ray_actors import RaySettings

EXTRA = 'pip install "homerlm[eval]"'

Folder = Annotated[Path, typer.Argument(help="Folder of records, as given with --output.")]


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """The options of every measurement. Raises `InputError` for an output that cannot be written."""

    folder: ClassVar[str]  # of the commands' outputs

    model: Model = None
    methods: Annotated[list[str] | None, typer.Option(help="Methods, by commas or spaces.")] = None
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens, by commas; 8k is 8,192.")] = "4k,8k,16k,32k"
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for records and reports.")] = Path("homer")
    workers: Workers = None
    num_workers: NumWorkers = None
    gpus_per_worker: GpusPerWorker = None
    cpus_per_worker: CpusPerWorker = None

    def __post_init__(self) -> None:
        from homerlm.lab.records import check_output

        check_output(self.output)

    @cached_property
    def ray(self) -> RaySettings | None:
        """Workers that measure, None for this process. Raises `UsageError`, `ConfigError`."""
        return WorkerOptions(self.workers, self.num_workers, self.gpus_per_worker, self.cpus_per_worker).settings()

    @property
    def parsed_methods(self) -> list[Method]:
        from homerlm.lab.methods import parse_methods

        return parse_methods(self.methods or ())


def measuring_command(
    app: typer.Typer, bundle: Any, name: str, without: Sequence[str] = (), **defaults: Any
) -> Callable[[Callable[..., None]], None]:
    """A decorator for a command of `app` that has the fields of `bundle`, a dataclass of options, as options too, but
    those it goes `without`; it is called with one of these in place of its first parameter. `defaults` are this
    command's."""
    hints = get_type_hints(bundle, include_extras=True)
    chosen = [field for field in fields(bundle) if field.name not in without]
    defaults["output"] = Path(f"{bundle.folder}/{name}")

    def decorate(command: Callable[..., None]) -> None:
        @wraps(command)
        def wrapper(**given: Any) -> None:
            _check_installed()
            shared = bundle(**{field.name: given.pop(field.name) for field in chosen})
            command(shared, **given)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        default = {field.name: defaults.get(field.name, field.default) for field in chosen}
        shared = [option(name, hints[name], value) for name, value in default.items()]
        app.command(name)(with_parameters(wrapper, [*own, *shared]))

    return decorate


def measured_on(name: str | None, ray: RaySettings | None) -> str:
    """Where a measurement runs: as asked, or the best of this machine, or what workers have, whose GPUs need not be its
    own. Raises `UsageError`."""
    if ray is not None:
        own = "cuda" if ray.gpus else "cpu"
        if name not in (None, own):
            fix = "--gpus-per-worker 1" if name == "cuda" else "leave --device out"
            raise UsageError(f"--device is {name}, but a worker has {ray.gpus:g} GPUs: {fix}")
        return own
    import torch

    check_device(name)
    return name if name not in (None, "auto") else "cuda" if torch.cuda.is_available() else "cpu"


def _check_installed() -> None:
    if importlib.util.find_spec("pandas") is None:
        raise ConfigError(f"measuring needs pandas, which is not installed: {EXTRA}")


def run_and_report(jobs: Sequence[Job], output: Path, ray: RaySettings | None = None) -> None:
    """Run jobs, on Ray if asked, under a progress bar, then report; stopping it keeps what was recorded. Raises the
    first error if every record has one."""
    from homerlm.lab.records import RecordFile
    from homerlm.lab.run import one_by_one, raise_failure, run

    file = RecordFile(output)
    note_command(output)
    doing: Doing = one_by_one
    if ray is not None:
        from homerlm.lab.on_ray import OnRay

        doing = OnRay(ray)
    with progress_bar("Starting") as progress:
        error = run(jobs, file, progress=progress, doing=doing)
    show_report(output)
    if error is not None:
        raise_failure(error)


def show_report(folder: Folder) -> None:
    """Print the tables of a folder of records, and write its report and plots (and ratios.json) again."""
    _check_installed()
    from homerlm.lab.report import terminal_tables, write_report

    for table in terminal_tables(folder):
        out.print(table)
    drawing = importlib.util.find_spec("seaborn") is not None
    written = write_report(folder, plots=drawing)
    out.print(f"Report: {written}", style="dim")
    if not drawing:
        err.print(f"No plots: they need seaborn: {EXTRA}; the command `report` then draws them.", markup=False)
