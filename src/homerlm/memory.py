"""Peak memory of a block of work, above what was in use when it began."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch


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
