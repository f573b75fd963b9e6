"""Ray Serve started with the server's deployments, from the command to its orderly end."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from homerlm.errors import HomerError
from homerlm.scale.ray_start import check_gpus, check_installed, connected

if TYPE_CHECKING:
    from homerlm.homer import Homer
    from homerlm.server.replicas.deployment import Replicas
    from homerlm.server.settings import Settings

NEEDED = ("ray", "mmh3")  # by Ray Serve


@contextmanager
def serving(
    load: Callable[[], Homer], settings: Settings, replicas: Replicas, address: str | None = None, **ray_options: Any
) -> Iterator[str]:
    """The server on Ray, at this address once its replicas hold their models; ended with the block. address: of a Ray
    that runs, "auto" for this machine's, None for one of this command's own; ray_options: of `ray.init` for that.

    Raises `ConfigError` without Ray, `HomerError` where it does not start.
    """
    check_installed(*NEEDED)
    from ray import serve

    from homerlm.server.replicas.deployment import NAME, deployed

    port = settings.port or _free_port(settings.host)
    ray = connected(address, **ray_options)
    try:
        if address is None:
            check_gpus(ray, replicas.least * replicas.gpus)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": settings.host, "port": port})
        serve.run(deployed(load, settings, replicas), name=NAME, route_prefix="/")
        yield f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    except (ConnectionError, RuntimeError) as error:
        raise HomerError(f"the replicas do not run: {error}") from error
    finally:
        if ray.is_initialized():
            serve.shutdown() if address is None else serve.delete(NAME)
            ray.shutdown()


def until_told() -> None:
    """Wait for the signals that end a server."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()


def _free_port(host: str) -> int:
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as found:
        found.bind((host, 0))
        port: int = found.getsockname()[1]
        return port
