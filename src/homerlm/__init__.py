"""HOMER, hierarchical context merging: long documents through ordinary LLMs in little memory (arXiv 2404.10308)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homerlm.config import HomerConfig
    from homerlm.context import CompactContext
    from homerlm.errors import HomerError
    from homerlm.homer import Homer
    from homerlm.index.index import Index
    from homerlm.merge.schedule import Schedule, plan
    from homerlm.model.compiling import compile_model
    from homerlm.model.loading import load_model
    from homerlm.model.rope import RopeScaling
    from homerlm.remote import Endpoint
    from homerlm.score.calibration import Calibration
    from homerlm.score.profile import Profile
    from homerlm.selection import Selection

__version__ = "0.1.0"

# Names are imported when first used, so that the schedule and the command line start without loading torch.
_HOMES = {
    "Calibration": "score.calibration",
    "CompactContext": "context",
    "Endpoint": "remote",
    "Homer": "homer",
    "HomerConfig": "config",
    "HomerError": "errors",
    "Index": "index.index",
    "Profile": "score.profile",
    "RopeScaling": "model.rope",
    "Schedule": "merge.schedule",
    "Selection": "selection",
    "compile_model": "model.compiling",
    "load_model": "model.loading",
    "plan": "merge.schedule",
}

__all__ = [
    "Calibration",
    "CompactContext",
    "Endpoint",
    "Homer",
    "HomerConfig",
    "HomerError",
    "Index",
    "Profile",
    "RopeScaling",
    "Schedule",
    "Selection",
    "compile_model",
    "load_model",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'homerlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"homerlm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
