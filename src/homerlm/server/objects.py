"""Files, vector stores and what is in them, in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel

from homerlm.store.records import Batch, Member, StoredFile, VectorStore

Order = Annotated[Literal["asc", "desc"], Query(description="By the time at which they were made.")]
Attributes = dict[str, str | bool | int | float]


class Listed(BaseModel):
    """Whatever stands in a list."""

    id: str


T = TypeVar("T", bound=Listed)


class Page(BaseModel, Generic[T]):
    """A part of a list; `after=last_id` asks for the next one."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[T], more: bool) -> Self:
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=list(data), first_id=first, last_id=last, has_more=more)


class Deleted(BaseModel):
    """That something is gone."""

    id: str
    object: str
    deleted: bool = True


class FileObject(Listed):
    """An uploaded file; times in seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: StoredFile) -> Self:
        expires = None if file.expires is None else int(file.expires)
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created),
            expires_at=expires,
            filename=file.name,
            purpose=file.purpose,
        )


class FileCounts(BaseModel):
    """Files by what became of them."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int

    @classmethod
    def of(cls, counts: dict[str, int]) -> Self:
        return cls(**counts, total=sum(counts.values()))


class ExpiresAfter(BaseModel):
    """Days after its last use that a vector store lives for."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Query(ge=1, le=365)]


class VectorStoreObject(Listed):
    """Files that are searched together."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str | None
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: ExpiresAfter | None
    expires_at: int | None
    last_active_at: int
    metadata: dict[str, str]

    @classmethod
    def of(cls, store: VectorStore, now: float) -> Self:
        working: Any = "in_progress" if store.counts["in_progress"] else "completed"
        days = store.days
        return cls(
            id=store.id,
            created_at=int(store.created),
            name=store.name,
            description=store.description,
            usage_bytes=store.bytes,
            file_counts=FileCounts.of(store.counts),
            status="expired" if store.has_expired(now) else working,
            expires_after=None if days is None else ExpiresAfter(anchor="last_active_at", days=days),
            expires_at=None if store.expires is None else int(store.expires),
            last_active_at=int(store.active),
            metadata=store.metadata,
        )


class LastError(BaseModel):
    """Why a file was not read."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class VectorStoreFile(Listed):
    """A file of a vector store. chunking_strategy: as it was asked for; a document is read in the model's own way."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    usage_bytes: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    last_error: LastError | None
    chunking_strategy: dict[str, Any]
    attributes: Attributes

    @classmethod
    def of(cls, member: Member) -> Self:
        error = None if member.error_code is None else {"code": member.error_code, "message": member.error}
        return cls.model_validate(
            {
                "id": member.id,
                "created_at": int(member.created),
                "usage_bytes": member.bytes,
                "vector_store_id": member.vector_store,
                "status": member.status,
                "last_error": error,
                "chunking_strategy": member.chunking if member.chunking.get("type") == "static" else {"type": "other"},
                "attributes": member.attributes,
            }
        )


class FileBatch(BaseModel):
    """Files that were added to a vector store together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled"]
    file_counts: FileCounts

    @classmethod
    def of(cls, batch: Batch) -> Self:
        working: Any = "in_progress" if batch.counts["in_progress"] else "completed"
        return cls(
            id=batch.id,
            created_at=int(batch.created),
            vector_store_id=batch.vector_store,
            status="cancelled" if batch.cancelled else working,
            file_counts=FileCounts.of(batch.counts),
        )


class Content(BaseModel):
    """Text of a file; start, end: its characters `[start, end)` in the file's text, where it is a passage of it."""

    type: Literal["text"] = "text"
    text: str
    start: int | None = None
    end: int | None = None


class Result(BaseModel):
    """Passages of a file that were found. score: 0 to 1, as a share of the best result's."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: list[Content]


class Results(BaseModel):
    """What a search found, the best first."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[Result]
    has_more: Literal[False] = False
    next_page: None = None


class FileContent(BaseModel):
    """A file's text as it was read."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[Content]
    has_more: Literal[False] = False
    next_page: None = None
