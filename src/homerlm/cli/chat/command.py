"""`homer chat`: the command and its options."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from homerlm.cli import inputs
from homerlm.cli.ask import open_homer
from homerlm.cli.console import err
from homerlm.cli.devices import DType, check_device
from homerlm.cli.errors import UsageError, report
from homerlm.cli.options import Device, Model, Numbers, Password, Rope, with_config
from homerlm.cli.serve import check_installed
from homerlm.config import Config, MergeConfig
from homerlm.errors import HomerError

if TYPE_CHECKING:
    from homerlm.cli.chat.talk import Talk
    from homerlm.conversation.transcript import Transcript, Transcripts
    from homerlm.documents import Inputs
    from homerlm.server.settings import Settings
    from homerlm.writing import Writing

T = TypeVar("T")
EXAMPLES = """
Examples:

  homer chat

  homer chat report.pdf notes/ --model Qwen/Qwen3-4B --device cuda

  homer chat --resume last

  printf 'Who signed it?\\nWhen?\\n' | homer chat contract.pdf --quiet
"""
FOLDER = "conversations"  # in the store's
HISTORY = "history"
LAST = "last"


@with_config
def chat(
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Documents, folders or globs to talk about.", show_default=False),
    ] = None,
    *,
    model: Model = None,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    password: Password = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder for documents and conversations; default the one that homer serve uses."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with an earlier conversation, by its id, or the last one.")
    ] = None,
    system: Annotated[str, typer.Option(help="What stands in front of every conversation.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed for temperatures above 0.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answers and errors, nothing else.")] = False,
    settings: Config,
) -> None:
    """Talk with a model about documents of any length. What was read is kept, and so is what was said: nothing of it
    leaves this machine.

    Without a terminal every line of standard input is a question or a command, and the first error ends it.
    """
    _check_installed()
    if isinstance(settings, MergeConfig):
        raise UsageError("--preset paper: the paper's preset keeps no keys to find tokens by: leave it out")
    from homerlm.conversation.transcript import Transcripts
    from homerlm.index.buckets import is_url
    from homerlm.server.settings import Settings
    from homerlm.writing import Writing

    kept = Settings.of(store=store)
    if is_url(kept.folder):
        raise UsageError(f"{kept.folder}: homer chat keeps what is said on this machine: give a folder with --store")
    transcripts = Transcripts(Path(kept.folder) / FOLDER)
    earlier = _earlier(transcripts, resume)
    if "-" in (given or []):
        raise UsageError("- is standard input, which the questions come from: name the documents' files")
    found = inputs.expand(given) if given else None
    check_device(device)
    writing = Writing(max_new_tokens, temperature, seed=seed)
    homer = open_homer(model, rope, None, settings, device=device, dtype=dtype, quiet=quiet)
    _run(homer, kept, transcripts, writing, system, earlier, found, password, quiet=quiet)


def _check_installed() -> None:
    """Raise `UsageError` where the extra is missing."""
    check_installed()
    if importlib.util.find_spec("prompt_toolkit") is None:
        raise UsageError('homer chat needs prompt_toolkit: pip install "homerlm[server]"')


def _earlier(transcripts: Transcripts, resume: str | None) -> Transcript | None:
    """The conversation to go on with. Raises `InputError`."""
    if resume != LAST:
        return None if resume is None else transcripts.load(resume)
    found = transcripts.all()
    if not found:
        raise UsageError(f"--resume {LAST}: no conversations are kept in {transcripts.folder} yet")
    return found[0]


def _run(
    homer: Any,
    settings: Settings,
    transcripts: Transcripts,
    writing: Writing,
    system: str,
    earlier: Transcript | None,
    found: Inputs | None,
    password: str | None,
    *,
    quiet: bool,
) -> None:
    from homerlm.cli.chat.talk import Talk
    from homerlm.conversation.session import Session
    from homerlm.engine import Engine
    from homerlm.server.keys import LOCAL
    from homerlm.store.documents import Documents

    store = settings.open_store()
    engine = Engine(homer)
    documents = Documents(homer, engine, store, lifetime=settings.lifetime)

    def make(transcript: Transcript | None) -> Session:
        return Session(documents, LOCAL, transcripts, writing, system=system, transcript=transcript)

    interactive = _at_terminal()
    with asyncio.Runner() as runner, _signals(interactive):
        try:
            talk = Talk(runner, make, transcripts, password=password, quiet=quiet)
            _talk(talk, earlier, found, interactive)
        finally:
            runner.run(engine.close(0))
            store.close()


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _talk(talk: Talk, earlier: Transcript | None, found: Inputs | None, interactive: bool) -> None:
    """From the first document to the last line."""
    from homerlm.cli.chat import commands, terminal

    if earlier is not None:
        _guarded(lambda: talk.resume(earlier), interactive)
    if found is not None:
        _guarded(lambda: talk.add(found), interactive)
    if interactive:
        talk.transcripts.make_folder()
        talk.say("Ask, or /help for what else there is; Ctrl-D leaves.")
    for line in terminal.lines(talk, talk.transcripts.folder / HISTORY) if interactive else terminal.piped():
        if _guarded(partial(commands.run, talk, line), interactive) is False:
            return


def _guarded(step: Callable[[], T], interactive: bool) -> T | None:
    """The value of a step; a user at a terminal is told of its error, or that it was stopped, and may go on."""
    try:
        return step()
    except KeyboardInterrupt:
        if not interactive:
            raise
        err.print("Stopped.", style="dim")
    except HomerError as error:
        if not interactive:
            raise
        report(error, as_json=False)
    return None


@contextmanager
def _signals(interactive: bool) -> Iterator[None]:
    """At a terminal Ctrl-C stops what is done at the moment, as often as it is needed; a signal to end ends."""
    if not interactive:
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
