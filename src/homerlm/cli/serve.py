"""`homer serve`: an OpenAI-compatible server that reads whole documents."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homerlm.cli.ask import open_homer
from homerlm.cli.console import err
from homerlm.cli.devices import DType, check_device
from homerlm.cli.errors import UsageError
from homerlm.cli.options import Device, Numbers, Rope
from homerlm.config import HomerConfig

if TYPE_CHECKING:
    from homerlm.server.settings import Settings

EXAMPLES = """
Examples:

  homer serve

  homer serve Qwen/Qwen3-4B --device cuda --port 8080

  homer serve --host 0.0.0.0 --key-file keys.txt

  HOMER_SERVE_MAX_NEW_TOKENS=500 homer serve --config server.toml
"""
ANY_NUMBER = 1 << 30  # the server's door counts who comes in
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
        Path | None, typer.Option(help="Folder for documents that were read; default the user's own.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with these and all other settings, by their names in the environment."),
    ] = None,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors, nothing else.")] = False,
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
    homer = open_homer(model, rope, None, HomerConfig(), device=device, dtype=dtype, quiet=quiet)
    run(homer, settings, quiet=quiet)


def check_installed() -> None:
    """Raise `UsageError` where the extra is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'the server needs {", ".join(missing)}: pip install "homerlm[server]"')


def run(homer: Any, settings: Settings, *, quiet: bool) -> None:
    """Serve until a signal ends it."""
    from homerlm.engine import Engine
    from homerlm.server.app import create_app
    from homerlm.server.running import Running
    from homerlm.store.documents import Documents
    from homerlm.store.store import Store

    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    store = Store(settings.folder, max_bytes=settings.store_bytes, owner_bytes=settings.owner_bytes)
    engine = Engine(homer, waiting=ANY_NUMBER, streams=settings.streams)
    documents = Documents(homer, engine, store, lifetime=settings.lifetime)

    def say(address: str) -> None:
        if not quiet:
            err.print(f"Listening at {address}/v1 (documents in {settings.folder}); Ctrl+C ends it.", soft_wrap=True)

    Running(create_app(settings, engine, documents), settings, engine, on_start=say).run()
    store.close()
