"""The server for Ray Serve's own config files, as `serve deploy` and KubeRay read them."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from homerlm.homer import Homer
from homerlm.model.loading import load_model
from homerlm.server.replicas.deployment import Replicas, deployed
from homerlm.server.settings import Settings


class Arguments(BaseModel):
    """`args` of an application in such a file; the server's settings come from the environment (`HOMER_SERVE_...`) of
    all nodes, or from `settings`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Hub name, folder or .gguf file; default the small bundled model.")
    rope: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    least: int = Field(1, ge=1, description="Replicas, at least.")
    most: int | None = Field(None, ge=1, description="Replicas, at most; default as many as `least`.")
    cpus: float = Field(1.0, gt=0, description="Cores of each.")
    gpus: float = Field(0.0, ge=0, description="GPUs of each.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Of the server, by name.")


def build(args: Arguments) -> serve.Application:
    """Raises `ConfigError` for settings that are none."""
    load = partial(loaded, args.model, rope=args.rope, dtype=args.dtype, device_map=args.device)
    replicas = Replicas(args.least, max(args.most or args.least, args.least), args.cpus, args.gpus)
    return deployed(load, Settings.of(**args.settings), replicas)


build.__annotations__["args"] = Arguments  # Ray Serve reads the class, not its name


def loaded(model: str | None, **options: Any) -> Homer:
    """A model ready to be served."""
    return Homer(*load_model(model, **options))
