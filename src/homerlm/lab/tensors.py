"""Memory of the tensors alone: what torch's allocator gave out, event by event."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of_tensors(work: Callable[[], object]) -> int:
    """Bytes of CPU tensors alive at once, at most, during `work`, beyond those alive before.

    Unlike the resident set it repeats to the byte: memory that the process kept for later, or that libraries took by
    themselves, is not in it. Recording slows the work by a few percent, and itself takes memory.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    recorder: Any = recorded.profiler
    events = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(sizes), default=0)
