"""`/v1/vector_stores/{id}/files` and `/file_batches`: the files of a vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field, StringConstraints

from homerlm.server.errors import ApiError
from homerlm.server.found import found_file, found_store, known_index, missing_store, text_of
from homerlm.server.indexing import Indexed, Indexing
from homerlm.server.objects import Content, Deleted, FileBatch, FileContent, Order, Page, VectorStoreFile
from homerlm.server.state import Owner, Server, Shared
from homerlm.store.records import Member

router = APIRouter(tags=["Vector stores"])
Key = Annotated[str, StringConstraints(max_length=64)]
Text = Annotated[str, StringConstraints(max_length=512)]
Attributes = Annotated[dict[Key, Text | bool | int | float], Field(max_length=16)]
FileIds = Annotated[list[str], Field(max_length=500)]
Status = Literal["in_progress", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class Listing:
    """Which part of a list of files is asked for."""

    limit: Annotated[int, Query(ge=1, le=100)] = 20
    order: Order = "desc"
    after: str | None = None
    before: str | None = None
    filter: Status | None = None


Asked = Annotated[Listing, Depends()]


class Sizes(BaseModel):
    """Of the parts that a file is cut into, in tokens."""

    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    chunk_overlap_tokens: int = Field(ge=0, le=2048)


class Auto(BaseModel):
    """Files are cut as the server does it."""

    type: Literal["auto"]


class Static(BaseModel):
    """Files are cut into parts of one size."""

    type: Literal["static"]
    static: Sizes


Chunking = Annotated[Auto | Static, Field(discriminator="type")]


class NewFile(BaseModel):
    """A file to add."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class NewBatch(BaseModel):
    """Files to add together: alike, or each with attributes of its own."""

    file_ids: FileIds | None = None
    files: Annotated[list[NewFile], Field(max_length=500)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class NewAttributes(BaseModel):
    """What the attributes are to be."""

    attributes: Attributes | None


@router.post("/v1/vector_stores/{vector_store_id}/files")
async def create(
    vector_store_id: str, new: NewFile, owner: Owner, server: Shared, indexing: Indexed
) -> VectorStoreFile:
    """Add a file, which is read in the background."""
    await asyncio.to_thread(found_store, server, owner, vector_store_id)
    await check_files(server, owner, [new.file_id])
    await add_files(
        *(server, indexing, vector_store_id, [new.file_id]),
        attributes=new.attributes,
        chunking=as_asked(new.chunking_strategy),
    )
    return VectorStoreFile.of(await asyncio.to_thread(_member, server, owner, vector_store_id, new.file_id))


@router.get("/v1/vector_stores/{vector_store_id}/files")
def files(vector_store_id: str, owner: Owner, server: Shared, asked: Asked) -> Page[VectorStoreFile]:
    """The files of a vector store."""
    found_store(server, owner, vector_store_id)
    return _page(server, vector_store_id, asked)


@router.get("/v1/vector_stores/{vector_store_id}/files/{file_id}")
def file(vector_store_id: str, file_id: str, owner: Owner, server: Shared) -> VectorStoreFile:
    """What became of a file."""
    return VectorStoreFile.of(_member(server, owner, vector_store_id, file_id))


@router.post("/v1/vector_stores/{vector_store_id}/files/{file_id}")
def update(vector_store_id: str, file_id: str, new: NewAttributes, owner: Owner, server: Shared) -> VectorStoreFile:
    """Change a file's attributes."""
    _member(server, owner, vector_store_id, file_id)
    stores = server.documents.store.vector_stores
    changed = stores.set_attributes(vector_store_id, file_id, new.attributes or {})
    return VectorStoreFile.of(changed or _member(server, owner, vector_store_id, file_id))


@router.get("/v1/vector_stores/{vector_store_id}/files/{file_id}/content")
async def content(vector_store_id: str, file_id: str, owner: Owner, server: Shared) -> FileContent:
    """A file's text, as it was read."""
    member = await asyncio.to_thread(_member, server, owner, vector_store_id, file_id)
    index = await known_index(server, member)
    if index is not None:
        text = index.text_of(index.parts[0])
    else:
        _, text = await text_of(server, owner, file_id)
    return FileContent(data=[Content(text=text)])


@router.delete("/v1/vector_stores/{vector_store_id}/files/{file_id}")
async def delete(vector_store_id: str, file_id: str, owner: Owner, server: Shared, indexing: Indexed) -> Deleted:
    """Take a file out of a vector store. The file itself stays."""
    await asyncio.to_thread(_member, server, owner, vector_store_id, file_id)
    await asyncio.to_thread(server.documents.store.vector_stores.remove_member, vector_store_id, file_id)
    indexing.stop(vector_store_id, file_id)
    return Deleted(id=file_id, object="vector_store.file.deleted")


@router.post("/v1/vector_stores/{vector_store_id}/file_batches")
async def create_batch(
    vector_store_id: str, new: NewBatch, owner: Owner, server: Shared, indexing: Indexed
) -> FileBatch:
    """Add several files, which are read in the background."""
    await asyncio.to_thread(found_store, server, owner, vector_store_id)
    if (new.file_ids is None) == (new.files is None):
        raise ApiError(400, "Give either file_ids or files.", code="invalid_value", param="file_ids")
    ids = new.file_ids or [one.file_id for one in new.files or []]
    await check_files(server, owner, ids)
    stores = server.documents.store.vector_stores
    batch = await asyncio.to_thread(stores.add_batch, vector_store_id)
    if batch is None:
        raise missing_store(vector_store_id)
    if new.files is None:
        alike = {"attributes": new.attributes, "chunking": as_asked(new.chunking_strategy), "batch": batch.id}
        await add_files(server, indexing, vector_store_id, ids, **alike)
    for one in new.files or []:
        own = {"attributes": one.attributes, "chunking": as_asked(one.chunking_strategy), "batch": batch.id}
        await add_files(server, indexing, vector_store_id, [one.file_id], **own)
    return await asyncio.to_thread(_batch, server, owner, vector_store_id, batch.id)


@router.get("/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}")
def batch(vector_store_id: str, batch_id: str, owner: Owner, server: Shared) -> FileBatch:
    """What became of files that were added together."""
    return _batch(server, owner, vector_store_id, batch_id)


@router.post("/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel")
async def cancel(vector_store_id: str, batch_id: str, owner: Owner, server: Shared, indexing: Indexed) -> FileBatch:
    """Do not read what is still to be read of them."""
    await asyncio.to_thread(_batch, server, owner, vector_store_id, batch_id)
    stores = server.documents.store.vector_stores
    await asyncio.to_thread(stores.cancel_batch, vector_store_id, batch_id)
    cancelled, _ = await asyncio.to_thread(stores.members, vector_store_id, batch=batch_id, status="cancelled")
    for one in cancelled:
        indexing.stop(vector_store_id, one.id)
    return await asyncio.to_thread(_batch, server, owner, vector_store_id, batch_id)


@router.get("/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files")
def batch_files(
    vector_store_id: str, batch_id: str, owner: Owner, server: Shared, asked: Asked
) -> Page[VectorStoreFile]:
    """The files that were added together."""
    _batch(server, owner, vector_store_id, batch_id)
    return _page(server, vector_store_id, asked, batch_id)


def as_asked(chunking: Chunking | None) -> dict[str, Any] | None:
    """How a file is to be cut, to be repeated; every file is read in the model's own way."""
    return None if chunking is None else chunking.model_dump()


async def check_files(server: Server, owner: str, ids: Sequence[str]) -> None:
    """Raise `ApiError` 404 for a file that the owner has not."""
    for id in ids:
        await asyncio.to_thread(found_file, server, owner, id)


async def add_files(server: Server, indexing: Indexing, id: str, files: Sequence[str], **given: Any) -> None:
    """Put an owner's files into a vector store of the same owner, and begin to read them."""
    stores = server.documents.store.vector_stores
    await asyncio.to_thread(stores.add, id, files, **given)
    members = [await asyncio.to_thread(stores.member, id, file) for file in files]
    indexing.start([member for member in members if member is not None])


def _member(server: Server, owner: str, id: str, file: str) -> Member:
    found_store(server, owner, id)
    found = server.documents.store.vector_stores.member(id, file)
    if found is None:
        message = f"No file with id '{file[:100]}' found in vector store '{id}'."
        raise ApiError(404, message, code="not_found", param="file_id")
    return found


def _batch(server: Server, owner: str, id: str, batch: str) -> FileBatch:
    found_store(server, owner, id)
    found = server.documents.store.vector_stores.batch(id, batch)
    if found is None:
        raise ApiError(404, f"No file batch found with id '{batch[:100]}'.", code="not_found", param="batch_id")
    return FileBatch.of(found)


def _page(server: Server, id: str, asked: Listing, batch: str | None = None) -> Page[VectorStoreFile]:
    found, more = server.documents.store.vector_stores.members(
        id,
        limit=asked.limit,
        descending=asked.order == "desc",
        after=asked.after,
        before=asked.before,
        status=asked.filter,
        batch=batch,
    )
    return Page[VectorStoreFile].of([VectorStoreFile.of(one) for one in found], more)
