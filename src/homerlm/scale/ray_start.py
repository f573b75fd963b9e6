"""Where Ray is started, or connected to: for workers and for the server's replicas."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from homerlm.errors import ConfigError

EXTRA = 'pip install "homerlm[ray]"'
STORE_BYTES = 200_000_000  # of the object store where Ray is started here: what passes through it is small


def check_installed(*modules: str) -> None:
    """Raise `ConfigError` where one is missing."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"workers and replicas on Ray need {', '.join(missing)}, which is not installed: {EXTRA}")


def connected(address: str | None = None, **options: Any) -> Any:
    """The module ray, connected to the Ray at an address, "auto" for the one that this machine belongs to; None for
    what this process is connected to, or else one of its own, which ends with it. options: of `ray.init` for that.

    Raises `ConfigError` where it is not installed or cannot be reached.
    """
    check_installed("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # where Ray is started here, it tells nobody,
    os.environ.setdefault("RAY_worker_niceness", "0")  # and its workers are as urgent as this process
    import ray

    if ray.is_initialized():
        return ray
    if address is None:
        own = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
        options = {"address": "local"} | own | options
    else:
        options = {"address": address}
    try:
        with _own_signals():
            ray.init(**options, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
    except Exception as error:  # bare ones too, where it does not start in time
        place = address or "this machine"
        raise ConfigError(f"Ray at {place} cannot be reached: {error}; check the address") from error
    return ray


def check_gpus(ray: Any, needed: float) -> None:
    """Raise `ConfigError` where Ray has fewer GPUs than that: who needs them would wait for them without an end."""
    if (there := ray.cluster_resources().get("GPU", 0)) < needed:
        raise ConfigError(
            f"workers or replicas need {needed:g} GPUs, but Ray has {there:g} on this machine: ask for fewer, or give "
            "the address of a cluster that has them"
        )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts an exit in the place of what this process does on SIGTERM; here that stays as it was."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)
