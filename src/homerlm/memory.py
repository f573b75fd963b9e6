"""Peak memory of a block of work, above what was in use when it began."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import psutil
import torch

from homerlm.errors import OutOfMemoryError


class PeakMemory:
    """`with PeakMemory(device) as peak: ...; peak.bytes`.

    On CUDA the allocator's own peak; elsewhere the process's resident set, looked at every few milliseconds (it also
    counts what libraries and the allocator keep).
    """

    def __init__(self, device: torch.device, interval_s: float = 0.01) -> None:
        self.bytes = 0
        self._device = device
        self._interval = interval_s
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = _cuda_bytes(torch.cuda.memory_allocated)
        else:
            self._process = psutil.Process()
            self._before = self._process.memory_info().rss
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = _cuda_bytes(torch.cuda.max_memory_allocated) - self._before
        else:
            self._done.set()
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)


def _cuda_bytes(reading) -> int:  # type: ignore[no-untyped-def]
    return sum(reading(device) for device in range(torch.cuda.device_count()))


@contextmanager
def out_of_memory_explained(task: str, advice: str) -> Iterator[None]:
    """Turn a device's out-of-memory error inside the block into ours: what was being done, what torch asked for, and
    what to lower. The memory is free again when the error leaves the block."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(f"out of memory while {task}: {_asked(error)}. {advice}") from None
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(f"out of memory while {task}: {_asked(error)}. {advice}") from None


def _asked(error: BaseException) -> str:
    """The line of torch's message that says how much was wanted."""
    text = " ".join(str(error).split())
    found = re.search(r"(tried to allocate [\d.,]+ \w+|allocate memory: you tried to allocate [\d.,]+ \w+)", text, re.I)
    return found.group() if found else text[:200] or type(error).__name__
