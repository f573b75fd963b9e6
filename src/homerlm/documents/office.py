"""Microsoft Office files (.docx, .pptx, .xlsx) as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time
from io import BytesIO
from itertools import repeat
from typing import Any
from zipfile import ZipFile

from homerlm.documents.archives import open_zip
from homerlm.documents.parsing import parsing

BREAKS = {"txbxContent": "\n", "tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# Settings (where "tab" is a tab stop), text that tracked changes removed, and second copies of text boxes.
UNSEEN = {"pPr", "rPr", "tblPr", "trPr", "tcPr", "del", "moveFrom", "Fallback"}
SLIDE_FOOTERS = {"dt", "ftr", "sldNum"}


def read_docx(data: bytes, name: str) -> str:
    """Body text in document order, tables by row; no headers, footers, notes or comments."""
    from docx.oxml import parse_xml
    from docx.package import Package

    with parsing(name, "a Word .docx"), open_zip(data, name):
        main = Package.open(BytesIO(data)).main_document_part  # type: ignore[arg-type]  # a file, or its path
        body: Any = parse_xml(main.blob).body  # not `Document`, which takes neither templates nor macros
        return "".join(_pieces(body)).strip("\n")


def read_pptx(data: bytes, name: str) -> str:
    """Slides joined by blank lines, each followed by its notes; no footers, charts, diagrams or hidden slides."""
    from pptx.package import Package

    with parsing(name, "a PowerPoint .pptx"), open_zip(data, name):
        presentation = Package.open(BytesIO(data)).presentation_part.presentation
        slides = [slide for slide in presentation.slides if slide.element.get("show") not in ("0", "false")]
        return "\n\n".join(text for slide in slides if (text := _slide_text(slide)))


def _slide_text(slide: Any) -> str:
    frame = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
    notes = "" if frame is None else "".join(_pieces(frame._txBody)).strip()
    text = "".join(_pieces(slide.shapes.element)).strip("\n")
    return f"{text}\nNotes: {notes}".strip("\n") if notes else text


def _pieces(node: Any) -> Iterator[str]:
    """Our own walk: python-docx's texts leave out content controls, tracked insertions and text boxes."""
    for child in node.iterchildren("*"):
        tag = child.tag.rpartition("}")[2]
        if tag == "t":
            yield child.text or ""
        elif tag == "tr":
            cells = ["".join(_pieces(cell)).strip() for cell in child.iterchildren("{*}tc", "{*}sdt")]
            yield " | ".join(cells) + "\n" if any(cells) else ""
        elif tag not in UNSEEN and not (tag == "sp" and _is_footer(child)):
            yield BREAKS.get(tag, "")
            yield from _pieces(child)
            yield "\n" if tag == "p" else ""


def _is_footer(shape: Any) -> bool:
    place = shape.find("{*}nvSpPr/{*}nvPr/{*}ph")
    return place is not None and place.get("type") in SLIDE_FOOTERS


def read_xlsx(data: bytes, name: str) -> str:
    """Sheets, each under "# its name", a row to a line; no hidden sheets. A formula stands for a value never computed,
    as in files that a program wrote."""
    with parsing(name, "an Excel .xlsx"), open_zip(data, name) as archive:
        sheets = zip(_sheets(data, computed=True), _formula_sheets(data, archive), strict=False)
        texts = [(sheet.title, _sheet_text(sheet, formulas)) for sheet, formulas in sheets]
    return "\n\n".join(f"# {title}\n\n{text}" for title, text in texts if text)


def _sheets(data: bytes, computed: bool) -> list[Any]:
    """The visible sheets, to be read row by row; formulas as the values that were last computed, or as they are."""
    from openpyxl import load_workbook

    sheets = load_workbook(BytesIO(data), read_only=True, data_only=computed, keep_links=False).worksheets
    visible = [sheet for sheet in sheets if sheet.sheet_state == "visible"]
    for sheet in visible:
        sheet.reset_dimensions()  # some programs write wrong ones, past which nothing would be read
    return visible


def _formula_sheets(data: bytes, archive: ZipFile) -> Any:
    """The sheets with their formulas, or nothing for each sheet if there are none, which saves reading it all twice."""
    parts = [part for part in archive.namelist() if part.startswith("xl/worksheets/") and part.endswith(".xml")]
    has_formulas = any(b"<f>" in (xml := archive.read(part)) or b"<f " in xml for part in parts)
    return _sheets(data, computed=False) if has_formulas else repeat(None)


def _sheet_text(sheet: Any, formulas: Any) -> str:
    unknown = repeat(repeat(None)) if formulas is None else formulas.iter_rows(values_only=True)
    rows = zip(sheet.iter_rows(values_only=True), unknown, strict=False)
    lines = [" | ".join(_cell_text(*cell) for cell in zip(*row, strict=False)) for row in rows]
    return "\n".join(line.rstrip(" |") for line in lines if line.strip(" |"))


def _cell_text(value: Any, formula: Any) -> str:
    """The value as Excel shows it, nearly: no number formats; dates as in ISO 8601, without a time of midnight."""
    if value is None:
        value = getattr(formula, "text", formula)  # array formulas are objects
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime):
        return str(value.date() if value.time() == time() else value)
    return "" if value is None else " ".join(str(value).split())
