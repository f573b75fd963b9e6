"""Collections of uploaded files, as OpenAI's clients know them: vector stores."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from sqlite3 import Connection
from typing import Any

from homerlm.store import space
from homerlm.store.database import Database, page
from homerlm.store.records import DAY, STATUSES, Batch, Member, VectorStore

_EXPIRED = "days IS NOT NULL AND active + days * ? <= ?"
_MEMBERS = "(SELECT members.*, files.owner, files.name FROM members JOIN files USING (id))"


class VectorStores:
    """The vector stores of a store's database, each of one owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        owner: str,
        *,
        name: str = "",
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        days: int | None = None,
    ) -> VectorStore:
        """A new one, without files."""
        id, now = f"vs_{secrets.token_hex(12)}", time.time()
        self._change(
            "INSERT INTO vector_stores (id, owner, name, description, metadata, created, active, days) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (id, owner, name, description, json.dumps(dict(metadata or {})), now, now, days),
        )
        made = self.get(owner, id)
        assert made is not None
        return made

    def get(self, owner: str, id: str) -> VectorStore | None:
        """An owner's vector store, also one that has expired and was not removed yet."""
        row = self._database.row("SELECT * FROM vector_stores WHERE owner = ? AND id = ?", owner, id)
        return None if row is None else self._of(row)

    def of_owner(
        self,
        owner: str,
        *,
        limit: int = 20,
        descending: bool = True,
        after: str | None = None,
        before: str | None = None,
    ) -> tuple[list[VectorStore], bool]:
        """A page of an owner's vector stores, and whether others follow."""
        sql, values = page(
            *("vector_stores", "owner = ?", [owner]), limit=limit, descending=descending, after=after, before=before
        )
        rows = self._database.rows(sql, *values)
        return [self._of(row) for row in rows[:limit]], len(rows) > limit

    def all(self) -> list[VectorStore]:
        """Everybody's, in the order in which they were made."""
        return [self._of(row) for row in self._database.rows("SELECT * FROM vector_stores ORDER BY number")]

    def update(self, owner: str, id: str, changes: Mapping[str, Any]) -> VectorStore | None:
        """Change name, metadata or days; None where there is no such vector store."""
        values = {name: json.dumps(value) if name == "metadata" else value for name, value in changes.items()}
        values["active"] = time.time()
        assert values.keys() <= {"name", "metadata", "days", "active"}
        self._change(
            f"UPDATE vector_stores SET {', '.join(f'{name} = ?' for name in values)} WHERE owner = ? AND id = ?",
            [*values.values(), owner, id],
        )
        return self.get(owner, id)

    def remove(self, owner: str | None, id: str) -> bool:
        """Whether there was one of the owner, or, for None, of anybody. Its files stay."""
        return (
            self._change("DELETE FROM vector_stores WHERE id = ? AND (? IS NULL OR owner = ?)", (id, owner, owner)) > 0
        )

    def remove_expired(self) -> None:
        self._change(f"DELETE FROM vector_stores WHERE {_EXPIRED}", (DAY, time.time()))

    def add(
        self,
        id: str,
        files: Iterable[str],
        *,
        attributes: Mapping[str, Any] | None = None,
        chunking: Mapping[str, Any] | None = None,
        batch: str | None = None,
    ) -> None:
        """Files that are to be read for a vector store; those that it has already are read anew. Nothing is added of or
        to what was removed meanwhile."""
        values = json.dumps(dict(attributes or {})), json.dumps(dict(chunking or {})), batch, time.time()
        added = list(files)

        def add_all(connection: Connection) -> None:
            for file in added:
                connection.execute("DELETE FROM members WHERE vector_store = ? AND id = ?", (id, file))
                connection.execute(
                    "INSERT INTO members (vector_store, id, attributes, chunking, batch, created, status) "
                    "SELECT vector_stores.id, files.id, ?, ?, ?, ?, 'in_progress' FROM vector_stores, files "
                    "WHERE vector_stores.id = ? AND files.id = ?",
                    (*values, id, file),
                )

        self._database.write(add_all)

    def member(self, id: str, file: str) -> Member | None:
        row = self._database.row(f"SELECT * FROM {_MEMBERS} WHERE vector_store = ? AND id = ?", id, file)
        return None if row is None else _member(row)

    def members(
        self,
        id: str,
        *,
        status: str | None = None,
        batch: str | None = None,
        limit: int = 1 << 30,
        descending: bool = False,
        after: str | None = None,
        before: str | None = None,
    ) -> tuple[list[Member], bool]:
        """A page of a vector store's files, and whether others follow."""
        where, values = "vector_store = ?", [id]
        for name, value in (("status", status), ("batch", batch)):
            if value is not None:
                where, values = f"{where} AND {name} = ?", [*values, value]
        sql, given = page(_MEMBERS, where, values, limit=limit, descending=descending, after=after, before=before)
        rows = self._database.rows(sql, *given)
        return [_member(row) for row in rows[:limit]], len(rows) > limit

    def unfinished(self) -> list[Member]:
        """Files of all vector stores that are still to be read."""
        rows = self._database.rows(f"SELECT * FROM {_MEMBERS} WHERE status = 'in_progress' ORDER BY number")
        return [_member(row) for row in rows]

    def claim(self, member: Member, holder: str, seconds: float, runs: Callable[[str], bool]) -> bool:
        """Whether a file that is to be read is this holder's to read, for so many seconds from now: nobody else holds
        it who still runs and has not let it lie for too long."""
        key, now = (member.vector_store, member.id), time.time()

        def take(connection: Connection) -> bool:
            sql = "SELECT holder FROM claims WHERE vector_store = ? AND id = ? AND until > ?"
            held = connection.execute(sql, (*key, now)).fetchone()
            if held is not None and held["holder"] != holder and runs(held["holder"]):
                return False
            connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", (*key, holder, now + seconds))
            return True

        return self._database.write(take)

    def release(self, member: Member, holder: str) -> None:
        """Let others read a file."""
        values = member.vector_store, member.id, holder
        self._change("DELETE FROM claims WHERE vector_store = ? AND id = ? AND holder = ?", values)

    def finish(self, member: Member, status: str, **facts: Any) -> None:
        """Note what became of a file that was to be read, unless it was cancelled, removed or added anew meanwhile.
        facts: sha256, bytes, error_code, error."""
        values = {"status": status, **facts}

        def note(connection: Connection) -> None:
            if "sha256" in facts:
                space.note_text(connection, member.id, facts["sha256"])
            connection.execute(
                f"UPDATE members SET {', '.join(f'{name} = ?' for name in values)} "
                "WHERE vector_store = ? AND id = ? AND created = ? AND status = 'in_progress'",
                [*values.values(), member.vector_store, member.id, member.created],
            )

        self._database.write(note)

    def set_attributes(self, id: str, file: str, attributes: Mapping[str, Any]) -> Member | None:
        values = json.dumps(dict(attributes)), id, file
        self._change("UPDATE members SET attributes = ? WHERE vector_store = ? AND id = ?", values)
        return self.member(id, file)

    def remove_member(self, id: str, file: str) -> bool:
        """Whether the vector store had such a file. The file itself stays."""
        return self._change("DELETE FROM members WHERE vector_store = ? AND id = ?", (id, file)) > 0

    def add_batch(self, id: str) -> Batch | None:
        """A new batch, for files to be added with (`add`); None where the vector store was removed meanwhile."""
        name = f"vsfb_{secrets.token_hex(12)}"
        sql = "INSERT INTO batches (id, vector_store, created) SELECT ?, id, ? FROM vector_stores WHERE id = ?"
        self._change(sql, (name, time.time(), id))
        return self.batch(id, name)

    def batch(self, id: str, batch: str) -> Batch | None:
        row = self._database.row("SELECT * FROM batches WHERE vector_store = ? AND id = ?", id, batch)
        if row is None:
            return None
        counts, _ = self._counts("batch", batch)
        return Batch(batch, id, row["created"], bool(row["cancelled"]), counts)

    def cancel_batch(self, id: str, batch: str) -> Batch | None:
        """Take what is still to be read of a batch off the list of work."""
        values = id, batch

        def cancel(connection: Connection) -> None:
            stopped = connection.execute(
                "UPDATE members SET status = 'cancelled' "
                "WHERE vector_store = ? AND batch = ? AND status = 'in_progress'",
                values,
            )
            if stopped.rowcount:
                connection.execute("UPDATE batches SET cancelled = 1 WHERE vector_store = ? AND id = ?", values)

        self._database.write(cancel)
        return self.batch(id, batch)

    def _change(self, sql: str, values: Sequence[Any]) -> int:
        """Number of the rows that one statement changed."""
        return self._database.write(lambda connection: connection.execute(sql, values).rowcount)

    def _counts(self, column: str, value: str) -> tuple[dict[str, int], int]:
        """Files by status, and the bytes of what was read of them."""
        rows = self._database.rows(
            f"SELECT status, count(*) AS files, sum(bytes) AS bytes FROM members WHERE {column} = ? GROUP BY status",
            value,
        )
        counts = dict.fromkeys(STATUSES, 0) | {row["status"]: row["files"] for row in rows}
        return counts, sum(row["bytes"] for row in rows)

    def _of(self, row: dict[str, Any]) -> VectorStore:
        counts, bytes = self._counts("vector_store", row["id"])
        known = {name: value for name, value in row.items() if name not in ("number", "metadata")}
        return VectorStore(**known, metadata=json.loads(row["metadata"]), counts=counts, bytes=bytes)


def _member(row: dict[str, Any]) -> Member:
    known = {name: value for name, value in row.items() if name not in ("number", "attributes", "chunking")}
    return Member(**known, attributes=json.loads(row["attributes"]), chunking=json.loads(row["chunking"]))
