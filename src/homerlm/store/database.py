"""The store's SQLite database: its tables, and one way to read and to write them."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from homerlm.errors import CorruptFileError, InputError, MismatchError, QuotaError

T = TypeVar("T")
VERSION = 1
IN_MEMORY = ":memory:"
WAIT_SECONDS = 30.0  # for another process that writes
TABLES = """
CREATE TABLE documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    model TEXT NOT NULL,
    maker TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    expires REAL,
    UNIQUE (owner, sha256, maker)
);
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created REAL NOT NULL,
    expires REAL
);
CREATE TABLE vector_stores (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    metadata TEXT NOT NULL,
    created REAL NOT NULL,
    active REAL NOT NULL,
    days INTEGER
);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    vector_store TEXT NOT NULL REFERENCES vector_stores (id) ON DELETE CASCADE,
    created REAL NOT NULL,
    cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE members (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    vector_store TEXT NOT NULL REFERENCES vector_stores (id) ON DELETE CASCADE,
    id TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    batch TEXT REFERENCES batches (id) ON DELETE SET NULL,
    attributes TEXT NOT NULL,
    chunking TEXT NOT NULL,
    status TEXT NOT NULL,
    error_code TEXT,
    error TEXT,
    sha256 TEXT,
    bytes INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    UNIQUE (vector_store, id)
);
CREATE INDEX documents_used ON documents (used);
CREATE INDEX members_file ON members (id);
CREATE INDEX members_batch ON members (batch);
"""


CLAIMS = """
CREATE TABLE IF NOT EXISTS claims (
    vector_store TEXT NOT NULL,
    id TEXT NOT NULL,
    holder TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (vector_store, id)
)
"""


TEXTS = """
CREATE TABLE IF NOT EXISTS texts (
    file TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (file, sha256)
)
"""
TEXTS_OF_MEMBERS = "INSERT OR IGNORE INTO texts SELECT id, sha256 FROM members WHERE sha256 IS NOT NULL"


class Database:
    """A file that any number of processes use, by one connection, which threads take in turns. Raises
    `CorruptFileError` for a damaged file, `MismatchError` for one of a newer homerlm, `InputError` for one that cannot
    be opened; later `QuotaError` where the disk is full.

    check_new: is called before the tables of a new one are made, while nobody else writes; what it raises prevents
    that; on_network: the folder is a network file system's, which has no memory that machines share: no write-ahead
    log then, and all who use the folder have to say so.
    """

    connection_type: ClassVar[type[sqlite3.Connection]] = sqlite3.Connection
    used_seconds: ClassVar[float] = 0.0  # to which a document's last use is noted

    def __init__(
        self, path: Path | str, check_new: Callable[[], None] = lambda: None, *, on_network: bool = False
    ) -> None:
        self._path, self._check_new, self._journal = path, check_new, "DELETE" if on_network else "WAL"
        self._lock = threading.RLock()
        if path != IN_MEMORY:
            with suppress(OSError):  # SQLite says it better
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # its own files beside it take this mode
        try:
            self._connection = sqlite3.connect(
                path,
                timeout=WAIT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                factory=self.connection_type,
            )
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be opened: {error}; check the folder and its permissions") from error
        try:
            self._prepare()
        except QuotaError as error:
            self._connection.close()
            raise InputError(f"{path} cannot be opened: {error}") from error
        except BaseException:
            self._connection.close()
            raise

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What work returns: a transaction that no other process writes beside; all of it is kept, or on an error
        nothing. Work may be run again where another machine was first, so nothing but its last run may count."""
        with self._lock, self._explained(), self._transaction():
            return work(self._connection)

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """The rows of a query, by column."""
        with self._lock, self._explained():
            return [dict(row) for row in self._connection.execute(sql, values)]

    def row(self, sql: str, *values: Any) -> dict[str, Any] | None:
        """The first row of a query."""
        found = self.rows(sql, *values)
        return found[0] if found else None

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _prepare(self) -> None:
        with self._explained():
            self._connection.row_factory = sqlite3.Row
            self._connection.execute(f"PRAGMA journal_mode = {self._journal}")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            damage = [row[0] for row in self._connection.execute("PRAGMA quick_check(1)")]
            if damage != ["ok"]:
                raise self._damaged(damage[0])
            with self._transaction():
                self._make_tables(self._connection)

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        version = self._check_version(connection)
        connection.execute(CLAIMS)
        connection.execute(TEXTS)
        if version == VERSION:
            connection.execute(TEXTS_OF_MEMBERS)  # a store may be older than the table
            return
        self._check_new()
        for statement in TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")

    def _check_version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise MismatchError(f"{self._path} has version {version}, this homerlm knows {VERSION}: upgrade homerlm")
        return version

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What SQLite raises, as an error of ours. Clients are told of one that can pass, and so not of the folder."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise QuotaError(f"the store cannot be written to: {error}; free space, or try again later") from error
        except UnicodeEncodeError as error:
            raise InputError(f"a name or id holds characters that are none (lone surrogates): {error.reason}") from None
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _damaged(self, reason: object) -> CorruptFileError:
        return CorruptFileError(
            f"{self._path} is damaged ({reason}): restore a copy, or move the folder away to begin anew"
        )


def page(
    table: str,
    where: str,
    values: Sequence[Any],
    *,
    limit: int,
    descending: bool,
    after: str | None,
    before: str | None,
) -> tuple[str, list[Any]]:
    """A query for one more than `limit` rows of a table, in the order in which they were made, and its values. after,
    before: ids of rows that the page lies behind or ahead of."""
    sql, given = f"SELECT * FROM {table} WHERE {where}", list(values)
    for cursor, later in ((after, not descending), (before, descending)):
        if cursor is not None:
            inside = f"SELECT number FROM {table} WHERE {where} AND id = ?"
            sql += f" AND number {'>' if later else '<'} ({inside})"
            given += [*values, cursor]
    return f"{sql} ORDER BY number {'DESC' if descending else 'ASC'} LIMIT ?", [*given, limit + 1]
