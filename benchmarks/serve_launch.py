"""`homer` with a counter of objects inside: SIGUSR1 lets the process write how many it holds of each class that belongs
to requests. Arguments: the file for that, the number of the model's threads, and those of `homer`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from homerlm.__main__ import main

COUNTED = ("CompactContext", "Row", "Stream", "Job", "Prepared", "Index", "Mapped", "Task", "Connection", "Request")


def count_on_signal(path: Path) -> None:
    """Write the number of living objects of each class in `COUNTED` to a file, complete at once, at every SIGUSR1."""

    def write(*_: Any) -> None:
        gc.collect()
        found = Counter(type(one).__name__ for one in gc.get_objects())
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({name: found[name] for name in COUNTED}))
        os.replace(aside, path)

    signal.signal(signal.SIGUSR1, write)


if __name__ == "__main__":
    counts, threads, *rest = sys.argv[1:]
    torch.set_num_threads(int(threads))
    count_on_signal(Path(counts))
    sys.argv = ["homer", *rest]
    sys.exit(main())
