"""Commands inside of a conversation: `/add report.pdf`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from homerlm.cli.chat import view
from homerlm.cli.chat.talk import Talk, expanded
from homerlm.cli.console import out
from homerlm.cli.errors import UsageError
from homerlm.cli.outputs import check_outputs
from homerlm.conversation.transcript import Transcript

_COMMAND = re.compile(r"/([\w-]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """run: is given the conversation and the command's words. ends: whether the conversation is left."""

    usage: str
    help: str
    run: Callable[[Talk, list[str]], None] = lambda _talk, _words: None
    ends: bool = False


def run(talk: Talk, line: str) -> bool:
    """Answer a question, or do what a command says; whether the conversation goes on. Raises `UsageError`."""
    found = _COMMAND.fullmatch(line.rstrip())
    if found is None:
        if line.strip():
            talk.ask(line.strip())
        return True
    command = COMMANDS.get(found[1].lower())
    if command is None:
        raise UsageError(f"/{found[1]} is no command: /help lists them (a question may begin with a space)")
    command.run(talk, _words(found[2] or ""))
    return not command.ends


def _words(text: str) -> list[str]:
    """A command's words as a shell has them; a path with spaces that exists is one."""
    text = text.strip()
    if text and Path(text).expanduser().exists():
        return [text]
    try:
        return shlex.split(text, posix=True)
    except ValueError as error:
        raise UsageError(f"{text} cannot be read as words: {error}") from error


def _add(talk: Talk, words: list[str]) -> None:
    talk.add(expanded(words))


def _files(talk: Talk, _words: list[str]) -> None:
    documents = talk.session.transcript.documents
    if documents:
        view.print_files(documents, talk.session.tokens)
    else:
        talk.say("No documents yet: /add FILE reads one.")


def _drop(talk: Talk, words: list[str]) -> None:
    if not words:
        raise UsageError("name a document: /drop NAME; /files lists them")
    for name in words:
        talk.session.drop(name)


def _kept(talk: Talk, words: list[str]) -> None:
    turns, kept = talk.session.transcript.turns, talk.session.kept
    if not turns or not turns[-1].kept:
        talk.say("The last answer was written from the conversation alone." if turns else "Nothing was asked yet.")
    elif not words:
        view.print_kept(turns[-1].kept, {one.name for one in talk.session.transcript.documents})
    elif words[0] == "--html" and len(words) - ("--force" in words) == 2:
        if kept is None:
            raise UsageError("the page can be written of an answer since the conversation was resumed: ask once more")
        path = Path(next(word for word in words[1:] if word != "--force")).expanduser()
        sources = [one.path for one in talk.session.transcript.documents]
        check_outputs({"--html": path}, sources, force="--force" in words)
        kept.write_page(path, turns[-1].answer)
        talk.say(f"{path} is written.")
    else:
        raise UsageError("/kept takes nothing, or --html FILE, and --force where that exists")


def _new(talk: Talk, _words: list[str]) -> None:
    talk.session.begin()
    count = len(talk.session.tokens)
    talk.say("A new conversation" + (f", about the same documents ({count:,})." if count else "."))


def _resume(talk: Talk, words: list[str]) -> None:
    if words:
        talk.resume(_chosen(talk, words))
        return
    found = talk.transcripts.all()
    if found:
        view.print_conversations(found, talk.session.transcript.id)
    else:
        talk.say("No conversations are kept yet.")


def _forget(talk: Talk, words: list[str]) -> None:
    gone = _chosen(talk, words)
    talk.transcripts.remove(gone.id)
    if gone.id == talk.session.transcript.id:
        talk.session.begin()
    talk.say(f"{gone.id} is forgotten; homer store ls lists what was read for it.")


def _chosen(talk: Talk, words: list[str]) -> Transcript:
    """By the number in the list, or by id."""
    if len(words) != 1:
        raise UsageError("name one conversation, by its number or id: /resume lists them")
    if words[0].isdecimal():
        found = talk.transcripts.all()
        if not 1 <= int(words[0]) <= len(found):
            raise UsageError(f"{words[0]} is no number of a conversation: /resume lists them")
        return found[int(words[0]) - 1]
    return talk.transcripts.load(words[0])


def _help(_talk: Talk, _words: list[str]) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        out.print(f"{command.usage:{width}}  {command.help}", markup=False)


COMMANDS = {
    "add": Command("/add FILE...", "read documents, folders or globs, to ask about them", _add),
    "files": Command("/files", "list the documents of this conversation", _files),
    "drop": Command("/drop NAME...", "ask about a document no longer", _drop),
    "kept": Command("/kept [--html FILE]", "show the passages that the last answer was written from", _kept),
    "new": Command("/new", "begin a new conversation about the same documents", _new),
    "resume": Command("/resume [ID]", "list earlier conversations, or go on with one", _resume),
    "forget": Command("/forget ID", "remove a conversation", _forget),
    "help": Command("/help", "list the commands", _help),
    "quit": Command("/quit", "leave", ends=True),
}
