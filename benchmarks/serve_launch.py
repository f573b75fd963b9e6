"""`homer` with a counter inside: SIGUSR1 lets the process write how many objects it holds of each class that belongs to
requests, and how many threads of each name. Arguments: the file for that, the number of the model's threads, and those
of `homer`.

Without arguments, processes of that kind are forked from one that has imported everything but has done nothing yet: a
JSON object with `arguments`, `environment` and `log` on a line of standard input is answered with a process's number.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from homerlm.__main__ import main

COUNTED = ("CompactContext", "Row", "Job", "Prepared", "Index", "Mapped", "Task", "Connection", "Request")
IMPORTED = (
    "homerlm.cli.main",
    "homerlm.server.app",
    "homerlm.server.running",
    "homerlm.homer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


def homer(counts: str, threads: str, *arguments: str) -> int:
    """Run it with that many threads."""
    torch.set_num_threads(int(threads))
    count_on_signal(Path(counts))
    sys.argv = ["homer", *arguments]
    return main()


def count_on_signal(path: Path) -> None:
    """Write the numbers to a file, complete at once, at every SIGUSR1."""

    def write(*_: Any) -> None:
        gc.collect()
        found = Counter(type(one).__name__ for one in gc.get_objects())
        aside = path.with_suffix(".new")
        threads = Counter(re.sub(r"[-_\d]+$", "", thread.name) for thread in threading.enumerate())
        aside.write_text(json.dumps({"objects": {name: found[name] for name in COUNTED}, "threads": threads}))
        os.replace(aside, path)

    signal.signal(signal.SIGUSR1, write)


def fork_on_request() -> None:
    """Until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    while line := sys.stdin.readline():
        wanted = json.loads(line)
        if (number := os.fork()) == 0:
            _become(wanted["log"], wanted["environment"])
            sys.exit(homer(*wanted["arguments"]))
        print(number, flush=True)


def _become(log: str, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for source, number in ((os.open(os.devnull, os.O_RDONLY), 0), (os.open(log, os.O_WRONLY | os.O_APPEND), 1)):
        os.dup2(source, number)
    os.dup2(1, 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # it is looked up anew


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(homer(*sys.argv[1:]))
    fork_on_request()
