"""`--workers`: where chunks are read, or measurements made, if not in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from homerlm.cli.devices import DType
from homerlm.cli.errors import UsageError
from homerlm.config import Config, MergeConfig

if TYPE_CHECKING:
    from homerlm.executor import Executor
    from homerlm.scale.ray_actors import RaySettings

PANEL = "Workers"

Workers = Annotated[
    str | None,
    typer.Option(
        metavar="ray[:ADDRESS]",
        help="Have it done by workers on Ray: on this machine, or the cluster at an address (auto, 10.0.0.1:6379).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(min=1, help="Workers, each with the model. Default 1.", rich_help_panel=PANEL, show_default=False),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs of each, or a share of one. Default 0.", rich_help_panel=PANEL, show_default=False),
]
CpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, help="CPU cores of each. Default 1.", rich_help_panel=PANEL, show_default=False),
]


@dataclass(frozen=True)
class WorkerOptions:
    """The options as they were given."""

    workers: str | None
    count: int | None
    gpus: float | None
    cpus: float | None

    def settings(self) -> RaySettings | None:
        """What they say, or None where everything is done in this process. Raises `UsageError`, `ConfigError`."""
        if self.workers is None:
            named = {"--num-workers": self.count, "--gpus-per-worker": self.gpus, "--cpus-per-worker": self.cpus}
            for name, value in named.items():
                if value is not None:
                    raise UsageError(f"{name} is {value}, but has no effect without --workers: add --workers ray")
            return None
        kind, _, address = self.workers.partition(":")
        if kind != "ray" or self.workers == "ray:":
            raise UsageError(f"--workers is {self.workers!r}; it must be ray, or ray:ADDRESS such as ray:auto")
        from homerlm.scale.ray_actors import RaySettings

        count, gpus = self.count or 1, self.gpus or 0.0
        threads = None if address or gpus else self._local_threads(count)
        cpus = 1.0 if self.cpus is None else self.cpus
        return RaySettings(address or None, count, gpus, cpus, threads)

    def executor(
        self,
        context: typer.Context,
        settings: Config,
        model: str | None,
        rope: str | None,
        dtype: DType,
        device: str | None,
    ) -> Executor | None:
        """Workers that load the model as this process does, until the command ends; None without `--workers`. Raises
        `UsageError`, `ConfigError`."""
        chosen = self.settings()
        if chosen is None:
            return None
        if isinstance(settings, MergeConfig):
            raise UsageError("--workers cannot act with --preset paper: one worker reads a whole tree: leave it out")
        from homerlm.scale.ray_workers import RayExecutor
        from homerlm.scale.source import ModelSource

        return context.with_resource(RayExecutor(ModelSource(model, rope, str(dtype), device), chosen))

    def _local_threads(self, count: int) -> int:
        """Of each worker, where they share this machine's cores."""
        import torch

        return max(int(self.cpus) if self.cpus else torch.get_num_threads() // count, 1)
