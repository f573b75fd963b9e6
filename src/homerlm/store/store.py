"""A folder or bucket of documents, uploaded files and vector stores.

What is listed is complete: a file is written aside and put in place in the transaction that lists it, or, in a bucket,
before it; what a killed process leaves is cleared at a later start.
"""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from homerlm.errors import CorruptFileError
from homerlm.index.buckets import Place, is_url
from homerlm.store import space
from homerlm.store.bucket import BucketFiles
from homerlm.store.database import Database, page
from homerlm.store.folder import KINDS, Folder
from homerlm.store.log import Log, LoggedDatabase
from homerlm.store.records import StoredDocument, StoredFile
from homerlm.store.space import InUse, Space
from homerlm.store.vector_stores import VectorStores

_ALIVE = "(expires IS NULL OR expires > ?)"
_THEIRS = "id = ? AND (? IS NULL OR owner = ?)"  # one of an owner's, or, for None, of anybody's


@dataclass(frozen=True)
class Cleared:
    """What `Store.gc` removed: how many documents and files, and bytes of both."""

    documents: int
    files: int
    bytes: int


class Store:
    """A folder with a database and the files that it knows, or a bucket (s3://bucket/name) with a log instead. Any
    number of threads, processes and, of a bucket, machines may use it. Owners find what is theirs, and nothing else.

    max_bytes: of all files and documents; owner_bytes: of one owner's. Above them the documents that were used longest
    ago go, since they can be read again; uploaded files stay. on_network: as of `Database`. Raises `InputError` for a
    folder or bucket that cannot be used, `ConfigError` for a bucket that cannot keep a log, `CorruptFileError` for a
    database that is damaged, or lost where there are files; later, of a bucket, `Unreachable`.
    """

    def __init__(self, folder: Place, *, max_bytes: int, owner_bytes: int, on_network: bool = False) -> None:
        self.folder = folder if is_url(folder) else Path(folder)
        self._space = Space(max_bytes, owner_bytes)
        self._files: Folder | BucketFiles
        self._database: Database
        if is_url(folder):
            self._files = BucketFiles(str(folder))
            self._database = LoggedDatabase(str(folder), self._check_new)
        else:
            self._files = Folder(Path(folder))
            self._database = Database(Path(folder) / "store.sqlite", self._check_new, on_network=on_network)
        self.vector_stores = VectorStores(self._database)
        self.clear_orphans()

    def close(self) -> None:
        """Give the database back."""
        self._database.close()
        self._files.close()

    def temporary(self) -> Path:
        """A new name on this machine, for a file that is being written."""
        return self._files.temporary()

    def find_document(self, owner: str, sha256: str, maker: str) -> StoredDocument | None:
        """The document of a text, if it was read by this maker."""
        where = f"owner = ? AND sha256 = ? AND maker = ? AND {_ALIVE}"
        return self._document(where, owner, sha256, maker, time.time())

    def document(self, owner: str, id: str) -> StoredDocument | None:
        """An owner's document, of whichever model; None where it is another's, as where there is none."""
        return self._document(f"owner = ? AND id = ? AND {_ALIVE}", owner, id, time.time())

    def documents(self, owner: str | None = None) -> list[StoredDocument]:
        """An owner's documents, or everybody's, in the order in which they were read."""
        sql = f"SELECT * FROM documents WHERE (? IS NULL OR owner = ?) AND {_ALIVE} ORDER BY number"
        return [StoredDocument.of(row) for row in self._database.rows(sql, owner, owner, time.time())]

    def document_path(self, id: str) -> Path:
        """A document's index on this machine; nothing is there where it has just gone."""
        return self._files.of("documents", id)

    def add_document(
        self,
        temporary: Path,
        *,
        owner: str,
        name: str,
        sha256: str,
        model: str,
        maker: str,
        tokens: int,
        lifetime: float | None = None,
        in_use: InUse = lambda _: False,
    ) -> StoredDocument:
        """Keep an index that was written to a temporary name, in place of one of the same text and maker. lifetime: in
        seconds; in_use: which documents must not make room for it. Raises `QuotaError`; the file is gone in any case.
        """
        now, number = time.time(), temporary.stat().st_size
        new = StoredDocument(
            _id("doc"), owner, name, sha256, model, maker, number, tokens, now, now, _end(now, lifetime)
        )
        replaced = "owner = ? AND sha256 = ? AND maker = ?", (owner, sha256, maker)
        self._add("documents", temporary, new, in_use, replaced)
        return new

    def touch(self, document: StoredDocument, lifetime: float | None = None) -> None:
        """Note that a document is used now, unless that has just been noted; it lives for so many seconds from now
        on."""
        now = time.time()
        if 0 <= now - document.used < min(self._database.used_seconds, (lifetime or math.inf) / 10):
            return
        values = now, _end(now, lifetime), document.id
        sql = "UPDATE documents SET used = ?, expires = ? WHERE id = ?"
        self._database.write(lambda connection: connection.execute(sql, values))

    def remove_document(self, owner: str | None, id: str) -> bool:
        """Whether there was such a document of the owner, or, for None, of anybody."""
        gone = self._database.write(partial(space.delete_documents, where=_THEIRS, values=(id, owner, owner)))
        self._remove("documents", gone)
        return bool(gone)

    def add_file(
        self,
        temporary: Path,
        *,
        owner: str,
        name: str,
        purpose: str,
        lifetime: float | None = None,
        in_use: InUse = lambda _: False,
    ) -> StoredFile:
        """Keep an uploaded file; arguments as of `add_document`."""
        now, number = time.time(), temporary.stat().st_size
        new = StoredFile(_id("file"), owner, name, purpose, number, now, _end(now, lifetime))
        self._add("files", temporary, new, in_use)
        return new

    def file(self, owner: str, id: str) -> StoredFile | None:
        """An owner's file; None where it is another's, as where there is none."""
        sql = f"SELECT * FROM files WHERE owner = ? AND id = ? AND {_ALIVE}"
        row = self._database.row(sql, owner, id, time.time())
        return None if row is None else StoredFile.of(row)

    def files(
        self,
        owner: str,
        *,
        purpose: str | None = None,
        limit: int = 10_000,
        descending: bool = True,
        after: str | None = None,
    ) -> tuple[list[StoredFile], bool]:
        """A page of an owner's files, and whether others follow."""
        where, values = f"owner = ? AND {_ALIVE}", [owner, time.time()]
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, purpose]
        sql, given = page("files", where, values, limit=limit, descending=descending, after=after, before=None)
        rows = self._database.rows(sql, *given)
        return [StoredFile.of(row) for row in rows[:limit]], len(rows) > limit

    def all_files(self) -> list[StoredFile]:
        """Everybody's files, in the order in which they came."""
        sql = f"SELECT * FROM files WHERE {_ALIVE} ORDER BY number"
        return [StoredFile.of(row) for row in self._database.rows(sql, time.time())]

    def file_path(self, id: str) -> Path:
        """As `document_path`, of a file."""
        return self._files.of("files", id)

    def note_text(self, file: str, sha256: str) -> None:
        """Remember what a file says, so that what is read of it goes with it."""
        self._database.write(partial(space.note_text, file=file, sha256=sha256))

    def forget_text(self, owner: str, sha256: str) -> None:
        """Remove what was read of a text that no file of its owner's says: its file went meanwhile."""
        self._remove("documents", self._database.write(partial(space.forget_text, owner=owner, sha256=sha256)))

    def own_texts(self, owner: str, file: str) -> list[str]:
        """The SHA-256 of each text that was read of a file and of none else of its owner's: what goes with it."""
        return self._database.write(partial(space.own_texts, file=file, owner=owner))

    def remove_file(self, owner: str | None, id: str) -> bool:
        """Take a file, and what was read of it, out of the store and out of every vector store. Whether there was one
        of the owner, or, for None, of anybody."""
        taken = partial(space.delete_files, where=_THEIRS, values=(id, owner, owner))
        gone, documents = self._database.write(taken)
        self._remove("files", gone)
        self._remove("documents", documents)
        return bool(gone)

    def usage(self, owner: str | None = None) -> int:
        """Bytes of an owner's files and documents, or of everybody's."""
        return self._database.write(partial(space.usage, owner=owner))

    def gc(self, in_use: InUse = lambda _: False) -> Cleared:
        """Remove what has expired, what is above the byte limit, and files that nobody knows."""
        before, now = self.usage(), time.time()

        def clear(connection: Connection) -> tuple[list[str], list[str]]:
            files, documents = space.delete_files(connection, "expires <= ?", (now,))
            documents += space.delete_documents(connection, "expires <= ?", (now,))
            return files, documents + space.evict(connection, None, self._space.max_bytes, in_use)

        files, documents = self._database.write(clear)
        self._remove("files", files)
        self._remove("documents", documents)
        self.vector_stores.remove_expired()
        self.clear_orphans()
        return Cleared(len(documents), len(files), before - self.usage())

    def clear_orphans(self) -> None:
        """Remove files that are not listed, and take files that are not there off the list: what is left of processes
        that were killed."""
        self._files.clear_incoming()

        def clear(connection: Connection) -> None:  # nothing is put in place meanwhile
            for kind in KINDS:
                listed = {row["id"] for row in connection.execute(f"SELECT id FROM {kind}")}
                there = self._files.ids(kind)
                connection.executemany(f"DELETE FROM {kind} WHERE id = ?", [(id,) for id in listed - there])
                self._remove(kind, self._files.left_over(kind, there - listed))

        self._database.write(clear)

    def _check_new(self) -> None:
        """Refuse files that a lost database has listed: they would be cleared away as nobody's."""
        if any(self._files):
            what = "log and snapshots in it are" if is_url(self.folder) else "store.sqlite in it is"
            raise CorruptFileError(
                f"{self.folder} holds files, but {what} empty or gone: restore a copy of it, or move the rest away to "
                "begin anew"
            )

    def _add(
        self,
        kind: str,
        temporary: Path,
        new: StoredDocument | StoredFile,
        in_use: InUse,
        replaced: tuple[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Put a file in its place and its row into the table of its kind, instead of the `replaced` documents, if any
        (a condition and its values)."""

        def add(connection: Connection) -> list[str]:
            gone = [] if replaced is None else space.delete_documents(connection, *replaced)
            gone += self._space.make_room(connection, new.owner, new.bytes, in_use)
            place()
            _insert(connection, kind, asdict(new))
            return gone

        try:
            with self._files.placing(temporary, kind, new.id) as place:
                gone = self._database.write(add)
        finally:
            temporary.unlink(missing_ok=True)
        self._remove("documents", gone)

    def _document(self, where: str, *values: Any) -> StoredDocument | None:
        row = self._database.row(f"SELECT * FROM documents WHERE {where}", *values)
        return None if row is None else StoredDocument.of(row)

    def _remove(self, kind: str, ids: list[str]) -> None:
        for id in ids:
            self._files.remove(kind, id)


def is_store(place: Place) -> bool:
    """Whether a folder or bucket has a store. Raises `ConfigError` and `Unreachable`."""
    return Log(str(place)).exists() if is_url(place) else (Path(place) / "store.sqlite").is_file()


def _id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def _end(now: float, lifetime: float | None) -> float | None:
    return None if lifetime is None else now + lifetime


def _insert(connection: Connection, table: str, values: dict[str, Any]) -> None:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))
