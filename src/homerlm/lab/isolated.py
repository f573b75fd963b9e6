"""A benchmark's case in a process of its own: whatever happens to it, a record comes back."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

from homerlm.errors import HomerError
from homerlm.lab.case import PROFILE, Case
from homerlm.lab.records import OUT_OF_MEMORY, Record, RecordFile

SIGKILL = 9  # which the signal module lacks on Windows


@dataclass(frozen=True)
class IsolatedJob:
    """A job of `homerlm.lab.run`: one case, stopped after `timeout_s`."""

    case: Case
    timeout_s: float | None = None

    @property
    def label(self) -> str:
        batch = f", batch {self.case.batch}" if self.case.batch > 1 else ""
        return f"{self.case.method}, {self.case.length:,} tokens{batch}"

    def records(self, known: RecordFile) -> Iterator[Record]:
        yield known.get(self.case.key) or run_isolated(self.case, self.timeout_s)

    def failed(self, error: str) -> Iterator[Record]:
        yield self.case.key | {"error": error}


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


def run_isolated(
    case: Case, timeout_s: float | None = None, work: Callable[[Case], dict[str, Any]] = record_of
) -> dict[str, Any]:
    """What `work` gives in a fresh process, or the case's key with an `error`: killed, crashed, or too slow."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, case, sender))
    with patch.dict(os.environ, {"OMP_NUM_THREADS": str(case.threads)} if case.threads else {}):
        process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            return case.key | {"error": f"timeout: stopped after {timeout_s:,.0f} s; allow more with --timeout"}
        record: dict[str, Any] = receiver.recv()
        return record
    except EOFError:  # it ended without a word
        process.join()
        return case.key | {"error": _why(process.exitcode or 0)}
    finally:
        process.kill()
        process.join()


def _work(work: Callable[[Case], dict[str, Any]], case: Case, sender: Connection) -> None:
    """Where memory runs out, the kernel is to end this process and no other (Linux)."""
    from homerlm.model.memory import keep_freed_memory
    from homerlm.model.one_token import let_onednn_be_switched

    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    keep_freed_memory()
    let_onednn_be_switched()
    try:
        sender.send(work(case))
    except Exception as error:
        sender.send(case.key | {"error": f"crash: {type(error).__name__}: {str(error)[:300]}"})


def _end_with_parent() -> None:
    """A killed parent ends nothing by itself, and what is measured next would have to share the machine."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _why(code: int) -> str:
    """What a process that gave no record died of. Reports know a lack of memory by how the words begin."""
    if code == -SIGKILL:
        return f"{OUT_OF_MEMORY}: the process was killed by the system, as it does when memory runs out"
    return f"crash: the process {f'died of {signal.Signals(-code).name}' if code < 0 else f'ended with code {code}'}"
