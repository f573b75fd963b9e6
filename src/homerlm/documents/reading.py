"""Documents as plain text: text and source files, HTML, PDF, Word and EPUB.

Each reader takes a file's bytes and its name for messages, and returns the text or raises `DocumentError`. Reader
libraries are imported when first needed, since most runs need none of them.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree
from zipfile import ZipFile

from homerlm.documents.charsets import decode_text
from homerlm.errors import DocumentError

MAX_UNPACKED_BYTES = 200 * 2**20  # what a .docx or .epub may grow by when unpacked
HTML_UNSEEN = {"script", "style", "template", "noscript", "title"}
_BLOCKS = """address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure
dialog footer form h1 h2 h3 h4 h5 h6 header hr legend li main menu nav ol option p pre section summary table tr ul"""
HTML_BLOCKS = frozenset(_BLOCKS.split())
DOCX_BREAKS = {"txbxContent": "\n", "tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# Settings (where "tab" is a tab stop), text that tracked changes removed, and second copies of text boxes.
DOCX_UNSEEN = {"pPr", "rPr", "tblPr", "trPr", "tcPr", "del", "moveFrom", "Fallback"}
# Spaces inside `pre`, hidden while all others are joined, as code points that no text may hold.
HIDE_SPACE = {ord(space): 0xFDD0 + i for i, space in enumerate(" \t\n\r\f")}
SHOW_SPACE = {hidden: space for space, hidden in HIDE_SPACE.items()}


def read_document(path: str | Path) -> str:
    """Text of one document, newlines as "\\n"; "-" reads text from standard input. Raises `DocumentError`."""
    name = _display_name(path)
    data = sys.stdin.buffer.read() if str(path) == "-" else _file_bytes(Path(path), name)
    if not data:
        raise DocumentError(f"{name}: is empty (0 bytes); check that it is the file you meant")
    text = READERS.get(Path(path).suffix.lower(), decode_text)(data, name)
    if not text.strip():
        raise DocumentError(f"{name}: holds no text; check that it is the file you meant")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(paths: Sequence[str | Path]) -> str:
    """Several documents joined by blank lines, each under "# file name"; a single one is returned as it is."""
    if not paths:
        raise DocumentError("documents: none was given; name at least one file, or - for standard input")
    if len(paths) == 1:
        return read_document(paths[0])
    names = [_display_name(path) for path in paths]
    short = [Path(name).name for name in names]
    headings = names if len(set(short)) < len(short) else short  # two files of one name need their folders
    texts = [read_document(path).strip("\n") for path in paths]
    return "\n\n".join(f"# {heading}\n\n{text}" for heading, text in zip(headings, texts, strict=True))


def _display_name(path: str | Path) -> str:
    return "standard input" if str(path) == "-" else " ".join(str(path).splitlines())


def _file_bytes(path: Path, name: str) -> bytes:
    if path.is_dir():  # asked first: Windows reports a folder as a missing permission
        raise DocumentError(f"{name}: is a folder, not a file; name the files in it one by one")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DocumentError(f"{name}: does not exist; check the spelling and the current folder") from error
    except PermissionError as error:
        raise DocumentError(f"{name}: no permission to read it; change its permissions or copy it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DocumentError(f"{name}: cannot be opened ({error}); check the path") from error


@contextmanager
def _reading(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file, which can be any exception, into a `DocumentError`."""
    try:
        yield
    except DocumentError:
        raise
    except Exception as error:
        found, fix = f"{type(error).__name__}: {error}", "open it in its own program and save it again"
        raise DocumentError(f"{name}: is damaged or is not {kind} ({found}); {fix}, or convert it to text") from error


def _read_html(data: bytes, name: str) -> str:
    """Visible text: block elements on lines of their own, the cells of a table row on one line, `pre` as it is."""
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector

    html = decode_text(data, name, EncodingDetector.find_declared_encoding(data, is_html=True) or "")
    html = re.sub(r"<!DOCTYPE[^>\[]*\[.*?\]\s*>", "", html, count=1, flags=re.S | re.I)  # own entities: not expanded
    with _reading(name, "HTML"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses that the text is XML, or a file name
        soup = BeautifulSoup(html, "html.parser")
        for tag in reversed(soup.find_all(True)):  # inner tags before the one around them
            if tag.name in HTML_UNSEEN or tag.has_attr("hidden"):
                tag.decompose()
                continue
            if tag.name in ("td", "th") and tag.find_previous_sibling(["td", "th"]):
                tag.insert(0, " | ")
            if tag.name == "pre":
                tag.string = tag.get_text().strip("\n").translate(HIDE_SPACE)
            if tag.name in HTML_BLOCKS and not (tag.name == "p" and _fills_cell(tag)):
                tag.insert(0, "\0")  # marks the ends of lines: decode_text lets no other through
                tag.append("\0")
        lines = re.sub(r"[ \t\r\n\f]+", " ", soup.get_text()).split("\0")
    return "\n".join(line.strip(" ") for line in lines if line.strip()).translate(SHOW_SPACE)


def _fills_cell(tag: Any) -> bool:
    return tag.parent.name in ("td", "th") and not tag.find_previous_sibling(True) and not tag.find_next_sibling(True)


def _read_pdf(data: bytes, name: str) -> str:
    """Text of all pages, joined by blank lines. A password for changes only does not stop reading."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    with _reading(name, "a PDF"):
        try:
            reader = PdfReader(BytesIO(data))
            if reader.is_encrypted and not reader.decrypt(""):
                raise DocumentError(f"{name}: is encrypted; save a copy of the PDF without a password")
        except DependencyError as error:
            raise DocumentError(f"{name}: is encrypted ({error}); install that, or save a decrypted copy") from error
        pages = [page.extract_text() for page in reader.pages]
    if not any(page.strip() for page in pages):
        raise DocumentError(f"{name}: holds no text in its {len(pages)} pages, only images; run OCR on it first")
    # pypdf can give an astral character as two halves, which nothing could encode; join them.
    return "\n\n".join(pages).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _open_zip(data: bytes, name: str) -> ZipFile:
    """The archive, after checking its declared sizes, past which `zipfile` never unpacks."""
    archive = ZipFile(BytesIO(data))
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > len(data) + MAX_UNPACKED_BYTES:
        sizes = f"{len(data):,} to {unpacked:,} bytes, past the limit of {MAX_UNPACKED_BYTES:,} more"
        raise DocumentError(f"{name}: unpacks from {sizes}; if you trust it, convert it to plain text")
    return archive


def _read_docx(data: bytes, name: str) -> str:
    """Body text in document order, tables by row; no headers, footers, notes or comments."""
    from docx import Document

    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise DocumentError(f"{name}: is encrypted or an old .doc; save it as .docx without a password")
    with _reading(name, "a Word .docx"), _open_zip(data, name):
        return "".join(_docx_pieces(Document(BytesIO(data)).element.body)).strip("\n")


def _docx_pieces(node: Any) -> Iterator[str]:
    """Our own walk: python-docx's texts leave out content controls, tracked insertions and text boxes."""
    for child in node.iterchildren("*"):
        tag = child.tag.rpartition("}")[2]
        if tag == "t":
            yield child.text or ""
        elif tag == "tr":
            cells = ["".join(_docx_pieces(cell)).strip() for cell in child.iterchildren("{*}tc", "{*}sdt")]
            yield " | ".join(cells) + "\n" if any(cells) else ""
        elif tag not in DOCX_UNSEEN:
            yield DOCX_BREAKS.get(tag, "")
            yield from _docx_pieces(child)
            yield "\n" if tag == "p" else ""


def _read_epub(data: bytes, name: str) -> str:
    """Chapters in reading order (the spine), joined by blank lines. Our own few lines: EbookLib is under the AGPL."""
    with _reading(name, "an EPUB"), _open_zip(data, name) as archive:
        package_path = _xml(archive, "META-INF/container.xml").findall(".//{*}rootfile")[0].attrib["full-path"]
        package = _xml(archive, package_path)
        items = {item.get("id"): item for item in package.findall("{*}manifest/{*}item")}
        spine = [items[key] for ref in package.findall("{*}spine/{*}itemref") if (key := ref.get("idref")) in items]
        links = [unquote(item.attrib["href"]) for item in spine if not item.get("media-type", "").startswith("image/")]
        paths = [normpath(join(dirname(package_path), link)) for link in links]
        if "META-INF/encryption.xml" in archive.namelist():  # also lists fonts, which do not matter here
            encrypted = _xml(archive, "META-INF/encryption.xml").findall(".//{*}CipherReference")
            if {unquote(part.get("URI", "")) for part in encrypted} & set(paths):
                raise DocumentError(f"{name}: is encrypted (DRM); use a copy without copy protection")
        chapters = [_read_html(archive.read(path), f"{name} ({path})") for path in paths]
    return "\n\n".join(chapter for chapter in chapters if chapter)


def _xml(archive: ZipFile, path: str) -> ElementTree.Element:
    data = archive.read(path)
    if b"<!ENTITY" in data:
        raise ValueError(f"{path} declares XML entities, which can grow without limit")
    return ElementTree.fromstring(data)


HTML_READERS = dict.fromkeys([".html", ".htm", ".xhtml"], _read_html)
READERS = {**HTML_READERS, ".pdf": _read_pdf, ".docx": _read_docx, ".epub": _read_epub}
