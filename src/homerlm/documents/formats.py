"""The format of a document: by its content where that tells, else by the ending of its name."""

from __future__ import annotations

import re
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

HEAD_BYTES = 2**16  # enough to tell most formats, and binary data from text

# Endings of the formats that have a reader, and the one that stands for each.
READABLE = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), ".html"),
    ".pdf": ".pdf",
    **dict.fromkeys((".docx", ".docm", ".dotx", ".dotm"), ".docx"),
    **dict.fromkeys((".pptx", ".pptm", ".ppsx", ".ppsm", ".potx", ".potm"), ".pptx"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xltx", ".xltm"), ".xlsx"),
    **dict.fromkeys((".odt", ".ott"), ".odt"),
    ".rtf": ".rtf",
    ".epub": ".epub",
    **dict.fromkeys((".eml", ".mht", ".mhtml"), ".eml"),
    ".ipynb": ".ipynb",
}
_IMAGE, _SOUND = ("an image", "run OCR on it first"), ("sound or video", "transcribe it first")
_ARCHIVE = ("an archive", "unpack it, and name the folder or the files in it")
_APPLE = ("an Apple office file", "export it as .docx, .xlsx or .pdf")
_OLD_OR_ENCRYPTED = ("encrypted or an old .doc, .xls or .ppt", "save it as .docx, .xlsx or .pptx without a password")

# What has no reader, by ending or by what content tells: what it is, and the fix.
REFUSED = {
    ".doc": ("an old Word file", "save it as .docx"),
    ".xls": ("an old Excel file", "save it as .xlsx"),
    ".xlsb": ("a binary Excel file", "save it as .xlsx"),
    ".ppt": ("an old PowerPoint file", "save it as .pptx"),
    ".odp": ("an OpenDocument presentation", "save it as .pptx or .pdf"),
    ".ods": ("an OpenDocument spreadsheet", "save it as .xlsx or .csv"),
    ".odg": ("an OpenDocument drawing", "save it as .pdf"),
    ".fodt": ("a flat OpenDocument file", "save it as .odt"),
    **dict.fromkeys((".vsd", ".vsdx"), ("a Visio drawing", "save it as .pdf")),
    **dict.fromkeys((".wpd", ".wps", ".hwp", ".pub", ".one"), ("an office file without a reader", "save it as .pdf")),
    **dict.fromkeys((".pages", ".numbers"), _APPLE),
    ".msg": ("an Outlook message", "save it as .eml"),
    ".pst": ("an Outlook mailbox", "save the messages as .eml"),
    ".mbox": ("a mailbox", "save the messages as .eml"),
    **dict.fromkeys((".mobi", ".azw", ".azw3"), ("a Kindle book", "convert it to .epub")),
    ".fb2": ("a FictionBook", "convert it to .epub"),
    **dict.fromkeys((".djvu", ".xps"), ("a page file without a reader", "convert it to .pdf")),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp", ".heic"), _IMAGE),
    **dict.fromkeys((".mp3", ".m4a", ".wav", ".flac", ".ogg", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"), _SOUND),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar", ".whl"), _ARCHIVE),
    "encrypted Office file": ("encrypted", "save it without a password"),
    "old Office file": _OLD_OR_ENCRYPTED,
}

OLE_MARK = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # old Office files, and encrypted new ones
OLE_PARTS = {
    "EncryptedPackage": "encrypted Office file",
    "WordDocument": ".doc",
    "PowerPoint Document": ".ppt",
    "Workbook": ".xls",
    "__substg1.0_": ".msg",
}
OFFICE_PARTS = {"xl/workbook.bin": ".xlsb", "word/": ".docx", "ppt/": ".pptx", "xl/": ".xlsx", "visio/": ".vsdx"}
OTHER_PARTS = {"META-INF/container.xml": ".epub", "Index/Document.iwa": ".pages"}
MIMETYPES = {
    "application/epub+zip": ".epub",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.oasis.opendocument.text-template": ".odt",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.graphics": ".odg",
}
HTML_START = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.S | re.I)


def identify(file: BinaryIO, ending: str) -> str:
    """A value of `READABLE`, a key of `REFUSED`, or "" for text. ending: that of the file's name, "" if it has none.

    Content comes first for PDF, RTF and archives, which begin with marks of their own. HTML and notebooks are told by
    content only without an ending: with one of its own, such as .php or .json, such a file is read as text.
    """
    head = file.read(HEAD_BYTES)
    if head.startswith(b"%PDF-"):
        return ".pdf"
    if head.startswith(b"{\\rtf"):
        return ".rtf"
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(file, ending)
    if head.startswith(OLE_MARK):
        return ending if ending in REFUSED else _ole_format(head + file.read())
    if ending in READABLE or ending in REFUSED:
        return READABLE.get(ending, ending)
    return "" if ending else _format_of_text(head, file)


def _zip_format(file: BinaryIO, ending: str) -> str:
    """By what the archive holds; by the ending, or a plain archive, if that says nothing or cannot be read."""
    unknown = READABLE.get(ending, ending if ending in REFUSED else ".zip")
    try:
        with ZipFile(file) as archive:
            names = archive.namelist()
            mimetype = archive.open("mimetype").read(100).decode("latin-1").strip() if "mimetype" in names else ""
    except (BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError):
        return unknown
    parts = OTHER_PARTS | (OFFICE_PARTS if "[Content_Types].xml" in names else {})
    found = (kind for part, kind in parts.items() if any(name.startswith(part) for name in names))
    return MIMETYPES.get(mimetype) or next(found, unknown)


def _ole_format(data: bytes) -> str:
    found = (kind for part, kind in OLE_PARTS.items() if part.encode("utf-16-le") in data)
    return next(found, "old Office file")


def _format_of_text(head: bytes, file: BinaryIO) -> str:
    head = head.removeprefix(b"\xef\xbb\xbf")
    if HTML_START.match(head[:4096]):
        return ".html"
    if head.lstrip().startswith(b"{"):
        data = head + file.read()
        return ".ipynb" if all(key in data for key in (b'"nbformat"', b'"cells"', b'"cell_type"')) else ""
    return ""
