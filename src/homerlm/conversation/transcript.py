"""What was said in a conversation, kept in a folder: one file each, its owner's alone."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from homerlm.errors import CorruptFileError, InputError
from homerlm.selection import Excerpt
from homerlm.storage import replacing
from homerlm.writing import Finish

VERSION = 1
SUFFIX = ".json"
TITLE_LEN = 60
End = Finish | Literal["stopped"]


@dataclass(frozen=True)
class Attached:
    """A document of a conversation: what it is called there, where it was read, and its text's SHA-256."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Turn:
    """A question and its answer. end: how the answer ended, "stopped" where somebody stopped it; kept: the passages
    that it was written from."""

    question: str
    answer: str
    end: End
    kept: tuple[Excerpt, ...] = ()


@dataclass
class Transcript:
    """A conversation. created, changed: seconds since 1970."""

    id: str = field(default_factory=lambda: f"chat-{secrets.token_hex(4)}")
    created: float = field(default_factory=time.time)
    changed: float = 0.0
    documents: list[Attached] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The beginning of the first question, on one line."""
        line = " ".join(self.turns[0].question.split()) if self.turns else ""
        return line if len(line) <= TITLE_LEN else line[: TITLE_LEN - 1].rstrip() + "…"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From JSON values. Raises `KeyError`, `TypeError` or `ValueError` for others."""
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, this homerlm knows {VERSION}")
        turns = [Turn(**(turn | {"kept": tuple(Excerpt(**one) for one in turn["kept"])})) for turn in values["turns"]]
        documents = [Attached(**one) for one in values["documents"]]
        return cls(str(values["id"]), float(values["created"]), float(values["changed"]), documents, turns)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"version": VERSION} | asdict(self)


class Transcripts:
    """The conversations in a folder, which is made when the first one is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, transcript: Transcript) -> None:
        """Keep a conversation as it is now, complete or not at all; one without turns is not kept. Raises
        `InputError`."""
        if not transcript.turns:
            return
        transcript.changed = time.time()
        self.make_folder()
        text = json.dumps(transcript.to_dict(), ensure_ascii=False)
        with replacing(self._path(transcript.id), private=True) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogatepass")

    def make_folder(self) -> None:
        """Raises `InputError`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made: {error.strerror}; choose another store") from error

    def all(self) -> list[Transcript]:
        """Those that can be read, the one that was changed last first."""
        found = []
        for path in self._paths():
            try:
                found.append(_load(path))
            except (CorruptFileError, InputError):
                continue
        return sorted(found, key=lambda one: one.changed, reverse=True)

    def load(self, id: str) -> Transcript:
        """The conversation of an id, or of its beginning where no other has the same. Raises `InputError` where there
        is none or more than one, `CorruptFileError` for a damaged file."""
        ids = [path.stem for path in self._paths()]
        found = [one for one in ids if one == id] or [one for one in ids if id and one.startswith(id)]
        if len(found) != 1:
            what = f"is the beginning of {len(found)} conversations" if found else "is no conversation that is kept"
            raise InputError(f"{id} {what}: /resume alone lists them")
        return _load(self._path(found[0]))

    def remove(self, id: str) -> None:
        self._path(id).unlink(missing_ok=True)

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}{SUFFIX}"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"chat-*{SUFFIX}"))


def _load(path: Path) -> Transcript:
    try:
        return Transcript.from_dict(json.loads(path.read_text(encoding="utf-8", errors="surrogatepass")))
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} is no conversation of ours, or damaged: {error!r}; remove it") from error
