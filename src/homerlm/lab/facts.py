"""What every record says: model, machine and versions; how long something took, or why it failed."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from homerlm import __version__
from homerlm.errors import HomerError, OutOfMemoryError
from homerlm.lab.records import OUT_OF_MEMORY
from homerlm.model.memory import PeakMemory, out_of_memory_explained

Outcome = dict[str, Any]


def facts_of(model: PreTrainedModel, chat: bool) -> Outcome:
    """The model and its limit in tokens, the machine, and the versions."""
    versions = {"homerlm": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    device = model.device
    return {
        "model": model.config._name_or_path or type(model).__name__,
        "limit": model.config.get_text_config(decoder=True).max_position_embeddings,
        "device": f"{device.type} {platform.machine()}" if device.type != "cuda" else torch.cuda.get_device_name(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "chat": chat,
        "versions": versions | {"python": platform.python_version()},
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the machine's processor as Linux tells it, or as Python knows it; empty where neither does."""
    try:
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return " ".join((found[1] if found else platform.processor()).split())


@contextmanager
def measured(outcome: Outcome, device: torch.device) -> Iterator[None]:
    """Seconds and peak memory of the block into `outcome`; a failure of the library or of memory as its "error"."""
    started, peak = time.perf_counter(), PeakMemory(device)
    try:
        with peak, out_of_memory_explained("evaluating a sample", "lower the length or the cache"):
            yield
        outcome["error"] = None
    except HomerError as error:
        outcome["error"] = failure(error)
    outcome |= {"seconds": round(time.perf_counter() - started, 3), "peak_bytes": peak.bytes}


def failure(error: HomerError) -> str:
    """What a record says of a failure; reports tell those of memory from the others by how it begins."""
    kind = OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else type(error).__name__
    return f"{kind}: {error}"
