"""The line that the user writes on: several lines, earlier ones, completion of commands, files and names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completion, PathCompleter, WordCompleter
from prompt_toolkit.completion import Completer as AnyCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from homerlm.cli.chat.commands import COMMANDS
from homerlm.cli.chat.talk import Talk
from homerlm.cli.console import err

EXPLAINED = "Ctrl-C stops an answer, or empties the line; Ctrl-D or /quit leaves."
_WITH_FILES = ("/add", "/kept --html")


def piped() -> Iterator[str]:
    """The lines of standard input."""
    for line in sys.stdin or ():
        yield line.rstrip("\r\n")


def lines(talk: Talk, history: Path) -> Iterator[str]:
    """What the user writes at the prompt, until Ctrl-D. history: file of earlier lines, its owner's alone."""
    os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
    prompt: PromptSession[str] = PromptSession(
        "> ",
        history=FileHistory(str(history)),
        multiline=True,
        prompt_continuation="  ",
        completer=Completer(talk),
        complete_while_typing=False,
        key_bindings=_keys(),
        bottom_toolbar=lambda: toolbar(talk),
    )
    while True:
        try:
            yield prompt.prompt()
        except EOFError:
            return
        except KeyboardInterrupt:  # from outside: the key is bound
            _explain()


def toolbar(talk: Talk) -> str:
    """What the next question is about."""
    names = list(talk.session.tokens)
    about = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
    return f" {about or 'no documents'} | Alt-Enter begins a line | /help"


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(_explain)

    return keys


def _explain() -> None:
    err.print(EXPLAINED, style="dim")


class Completer(AnyCompleter):
    """Commands, then what each of them takes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not space:
            names = [f"/{name}" for name in COMMANDS] if text.startswith("/") else []
            return self._from(names, document, complete_event)
        for start in _WITH_FILES:
            if text.startswith(f"{start} "):
                path = text.removeprefix(f"{start} ").lstrip()
                return self._paths.get_completions(Document(path), complete_event)
        return self._from(self._names(command), Document(rest), complete_event)

    def _names(self, command: str) -> list[str]:
        found: dict[str, Callable[[], list[str]]] = {
            "/drop": lambda: [one.name for one in self._talk.session.transcript.documents],
            "/resume": lambda: [one.id for one in self._talk.transcripts.all()],
            "/forget": lambda: [one.id for one in self._talk.transcripts.all()],
            "/kept": lambda: ["--html"],
        }
        return found.get(command, list)()

    def _from(self, names: list[str], document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        return WordCompleter(names, WORD=True).get_completions(document, complete_event)
