"""Documents read once and kept: recognised by their text, asked alone or several together."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homerlm.errors import CorruptFileError, InputError, MismatchError, QuotaError
from homerlm.index.index import Frame, Index
from homerlm.index.joined import join
from homerlm.model.identity import model_name
from homerlm.passes import Event
from homerlm.prompt import Text, token_ids
from homerlm.selection import Selection
from homerlm.store.opened import OpenIndexes
from homerlm.store.records import StoredDocument
from homerlm.store.shared import Shared
from homerlm.store.store import Store

if TYPE_CHECKING:
    from homerlm.engine import Engine
    from homerlm.homer import Homer

_log = logging.getLogger("homerlm.store")
OnEvent = Callable[[Event], None]
OPEN_INDEXES = 256  # they are windows on files: what they hold in memory is some bytes a token


class Documents:
    """The documents of a store as indexes of one model, for one event loop.

    lifetime: seconds from a document's last use until it is forgotten, None for never.
    """

    def __init__(self, homer: Homer, engine: Engine, store: Store, *, lifetime: float | None = None) -> None:
        self.homer, self.engine, self.store, self.lifetime = homer, engine, store, lifetime
        self._open = OpenIndexes(OPEN_INDEXES)
        self._reading: dict[tuple[str, str], Shared[tuple[Index, bool]]] = {}
        self._unwanted: set[tuple[str, str]] = set()  # of what is being read: texts of files that are gone
        self._maker: str | None = None
        self._abandoned: list[Path] = []

    @property
    def model(self) -> str:
        """The model's name, as the store lists it."""
        name = model_name(self.homer.model) or type(self.homer.model).__name__
        return Path(name).name if Path(name).is_absolute() else name

    async def index(self, owner: str, name: str, text: str, on_event: OnEvent | None = None) -> tuple[Index, bool]:
        """A text as an index with this document's name, and whether it was known, so that it was not read anew. A text
        that several ask for at once is read once, as long as one of them waits for it.

        Raises `QuotaError` where there is no room for it, and what the engine raises.
        """
        key = owner, sha256_of(text)
        shared = self._reading.get(key)
        follows = shared is not None
        if shared is None:

            def forget() -> None:
                if self._reading.get(key) is shared:
                    del self._reading[key]
                    self._unwanted.discard(key)

            shared = self._reading[key] = Shared(lambda tell: self._find_or_read(key, name, text, tell), forget)
        index, known = await shared.wait(on_event)
        return _named(index, [name]), known or follows

    async def collection(
        self, owner: str, names_and_texts: Iterable[tuple[str, str]], on_event: OnEvent | None = None
    ) -> Index:
        """Several texts as one index, to be asked together. Raises `InputError` for none, and as `index`."""
        return join([(await self.index(owner, name, text, on_event))[0] for name, text in names_and_texts])

    async def known(self, owner: str, sha256: str) -> Index | None:
        """The index of a text that was read before, by its SHA-256; None where it has to be read (again)."""
        stored = await self._found(owner, sha256)
        return None if stored is None else await self._opened(stored)

    async def length(self, owner: str, text: str) -> int:
        """Number of tokens of a text, which is cut into tokens only where it was not read before. Raises `InputError`
        for text that is none: lone surrogates."""
        stored = await self._found(owner, sha256_of(text))
        return await asyncio.to_thread(self.count, text) if stored is None else stored.tokens

    async def open(self, owner: str, id: str) -> Index | None:
        """A document's index; None where the owner has no such document, or its file was damaged. Raises
        `MismatchError` for a document that another model read."""
        stored = await asyncio.to_thread(self.store.document, owner, id)
        if stored is None:
            return None
        if stored.maker != await self.maker():
            raise MismatchError(
                f"document {id} was read by {stored.model}, or with other settings than those of {self.model}, which "
                "runs here: give its text again, or run the model that read it"
            )
        return await self._opened(stored)

    async def remove_file(self, owner: str, id: str) -> bool:
        """As `Store.remove_file`; what is being read of the file at the moment is not kept either."""
        texts = await asyncio.to_thread(self.store.own_texts, owner, id)
        read_now = {(owner, sha256) for sha256 in texts} & self._reading.keys()
        self._unwanted |= read_now
        removed = await asyncio.to_thread(self.store.remove_file, owner, id)
        if not removed:
            self._unwanted -= read_now
        return removed

    async def search(
        self, indexes: Sequence[Index], query: str, tokens: int, on_event: OnEvent | None = None
    ) -> Selection:
        """What of some documents a question needs, at most so many tokens, as `Homer.select`. Raises as that does."""
        return await self.engine.run(self.homer.finding(join(indexes), query, tokens=tokens), on_event)

    async def maker(self, on_event: OnEvent | None = None) -> str:
        """Fingerprint of the model and of all settings that an index depends on: those of an index of nothing."""
        if self._maker is None:
            nothing = await self.engine.run(self.homer.reading([]), on_event)
            self._maker = fingerprint(nothing.frame, nothing.keys.dtype)
        return self._maker

    def in_use(self, id: str) -> bool:
        """Whether a document's index is held by somebody at the moment."""
        return self._open.in_use(id)

    async def _found(self, owner: str, sha256: str) -> StoredDocument | None:
        return await asyncio.to_thread(self.store.find_document, owner, sha256, await self.maker())

    def count(self, text: Text | str) -> int:
        """Number of tokens of a text, cut into them."""
        assert self.homer.tokenizer is not None  # the engine refuses a Homer without one
        return token_ids(self.homer.tokenizer, text).shape[1]

    async def _find_or_read(self, key: tuple[str, str], name: str, text: str, tell: OnEvent) -> tuple[Index, bool]:
        owner, sha256 = key
        maker = await self.maker(tell)
        if (index := await self.known(owner, sha256)) is not None:
            return index, True
        path = self._temporary()
        index = await self._read(name, text, path, tell)
        facts = {"owner": owner, "name": name, "sha256": sha256, "model": self.model, "maker": maker}
        stored = await asyncio.to_thread(
            lambda: self.store.add_document(
                path, tokens=len(index), lifetime=self.lifetime, in_use=self.in_use, **facts
            )
        )
        if key in self._unwanted:
            await asyncio.to_thread(self.store.remove_document, owner, stored.id)
        else:
            self._open.put(stored.id, index)
        return index, False

    async def _read(self, name: str, text: str, path: Path, tell: OnEvent) -> Index:
        def steps() -> Generator[Event, None, Index]:
            try:
                return (yield from self.homer.reading([(name, text)], path=path))
            except BaseException:
                path.unlink(missing_ok=True)
                raise

        try:
            return await self.engine.run(steps(), tell)
        except BaseException as error:
            self._abandoned.append(path)  # its last step may be running still
            if isinstance(error.__cause__, OSError):  # the error's own words tell of the folder
                reason = error.__cause__.strerror
                raise QuotaError(f"the store's disk does not take it: {reason}; free space") from error
            raise

    async def _opened(self, stored: StoredDocument) -> Index | None:
        """Its index; None, and it is forgotten, where its file is damaged or has just gone."""
        index = self._open.get(stored.id)
        if index is None:
            path = await asyncio.to_thread(self.store.document_path, stored.id)
            try:
                index = await asyncio.to_thread(Index.load, path, self.homer.model, self.homer.tokenizer)
            except (CorruptFileError, InputError) as error:
                _log.warning("a document is forgotten, and read anew where it is given again: %s", error)
                await asyncio.to_thread(self.store.remove_document, stored.owner, stored.id)
                return None
            self._open.put(stored.id, index)
        await asyncio.to_thread(self.store.touch, stored, self.lifetime)
        return index

    def _temporary(self) -> Path:
        while self._abandoned:
            with suppress(OSError):
                self._abandoned.pop().unlink(missing_ok=True)
        return self.store.temporary()


def sha256_of(text: str) -> str:
    """Of a text's UTF-8. Raises `InputError` for text that is none: lone surrogates."""
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise InputError(f"the text holds characters that are none (lone surrogates): {error}") from error


def fingerprint(frame: Frame, dtype: Any) -> str:
    """Of all that two indexes need to have in common to be asked by the same model and to be joined."""
    facts = frame.to_dict()
    del facts["settings"]
    facts["model"] = {name: facts["model"][name] for name in ("architecture", "weights", "rope")}
    return hashlib.sha256(json.dumps([facts, str(dtype)], sort_keys=True).encode()).hexdigest()


def _named(index: Index, names: Sequence[str]) -> Index:
    return index if list(index.names) == list(names) else join([index], names)
