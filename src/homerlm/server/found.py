"""What a request names by its id: an owner's file or vector store, and what a file says."""

from __future__ import annotations

import asyncio

from homerlm.index.index import Index
from homerlm.server.errors import ApiError
from homerlm.server.state import Server
from homerlm.store.documents import sha256_of
from homerlm.store.records import Member, StoredFile, VectorStore


def found_file(server: Server, owner: str, id: str) -> StoredFile:
    """An owner's file. Raises `ApiError` 404."""
    found = server.documents.store.file(owner, id)
    if found is None:
        raise missing_file(id)
    return found


def missing_file(id: str) -> ApiError:
    """The error for a file that the caller has not."""
    return ApiError(404, f"No such File object: {id[:100]}", code="not_found", param="file_id")


def found_store(server: Server, owner: str, id: str) -> VectorStore:
    """An owner's vector store. Raises `ApiError` 404."""
    found = server.documents.store.vector_stores.get(owner, id)
    if found is None:
        raise missing_store(id)
    return found


def missing_store(id: str, param: str = "vector_store_id") -> ApiError:
    """The error for a vector store that the caller has not."""
    return ApiError(404, f"Vector store with id '{id[:100]}' not found.", code="not_found", param=param)


async def text_of(server: Server, owner: str, id: str) -> tuple[str, str]:
    """Name and text of an owner's file. Raises `ApiError` 404, and `DocumentError` for one that cannot be read."""
    file = await asyncio.to_thread(found_file, server, owner, id)
    store = server.documents.store
    text = await server.parser.text(await asyncio.to_thread(store.file_path, id), file.name)
    await asyncio.to_thread(lambda: store.note_text(id, sha256_of(text)))
    return file.name, text


async def known_index(server: Server, member: Member) -> Index | None:
    """The index of a vector store's file; None where it was not read, or its index gave way to others."""
    return None if member.sha256 is None else await server.documents.known(member.owner, member.sha256)
