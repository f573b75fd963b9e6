"""The rows of a store in a bucket: a log of transactions that all servers append to and apply to tables of their own.

    log/000000000042.json              what transaction 42 changed
    snapshots/000000000040.sqlite      all tables after transaction 40

An entry is made only where there is none, which S3 does as one step. So of two servers that write transaction 43 at
once one does, and the other applies that and tries 44.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from homerlm.errors import ConfigError, CorruptFileError, HomerError, InputError, MismatchError, Unreachable
from homerlm.index import buckets
from homerlm.store.database import IN_MEMORY, VERSION, Database, T

Statement = tuple[str, Sequence[Any]]
PROTOCOLS = ("s3://", "s3a://")
TRIES = 200  # of a transaction, while other machines are first
PAUSE_SECONDS = 0.2  # the longest between two of them
EVERY = 256  # transactions from one snapshot to the next
OLD_SECONDS = 3600.0  # how long what a snapshot makes needless stays, for servers that are behind
_log = logging.getLogger("homerlm.store")


class Log:
    """The log of a bucket's folder. Every method raises `Unreachable` where the bucket does not answer as it should."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def check(self) -> None:
        """Raises `ConfigError` for a bucket that makes nothing only where there is nothing, or is of a kind of which
        nobody knows, and `InputError` for one that cannot be used."""
        if not self.folder.startswith(PROTOCOLS):
            raise ConfigError(
                f"a store can be in a folder, or in S3 and what speaks its protocol (s3://bucket/name), not in "
                f"{self.folder}"
            )
        place = buckets.inside(self.folder, f"checks/{secrets.token_hex(12)}")
        try:
            made = [buckets.create(place, b"") for _ in range(2)]
            buckets.remove(place)
        except InputError as error:
            reason = str(error).replace(place, self.folder)
            raise InputError(f"{self.folder} cannot be used as a store: {reason}") from error
        if made != [True, False]:
            raise ConfigError(
                f"{self.folder} writes over what is there (it does not know If-None-Match), so that servers would lose "
                "each other's documents: use another store, or a folder"
            )

    def exists(self) -> bool:
        """Whether there is anything in it."""
        return any(self._numbers(kind) for kind in ("log", "snapshots"))

    def entry(self, number: int) -> list[Statement] | None:
        """What a transaction did; None where it is not in the log."""
        found = self._entry(number)
        return None if found is None else [(sql, values) for sql, values in found["statements"]]

    def append(self, number: int, statements: Sequence[Statement]) -> bool:
        """Make a transaction the one of this number; False where another one is that."""
        writer = secrets.token_hex(12)
        entry = {"version": VERSION, "writer": writer, "statements": statements}
        with reached():
            if buckets.create(self._place(number), json.dumps(entry).encode()):
                return True
        there = self._entry(number)  # the library may have tried again what was done
        return there is not None and there["writer"] == writer

    def snapshot(self, after: int) -> tuple[int, bytes] | None:
        """The newest tables after a later transaction than this, and that one's number."""
        number = max(self._numbers("snapshots"), default=0)
        if number <= after:
            return None
        with reached():
            content = buckets.read_if_there(self._snapshot(number))
        return None if content is None else (number, content)

    def add_snapshot(self, number: int, content: bytes) -> None:
        """Keep the tables after a transaction, and remove what they made needless long ago."""
        with reached():
            buckets.write_bytes(self._snapshot(number), content)
            older = [self._place(one) for one in self._numbers("log") if one <= number - EVERY]
            older += [self._snapshot(one) for one in self._numbers("snapshots") if one < number]
            for place in older:
                if buckets.age_of(place) > OLD_SECONDS:
                    buckets.remove(place)

    def _entry(self, number: int) -> dict[str, Any] | None:
        place = self._place(number)
        with reached():
            content = buckets.read_if_there(place)
        try:
            found = None if content is None else json.loads(content)
            if found is not None and not found.keys() >= {"version", "writer", "statements"}:
                raise ValueError("something is missing in it")
        except (ValueError, AttributeError) as error:
            raise CorruptFileError(f"{place} is damaged ({error}): restore a copy of the store") from error
        if found is not None and found["version"] > VERSION:
            raise MismatchError(
                f"{place} has version {found['version']}, this homerlm knows {VERSION}: upgrade homerlm"
            )
        return found

    def _numbers(self, kind: str) -> list[int]:
        with reached():
            names = buckets.names_in(buckets.inside(self.folder, kind), "*.*")
        return [int(name.partition(".")[0]) for name in names if name.partition(".")[0].isdecimal()]

    def _place(self, number: int) -> str:
        return buckets.inside(self.folder, f"log/{number:012d}.json")

    def _snapshot(self, number: int) -> str:
        return buckets.inside(self.folder, f"snapshots/{number:012d}.sqlite")


class _Recording(sqlite3.Connection):
    """Knows what was executed of that which changes something."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.statements: list[Statement] = []

    def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
        if sql.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            self.statements.append((sql, list(values)))
        return super().execute(sql, values)

    def executemany(self, sql: str, many: Any, /) -> sqlite3.Cursor:
        for values in many:
            self.execute(sql, values)
        return self.cursor()


class LoggedDatabase(Database):
    """A store's tables in memory, as the log of a bucket has them whenever they are read or written. A transaction
    counts once it is in the log. Raises as `Log`, and as `Database`.

    check_new: is called for a log in which nothing is; what it raises prevents a new store.
    """

    connection_type = _Recording
    used_seconds = 60.0  # to note it better would be an object for each use
    _connection: _Recording

    def __init__(self, folder: str, check_new: Callable[[], None] = lambda: None) -> None:
        self._bucket = Log(folder)
        self._number = self._snapshot = 0  # the transactions that the tables are after, and the newest snapshot is
        self._asked = self._seen = 0.0  # when the log was last looked at: of a clock that is never set, and by the time
        self._bucket.check()
        super().__init__(IN_MEMORY)
        self._path = folder
        with self._explained():
            self._catch_up()
            if not self._number:
                self._begin(check_new)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock, self._explained():
            for _ in range(TRIES):
                self._catch_up()
                try:
                    with self._transaction():
                        value = work(self._connection)
                        kept = self._keep()
                except _AnotherWasFirst:
                    time.sleep(random.uniform(0, PAUSE_SECONDS))
                    continue
                self._number += kept
                self._add_snapshot()
                return value
        raise Unreachable("the store is written to by too many at once: try again later")

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        asked = time.monotonic()
        with self._lock:
            if self._asked <= asked:  # else another thread has looked meanwhile
                with self._explained():
                    self._catch_up()
            return super().rows(sql, *values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.statements.clear()
        self._changes = self._connection.total_changes
        with super()._transaction():
            yield

    def _keep(self) -> bool:
        """Put what the transaction changed into the log; whether it changed anything."""
        changed = self._connection.total_changes > self._changes
        if changed and not self._bucket.append(self._number + 1, self._connection.statements):
            raise _AnotherWasFirst
        return changed

    def _begin(self, check_new: Callable[[], None]) -> None:
        """Make the first entry, of nothing. It is there before any server puts a file into the bucket, so where there
        are files and no entry the log was lost."""
        try:
            check_new()
        except CorruptFileError:
            self._catch_up()  # another server may have begun meanwhile
            if not self._number:
                raise
        else:
            self._bucket.append(1, [])
            self._catch_up()

    def _catch_up(self) -> None:
        """Apply what other servers have done."""
        asked, now = time.monotonic(), time.time()
        if not 0 <= now - self._seen < OLD_SECONDS / 2:  # what follows in the log may have been removed
            self._load_snapshot()
        while (entry := self._bucket.entry(self._number + 1)) is not None:
            with self._transaction():
                for sql, values in entry:
                    self._connection.execute(sql, values)
            self._number += 1
        self._asked, self._seen = asked, now

    def _load_snapshot(self) -> None:
        found = self._bucket.snapshot(after=self._number)
        if found is not None:
            number, content = found
            self._connection.deserialize(content)
            self._check_version(self._connection)
            self._number = self._snapshot = number

    def _add_snapshot(self) -> None:
        if self._number - self._snapshot >= EVERY:
            try:
                self._bucket.add_snapshot(self._number, self._connection.serialize())
            except HomerError as error:
                _log.warning("a snapshot of the store was not written, the next change tries again: %s", error)
            else:
                self._snapshot = self._number


class _AnotherWasFirst(Exception):
    """The log has another transaction of that number."""


@contextmanager
def reached() -> Iterator[None]:
    """What a bucket's library raises, as an error that can pass. Clients are told of it, and so not of the place."""
    try:
        yield
    except InputError as error:
        _log.warning("the store's bucket: %s", error)
        raise Unreachable("the store's bucket does not answer as it should: try again later") from error
