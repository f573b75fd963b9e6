"""`python -m homerlm.lab.worker`: one cell, read as JSON from standard input; its record is the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from homerlm.errors import HomerError
from homerlm.lab.case import MEASURE, PROFILE, Cell
from homerlm.lab.measure import measure
from homerlm.lab.profile import profile
from homerlm.lab.questions import failure
from homerlm.model.memory import keep_freed_memory
from homerlm.model.transformers_logging import quiet_transformers

JOBS: dict[str, Callable[[Cell], dict[str, Any]]] = {MEASURE: measure, PROFILE: profile}


def record_of(cell: Cell) -> dict[str, Any]:
    """The cell's key with what it measured, or with the error that stopped it."""
    if cell.source.threads:
        torch.set_num_threads(cell.source.threads)
    try:
        with quiet_transformers():
            return cell.key | JOBS[cell.job](cell) | {"error": None}
    except HomerError as error:
        return cell.key | {"error": failure(error)}


def die_first() -> None:
    """Where memory runs out, let the kernel end this process and no other (Linux)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    die_first()
    keep_freed_memory()
    print(json.dumps(record_of(Cell.from_dict(json.load(sys.stdin)))))
