"""What the user sees of a conversation, besides the answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby

from rich.table import Table
from rich.text import Text

from homerlm.cli.console import err, out
from homerlm.conversation.answering import Usage
from homerlm.conversation.session import Added
from homerlm.conversation.transcript import Attached, Transcript
from homerlm.formatting import counted
from homerlm.selection import Excerpt


def usage_line(usage: Usage) -> str:
    """What an answer took."""
    known = f" ({usage.cached:,} known before)" if usage.cached else ""
    return (
        f"{usage.prompt:,} tokens{known}, {usage.read:,} read and {usage.kept:,} kept for this answer; "
        f"{usage.completion:,} new; {usage.seconds:.1f} s"
    )


def added_line(added: Added, seconds: float) -> str:
    name = added.attached.name
    if added.same_as is not None:
        return f"{name} has the text of {added.same_as}, which is here already"
    if added.known:
        return f"{name}: {added.tokens:,} tokens, read before"
    return f"{name}: {added.tokens:,} tokens read in {seconds:.1f} s ({added.tokens / max(seconds, 1e-9):,.0f}/s)"


def print_kept(passages: Iterable[Excerpt], names: set[str]) -> None:
    """The passages of each document, with their characters `[start, end)`. names: of the attached documents; others
    are parts of the conversation."""
    for name, own in groupby(passages, key=lambda one: one.document or ""):
        out.print(name if name in names else f"{name} (said in this conversation)", style="bold", markup=False)
        for one in own:
            out.print(f"  [{one.start:,}, {one.end:,})", style="cyan", end=" ", markup=False)
            out.print(" ".join(one.text.split()), markup=False)


def print_files(documents: Sequence[Attached], tokens: dict[str, int]) -> None:
    table = _table("name", "tokens", "file")
    for one in documents:
        amount = f"{tokens[one.name]:,}" if one.name in tokens else "not here"
        table.add_row(*map(Text, (one.name, amount, one.path)))
    out.print(table)


def print_conversations(found: Sequence[Transcript], current: str) -> None:
    """Numbered, the last one first."""
    table = _table("", "id", "last changed", "questions", "title")
    for number, one in enumerate(found, 1):
        when = datetime.fromtimestamp(one.changed).strftime("%Y-%m-%d %H:%M")
        title = f"{one.title} (this one)" if one.id == current else one.title
        table.add_row(*map(Text, (str(number), one.id, when, str(len(one.turns)), title)))
    out.print(table)


def print_resumed(earlier: Transcript) -> None:
    """Which conversation it is, and where it stopped."""
    last = earlier.turns[-1]
    questions = counted(len(earlier.turns), "question")
    err.print(f"{earlier.id}: {earlier.title} ({questions})", style="dim", markup=False)
    err.print(f"> {last.question}", markup=False, soft_wrap=True)
    err.print(last.answer, style="dim", markup=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in ("tokens", "questions") else "left", overflow="fold")
    return table
