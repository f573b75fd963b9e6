"""Where Ray is started, or connected to: for workers and for the server's replicas."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any

from homerlm.errors import ConfigError

EXTRA = 'pip install "homerlm[ray]"'
STORE_BYTES = 200_000_000  # of the object store where Ray is started here: what passes through it is small


def connected(address: str | None = None, *, needed: Sequence[str] = ("ray",), **options: Any) -> Any:
    """The module ray, connected to the Ray at an address, "auto" for the one that this machine belongs to; None for
    what this process is connected to, or else one of its own, which ends with it. options: of `ray.init`; needed:
    modules without which nothing is begun.

    Raises `ConfigError` where it is not installed or cannot be reached.
    """
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise ConfigError(f"workers and replicas on Ray need ray, which is not installed: {EXTRA}")
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
        ray.init(**options, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        place = address or "this machine"
        raise ConfigError(f"Ray at {place} cannot be reached: {error}; check the address") from error
    return ray
