"""Ray Serve started with the server's deployments, from the command to its orderly end."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from homerlm.errors import ConfigError, HomerError

if TYPE_CHECKING:
    from homerlm.homer import Homer
    from homerlm.server.replicas.deployment import Replicas
    from homerlm.server.settings import Settings

LOCAL = "local"  # an address: Ray on this machine alone, for as long as the command runs
OBJECT_STORE_BYTES = 200 << 20  # of such a Ray: requests and answers pass through it, no documents


def check_installed() -> None:
    """Raise `ConfigError` where Ray Serve is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("ray", "mmh3")):
        raise ConfigError('replicas need Ray Serve, which is not installed: pip install "homerlm[ray]"')


@contextmanager
def serving(
    load: Callable[[], Homer], settings: Settings, replicas: Replicas, address: str = LOCAL, **ray_options: Any
) -> Iterator[str]:
    """The server on Ray, at this address once its replicas hold their models; ended with the block. address: of a Ray
    that runs, "auto" for this machine's, or "local"; ray_options: of `ray.init`.

    Raises `ConfigError` without Ray, `HomerError` where it does not start.
    """
    check_installed()
    import ray
    from ray import serve

    from homerlm.server.replicas.deployment import NAME, deployed

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        ray_options = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, **ray_options}
    port = settings.port or _free_port(settings.host)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **ray_options)
        serve.start(http_options={"host": settings.host, "port": port})
        serve.run(deployed(load, settings, replicas), name=NAME, route_prefix="/")
        yield f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    except (ConnectionError, RuntimeError) as error:
        raise HomerError(f"the replicas do not run: {error}") from error
    finally:
        if ray.is_initialized():
            serve.delete(NAME) if address != LOCAL else serve.shutdown()
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
