"""HTML as the text that a browser shows."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from itertools import dropwhile
from typing import Any

from homerlm.documents.charsets import decode_text
from homerlm.documents.parsing import parsing

UNSEEN = {"script", "style", "template", "noscript", "title"}
UNSEEN_STYLE = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)\s*(?:!|;|$)", re.I)
CELLS = {"td", "th"}
_BLOCKS = """address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure
dialog footer form h1 h2 h3 h4 h5 h6 header hr legend li main menu nav ol option p pre section summary table tr ul"""
BLOCKS = frozenset(_BLOCKS.split())
# Tags whose end tag may be left out, and those that then end them.
IMPLIED_ENDS = {
    "p": {*BLOCKS} - {"br"},
    "li": {"li"},
    "tr": {"tr"},
    "option": {"option"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
    "td": {"td", "th", "tr"},
    "th": {"td", "th", "tr"},
}
# Spaces inside `pre`, hidden while all others are joined, as code points that no text may hold.
HIDE_SPACE = {ord(space): 0xFDD0 + i for i, space in enumerate(" \t\n\r\f")}
SHOW_SPACE = {hidden: space for space, hidden in HIDE_SPACE.items()}


def read_html(data: bytes, name: str, *, title: bool = True) -> str:
    """Visible text: block elements on lines of their own, the cells of a table row on one line, `pre` as it is.

    The page's title is the first line, unless there is no other text, or not `title`. Hidden is what the element itself
    says: style sheets are not applied.
    """
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector

    html = decode_text(data, name, EncodingDetector.find_declared_encoding(data, is_html=True) or "")
    html = re.sub(r"<!DOCTYPE[^>\[]*\[.*?\]\s*>", "", html, count=1, flags=re.S | re.I)  # own entities: not expanded
    with parsing(name, "HTML"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses that the text is XML, or a file name
        soup = BeautifulSoup(html, "html.parser")  # lxml's parser drops what is nested more than 2,048 deep
        lines = re.sub(r"[ \t\r\n\f]+", " ", "".join(_pieces(soup))).split("\0")
        heading = _title(soup) if title else ""
    text = "\n".join(line.strip(" ") for line in lines if line.strip()).translate(SHOW_SPACE)
    return f"{heading}\n{text}" if heading and text else text


def _pieces(soup: Any) -> list[str]:
    """Text in order, with NULs, which `decode_text` lets no page hold, at the ends of lines."""
    pieces: list[str] = []
    pre, pre_start = None, 0  # the outermost `pre` that is open, and its first piece
    rows_begun: set[int] = set()
    for node, is_start in _nodes(soup):
        if isinstance(node, str):
            pieces.append(node)
            continue
        if is_start and node.name in CELLS:
            pieces.append(" | " if id(node.parent) in rows_begun else " ")
            rows_begun |= {id(node.parent), id(node)}  # a cell without an end tag holds the next one
        if not is_start and node is pre:
            pieces[pre_start:] = ["".join(pieces[pre_start:]).strip("\n").translate(HIDE_SPACE)]
            pre = None
        if node.name in BLOCKS and not (node.name == "p" and _fills_cell(node)):
            pieces.append("\0")
        if is_start and node.name == "pre" and pre is None:
            pre, pre_start = node, len(pieces)
    return pieces


def _nodes(soup: Any) -> Iterator[tuple[Any, bool]]:
    """Each visible string, and each visible tag at its start (True) and its end. No recursion: pages nest deeply."""
    from bs4 import CData, NavigableString, Tag

    stack = [(soup, iter(soup.contents))]
    while stack:
        tag, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            yield tag, False
        elif not isinstance(child, Tag):
            if type(child) in (NavigableString, CData):  # the others are comments, declarations and the like
                yield child, True
        elif not _is_hidden(child):
            yield child, True
            stack.append((child, iter(child.contents)))
        else:
            stack.append((child, _after_implied_end(child)))


def _is_hidden(tag: Any) -> bool:
    """By its name, attribute or own style; a page hidden as a whole is one that a script shows."""
    if tag.name in UNSEEN:
        return True
    is_page = tag.name in ("html", "body")
    return not is_page and (tag.has_attr("hidden") or bool(UNSEEN_STYLE.search(str(tag.get("style", "")))))


def _after_implied_end(tag: Any) -> Iterator[Any]:
    """What the parser put into a tag without an end tag that browsers put after it: "<p>one<p>two"."""
    enders: set[str] = IMPLIED_ENDS.get(tag.name, set())
    return dropwhile(lambda child: child.name not in enders, iter(tag.contents))


def _fills_cell(tag: Any) -> bool:
    return tag.parent.name in CELLS and not tag.find_previous_sibling(True) and not tag.find_next_sibling(True)


def _title(soup: Any) -> str:
    title = soup.find("title")
    return "" if title is None or title.find_parent("svg") else " ".join(title.get_text().split())
