"""How much room a store has, and what gives way where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from homerlm.errors import QuotaError
from homerlm.formatting import size
from homerlm.store.folder import KINDS

InUse = Callable[[str], bool]
_WHOSE = "(? IS NULL OR owner = ?)"  # of one owner, or, for None, of everybody


@dataclass(frozen=True)
class Space:
    """Limits in bytes of all files and documents, and of one owner's."""

    max_bytes: int
    owner_bytes: int

    def make_room(self, connection: Connection, owner: str, number: int, in_use: InUse) -> list[str]:
        """Ids of the documents that give way to so many bytes of an owner. Raises `QuotaError` where that is not
        enough."""
        gone: list[str] = []
        for whose, limit in ((owner, self.owner_bytes), (None, self.max_bytes)):
            gone += evict(connection, whose, limit - number, in_use)
            if (used := usage(connection, whose)) > limit - number:
                named = "of one owner" if whose else "of the store"
                raise QuotaError(
                    f"{size(number)} more do not fit: the limit {named} is {size(limit)}, and {size(used)} of it are "
                    "taken by what cannot give way: delete files, or raise the limit"
                )
        return gone


def usage(connection: Connection, owner: str | None) -> int:
    """Bytes of an owner's files and documents, or of everybody's."""
    sums = (f"SELECT coalesce(sum(bytes), 0) FROM {kind} WHERE {_WHOSE}" for kind in KINDS)
    return sum(connection.execute(sql, (owner, owner)).fetchone()[0] for sql in sums)


def evict(connection: Connection, owner: str | None, room: int, in_use: InUse) -> list[str]:
    """Ids of the documents of an owner, or of anybody, that are taken off the list, those used longest ago first, until
    files and documents take at most `room` bytes."""
    used, gone = usage(connection, owner), []
    if used > room:
        sql = f"SELECT id, bytes FROM documents WHERE {_WHOSE} ORDER BY used, number"
        for id, number in connection.execute(sql, (owner, owner)).fetchall():
            if used > room and not in_use(id):
                gone += delete_documents(connection, "id = ?", (id,))
                used -= number
    return gone


def delete_documents(connection: Connection, where: str, values: Sequence[Any]) -> list[str]:
    """Ids of the documents that are taken off the list."""
    return [row[0] for row in connection.execute(f"DELETE FROM documents WHERE {where} RETURNING id", values)]


def note_text(connection: Connection, file: str, sha256: str) -> None:
    """Remember what a file says, in whichever vector stores it is, so that what is read of it goes with it."""
    connection.execute("INSERT OR IGNORE INTO texts SELECT id, ? FROM files WHERE id = ?", (sha256, file))


def forget_text(connection: Connection, owner: str, sha256: str) -> list[str]:
    """Ids of the documents of a text that are taken off the list, unless one of its owner's files says it."""
    said = "SELECT 1 FROM texts JOIN files ON id = file WHERE texts.sha256 = documents.sha256 AND owner = ?"
    return delete_documents(connection, f"owner = ? AND sha256 = ? AND NOT EXISTS ({said})", (owner, sha256, owner))


def own_texts(connection: Connection, file: str, owner: str) -> list[str]:
    """The SHA-256 of each text that was read of a file and of none else of its owner's."""
    others = (
        "SELECT 1 FROM texts AS t JOIN files ON id = t.file WHERE t.sha256 = texts.sha256 AND owner = ? AND id <> ?"
    )
    sql = f"SELECT sha256 FROM texts WHERE file = ? AND NOT EXISTS ({others})"
    return [row[0] for row in connection.execute(sql, (file, owner, file)).fetchall()]


def delete_files(connection: Connection, where: str, values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Ids of the files that are taken off the list, and of the documents that were read of them alone."""
    found = [tuple(row) for row in connection.execute(f"SELECT id, owner FROM files WHERE {where}", values)]
    documents: list[str] = []
    for id, owner in found:
        texts = own_texts(connection, id, owner)
        connection.execute("DELETE FROM files WHERE id = ?", (id,))
        for sha256 in texts:
            documents += delete_documents(connection, "owner = ? AND sha256 = ?", (owner, sha256))
    return [id for id, _ in found], documents
