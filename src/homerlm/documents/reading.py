"""Documents as plain text, from files, standard input or memory.

Each format's reader takes the bytes and the name for messages, and returns the text or raises `DocumentError`. Reader
libraries are imported when first needed, since most runs need none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from homerlm.documents.charsets import decode_text, join_surrogates
from homerlm.documents.epub import read_epub
from homerlm.documents.formats import REFUSED, identify
from homerlm.documents.html import read_html
from homerlm.documents.inputs import DocumentSpan, Inputs, Skipped, first_reasons
from homerlm.documents.mail import read_mail
from homerlm.documents.notebook import read_notebook
from homerlm.documents.office import read_docx, read_pptx, read_xlsx
from homerlm.documents.opendocument import read_odt
from homerlm.documents.pdf import read_pdf
from homerlm.documents.rtf import read_rtf
from homerlm.errors import DocumentError

READERS: dict[str, Callable[[bytes, str], str]] = {
    "": decode_text,
    ".html": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    ".odt": read_odt,
    ".rtf": read_rtf,
    ".epub": read_epub,
    ".eml": read_mail,
    ".ipynb": read_notebook,
}


def read_document(path: str | Path, *, password: str | None = None) -> str:
    """Text of one document, newlines as "\\n"; "-" reads standard input. Raises `DocumentError`.

    password: of an encrypted PDF.
    """
    return _read_all([_Source.open(path)], password)[0]


def read_bytes(data: bytes, name: str, *, password: str | None = None) -> str:
    """Text of a document in memory, as `read_document` gives it. name: its file name, "report.pdf", for messages and,
    where the content does not tell the format, for its ending."""
    return _read_all([_Source.of(data, name)], password)[0]


def read_documents(paths: Sequence[str | Path], *, password: str | None = None) -> str:
    """Several documents joined by blank lines, each under "# file name"; a single one is returned as it is.

    password: of those that are encrypted PDFs. Folders and patterns: see `expand_inputs`. Raises `DocumentError`.
    """
    if not paths:
        raise DocumentError("documents: none was given; name at least one file, or - for standard input")
    return _joined(paths, _read_all((_Source.open(path) for path in paths), password))[0]


def read_inputs(inputs: Inputs, *, password: str | None = None) -> tuple[str, Inputs]:
    """Text of a command's inputs, as `read_documents` gives it, and the inputs as they were read: files that a folder
    or pattern stood for and that cannot be read are among the skipped ones.

    password: of those that are encrypted PDFs. Raises `DocumentError` for a file that was named itself, and where
    nothing could be read.
    """
    texts: dict[Path, str] = {}
    unread: list[Skipped] = []
    for path, text in read_each(inputs, password=password):
        if isinstance(text, Skipped):
            unread.append(text)
        else:
            texts[path] = text
    text, spans = _joined(list(texts), list(texts.values()))
    return text, Inputs(tuple(texts), (*inputs.skipped, *unread), inputs.found.intersection(texts), spans)


def read_each(inputs: Inputs, *, password: str | None = None) -> Iterator[tuple[Path, str | Skipped]]:
    """The text of each of a command's inputs, one by one, or why it is left out. Raises as `read_inputs`."""
    unread: list[Skipped] = []
    kinds: set[str] = set()
    for path in inputs.files:
        try:
            source = _Source.open(path)
            kinds.add(source.kind)
            yield path, source.text(password)
        except DocumentError as error:
            if path not in inputs.found:
                raise
            unread.append(Skipped(path, str(error).removeprefix(f"{_display_name(path)}: ")))
            yield path, unread[-1]
    if len(unread) == len(inputs.files):
        raise DocumentError(f"documents: none could be read ({first_reasons(unread)}); name other files")
    _check_password(password, kinds)


@dataclass(frozen=True)
class _Source:
    """One document before it is read. kind: a key of `READERS`."""

    data: bytes
    name: str
    kind: str

    @classmethod
    def open(cls, path: str | Path) -> _Source:
        name = _display_name(path)
        return cls.of(_standard_input() if str(path) == "-" else _file_bytes(Path(path), name), name)

    @classmethod
    def of(cls, data: bytes, name: str) -> _Source:
        if not data:
            raise DocumentError(f"{name}: is empty (0 bytes); check that it is the file you meant")
        kind = identify(BytesIO(data), Path(name).suffix.lower())
        if kind in REFUSED:
            what, fix = REFUSED[kind]
            raise DocumentError(f"{name}: is {what}, which cannot be read; {fix}")
        return cls(data, name, kind)

    def text(self, password: str | None) -> str:
        is_pdf = self.kind == ".pdf"
        text = read_pdf(self.data, self.name, password) if is_pdf else READERS[self.kind](self.data, self.name)
        if not text.strip():
            raise DocumentError(f"{self.name}: holds no text; check that it is the file you meant")
        return join_surrogates(text).replace("\r\n", "\n").replace("\r", "\n")


def _read_all(sources: Iterable[_Source], password: str | None) -> list[str]:
    """Their texts, each source dropped when it is read. Refuses a password that none of them takes."""
    texts, kinds = [], set()
    for source in sources:
        texts.append(source.text(password))
        kinds.add(source.kind)
    _check_password(password, kinds)
    return texts


def _check_password(password: str | None, kinds: set[str]) -> None:
    if password is not None and ".pdf" not in kinds:
        raise DocumentError("--password: is given, but only PDFs take one, and none was named; leave it out")


def _joined(paths: Sequence[str | Path], texts: Sequence[str]) -> tuple[str, tuple[DocumentSpan, ...]]:
    """The texts under their files' names, and where each is; a single one as it is."""
    if len(texts) == 1:
        return texts[0], ()
    pieces: list[str] = []
    spans: list[DocumentSpan] = []
    for name, text in zip(headings_of(paths), texts, strict=True):
        heading, body = "\n\n" * bool(spans) + f"# {name}\n\n", text.strip("\n")
        start = (spans[-1].end if spans else 0) + len(heading)
        spans.append(DocumentSpan(name, start, start + len(body), text.index(body)))
        pieces += [heading, body]
    return "".join(pieces), tuple(spans)


def headings_of(paths: Sequence[str | Path]) -> list[str]:
    """Names of documents that tell them apart."""
    names = [_display_name(path) for path in paths]
    short = [Path(name).name for name in names]
    return names if len(set(short)) < len(short) else short  # two files of one name need their folders


def _display_name(path: str | Path) -> str:
    """The name on one line, and in characters that can be printed, which names of files need not be."""
    return "standard input" if str(path) == "-" else join_surrogates(" ".join(str(path).splitlines()))


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise DocumentError("standard input: is closed; name a file, or send it a document")
    return sys.stdin.buffer.read()


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
