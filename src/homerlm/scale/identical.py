"""Models of workers, which must be the caller's own, or their scores are not comparable."""

from __future__ import annotations

from collections.abc import Mapping

from homerlm.errors import MismatchError

_FIXES = {
    "rope": "give the workers the same rope (--rope)",
    "dtype": "give both the same dtype (--dtype)",
    "tokenizer": "give both the same tokenizer, or none",
}


def check_identical(here: Mapping[str, str | None], there: Mapping[str, str | None]) -> None:
    """Raise `MismatchError` for the first of `LoadedModel.facts` in which a worker's model differs."""
    for name, value in here.items():
        if there[name] != value:
            fix = _FIXES.get(name, "let them load the model that you loaded")
            raise MismatchError(f"the workers' model has {name} {there[name]}, but yours has {value}: {fix}")
