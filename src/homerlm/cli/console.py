"""What the commands share on the terminal: progress, sizes, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from homerlm.merging import Event

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tokens/s" if speed else "", style="dim")


class ReadingProgress:
    """Observer of one compression: a bar over the document's tokens as the chunks are read, and their fate."""

    def __init__(self, progress: Progress, label: str) -> None:
        from homerlm.kept import LevelTrace

        self.trace = LevelTrace()
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def __call__(self, event: Event) -> None:
        self.trace(event)
        if event.node.height == 0 and event.look == 1:
            self._progress.update(self._task, total=event.schedule.context_len)
            self._progress.advance(self._task, event.node.context_stop - event.node.context_start)

    def stop(self) -> None:
        """Clear the bar, because something else is about to be printed."""
        self._progress.stop()


@contextmanager
def reading(label: str, quiet: bool = False) -> Iterator[ReadingProgress]:
    """A progress bar on stderr while a document is read; nothing is drawn if `quiet` or not on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), _Speed())
    with Progress(
        *columns, TimeRemainingColumn(), console=err, transient=True, disable=quiet or not err.is_terminal
    ) as progress:
        yield ReadingProgress(progress, label)


def print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False))
