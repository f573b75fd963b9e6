"""OpenDocument text (.odt) as text. Our own few lines: odfpy has had no release since 2020."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from homerlm.documents.archives import open_zip, read_xml
from homerlm.documents.parsing import parsing
from homerlm.errors import DocumentError

BREAKS = {"tab": "\t", "line-break": "\n"}
# Text that tracked changes removed, comments, notes, and the titles and descriptions of pictures.
UNSEEN = {"tracked-changes", "annotation", "note", "title", "desc", "forms"}


def read_odt(data: bytes, name: str) -> str:
    """Body text in document order, tables by row; no headers, footers, notes or comments."""
    with parsing(name, "an OpenDocument .odt"), open_zip(data, name) as archive:
        manifest = read_xml(archive, "META-INF/manifest.xml")
        if manifest.find(".//{*}encryption-data") is not None:
            raise DocumentError(f"{name}: is encrypted; save it as .odt without a password")
        (body,) = read_xml(archive, "content.xml").findall("{*}body/{*}text")
        return "".join(_pieces(body, in_paragraph=False)).strip("\n")


def _pieces(node: Element, *, in_paragraph: bool) -> Iterator[str]:
    """Text below `node`. Spaces count only inside paragraphs, where many are one, as in HTML."""
    if in_paragraph:
        yield _one_space(node.text)
    for child in node:
        tag = child.tag.rpartition("}")[2]
        if tag in ("p", "h"):
            yield "".join(_pieces(child, in_paragraph=True)).strip(" ") + "\n"
        elif tag == "s":
            yield " " * int(_attribute(child, "c") or 1)
        elif tag == "table-row":
            cells = ["".join(_pieces(cell, in_paragraph=False)).strip() for cell in child]
            yield " | ".join(cells).rstrip(" |") + "\n" if any(cells) else ""
        elif tag not in UNSEEN:
            yield BREAKS.get(tag, "")
            yield from _pieces(child, in_paragraph=in_paragraph)
        if in_paragraph:
            yield _one_space(child.tail)


def _one_space(text: str | None) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text or "")


def _attribute(node: Element, name: str) -> str | None:
    return next((value for key, value in node.attrib.items() if key.rpartition("}")[2] == name), None)
