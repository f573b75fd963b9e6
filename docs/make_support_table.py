"""Write docs/support.md from tests/families.py: `python docs/make_support_table.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from families import REFUSED, SUPPORTED, Family  # noqa: E402

TARGET = ROOT / "docs" / "support.md"
TEXT = """\
# Model families

Written by `python docs/make_support_table.py` from `tests/families.py`; do not edit. A row is a family of transformers,
tested as a tiny random model built from its configuration. A family that the installed transformers lacks is skipped.

Supported means: where nothing is dropped, keys, values and logits equal the model's own prefill (1e-5, float32, also
with sliding windows shorter than the chunk); reduced prompts run with all three readouts, and `generate` follows them
token for token; the plain model's logits are bit-equal before, after, and after a failure inside.

A family that is not listed may well work: before its first use, every model runs a few tokens both through its own
forward and layer by layer, and is refused with `UnsupportedModelError` where logits, cached keys or values differ.

## Supported

{supported}

## Refused

`UnsupportedModelError` gives the reason.

{refused}
"""


def document() -> str:
    """The whole of docs/support.md."""
    supported = table(("Family", "Class", "Special"), ((f.name, f.model_class, f.special) for f in by_name(SUPPORTED)))
    refused = table(
        ("Family", "Class", "Special", "Reason"),
        ((f.name, f.model_class, f.special, f.refused or "") for f in by_name(REFUSED)),
    )
    return TEXT.format(supported=supported, refused=refused)


def by_name(families: Iterable[Family]) -> list[Family]:
    return sorted(families, key=lambda family: family.name)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A markdown table; the first two columns are code."""
    lines = [head, tuple("---" for _ in head), *((f"`{name}`", f"`{cls}`", *rest) for name, cls, *rest in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
