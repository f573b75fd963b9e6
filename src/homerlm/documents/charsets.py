"""Bytes to text: which character set a file is in, refused by name rather than guessed or replaced."""

from __future__ import annotations

from contextlib import suppress

from homerlm.errors import DocumentError

SUPPORTED = "text, source code, .html, .pdf, .docx, .pptx, .xlsx, .odt, .rtf, .epub, .eml and .ipynb"

# UTF-32 before UTF-16: the little-endian mark of the first begins with that of the second.
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
CONTROLS = bytes({*range(32), 127} - set(b"\t\n\v\f\r\b\x1b"))
SEVEN_BIT_CODECS = {"iso-2022-jp", "iso-2022-kr", "hz-gb-2312"}  # whose bytes are UTF-8 too, but not that text
MAX_CONTROL_SHARE = 0.05
MAX_WESTERN_SHARE = 0.4  # accented letters in any Western language stay far below; Cyrillic or Chinese are far above

# What browsers read for these names, a superset of each (https://encoding.spec.whatwg.org/#names-and-labels).
BROWSER_CODECS = {
    "iso-8859-1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
}


def decode_text(data: bytes, name: str, declared: str = "") -> str:
    """Text by byte order mark, else as strict UTF-8, else as declared, else as Western Windows text (cp1252).

    name: the file, for messages; declared: the character set that the file itself names. Raises `DocumentError`.
    cp1252 holds all printable characters of latin-1, so latin-1 is not tried: all it adds is control characters.
    """
    data = _without_mark(data, name)
    if _holds_binary(data):
        raise DocumentError(
            f"{name}: holds binary data, not text; convert it to one of {SUPPORTED}, "
            "and if it already is one, give it that file name ending"
        )
    if declared in SEVEN_BIT_CODECS:
        with suppress(ValueError):
            return data.decode(declared)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        wrong_byte = error.start
    if declared and not declared.startswith("utf"):
        with suppress(LookupError, ValueError):  # no such character set, or not in it
            return data.decode(BROWSER_CODECS.get(declared, declared))
    if _looks_western(data):
        with suppress(UnicodeDecodeError):
            return data.decode("cp1252")
    raise DocumentError(
        f"{name}: is not UTF-8 text (first wrong byte at {wrong_byte:,}) nor Western Windows text; "
        "save it as UTF-8, or repair it if it was cut or mixed"
    )


def is_binary(head: bytes) -> bool:
    """Whether a file that begins with these bytes can be no text, in any character set that is read."""
    return not any(head.startswith(mark) for mark, _ in BYTE_ORDER_MARKS) and _holds_binary(head)


def _holds_binary(data: bytes) -> bool:
    return b"\0" in data or sum(map(data.count, CONTROLS)) > MAX_CONTROL_SHARE * len(data)


def join_surrogates(text: str) -> str:
    """The text with halves of characters joined, as some files hold them, and lone ones, which nothing could encode,
    replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _without_mark(data: bytes, name: str) -> bytes:
    """The same text as UTF-8 if a byte order mark says what it is, else the bytes unchanged."""
    codec = next((codec for mark, codec in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if codec is None:
        return data
    try:
        return data.decode(codec).encode()
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name}: is marked as {codec.removesuffix('-sig').upper()} text but byte {error.start:,} is not; "
            "save it again as UTF-8"
        ) from error


def _looks_western(data: bytes) -> bool:
    """Whether bytes above 127 are few, and most of them stray: many whole UTF-8 characters mean damaged UTF-8."""
    utf8 = data.decode("utf-8", "ignore")
    whole, stray = len(utf8) - len(utf8.encode("ascii", "ignore")), len(data) - len(utf8.encode())
    return whole <= stray and len(data) - len(data.decode("ascii", "ignore")) <= MAX_WESTERN_SHARE * len(data)
