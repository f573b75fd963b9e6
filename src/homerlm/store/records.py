"""What a store tells about a document and about an uploaded file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

DAY = 86_400
STATUSES = ("in_progress", "completed", "failed", "cancelled")


@dataclass(frozen=True)
class _Record:
    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """From a row of the table."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class StoredDocument(_Record):
    """A text that was read. sha256: of its UTF-8; model: by name, of whoever looks at the store; maker: fingerprint of
    the model and of all settings that an index depends on; bytes: of the index; created, used, expires: seconds since
    1970, expires None for never."""

    id: str
    owner: str
    name: str
    sha256: str
    model: str
    maker: str
    bytes: int
    tokens: int
    created: float
    used: float
    expires: float | None


@dataclass(frozen=True)
class StoredFile(_Record):
    """A file that was uploaded. name: what its owner calls it, which is never a path here; purpose: OpenAI's; expires:
    as of a document."""

    id: str
    owner: str
    name: str
    purpose: str
    bytes: int
    created: float
    expires: float | None


@dataclass(frozen=True)
class VectorStore:
    """A collection of files that is asked as a whole. days: from its last use until it expires, None for never; counts:
    files by status; bytes: of what was read of them."""

    id: str
    owner: str
    name: str
    description: str | None
    metadata: dict[str, str]
    created: float
    active: float
    days: int | None
    counts: dict[str, int]
    bytes: int

    @property
    def expires(self) -> float | None:
        """Seconds since 1970."""
        return None if self.days is None else self.active + self.days * DAY

    def has_expired(self, now: float) -> bool:
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True)
class Member:
    """A file of a vector store. id, name: the file's; status: one of `STATUSES`; error_code, error: why it failed, in
    OpenAI's word and in ours; sha256: of its text, once it was read; bytes: of its index."""

    vector_store: str
    id: str
    owner: str
    name: str
    batch: str | None
    attributes: dict[str, str | float | bool]
    chunking: dict[str, Any]
    status: str
    error_code: str | None
    error: str | None
    sha256: str | None
    bytes: int
    created: float


@dataclass(frozen=True)
class Batch:
    """Files that were added to a vector store together; counts: as of the vector store."""

    id: str
    vector_store: str
    created: float
    cancelled: bool
    counts: dict[str, int]
