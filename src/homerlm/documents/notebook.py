"""Jupyter notebooks as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from homerlm.documents.charsets import decode_text
from homerlm.documents.parsing import parsing
from homerlm.errors import DocumentError

TERMINAL_STYLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read_notebook(data: bytes, name: str) -> str:
    """Cells in order, code and the text of its outputs between fences; no pictures and no HTML of outputs."""
    source = decode_text(data, name)
    with parsing(name, "a notebook"):
        book = json.loads(source)
        if "worksheets" in book:
            fix = "convert it: jupyter nbconvert --to notebook --nbformat 4"
            raise DocumentError(f"{name}: is a notebook of version {book.get('nbformat')}, before 4; {fix}")
        return "\n\n".join(piece for cell in book["cells"] for piece in _cell_pieces(cell) if piece.strip())


def _cell_pieces(cell: dict[str, Any]) -> Iterator[str]:
    source = _joined(cell["source"])
    yield _fenced(source) if cell["cell_type"] == "code" else source
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain") or output.get("traceback") or ""
        yield _fenced(_joined(text, "\n" if "traceback" in output else ""))


def _joined(text: str | list[str], separator: str = "") -> str:
    """One string of what notebooks may keep as a list of lines."""
    return TERMINAL_STYLE.sub("", text if isinstance(text, str) else separator.join(text))


def _fenced(text: str) -> str:
    return f"```\n{text.strip(chr(10))}\n```" if text.strip() else ""
