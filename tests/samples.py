"""Documents of each format, made by the libraries that write them."""

import io
import json
import zipfile
from collections.abc import Callable
from email.message import EmailMessage

import docx
import openpyxl
import pptx.presentation
import pypdf


def zip_bytes(files: dict[str, str | None], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive; None as the content leaves a file out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)
    return stream.getvalue()


def pdf_bytes(pages: list[str], trailer: str = "") -> bytes:
    """A valid PDF with one line of Helvetica on each page; an empty line makes a page without text, as a scan has."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, line in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({line}) Tj ET" if line else "0 0 612 792 re f"
        resources = "/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * i} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{end}".encode()


def encrypted_pdf(user_password: str, algorithm: str = "RC4-128") -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_bytes(["The secret is 42."])))
    writer.encrypt(user_password, owner_password="owner", algorithm=algorithm)
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def docx_bytes(build: Callable[[docx.document.Document], object]) -> bytes:
    document = docx.Document()
    build(document)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


CONTAINER = """<?xml version="1.0"?>
<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
OPF = """<?xml version="1.0"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><manifest>
<item id="one" href="text/chapter%20one.xhtml" media-type="application/xhtml+xml"/>
<item id="two" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="art" href="art.png" media-type="image/png"/>
<item id="out" href="text/unlisted.xhtml" media-type="application/xhtml+xml"/>
</manifest><spine><itemref idref="two"/><itemref idref="art"/><itemref idref="gone"/><itemref idref="one"/></spine>
</package>"""
XHTML = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{}</body></html>'


def epub_bytes(changes: dict[str, str | None] | None = None, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An EPUB of two chapters whose reading order is not that of the manifest; None in changes leaves a file out."""
    files: dict[str, str | None] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": OPF,
        "OEBPS/text/chapter one.xhtml": XHTML.format("<h1>Second read</h1><p>caf\u00e9 &amp; <i>tea</i></p>"),
        "OEBPS/text/two.xhtml": XHTML.format("<p>First read</p>"),
        "OEBPS/text/unlisted.xhtml": XHTML.format("<p>Not in the spine</p>"),
        "OEBPS/art.png": "\0\0not text",
    }
    return zip_bytes(files | (changes or {}), compression)


def pptx_bytes(build: Callable[[pptx.presentation.Presentation], object]) -> bytes:
    deck = pptx.Presentation()
    build(deck)
    stream = io.BytesIO()
    deck.save(stream)
    return stream.getvalue()


def xlsx_bytes(build: Callable[[openpyxl.Workbook], object]) -> bytes:
    book = openpyxl.Workbook()
    build(book)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


ODT_SPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in {"office": "office", "text": "text", "table": "table", "draw": "drawing"}.items()
)
ODT_MANIFEST = '<manifest xmlns="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">{}</manifest>'


def odt_bytes(body: str, changes: dict[str, str | None] | None = None) -> bytes:
    content = f"<office:document-content {ODT_SPACES}><office:body>{{}}</office:body></office:document-content>"
    files: dict[str, str | None] = {
        "mimetype": "application/vnd.oasis.opendocument.text",
        "META-INF/manifest.xml": ODT_MANIFEST.format(""),
        "content.xml": content.format(f"<office:text>{body}</office:text>"),
    }
    return zip_bytes(files | (changes or {}))


def notebook_bytes() -> bytes:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m\n", "two\n"]},
        {"output_type": "execute_result", "data": {"text/plain": ["42"], "text/html": "<b>42</b>"}, "metadata": {}},
        {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {}},
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[0;31mE\x1b[0m", "  line 1"]},
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "words \ud83d"]},
        {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": "print(6*7)\n", "outputs": outputs},
        {"cell_type": "code", "execution_count": None, "metadata": {}, "source": "", "outputs": []},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1).encode()


def mail_bytes(html: bool = False) -> bytes:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = "Déjà vu", "Zoë <zoe@example.org>", "bob@example.org"
    mail["Received"] = "from nowhere"
    if not html:
        mail.set_content("Grüße,\nZoë\n", charset="iso-8859-1")
    mail.add_alternative("<p>Grüße,</p><p>Zoë</p>", subtype="html")
    mail.add_attachment(b"\0\1", maintype="image", subtype="png", filename="photo.png")
    return mail.as_bytes()
