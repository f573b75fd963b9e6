"""Quantities for people."""

from __future__ import annotations


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
