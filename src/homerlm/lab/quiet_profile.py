"""torch's profiler without what its C++ library writes to the terminal whenever it starts and stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any

from torch.profiler import profile

NOTES = b"USDT:"  # KINETO_LOG_LEVEL would silence its errors too


@contextmanager
def quiet_profile(**settings: Any) -> Iterator[profile]:
    """`torch.profiler.profile(**settings)` over the block."""
    profiler = profile(**settings)
    with lines_left_out(NOTES):
        profiler.start()
    try:
        yield profiler
    finally:
        with lines_left_out(NOTES):
            profiler.stop()


@contextmanager
def lines_left_out(start: bytes) -> Iterator[None]:
    """Standard error, at the level of the process, less the lines that begin with `start`; the others come after the
    block."""
    sys.stderr.flush()
    kept = os.dup(2)
    with TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not line.startswith(start):
                    os.write(2, line)
