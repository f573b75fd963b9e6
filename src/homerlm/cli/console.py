"""What the commands share on the terminal: progress, sizes, JSON."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from homerlm.passes import Event

OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # of printing: files have their own
_MAX_SKIPPED = 10  # lines that say what was left out

out = Console(highlight=False, soft_wrap=True, emoji=False)  # texts are shown as they are, ":key:" too
err = Console(stderr=True, highlight=False, emoji=False)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tokens/s" if speed else "", style="dim")


class ReadingProgress:
    """Observer of one compression: a bar over the document's tokens as the chunks are read, and their fate."""

    def __init__(self, progress: Progress, label: str) -> None:
        from homerlm.trace import LevelTrace

        self.trace = LevelTrace()
        self._progress, self._label = progress, label
        self._task = progress.add_task(label, total=None)

    def __call__(self, event: Event) -> None:
        self.trace(event)
        self._progress.update(
            self._task, description=event.note or self._label, total=event.total, completed=event.read
        )

    def stop(self) -> None:
        """Clear the bar, because something else is about to be printed."""
        self._progress.stop()


def status(label: str, quiet: bool = False) -> AbstractContextManager[Any]:
    """A spinner on stderr while something of unknown length is done; none if `quiet`."""
    return nullcontext() if quiet else err.status(label)


@contextmanager
def reading(label: str, quiet: bool = False) -> Iterator[ReadingProgress]:
    """A progress bar on stderr while a document is read; nothing is drawn if `quiet` or not on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), _Speed())
    with Progress(
        *columns, TimeRemainingColumn(), console=err, transient=True, disable=quiet or not err.is_terminal
    ) as progress:
        yield ReadingProgress(progress, label)


@contextmanager
def written(before: Callable[[], None] | None = None) -> Iterator[Callable[[str], None]]:
    """A function that prints an answer piece by piece, after it has called `before`. The line ends with the block, also
    where the answer breaks off."""
    shown: list[str] = []

    def show(piece: str) -> None:
        if before is not None:
            before()
        shown.append(piece)
        out.print(piece, end="", markup=False)

    try:
        yield show
    finally:
        if shown:
            out.print()


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr over many pieces of work, told with what is at work, how many are done and how many there are."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda label, done, total: bar.update(task, description=label, completed=done, total=total)


def say_skipped(lines: list[str]) -> None:
    """What was left out of a folder, on stderr: the first of many, and how many more there are."""
    more = len(lines) - _MAX_SKIPPED
    shown = [*lines[:_MAX_SKIPPED], f"{more:,} more (all of them with --json)"] if more > 0 else lines
    for line in shown:
        err.print(f"skipped {line}", style="dim", markup=False, soft_wrap=True)


def note_command(folder: Path) -> None:
    """Keep the command beside its records: a number comes with its command."""
    line = "homer " + shlex.join(sys.argv[1:])
    path = folder / "command.txt"
    known = path.read_text().splitlines() if path.exists() else []
    if line not in known:
        path.write_text("\n".join([*known, line]) + "\n")


def drop_output(error: OSError) -> None:
    """Print no more, since it cannot be written; stderr says why, unless the reader has left, as head does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
    if error.errno != errno.EPIPE:
        err.print(f"[bold red]Error:[/] standard output cannot be written: {error.strerror}", soft_wrap=True)


def print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False))
