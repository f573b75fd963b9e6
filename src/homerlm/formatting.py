"""Quantities for people."""

from __future__ import annotations

import re

_UNITS = {"": 0, "k": 10, "m": 20}


def count_of(text: str) -> int:
    """A whole number as people write it: `8192`, `8k` (of 1,024) or `1M`. Raises `ValueError`."""
    found = re.fullmatch(r"([+-]?\d[\d_]*)([kKmM]?)", text.strip(), re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is not a whole number such as 8192 or 8k")
    return int(found[1]) * (1 << _UNITS[found[2].lower()])


def counted(count: int, noun: str) -> str:
    """1 document, 2 documents."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def rounded(number: float) -> str:
    """Three significant digits, written out: 3.07, 4,340, 326,000,000,000."""
    return f"{float(f'{number:.3g}'):,.12g}"


def size(count: float) -> str:
    """Bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
