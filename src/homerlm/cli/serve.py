"""`homer serve`: an OpenAI-compatible server that reads whole documents."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homerlm.cli.ask import open_homer
from homerlm.cli.console import err, status
from homerlm.cli.devices import DType, check_device
from homerlm.cli.errors import UsageError
from homerlm.cli.options import Device, Numbers, Quiet, Rope
from homerlm.config import HomerConfig

if TYPE_CHECKING:
    from homerlm.server.settings import Settings

EXAMPLES = """
Examples:

  homer serve

  homer serve Qwen/Qwen3-4B --device cuda --port 8080

  homer serve --host 0.0.0.0 --key-file keys.txt

  homer serve --replicas 1:4 --gpus-per-replica 1 --device cuda

  HOMER_SERVE_MAX_NEW_TOKENS=500 homer serve --config server.toml
"""
PANEL = "Replicas"
NEEDED = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "pydantic_settings", "platformdirs", "multipart")


def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="Hub name, folder or .gguf file; default the small bundled model.", show_default=False),
    ] = None,
    *,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen at, default 127.0.0.1. Any that others reach needs a key."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default 8000; 0 takes any free one.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="A key that clients have to send (other users of this machine see it).")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File with a key on each line, or its SHA-256 as sha256:HEX.")
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Listen at an address that others reach, and ask for no key.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may call the server, https://chat.example.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; default its own name.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Folder, or s3://bucket/name, for documents that were read; default the user's own folder."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with these and all other settings, by their names in the environment."),
    ] = None,
    replicas: Annotated[
        str | None,
        typer.Option(
            help="Serve with so many processes through Ray Serve, each with the model: 2, or 1:4 for as many as the "
            "requests that wait need. Default: this one, without Ray.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Ray that runs: its address, or auto. Default: one on this machine for as long as this command runs.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    cpus_per_replica: Annotated[
        float | None,
        typer.Option(min=0.1, help="Cores of each. Default 1.", rich_help_panel=PANEL, show_default=False),
    ] = None,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(min=0.0, help="GPUs of each, also a part. Default 0.", rich_help_panel=PANEL, show_default=False),
    ] = None,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    quiet: Quiet = False,
) -> None:
    """Serve a model to any program that speaks OpenAI's API; messages, files and histories may have any length.

    Every setting can also be given in the environment, as HOMER_SERVE_PORT, and in a file (--config); flags come first.
    """
    check_installed()
    from homerlm.server.settings import Settings

    settings = Settings.of(
        config,
        host=host,
        port=port,
        api_key=api_key or None,
        key_file=key_file,
        without_key=without_key or None,
        cors_origin=cors_origin or None,
        name=name,
        store=store,
    )
    check_device(device)
    _check_free(settings)
    settings.open_store().close()  # one that cannot be used ends this before a model is loaded
    cluster: dict[str, Any] = {"ray": ray, "cpus_per_replica": cpus_per_replica, "gpus_per_replica": gpus_per_replica}
    if replicas is not None:
        load = partial(open_homer, model, rope, None, HomerConfig(), device=device, dtype=dtype, quiet=True)
        run_replicas(load, settings, replicas, quiet=quiet, **cluster)
        return
    for option, value in cluster.items():
        if value is not None:
            raise UsageError(f"--{option.replace('_', '-')} has no effect without --replicas: add it, as 2")
    from homerlm.model.threads import leave_threads_to_model

    threads = leave_threads_to_model()
    homer = open_homer(model, rope, None, HomerConfig(), device=device, dtype=dtype, quiet=quiet)
    run(homer, settings, threads, quiet=quiet)


def check_installed() -> None:
    """Raise `UsageError` where the extra is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'the server needs {", ".join(missing)}: pip install "homerlm[server]"')


def _check_free(settings: Settings) -> None:
    """Raise `UsageError` where the address or the port cannot be had, before a model is loaded for it."""
    try:
        family, *_, address = socket.getaddrinfo(settings.host or None, settings.port, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"{settings.host} is no address of this machine ({error.strerror}): give one with --host"
            ) from error
        if error.errno in (errno.EADDRINUSE, errno.EACCES):  # what else there may be, the server itself will meet
            raise UsageError(
                f"port {settings.port} of {settings.host} is taken, or not for you ({os.strerror(error.errno)}): give "
                "another with --port, or 0 for any free one"
            ) from error


def run_replicas(
    load: Callable[[], Any],
    settings: Settings,
    replicas: str,
    *,
    quiet: bool,
    ray: str | None,
    cpus_per_replica: float | None,
    gpus_per_replica: float | None,
) -> None:
    """Serve with replicas, which each `load` the model, until a signal ends it."""
    from homerlm.scale.ray_start import check_installed as check_installed_for_ray
    from homerlm.server.replicas import running

    found = re.fullmatch(r"([1-9]\d{0,3})(?::([1-9]\d{0,3}))?", replicas, re.ASCII)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise UsageError(f"--replicas is {replicas!r}; it must be a number, or the least and the most, as 1:4")
    check_installed_for_ray(*running.NEEDED)
    from homerlm.server.replicas.deployment import Replicas

    cpus = 1.0 if cpus_per_replica is None else cpus_per_replica
    wanted = Replicas(int(found[1]), int(found[2] or found[1]), cpus, gpus_per_replica or 0.0)
    with status("Starting the replicas", quiet), ExitStack() as stack:
        address = stack.enter_context(running.serving(load, settings, wanted, ray))
        serving = stack.pop_all()
    with serving:
        if not quiet:
            err.print(f"Listening at {address}/v1 (documents in {settings.folder}); Ctrl+C ends it.", soft_wrap=True)
        running.until_told()


def run(homer: Any, settings: Settings, threads: int, *, quiet: bool) -> None:
    """Serve until a signal ends it. threads: that the model's thread computes with."""
    from homerlm.server.app import opened_app
    from homerlm.server.running import Running

    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = opened_app(homer, settings, threads)

    def say(address: str) -> None:
        if not quiet:
            err.print(f"Listening at {address}/v1 (documents in {settings.folder}); Ctrl+C ends it.", soft_wrap=True)

    Running(app, settings, app.state.engine, on_start=say).run()
    app.state.documents.store.close()
