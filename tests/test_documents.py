"""Text, HTML, PDF, Word and EPUB read whole and in order; each way a file can be unusable refused by name."""

import io
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import bs4
import docx
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from homerlm.documents import archives, read_document, read_documents
from homerlm.errors import DocumentError, HomerError
from samples import OPF, XHTML, docx_bytes, encrypted_pdf, epub_bytes, pdf_bytes, zip_bytes

Saver = Callable[[str, bytes | str], Path]


@pytest.fixture
def save(tmp_path: Path) -> Saver:
    """Write a sample under a name and return its path."""

    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refusal(path: Path | str) -> str:
    """The message of the refusal, which must name the file and, after a semicolon, the fix."""
    with pytest.raises(DocumentError) as caught:
        read_document(path)
    message = str(caught.value)
    assert Path(path).name in message
    assert "; " in message
    assert "DocumentError" not in message, "one refusal wrapped in another"
    return message


# Plain text and its character sets


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.py", "Makefile", "A.TXT", "a.unknown"])
def test_plain_text_round_trips_exactly(save: Saver, name: str):
    text = "\n  Title\t\n\n\ncafé 日本 😀 \u2028 \ufeff <b>&amp;</b> \x1b[0m\x0c trailing  \n\n"
    assert read_document(save(name, text)) == text
    assert read_document(str(save(name, text))) == text


def test_newlines_become_line_feeds(save: Saver):
    assert read_document(save("a.txt", b"one\r\ntwo\rthree\n\r\n")) == "one\ntwo\nthree\n\n"


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_is_read_and_removed(save: Saver, codec: str):
    assert read_document(save("a.txt", "naïve 日本\r\nend".encode(codec))) == "naïve 日本\nend"


@pytest.mark.parametrize(("mark", "codec"), [(b"\xfe\xff", "utf-16-be"), (b"\x00\x00\xfe\xff", "utf-32-be")])
def test_big_endian_marks(save: Saver, mark: bytes, codec: str):
    assert read_document(save("a.txt", mark + "日本".encode(codec))) == "日本"


def test_western_windows_text(save: Saver):
    text = "Le “café” coûte 5 €, dit Zoë — “CAFÉ”, déjà vu."
    assert read_document(save("a.txt", text.encode("cp1252"))) == text
    assert read_document(save("b.txt", "déjà vu à l'été".encode("latin-1"))) == "déjà vu à l'été"


@pytest.mark.parametrize(
    "content",
    [
        "Привет, мир, это письмо".encode("cp1251"),
        "これは日本語の文書です".encode("shift_jis"),
        "Une longue phrase en français, où l'été s'achève, puis: 日本語".encode()[:-1],  # cut inside its last character
        b"plain text and \x81\x8d, which cp1252 does not hold",
    ],
    ids=["cyrillic", "japanese", "damaged utf-8", "undefined bytes"],
)
def test_other_character_sets_are_refused_not_garbled(save: Saver, content: bytes):
    assert "is not UTF-8 text" in refusal(save("a.txt", content))


def test_first_wrong_byte_is_told(save: Saver):
    assert "first wrong byte at 6" in refusal(save("a.txt", b"\xc3\xa9\xc3\xa9\xc3\xa9\xff"))


@pytest.mark.parametrize("name", ["a.txt", "a.bin", "a.html", "noending"])
@pytest.mark.parametrize(
    "content",
    [
        b"one zero byte among many that are text: \0, and more text",
        "utf-16 without a mark".encode("utf-16-le"),
        b"\x01\x02\x03 controls \x04\x05\x06",
    ],
    ids=["nul", "utf-16", "controls"],
)
def test_binary_is_refused(save: Saver, name: str, content: bytes):
    assert "binary data, not text" in refusal(save(name, content))


def test_a_few_control_characters_are_kept(save: Saver):
    text = "field\x01value " * 20
    assert "binary" in refusal(save("a.log", text.replace("value", "")))
    assert read_document(save("b.log", text + "plain words " * 20)) == text + "plain words " * 20
    colours = "\x1b[1m\x1b[0m \b\b\x0c" * 20
    assert read_document(save("c.log", colours)) == colours


def test_damaged_utf16_is_refused(save: Saver):
    assert "marked as UTF-16" in refusal(save("a.txt", "text".encode("utf-16") + b"\x00"))


# HTML


def test_html_gives_visible_text_by_block(save: Saver):
    page = """<!DOCTYPE html><html><head><title>Tab name</title><style>p {color: red}</style>
    <script>var hidden = 1;</script></head><body><!-- a comment --><h1>Head<br>line</h1>
    <p>One  <b>bold</b>word,
      wrapped&nbsp;&amp; &lt;kept&gt;.</p><p>Two</p>loose<div>inner<div>deep</div>after</div>
    <ul><li>a</li><li>b</li></ul><noscript>Enable scripts</noscript><template>Never</template><p hidden>Gone</p>
    <table><tr><th>K</th><th>V</th></tr><tr><td><p>x</p></td> <td><p>y</p></td></tr>
    <tr><td><p>x1</p><p>x2</p></td></tr><tr><td><b>t</b><p>u</p></td></tr></table>
    <pre>
  def f():

      return  1<br>  more
    </pre></body></html>"""
    expected = (
        "Tab name\nHead\nline\nOne boldword, wrapped\xa0& <kept>.\nTwo\nloose\ninner\ndeep\nafter\na\nb\nK | V\nx | y\n"
        "x1\nx2\nt\nu\n"
        "  def f():\n\n      return  1\n  more\n    "
    )
    assert read_document(save("a.html", page)) == expected
    assert read_document(save("a.HTM", page)) == expected
    assert read_document(save("a.xhtml", page)) == expected


def test_html_without_end_tags_loses_nothing(save: Saver):
    assert read_document(save("a.html", "<html><head><title>t</title><body><p>One<p>Two")) == "t\nOne\nTwo"


@pytest.mark.parametrize(("label", "codec"), [("iso-8859-1", "cp1252"), ("windows-1251", "cp1251"), ("gb2312", "gbk")])
def test_html_in_its_declared_character_set(save: Saver, label: str, codec: str):
    text = {"cp1252": "“Zoë”", "cp1251": "Привет", "gbk": "鎔镕"}[codec]
    page = f'<meta charset="{label}"><p>{text}</p>'.encode(codec)
    assert read_document(save("a.html", page)) == text


@pytest.mark.parametrize("label", ["no-such-charset", "hex", "utf-16", "us-ascii"])
def test_html_with_a_useless_declaration_falls_back(save: Saver, label: str):
    page = f'<meta charset="{label}"><p>café</p>'
    assert read_document(save("a.html", page.encode())) == "café"
    assert read_document(save("b.html", page.encode("cp1252"))) == "café"


def test_html_own_entities_are_not_expanded(save: Saver):
    bomb = '<!DOCTYPE html [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><p>text</p>'
    assert read_document(save("a.html", bomb)) == "text"


def test_html_that_looks_like_a_file_name_gives_no_warning(save: Saver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_document(save("a.html", "notes.txt")) == "notes.txt"


def test_any_failure_inside_beautifulsoup_is_ours(save: Saver, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> str:
        raise RecursionError("too deep")

    monkeypatch.setattr(bs4.BeautifulSoup, "find", fail)
    assert "RecursionError: too deep" in refusal(save("a.html", "<p>x</p>"))


def test_deeply_nested_html(save: Saver):
    assert read_document(save("a.html", "<div>" * 2000 + "deep" + "</div>" * 2000)) == "deep"


def test_html_of_scripts_only_is_empty(save: Saver):
    assert "holds no text" in refusal(save("a.html", "<script>app()</script>"))


# PDF


def test_pdf_pages_in_order(save: Saver):
    text = read_document(save("a.pdf", pdf_bytes(["First page.", "", "Third \\(last\\) page."])))
    assert [line.strip() for line in text.splitlines() if line.strip()] == ["First page.", "Third (last) page."]


def test_pdf_halves_of_one_character_are_joined(save: Saver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda _: "\ud83d\ude00 and \ud83d")
    assert read_document(save("a.pdf", pdf_bytes(["x"]))) == "😀 and \ufffd"


def test_scanned_pdf_asks_for_ocr(save: Saver):
    message = refusal(save("scan.pdf", pdf_bytes(["", ""])))
    assert "no text in its 2 pages" in message
    assert "OCR" in message


def test_pdf_with_a_password_is_refused(save: Saver):
    assert "is encrypted" in refusal(save("a.pdf", encrypted_pdf("user")))


def test_pdf_with_a_password_for_changes_only_is_read(save: Saver):
    assert read_document(save("a.pdf", encrypted_pdf(""))).strip() == "The secret is 42."


def test_pdf_with_aes_encryption_is_refused(save: Saver):
    """With or without the optional library that decrypts it: no password is known."""
    keys = f"/O <{'00' * 48}> /U <{'00' * 48}> /OE <{'00' * 32}> /UE <{'00' * 32}> /Perms <{'00' * 16}>"
    cipher = "/CF << /StdCF << /CFM /AESV3 /AuthEvent /DocOpen /Length 32 >> >> /StmF /StdCF /StrF /StdCF"
    encrypt = f"/Encrypt << /Filter /Standard /V 5 /R 6 /Length 256 /P -4 {keys} {cipher} >>"
    assert "is encrypted" in refusal(save("a.pdf", pdf_bytes(["x"], trailer=encrypt)))


@pytest.mark.parametrize("content", [b"%PDF-1.4\n" + b"\xff" * 300, b"just words", pdf_bytes(["x"])[:200]])
def test_damaged_pdf_is_refused(save: Saver, content: bytes):
    assert "damaged or is not a PDF" in refusal(save("a.pdf", content))


def test_any_failure_inside_pypdf_is_ours(save: Saver, monkeypatch: pytest.MonkeyPatch):
    def fail(_: object) -> str:
        raise RecursionError("too deep")

    monkeypatch.setattr(pypdf.PageObject, "extract_text", fail)
    assert "RecursionError: too deep" in refusal(save("a.pdf", pdf_bytes(["x"])))


# Word


def test_docx_paragraphs_and_tables_in_order(save: Saver):
    def build(document: docx.document.Document) -> None:
        document.add_heading("Title")
        document.add_paragraph("One\ttab\nbreak").add_run(" bold").bold = True
        table = document.add_table(rows=2, cols=3)
        for i, cell in enumerate(table.rows[0].cells):
            cell.text = f"h{i}"
        table.cell(1, 0).merge(table.cell(1, 1)).text = "wide"
        table.cell(1, 2).text = "first\nsecond"
        document.add_paragraph("After.")

    expected = "Title\nOne\ttab\nbreak bold\nh0 | h1 | h2\nwide | first\nsecond\nAfter."
    assert read_document(save("a.docx", docx_bytes(build))) == expected


def test_docx_tracked_changes_controls_and_text_boxes(save: Saver):
    """What Word shows: insertions, content controls, links, one copy of a text box; nothing that was removed."""
    mc = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    box = "<w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent>"
    body = f"""<w:sdt {nsdecls("w")} {mc}><w:sdtContent><w:p>
    <w:pPr><w:tabs><w:tab w:val="left" w:pos="720"/></w:tabs></w:pPr>
    <w:r><w:t>kept</w:t></w:r><w:ins><w:r><w:t>, added</w:t></w:r></w:ins>
    <w:del><w:r><w:delText>deleted</w:delText><w:tab/></w:r></w:del>
    <w:moveFrom><w:r><w:t>moved away</w:t></w:r></w:moveFrom>
    <w:hyperlink><w:r><w:t>, linked</w:t></w:r></w:hyperlink>
    <w:r><mc:AlternateContent><mc:Choice Requires="wps">{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>
    </mc:AlternateContent></w:r></w:p><w:tbl><w:tr><w:tc><w:p><w:r><w:t>cell</w:t></w:r></w:p></w:tc>
    <w:sdt><w:sdtContent><w:tc><w:p><w:r><w:t>control</w:t></w:r></w:p></w:tc></w:sdtContent></w:sdt></w:tr></w:tbl>
    </w:sdtContent></w:sdt>"""
    content = docx_bytes(lambda document: document.element.body.insert(0, parse_xml(body)))
    assert read_document(save("a.docx", content)) == "kept, added, linked\nboxed\n\ncell | control"


def test_docx_without_text_is_refused(save: Saver):
    assert "holds no text" in refusal(save("a.docx", docx_bytes(lambda document: document.add_table(2, 2))))


@pytest.mark.parametrize(
    "content",
    [b"just words", docx_bytes(lambda document: document.add_paragraph("x"))[:-100], zip_bytes({"a.txt": "x"})],
    ids=["text", "cut", "another archive"],
)
def test_damaged_docx_is_refused(save: Saver, content: bytes):
    assert "damaged or is not a Word .docx" in refusal(save("a.docx", content))


def test_old_or_encrypted_word_file_is_refused(save: Saver):
    assert "encrypted or an old .doc" in refusal(save("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512)))


# EPUB


def test_epub_chapters_in_reading_order(save: Saver):
    assert read_document(save("a.epub", epub_bytes())) == "First read\n\nSecond read\ncafé & tea"
    blank = epub_bytes({"OEBPS/text/two.xhtml": XHTML.format("<hr/>")})
    assert read_document(save("b.epub", blank)) == "Second read\ncafé & tea"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"META-INF/container.xml": None}, "META-INF/container.xml"),
        ({"META-INF/container.xml": "<container/>"}, "IndexError"),
        ({"OEBPS/book.opf": "<package><manifest>"}, "ParseError"),
        ({"OEBPS/text/two.xhtml": None}, "two.xhtml"),
    ],
    ids=["no container", "empty container", "cut package", "missing chapter"],
)
def test_damaged_epub_is_refused(save: Saver, changes: dict[str, str | None], reason: str):
    message = refusal(save("a.epub", epub_bytes(changes)))
    assert "damaged or is not an EPUB" in message
    assert reason in message


def test_epub_that_is_no_archive_is_refused(save: Saver):
    assert "BadZipFile" in refusal(save("a.epub", b"just words"))


def test_epub_with_a_changed_chapter_is_refused(save: Saver):
    content = epub_bytes(compression=zipfile.ZIP_STORED)
    assert "First read" in read_document(save("a.epub", content))
    assert "Bad CRC" in refusal(save("b.epub", content.replace(b"First read", b"Worst read")))


def test_epub_chapter_that_is_binary_is_named(save: Saver):
    assert "a.epub (OEBPS/text/two.xhtml): holds binary" in refusal(
        save("a.epub", epub_bytes({"OEBPS/text/two.xhtml": "\0"}))
    )


def test_epub_entities_are_refused(save: Saver):
    bomb = OPF.replace("<package", '<!DOCTYPE p [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><package', 1)
    assert "XML entities" in refusal(save("a.epub", epub_bytes({"OEBPS/book.opf": bomb})))


@pytest.mark.parametrize(("locked", "refused"), [("OEBPS/text/chapter%20one.xhtml", True), ("OEBPS/font.otf", False)])
def test_epub_copy_protection_of_text_but_not_of_fonts(save: Saver, locked: str, refused: bool):
    encryption = (
        f'<encryption xmlns:e="urn:e"><e:CipherData><e:CipherReference URI="{locked}"/></e:CipherData></encryption>'
    )
    path = save("a.epub", epub_bytes({"META-INF/encryption.xml": encryption}))
    if refused:
        assert "is encrypted (DRM)" in refusal(path)
    else:
        assert "Second read" in read_document(path)


def test_epub_of_pictures_only_is_refused(save: Saver):
    cover = XHTML.format('<img src="art.png"/>')
    blank = {"OEBPS/text/two.xhtml": cover, "OEBPS/text/chapter one.xhtml": ""}
    assert "holds no text" in refusal(save("a.epub", epub_bytes(blank)))


@pytest.mark.parametrize("name", ["a.epub", "a.docx"])
def test_archive_that_unpacks_past_the_limit_is_refused(save: Saver, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1_000_000)
    over = save(name, epub_bytes({"extra.bin": "0" * 1_100_000}))
    assert "past the limit of 1,000,000 more" in refusal(over)
    under = save("b.epub", epub_bytes({"extra.bin": "0" * 900_000}))
    assert "First read" in read_document(under)


# Files that cannot be opened, and standard input


def test_missing_file(tmp_path: Path):
    assert "does not exist" in refusal(tmp_path / "none.txt")


def test_folder(tmp_path: Path):
    (tmp_path / "notes.txt").mkdir()
    assert "is a folder" in refusal(tmp_path / "notes.txt")


def test_no_permission(save: Saver, monkeypatch: pytest.MonkeyPatch):
    def deny(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = save("a.txt", "text")
    monkeypatch.setattr(Path, "read_bytes", deny)
    assert "no permission to read it" in refusal(path)


def test_path_that_cannot_be_opened(save: Saver):
    assert "cannot be opened" in refusal(save("a.txt", "text") / "b.txt")
    assert "cannot be opened" in refusal("a\0b.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.pdf", "a.docx", "a.epub"])
def test_empty_file(save: Saver, name: str):
    assert "is empty (0 bytes)" in refusal(save(name, b""))


def test_blank_text(save: Saver):
    assert "holds no text" in refusal(save("a.txt", " \n\t\r\n"))


def test_refusals_are_homer_errors_and_keep_the_cause(save: Saver):
    with pytest.raises(HomerError) as caught:
        read_document(save("a.epub", b"just words"))
    assert isinstance(caught.value.__cause__, zipfile.BadZipFile)


@pytest.mark.parametrize("dash", ["-", Path("-")])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, dash: str | Path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\r\n".encode()), encoding="ascii"))
    assert read_document(dash) == "é\n"


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"\0\1", "binary data")])
def test_standard_input_refusals_name_it(monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(DocumentError, match=f"standard input: .*{reason}"):
        read_document("-")


def test_standard_input_that_is_closed_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DocumentError, match="standard input: is closed"):
        read_document("-")


# Several documents


def test_several_documents_under_their_names(save: Saver):
    paths = [save("b.txt", "\nbee\n\nend\n\n"), save("sub/a.html", "<p>ay</p>")]
    assert read_documents(paths) == "# b.txt\n\nbee\n\nend\n\n# a.html\n\nay"


def test_one_document_has_no_heading(save: Saver):
    assert read_documents([save("a.txt", "\nalone\n")]) == "\nalone\n"


def test_files_of_the_same_name_keep_their_folders(save: Saver):
    paths = [save("x/a.txt", "1"), save("y/a.txt", "2")]
    assert read_documents(paths) == f"# {paths[0]}\n\n1\n\n# {paths[1]}\n\n2"


def test_heading_is_one_line(save: Saver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"in")))
    assert read_documents([save("two\nlines.txt", "x"), "-"]) == "# two lines.txt\n\nx\n\n# standard input\n\nin"


def test_no_documents_and_one_bad_among_several(save: Saver, tmp_path: Path):
    with pytest.raises(DocumentError, match="none was given"):
        read_documents([])
    with pytest.raises(DocumentError, match=r"none\.txt: does not exist"):
        read_documents([save("a.txt", "x"), tmp_path / "none.txt"])


def test_readers_are_imported_only_when_needed_and_nothing_else_of_ours(save: Saver):
    code = (
        "import sys; from homerlm.documents import read_document; read_document(sys.argv[1]); "
        "readers = {'bs4', 'pypdf', 'docx', 'lxml', 'pptx', 'openpyxl', 'striprtf'}; ours = {m for m in sys.modules if "
        "m.startswith('homerlm.') and not m.startswith('homerlm.documents')} - {'homerlm.errors'}; "
        "print([*(readers | {'torch', 'transformers', 'numpy'}) & set(sys.modules), *ours])"
    )
    result = subprocess.run([sys.executable, "-c", code, save("a.txt", "x")], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
