"""A conversation with a user: each line is a question or a command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from homerlm.answer import Prepared
from homerlm.cli import inputs
from homerlm.cli.ask import CUT_OFF
from homerlm.cli.chat import view
from homerlm.cli.console import ReadingProgress, err, reading, say_skipped, written
from homerlm.cli.errors import UsageError
from homerlm.conversation.answering import Progress, Usage
from homerlm.conversation.session import Session
from homerlm.conversation.transcript import Attached, Transcript, Transcripts
from homerlm.documents import Inputs, read_document
from homerlm.errors import DocumentError
from homerlm.passes import Event
from homerlm.store.documents import sha256_of
from homerlm.writing import Piece

T = TypeVar("T")


class Talk:
    """What the commands act on. make: a session for an earlier conversation, or, for None, a new one; password: of
    encrypted PDFs."""

    def __init__(
        self,
        runner: asyncio.Runner,
        make: Callable[[Transcript | None], Session],
        transcripts: Transcripts,
        *,
        password: str | None,
        quiet: bool,
    ) -> None:
        self._runner, self._make, self._password, self.quiet = runner, make, password, quiet
        self.transcripts = transcripts
        self.session = make(None)

    def ask(self, question: str) -> None:
        """Print the answer as it is written. `KeyboardInterrupt` stops it, and what is there stays."""
        self._wait(self._ask(question))

    def add(self, found: Inputs) -> None:
        """Read documents and have them in the conversation. Raises `DocumentError` for a file that was named itself and
        cannot be read; the others are said."""
        skipped = inputs.described(found)
        for path in found.files:
            try:
                text = self._wait(asyncio.to_thread(self._text, path))
            except DocumentError as error:
                if path not in found.found:
                    raise
                skipped.append(str(error))
            else:
                self._read(self._name(path), path, text)
        if not self.quiet:
            say_skipped(skipped)

    def resume(self, earlier: Transcript) -> None:
        """Go on with an earlier conversation, its documents as they were, or, where they have to be read again, as they
        are now."""
        self.session = self._make(earlier)
        if not self.quiet:
            view.print_resumed(earlier)
        for attached in list(earlier.documents):
            if not self._wait(self.session.restore(attached)):
                self._read_again(attached)

    def say(self, text: str) -> None:
        """A remark that is no answer."""
        if not self.quiet:
            err.print(text, style="dim", markup=False, soft_wrap=True)

    async def _ask(self, question: str) -> None:
        cut_off = False
        label = "Finding what the question needs" if self.session.tokens else "Reading"
        with reading(label, quiet=self.quiet) as bar, written(before=bar.stop) as show:
            async with aclosing(self.session.ask(question, bar)) as steps:
                async for step in steps:
                    if isinstance(step, Progress):
                        bar(Event(step.processed, step.total, note=step.note))
                    elif isinstance(step, Prepared):
                        bar.stop()
                    elif isinstance(step, Piece):
                        cut_off = step.finish == "length"
                        if step.text:
                            show(step.text)
                    elif isinstance(step, Usage):
                        usage = step
        self.say(view.usage_line(usage))
        if cut_off:
            self.say(CUT_OFF)

    def _read(self, name: str, path: Path, text: str) -> None:
        started = time.perf_counter()
        with reading(f"Reading {name}", quiet=self.quiet) as bar:
            added = self._wait(self._added(name, path, text, bar))
        self.say(view.added_line(added, time.perf_counter() - started))

    async def _added(self, name: str, path: Path, text: str, bar: ReadingProgress) -> Any:
        return await self.session.add(name, str(path.absolute()), text, bar)

    def _read_again(self, attached: Attached) -> None:
        path = Path(attached.path)
        try:
            text = self._wait(asyncio.to_thread(self._text, path))
        except DocumentError as error:
            self.say(f"{attached.name} is left out, what was read of it is no longer kept: {error}")
        else:
            self._read(attached.name, path, text)
            if sha256_of(text) != attached.sha256:
                self.say(f"{attached.name} has changed since: it is read as it is now")

    def _text(self, path: Path) -> str:
        return read_document(path, password=self._password if path.suffix.lower() == ".pdf" else None)

    def _name(self, path: Path) -> str:
        """The file's name, with its folders where another document has that name."""
        whole = str(path.absolute())
        taken = {one.name for one in self.session.transcript.documents if one.path != whole}
        short = inputs.names([path])[0]
        return whole if short in taken else short

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


def expanded(words: list[str]) -> Inputs:
    """The files that a command's words stand for. Raises `DocumentError` and `UsageError`."""
    if not words or "-" in words:
        raise UsageError("name a file, a folder or a pattern: /add report.pdf")
    return inputs.expand([str(Path(word).expanduser()) for word in words])
