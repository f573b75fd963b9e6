"""Failures of the reader libraries, which can be any exception, as refusals by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from homerlm.errors import DocumentError


@contextmanager
def parsing(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into a `DocumentError`. kind: what it should be, "a PDF"."""
    try:
        yield
    except DocumentError:
        raise
    except Exception as error:
        found, fix = f"{type(error).__name__}: {error}", "open it in its own program and save it again"
        raise DocumentError(f"{name}: is damaged or is not {kind} ({found}); {fix}, or convert it to text") from error
