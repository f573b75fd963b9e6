"""Where the model runs, checked by name before it is loaded."""

from __future__ import annotations

from enum import StrEnum

from homerlm.cli.errors import UsageError


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def placed(device: str | None) -> dict[str, str]:
    """`load_model`'s keyword for --device, none without it."""
    return {} if device is None else {"device_map": device}


def check_device(name: str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have, with the ones that it has."""
    if name is None or name == "auto":
        return
    import torch

    counts = _devices()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if (device.index or 0) >= counts.get(device.type, 0):
        names = [kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in counts.items()]
        raise UsageError(f"--device is {name!r}; this machine has {', '.join(names)}, or auto for all of them")


def _devices() -> dict[str, int]:
    """How many devices of each kind this machine can use."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = {} if accelerator is None else {accelerator.type: torch.accelerator.device_count()}
    return {"cpu": 1} | found
