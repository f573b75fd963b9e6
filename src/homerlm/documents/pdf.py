"""PDF files as text."""

from __future__ import annotations

import logging
from io import BytesIO

from homerlm.documents.parsing import parsing
from homerlm.errors import DocumentError

_UNSAID = logging.NullHandler()  # what pypdf warns of goes to a program's own handlers, and else not to stderr


def read_pdf(data: bytes, name: str, password: str | None = None) -> str:
    """Text of all pages, joined by blank lines. A password for changes only does not stop reading."""
    from pypdf import PdfReader

    logging.getLogger("pypdf").addHandler(_UNSAID)
    with parsing(name, "a PDF"):
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not (reader.decrypt("") or (password and reader.decrypt(password))):
            if password is None:
                raise DocumentError(f"{name}: is encrypted; give its password with --password")
            raise DocumentError(f"{name}: is encrypted, and --password does not open it; check the password")
        pages = [page.extract_text() for page in reader.pages]
    if not any(page.strip() for page in pages):
        raise DocumentError(f"{name}: holds no text in its {len(pages)} pages, only images; run OCR on it first")
    return "\n\n".join(pages)
