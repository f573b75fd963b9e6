"""A benchmark's case in a process of its own: whatever happens to it, a record comes back.

`python -m homerlm.lab.isolated` is that process: it reads the case as JSON from standard input, and its record is the
last line that it prints.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homerlm.errors import HomerError
from homerlm.lab.case import PROFILE, Case
from homerlm.lab.records import OUT_OF_MEMORY, Known, Record

SIGKILL = 9  # which the signal module lacks on Windows
WORKER = ("-m", "homerlm.lab.isolated")


@dataclass(frozen=True)
class IsolatedJob:
    """A job of `homerlm.lab.run`: one case, stopped after `timeout_s`."""

    case: Case
    timeout_s: float | None = None

    @property
    def label(self) -> str:
        batch = f", batch {self.case.batch}" if self.case.batch > 1 else ""
        return f"{self.case.method}, {self.case.length:,} tokens{batch}"

    def records(self, known: Known) -> Iterator[Record]:
        yield known.get(self.case.key) or run_isolated(self.case, self.timeout_s)


def run_isolated(case: Case, timeout_s: float | None = None, worker: tuple[str, ...] = WORKER) -> dict[str, Any]:
    """The record that the worker printed, or the case's key with an `error`: killed, crashed, or too slow."""
    threads = {"OMP_NUM_THREADS": str(case.threads)} if case.threads else {}
    try:
        done = subprocess.run(
            [sys.executable, *worker],
            input=json.dumps(asdict(case)),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=os.environ | threads,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return case.key | {"error": f"timeout: stopped after {timeout_s:,.0f} s; allow more with --timeout"}
    record = _last_record(done.stdout)
    return record if done.returncode == 0 and record else case.key | {"error": _why(done.returncode, done.stderr)}


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
        return f"{OUT_OF_MEMORY}: the process was killed by the system, as it does when memory runs out"
    if code < 0:
        return f"crash: the process died of {signal.Signals(-code).name} ({last})"
    return f"crash: the process ended with code {code} ({last[:300]})"


def record_of(case: Case) -> dict[str, Any]:
    """The case's key with what it measured, or with the error that stopped it."""
    import torch

    from homerlm.lab.facts import failure
    from homerlm.lab.measure import measure
    from homerlm.lab.profile import profile
    from homerlm.model.transformers_logging import quiet_transformers

    if case.threads:
        torch.set_num_threads(case.threads)
    try:
        with quiet_transformers():
            return case.key | (profile if case.job == PROFILE else measure)(case) | {"error": None}
    except HomerError as error:
        return case.key | {"error": failure(error)}


def main() -> None:
    """Where memory runs out, the kernel is to end this process and no other (Linux)."""
    from homerlm.model.memory import keep_freed_memory

    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    keep_freed_memory()
    print(json.dumps(record_of(Case.from_dict(json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
