"""Rich text (.rtf) as text."""

from __future__ import annotations

import re

from homerlm.documents.parsing import parsing


def read_rtf(data: bytes, name: str) -> str:
    """Body text, tables by row; no headers, footers, notes or comments."""
    from striprtf.striprtf import rtf_to_text

    with parsing(name, "RTF"):
        if not data.lstrip().startswith(b"{\\rtf"):
            raise ValueError("it does not begin with {\\rtf")
        return str(rtf_to_text(_ascii(data))).strip("\n")


def _ascii(data: bytes) -> str:
    """RTF source in which letters outside ASCII, which it should not hold, are escaped, unless they are UTF-8."""
    if b"\\bin" in data:  # pictures as bytes, which are counted
        return data.decode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return re.sub(rb"[\x80-\xff]", lambda match: b"\\'%02x" % match[0][0], data).decode()
