"""Documents of a corpus: files, lines of JSON and rows of Parquet, each with the digest of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from homerlm.documents import Inputs, Skipped, headings_of, read_document
from homerlm.documents.charsets import join_surrogates
from homerlm.documents.reading import read_bytes as read_content
from homerlm.errors import ConfigError, DocumentError, InputError
from homerlm.index import buckets
from homerlm.index.buckets import is_url, opened

LINES, ROWS, PDF = (".jsonl", ".ndjson"), (".parquet",), ".pdf"


@dataclass(frozen=True)
class Fields:
    """Names of the text and of the document's name in lines and rows."""

    text: str = "text"
    name: str = "name"


@dataclass(frozen=True)
class Listed:
    """A document, not read yet. sha256: of its file, or of its text in a line or row; place: of a line, its first byte
    and how many it has, of a row, its group and its number there. reason: why it cannot be read, if that is known."""

    name: str
    path: str
    sha256: str
    bytes: int
    place: tuple[int, int] | None = None
    reason: str | None = None


def files_of(found: Inputs, urls: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Name and place of a command's inputs, tables among them, which are no text, and of files in buckets."""
    tables = [item.path for item in found.skipped if item.path.suffix.lower() in ROWS and item.path.is_file()]
    files: list[str | Path] = [*found.files, *tables, *urls]
    return list(zip(headings_of(files), map(str, files), strict=True))


def skipped_of(found: Inputs) -> list[Skipped]:
    return [item for item in found.skipped if item.path.suffix.lower() not in ROWS or not item.path.is_file()]


def list_file(name: str, path: str, fields: Fields) -> Iterator[Listed]:
    """The documents of one file. What is wrong with one of them is its `reason`."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix in LINES:
            yield from _lines(name, path, fields)
        elif suffix in ROWS:
            yield from _rows(name, path, fields)
        else:
            with opened(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            yield Listed(name, path, digest, size)
    except OSError as error:
        yield _unread(name, path, error.strerror or str(error))


def text_of(document: Listed, fields: Fields, password: str | None = None) -> str:
    """password: of those that are encrypted PDFs. Raises `DocumentError`."""
    if document.reason is not None:
        raise DocumentError(document.reason)
    suffix = Path(document.path).suffix.lower()
    password = password if suffix == PDF else None
    try:
        if document.place is None:
            if not is_url(document.path):
                return read_document(document.path, password=password)
            return read_content(buckets.read_bytes(document.path), document.path, password=password)
        if suffix in LINES:
            start, count = document.place
            text = _clean(json.loads(buckets.read_bytes(document.path, start, start + count))[fields.text])
        else:
            text = _clean(_group(document.path, document.place[0], fields)[0][document.place[1]])
    except DocumentError:
        raise
    except (OSError, ValueError, KeyError, IndexError, InputError) as error:
        raise DocumentError(f"{document.path} has changed since it was listed: {error}") from error
    if _digest(text) != document.sha256:
        raise DocumentError(f"{document.path} has changed since it was listed")
    return text


def _lines(name: str, path: str, fields: Fields) -> Iterator[Listed]:
    at = 0
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            place, at = (at, len(line)), at + len(line)
            if not line.strip():
                continue
            label = f"{name}:{number}"
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("it is no JSON object")
            except (ValueError, RecursionError) as error:
                yield _unread(label, path, f"line {number} is no record: {error}")
            else:
                yield _record(record.get(fields.name) or label, path, record.get(fields.text), place, fields)


def _rows(name: str, path: str, fields: Fields) -> Iterator[Listed]:
    parquet = _parquet()
    try:
        with opened(path) as source:
            file = parquet.ParquetFile(source)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            columns = file.schema_arrow.names
    except Exception as error:  # whatever a damaged file raises
        yield _unread(name, path, f"it is no Parquet file: {error}")
        return
    if fields.text not in columns:
        yield _unread(name, path, f"it has no column {fields.text!r}, only {', '.join(columns[:9])} (--text-field)")
        return
    for group, last in enumerate(accumulate(groups)):
        try:
            texts, names = _group(path, group, fields)
        except (OSError, ValueError) as error:  # Arrow's own are ValueErrors, and so is text that is not UTF-8
            yield _unread(f"{name}, row group {group + 1}", path, f"row group {group + 1} cannot be read: {error}")
            continue
        for row, (text, label) in enumerate(zip(texts, names, strict=True)):
            yield _record(label or f"{name}:{last - len(texts) + row + 1}", path, text, (group, row), fields)


def _record(name: Any, path: str, text: Any, place: tuple[int, int], fields: Fields) -> Listed:
    name, text = join_surrogates(str(name)), _clean(text)
    if not isinstance(text, str) or not text.strip():
        return _unread(name, path, f"its {fields.text!r} is no text (--text-field)")
    return Listed(name, path, _digest(text), len(text.encode()), place)


def _clean(value: Any) -> Any:
    """A record's text without lone surrogates, which JSON can name and nothing can encode."""
    return join_surrogates(value) if isinstance(value, str) else value


def _unread(name: str, path: str, reason: str) -> Listed:
    return Listed(name, path, _digest(f"{path}\n{name}\n{reason}"), 0, reason=reason)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@lru_cache(maxsize=2)
def _group(path: str, group: int, fields: Fields) -> tuple[list[Any], list[Any]]:
    """Texts and names of a row group."""
    with opened(path) as source:
        file = _parquet().ParquetFile(source)
        names = [fields.text, *([fields.name] if fields.name in file.schema_arrow.names else [])]
        table = file.read_row_group(group, columns=names)
    texts = table.column(fields.text).to_pylist()
    return texts, table.column(fields.name).to_pylist() if len(names) > 1 else [None] * len(texts)


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError('Parquet needs pyarrow, which is not installed: pip install "homerlm[ray]"') from error
    return parquet
