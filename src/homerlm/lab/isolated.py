"""A cell in a process of its own: whatever happens to it, a record comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from homerlm.lab.case import Cell

SIGKILL = 9  # which the signal module lacks on Windows
WORKER = ("-m", "homerlm.lab.worker")


def run_isolated(cell: Cell, timeout_s: float | None = None, worker: tuple[str, ...] = WORKER) -> dict[str, Any]:
    """The record that the worker printed, or the cell's key with an `error`: killed, crashed, or too slow."""
    environment = dict(os.environ)
    if cell.source.threads:
        environment["OMP_NUM_THREADS"] = str(cell.source.threads)
    process = subprocess.Popen(
        [sys.executable, *worker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        printed, complained = process.communicate(json.dumps(cell.to_dict()), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return cell.key | {"error": f"timeout: stopped after {timeout_s:,.0f} s; allow more with --timeout"}
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    record = _last_record(printed)
    return record if process.returncode == 0 and record else cell.key | {"error": _why(process.returncode, complained)}


def _last_record(printed: str) -> dict[str, Any] | None:
    try:
        record = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _why(code: int, complained: str) -> str:
    """What a process that gave no record died of. Reports know a lack of memory by how the words begin."""
    last = next((line.strip() for line in reversed(complained.splitlines()) if line.strip()), "nothing was printed")
    if code == -SIGKILL:
        return "out of memory: the process was killed by the system, as it does when memory runs out"
    if code < 0:
        return f"crash: the process died of {signal.Signals(-code).name} ({last})"
    return f"crash: the process ended with code {code} ({last[:300]})"
