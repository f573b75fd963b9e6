"""Presentations, sheets, OpenDocument, RTF, mails and notebooks as text; formats told by content; refusals by name."""

import io
import re
import subprocess
import sys
import time
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path

import openpyxl
import pptx
import pytest
from pptx.util import Inches

from homerlm.documents import archives, read_bytes, read_document, read_documents
from homerlm.errors import DocumentError
from samples import (
    ODT_MANIFEST,
    docx_bytes,
    encrypted_pdf,
    epub_bytes,
    mail_bytes,
    notebook_bytes,
    odt_bytes,
    pdf_bytes,
    pptx_bytes,
    xlsx_bytes,
    zip_bytes,
)

RTF = (
    rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}{\info{\title Hidden}}"
    rb"\f0 Caf\'e9 \u8364? 5\par {\b Two} and {\i x}.\par}"
)


def refusal(data: bytes, name: str, **options: str) -> str:
    """The message of the refusal, which must name the file and, after a semicolon, the fix."""
    with pytest.raises(DocumentError) as caught:
        read_bytes(data, name, **options)
    message = str(caught.value)
    assert message.startswith(f"{name}")
    assert "; " in message
    return message


# Presentations


def deck(presentation: pptx.presentation.Presentation) -> None:
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "Results"
    slide.placeholders[1].text = "First\nSecond\vline"
    slide.notes_slide.notes_text_frame.text = "Say this"
    table_slide = presentation.slides.add_slide(presentation.slide_layouts[6])
    cells = table_slide.shapes.add_table(2, 2, 0, 0, Inches(2), Inches(1)).table
    for i, text in enumerate(["K", "V", "x", "y"]):
        cells.cell(i // 2, i % 2).text = text
    group = table_slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 9, 9).text_frame.text = "grouped"
    presentation.slides.add_slide(presentation.slide_layouts[6])
    secret = presentation.slides.add_slide(presentation.slide_layouts[5])
    secret.shapes.title.text = "Hidden slide"
    secret.element.set("show", "0")


def test_pptx_slides_tables_groups_and_notes_in_order():
    expected = "Results\nFirst\nSecond\nline\nNotes: Say this\n\nK | V\nx | y\ngrouped"
    assert read_bytes(pptx_bytes(deck), "a.pptx") == expected


def test_pptx_footers_are_left_out():
    def build(presentation: pptx.presentation.Presentation) -> None:
        slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        slide.shapes.title.text = "Title"
        box = slide.shapes.add_textbox(0, 0, 9, 9)
        box.text_frame.text = "Company, page 7"
        box.element.nvSpPr.nvPr.get_or_add_ph().set("type", "ftr")

    assert read_bytes(pptx_bytes(build), "a.pptx") == "Title"


def test_damaged_pptx_is_refused():
    assert "damaged or is not a PowerPoint .pptx" in refusal(pptx_bytes(deck)[:-100], "a.pptx")


# Sheets


def test_xlsx_sheets_by_row():
    def build(book: openpyxl.Workbook) -> None:
        book.active.title = "Prices"
        book.active.append(["Item", "Price", None])
        book.active.append([None, None, None])
        book.active.append(["tea\nbag", 2.5, True])
        book.active.append([None, "2026-01-31", None])
        book.active["C6"] = datetime(2026, 1, 31)
        book.create_sheet("Empty")
        book.create_sheet("Secret").append(["not shown"])
        book["Secret"].sheet_state = "hidden"
        book.create_sheet("Last").append([7])

    expected = "# Prices\n\nItem | Price\ntea bag | 2.5 | TRUE\n | 2026-01-31\n |  | 2026-01-31\n\n# Last\n\n7"
    assert read_bytes(xlsx_bytes(build), "a.xlsx") == expected


def test_xlsx_values_of_formulas_and_formulas_without_a_value():
    def build(book: openpyxl.Workbook) -> None:
        book.active.append([1, "=A1+1", "=A1+2"])

    never_computed = xlsx_bytes(build)
    assert read_bytes(never_computed, "a.xlsx") == "# Sheet\n\n1 | =A1+1 | =A1+2"
    with archives.open_zip(never_computed, "a.xlsx") as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    path = "xl/worksheets/sheet1.xml"
    files[path] = re.sub(r"<f>A1\+1</f><v ?/?>(</v>)?", "<f>A1+1</f><v>2</v>", files[path])
    assert read_bytes(zip_bytes(dict(files)), "a.xlsx") == "# Sheet\n\n1 | 2 | =A1+2"


def test_xlsx_with_wrong_dimensions_is_read_whole():
    content = xlsx_bytes(lambda book: [book.active.append([i, i]) for i in range(3)])
    with archives.open_zip(content, "a.xlsx") as archive:
        files = {name: archive.read(name).decode().replace('ref="A1:B3"', 'ref="A1"') for name in archive.namelist()}
    assert read_bytes(zip_bytes(dict(files)), "a.xlsx") == "# Sheet\n\n0 | 0\n1 | 1\n2 | 2"


def test_damaged_xlsx_is_refused():
    assert "damaged or is not an Excel .xlsx" in refusal(zip_bytes({"xl/workbook.xml": "<"}), "a.xlsx")


# OpenDocument text


def test_odt_paragraphs_tables_and_spaces_in_order():
    body = """
    <text:tracked-changes><text:p>removed</text:p></text:tracked-changes>
    <text:h>Title</text:h><text:p>One <text:span>bold</text:span>
       word,<text:s text:c="3"/>wide<text:tab/>tab<text:line-break/>line<text:note><text:note-body><text:p>foot</text:p>
    </text:note-body></text:note>.</text:p>
    <text:list><text:list-item><text:p>item</text:p></text:list-item></text:list>
    <table:table><table:table-row><table:table-cell><text:p>K</text:p></table:table-cell>
    <table:table-cell><text:p>V</text:p><text:p>W</text:p></table:table-cell></table:table-row></table:table>
    <text:p><draw:frame><draw:text-box><text:p>boxed</text:p></draw:text-box></draw:frame></text:p>"""
    expected = "Title\nOne bold word,   wide\ttab\nline.\nitem\nK | V\nW\nboxed"
    assert read_bytes(odt_bytes(body), "a.odt") == expected


def test_encrypted_and_damaged_odt_are_refused():
    manifest = ODT_MANIFEST.format("<file-entry><encryption-data/></file-entry>")
    assert "is encrypted" in refusal(odt_bytes("", {"META-INF/manifest.xml": manifest}), "a.odt")
    assert "damaged or is not an OpenDocument .odt" in refusal(odt_bytes("", {"content.xml": "<a/>"}), "a.odt")
    assert "XML entities" in refusal(odt_bytes("", {"content.xml": '<!DOCTYPE a [<!ENTITY b "c">]><a/>'}), "a.odt")


# RTF


def test_rtf_text_without_its_markup():
    assert read_bytes(RTF, "a.rtf") == "Café € 5\nTwo and x."


@pytest.mark.parametrize("codec", ["cp1252", "utf-8"])
def test_rtf_with_letters_that_are_not_escaped(codec: str):
    assert read_bytes(r"{\rtf1\ansi\ansicpg1252 Zoë}".encode(codec), "a.rtf") == "Zoë"


def test_rtf_in_its_code_page_and_halves_of_characters():
    assert read_bytes(rb"{\rtf1\ansi\ansicpg1251 \'cf\'f0}", "a.rtf") == "Пр"
    assert read_bytes(rb"{\rtf1\ansi \u-10179?\u-8704? \u-10179?}", "a.rtf") == "😀 \ufffd"


def test_damaged_rtf_is_refused():
    assert "damaged or is not RTF" in refusal(b"just words", "a.rtf")


# E-mails


@pytest.mark.parametrize(("html", "body"), [(False, "Grüße,\nZoë"), (True, "Grüße,\nZoë")])
def test_mail_headers_text_and_names_of_attachments(html: bool, body: str):
    headers = "Subject: Déjà vu\nFrom: Zoë <zoe@example.org>\nTo: bob@example.org"
    assert read_bytes(mail_bytes(html), "a.eml") == f"{headers}\n\n{body}\n\nAttachments, not read: photo.png"


def test_mail_in_a_seven_bit_character_set_and_in_pieces():
    mail = EmailMessage()
    mail["Subject"] = "s"
    mail.set_content("日本\n", charset="iso-2022-jp")
    mail.make_mixed()
    mail.add_attachment(b"\0", maintype="image", subtype="png", filename="a.png")
    more = EmailMessage()
    more.set_content("after the picture")
    mail.attach(more)
    assert read_bytes(mail.as_bytes(), "a.eml") == (
        "Subject: s\n\n日本\n\nafter the picture\n\nAttachments, not read: a.png"
    )


def test_mail_without_text_and_what_is_no_mail_are_refused():
    mail = EmailMessage()
    mail["Subject"] = "s"
    mail.set_content(b"%PDF-1.4", maintype="application", subtype="pdf", filename="a.pdf")
    assert "holds no text, only a" in refusal(mail.as_bytes(), "a.eml")
    assert "damaged or is not an e-mail" in refusal(b"just words", "a.eml")


# Notebooks


def test_notebook_cells_code_and_outputs():
    expected = (
        "# Title\nwords \ufffd\n\n```\nprint(6*7)\n```\n\n```\nred\ntwo\n```\n\n```\n42\n```\n\n```\nE\n  line 1\n```"
    )
    assert read_bytes(notebook_bytes(), "a.ipynb") == expected


def test_damaged_and_old_notebooks_are_refused():
    assert "damaged or is not a notebook" in refusal(notebook_bytes()[:-10], "a.ipynb")
    assert "damaged or is not a notebook" in refusal(b"[1]", "a.ipynb")
    assert "nbconvert" in refusal(b'{"worksheets": [], "nbformat": 3}', "a.ipynb")


# PDFs


def test_what_the_pdf_library_warns_of_is_not_on_stderr(tmp_path):
    """In a program of its own: pytest's own log handler would take it."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4 cut off")
    code = (
        "import sys; from homerlm.documents import read_document; from homerlm.errors import DocumentError\n"
        "try: read_document(sys.argv[1])\nexcept DocumentError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.pdf"], capture_output=True, text=True, check=True)
    assert "is damaged or is not a PDF" in run.stdout
    assert run.stderr == ""


# Passwords of PDFs


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_pdf_opens_with_either_password(algorithm: str):
    content = encrypted_pdf("usér", algorithm) if algorithm == "AES-256" else encrypted_pdf("user", algorithm)
    for password in ("usér" if algorithm == "AES-256" else "user", "owner"):
        assert read_bytes(content, "a.pdf", password=password).strip() == "The secret is 42."
    for password in ("wrong", ""):
        assert "--password does not open it" in refusal(content, "a.pdf", password=password)
    assert "--password" in refusal(content, "a.pdf")


@pytest.mark.parametrize("algorithm", ["AES-128", "AES-256"])
def test_pdf_that_is_encrypted_for_changes_only_is_read(algorithm: str):
    content = encrypted_pdf("", algorithm)
    assert read_bytes(content, "a.pdf").strip() == "The secret is 42."
    assert read_bytes(content, "a.pdf", password="not needed").strip() == "The secret is 42."


def test_password_that_nothing_takes_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.pdf").write_bytes(encrypted_pdf("user"))
    with pytest.raises(DocumentError, match=r"--password: .*only PDFs"):
        read_document(tmp_path / "a.txt", password="user")
    both = [tmp_path / "a.txt", tmp_path / "a.pdf"]
    assert "The secret is 42." in read_documents(both, password="user")


# Formats told by content

SAMPLES = {
    ".pdf": (pdf_bytes(["A page."]), "A page."),
    ".docx": (docx_bytes(lambda document: document.add_paragraph("Words")), "Words"),
    ".pptx": (pptx_bytes(deck), "Results"),
    ".xlsx": (xlsx_bytes(lambda book: book.active.append(["cell"])), "cell"),
    ".odt": (odt_bytes('<text:p xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0">open</text:p>'), "open"),
    ".rtf": (RTF, "Two and x."),
    ".epub": (epub_bytes(), "First read"),
    ".html": (b"\xef\xbb\xbf <!-- c --> <!DOCTYPE HTML><p>seen<script>unseen</script>", "seen"),
    ".xhtml": (b'<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><p>seen</p></html>', "seen"),
    ".ipynb": (notebook_bytes(), "# Title"),
}


@pytest.mark.parametrize("ending", SAMPLES)
def test_format_is_told_by_content(ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    content, text = SAMPLES[ending]
    expected = read_bytes(content, f"a{ending}")
    assert text in expected
    assert not re.search(r"<script|<p>|\\par|\"cells\"|unseen", expected)
    assert read_bytes(content, "no ending") == expected
    (tmp_path / "none").write_bytes(content)
    assert read_document(tmp_path / "none") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_document("-") == expected


@pytest.mark.parametrize("ending", [".pdf", ".docx", ".pptx", ".xlsx", ".odt", ".rtf", ".epub"])
@pytest.mark.parametrize("wrong", [".txt", ".doc", ".pdf", ".docx", ".html", ".png"])
def test_wrong_ending_does_not_matter_where_content_tells(ending: str, wrong: str):
    content, text = SAMPLES[ending]
    assert text in read_bytes(content, f"a{wrong}") == read_bytes(content, f"a{ending}")


@pytest.mark.parametrize("name", ["a.json", "a.php", "a.txt"])
def test_text_of_another_ending_is_kept_as_it_is(name: str):
    for ending in (".html", ".ipynb"):
        content = SAMPLES[ending][0].removeprefix(b"\xef\xbb\xbf")
        assert read_bytes(content, name) == content.decode()


def test_text_that_only_resembles_a_format():
    for text in (
        '{"cells": 1}',
        "<p align=center>README</p>",
        "a PDF begins with %PDF-",
        '<?xml version="1.0"?><svg/>',
    ):
        assert read_bytes(text.encode(), "README") == text


# Refusals by name

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("a.doc", "an old Word file", "save it as .docx"),
        ("a.XLS", "an old Excel file", "save it as .xlsx"),
        ("a.ppt", "an old PowerPoint file", "save it as .pptx"),
        ("a.ods", "spreadsheet", ".xlsx"),
        ("a.odp", "presentation", ".pptx"),
        ("a.msg", "Outlook", ".eml"),
        ("a.mobi", "Kindle", ".epub"),
        ("a.png", "image", "OCR"),
        ("a.mp3", "sound", "transcribe"),
        ("a.zip", "archive", "unpack"),
    ],
)
@pytest.mark.parametrize("content", [b"words", OLE, b"\0\1\2"])
def test_formats_without_a_reader_are_refused_by_name(name: str, what: str, fix: str, content: bytes):
    message = refusal(content, name)
    assert what in message
    assert fix in message.partition("; ")[2]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (OLE + "WordDocument".encode("utf-16-le"), "an old Word file"),
        (OLE + "Workbook".encode("utf-16-le"), "an old Excel file"),
        (OLE + "EncryptedPackage".encode("utf-16-le"), "is encrypted, "),
        (OLE, "encrypted or an old .doc"),
        (zip_bytes({"mimetype": "application/vnd.oasis.opendocument.spreadsheet"}), "OpenDocument spreadsheet"),
        (zip_bytes({"[Content_Types].xml": "", "xl/workbook.bin": ""}), "a binary Excel file"),
        (zip_bytes({"Index/Document.iwa": ""}), "an Apple office file"),
        (zip_bytes({"word/list.txt": "x"}), "an archive"),
        (zip_bytes({"a.txt": "x"})[:-30], "an archive"),
    ],
    ids=range(9),  # not made of the content: archives hold the time, and all processes of a run collect the same names
)
@pytest.mark.parametrize("name", ["standard input", "a.txt"])
def test_refused_formats_are_told_by_content(content: bytes, what: str, name: str):
    assert what in refusal(content, name)


@pytest.mark.parametrize("ending", [".docx", ".pptx", ".xlsx", ".odt", ".epub"])
def test_archive_that_unpacks_past_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch, ending: str):
    content = SAMPLES[ending][0]
    with archives.open_zip(content, "a") as archive:
        files = {name: archive.read(name).decode("latin-1") for name in archive.namelist()}
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1_000_000)
    bomb = zip_bytes({**files, "extra.bin": "0" * 1_100_000})
    assert "past the limit of 1,000,000 more" in refusal(bomb, f"a{ending}")


# HTML: what is hidden, and depth


@pytest.mark.parametrize(
    "style", ["display:none", "color: red; DISPLAY : None ;", "visibility:hidden", "display:none!important"]
)
def test_html_hidden_by_its_own_style_is_dropped(style: str):
    page = f'<p>seen</p><div style="{style}">secret <b>deep</b></div><p style="display:block">also</p>'
    assert read_bytes(page.encode(), "a.html") == "seen\nalso"


def test_html_title_is_the_first_line_of_text_only():
    assert read_bytes(b"<title> The\n title </title><p>text", "a.html") == "The title\ntext"
    assert "holds no text" in refusal(b"<title>App</title><script>app()</script>", "a.html")
    assert read_bytes(b"<p>text<svg><title>Icon</title></svg>", "a.html") == "text"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<table><tr><td>x<td>y<tr><td>z<td hidden>u<td>v</table>", "x | y\nz v"),
        ("<table><tr><td hidden>x<td>y<td>z</table>", "y | z"),
        ("<table><tr><td hidden>x</td><td>y</td><td>z</td></tr></table>", "y | z"),
        ("<p hidden>x<b>y</b><p>seen<p>too", "seen\ntoo"),
        ('<ul><li style="display:none">x<ul><li>y</ul><li>seen</ul>', "seen"),
        ('<body style="visibility:hidden"><p>shown by a script', "shown by a script"),
    ],
)
def test_html_hidden_without_end_tags_hides_nothing_else(page: str, text: str):
    assert read_bytes(page.encode(), "a.html") == text


@pytest.mark.parametrize("tag", ["div", "b", "p", "pre", "table", "td", "ul"])
@pytest.mark.parametrize("closed", [True, False])
def test_deeply_nested_html_takes_linear_time(tag: str, closed: bool):
    page = f"<{tag}>" * 50_000 + "deep" + f"</{tag}>" * 50_000 * closed
    begin = time.process_time()
    assert read_bytes(page.encode(), "a.html").strip("| ") == "deep"
    assert time.process_time() - begin < 10  # it took 50 s when each tag was edited in the tree, and 1 s since


# Characters


def test_lone_surrogates_never_come_out(tmp_path: Path):
    name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    paths = [tmp_path / name, tmp_path / "b.txt"]
    for path in paths:
        path.write_text("x")
    assert "# caf\ufffd.txt" in read_documents(paths)
    page = '<meta charset="unicode-escape">\\ud83d \xff'
    assert read_bytes(page.encode("latin-1"), "a.html").encode()
