"""Zip archives and the XML in them, both checked against growing without limit when they are unpacked."""

from __future__ import annotations

from io import BytesIO
from xml.etree import ElementTree
from zipfile import ZipFile

from homerlm.errors import DocumentError

MAX_UNPACKED_BYTES = 200 * 2**20  # what a document that is a zip archive may grow by when unpacked


def open_zip(data: bytes, name: str) -> ZipFile:
    """The archive, after checking its declared sizes, past which `zipfile` never unpacks."""
    archive = ZipFile(BytesIO(data))
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > len(data) + MAX_UNPACKED_BYTES:
        sizes = f"{len(data):,} to {unpacked:,} bytes, past the limit of {MAX_UNPACKED_BYTES:,} more"
        raise DocumentError(f"{name}: unpacks from {sizes}; if you trust it, convert it to plain text")
    return archive


def read_xml(archive: ZipFile, path: str) -> ElementTree.Element:
    """Root of the XML file `path` of the archive. Raises `ValueError` if it declares entities."""
    data = archive.read(path)
    if b"<!ENTITY" in data:
        raise ValueError(f"{path} declares XML entities, which can grow without limit")
    return ElementTree.fromstring(data)
