"""Peak memory of a block of work, above what was in use when it began; what the allocator does with freed memory."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import psutil
import torch

from homerlm.errors import OutOfMemoryError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # names of glibc's mallopt(3)
_KEPT_BLOCK_BYTES, _KEPT_BYTES = 1 << 25, 1 << 30
_SETTINGS = {  # of glibc, by their variables in a process's environment
    "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, _KEPT_BYTES),
    "MALLOC_ARENA_MAX": (_M_ARENA_MAX, 1),
}
FREED_MEMORY_KEPT = {variable: str(value) for variable, (_, value) in _SETTINGS.items()}
"""What `keep_freed_memory` sets, as the environment of a process that has threads before it could be called."""


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, for the next ones: by default glibc may hand its heap's end back to
    the system whenever some MB of it are free, and get it again page by page, thousands of pages a layer, which takes
    a tenth of the time of reading on a CPU. Up to 1 GiB is kept; blocks above 32 MiB are mapped and given back one by
    one, as they always are, so that they leave no holes. All threads share one heap: of those that glibc makes for
    threads, each would keep memory of its own between the few small things that live on.

    It is a setting of the whole process, so it is for programs (`homer` makes it) and never made by importing. Returns
    whether the C library took it: on Linux with glibc. Where the environment says otherwise (`MALLOC_TRIM_THRESHOLD_`
    and the like), that holds.
    """
    if any(name in os.environ for name in (*_SETTINGS, "GLIBC_TUNABLES")):
        return False
    mallopt = _glibc("mallopt")
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _SETTINGS.values())


def give_freed_memory_back() -> bool:
    """Let the C library give all that has been freed back to the system, also what `keep_freed_memory` lets it keep.
    Returns whether there was any: False where the C library is not glibc."""
    malloc_trim = _glibc("malloc_trim")
    return malloc_trim is not None and malloc_trim(0) == 1


def _glibc(name: str) -> Any:
    """A function of the C library, None where that is not glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


class PeakMemory:
    """`with PeakMemory(model) as peak: ...; peak.bytes`: the most that was in use above what was before. `model`: the
    model at work, or a device.

    On CUDA what the allocator of each of the model's devices held (its own peak where the block raised it, which leaves
    the process's statistics alone, else readings every few milliseconds), on MPS readings of its allocator; elsewhere
    readings of the process's resident set, which also counts what libraries and the allocator keep.
    """

    def __init__(self, model: torch.nn.Module | torch.device, interval_s: float = 0.01) -> None:
        self.bytes = 0
        devices = {model} if isinstance(model, torch.device) else {p.device for p in model.parameters()}
        self._cuda = [device for device in devices if device.type == "cuda"]
        self._readings: list[Callable[[], int]] = [partial(torch.cuda.memory_allocated, d) for d in self._cuda]
        if not self._cuda:
            mps = any(device.type == "mps" for device in devices)
            self._readings = [torch.mps.current_allocated_memory if mps else _resident_bytes]
        self._interval = interval_s
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        self._before = [reading() for reading in self._readings]
        self._peaks = list(self._before)
        self._peaks_before = [torch.cuda.max_memory_allocated(device) for device in self._cuda]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        for i, device in enumerate(self._cuda):
            peak = torch.cuda.max_memory_allocated(device)
            self._peaks[i] = peak if peak > self._peaks_before[i] else self._peaks[i]
        self.bytes = sum(peak - before for peak, before in zip(self._peaks, self._before, strict=True))

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        self._peaks = [max(peak, reading()) for peak, reading in zip(self._peaks, self._readings, strict=True)]


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


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
