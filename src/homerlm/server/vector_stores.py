"""`/v1/vector_stores`: collections of uploaded files. Searching one is reading it."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, StringConstraints

from homerlm.server import vector_store_files
from homerlm.server.answering import in_time
from homerlm.server.errors import ApiError
from homerlm.server.filters import Filter, check
from homerlm.server.found import found_store, missing_store
from homerlm.server.indexing import Indexed, lifespan
from homerlm.server.objects import Deleted, ExpiresAfter, Order, Page, Results, VectorStoreObject
from homerlm.server.searching import RankingOptions, search
from homerlm.server.sse import until_gone
from homerlm.server.state import Owner, Shared
from homerlm.server.vector_store_files import Chunking, FileIds, add_files, as_asked, check_files
from homerlm.store.vector_stores import VectorStores

router = APIRouter(tags=["Vector stores"], lifespan=lifespan)
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
Name = Annotated[str, Field(max_length=512)]
USUAL_RESULTS = 10  # as OpenAI has it


class NewVectorStore(BaseModel):
    """What a vector store is made of."""

    name: Name | None = None
    description: Name | None = None
    file_ids: FileIds | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: Chunking | None = None
    metadata: Metadata | None = None


class Changes(BaseModel):
    """What is to be changed; null takes it away."""

    name: Name | None = None
    expires_after: ExpiresAfter | None = None
    metadata: Metadata | None = None


class Search(BaseModel):
    """A query, or several that are one."""

    query: str | Annotated[list[str], Field(min_length=1, max_length=100)]
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = None


@router.post("/v1/vector_stores")
async def create(new: NewVectorStore, owner: Owner, server: Shared, indexing: Indexed) -> VectorStoreObject:
    """Make a vector store, and read the files that it is given."""
    stores = server.documents.store.vector_stores
    files = new.file_ids or []
    await check_files(server, owner, files)
    made = await asyncio.to_thread(
        stores.create,
        owner,
        name=new.name or "",
        description=new.description,
        metadata=new.metadata,
        days=None if new.expires_after is None else new.expires_after.days,
    )
    await add_files(server, indexing, made.id, files, chunking=as_asked(new.chunking_strategy))
    return await _shown(stores, owner, made.id)


@router.get("/v1/vector_stores")
def vector_stores(
    owner: Owner,
    server: Shared,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: str | None = None,
    before: str | None = None,
) -> Page[VectorStoreObject]:
    """The vector stores of the caller's key."""
    found, more = server.documents.store.vector_stores.of_owner(
        owner, limit=limit, descending=order == "desc", after=after, before=before
    )
    now = time.time()
    return Page[VectorStoreObject].of([VectorStoreObject.of(one, now) for one in found], more)


@router.get("/v1/vector_stores/{vector_store_id}")
def vector_store(vector_store_id: str, owner: Owner, server: Shared) -> VectorStoreObject:
    """What is known of a vector store."""
    return VectorStoreObject.of(found_store(server, owner, vector_store_id), time.time())


@router.post("/v1/vector_stores/{vector_store_id}")
async def update(vector_store_id: str, changes: Changes, owner: Owner, server: Shared) -> VectorStoreObject:
    """Change a vector store's name, lifetime or metadata."""
    given = changes.model_fields_set
    values: dict[str, Any] = {}
    if "name" in given:
        values["name"] = changes.name or ""
    if "metadata" in given:
        values["metadata"] = changes.metadata or {}
    if "expires_after" in given:
        values["days"] = None if changes.expires_after is None else changes.expires_after.days
    stores = server.documents.store.vector_stores
    await asyncio.to_thread(stores.update, owner, vector_store_id, values)
    return await _shown(stores, owner, vector_store_id)


@router.delete("/v1/vector_stores/{vector_store_id}")
async def delete(vector_store_id: str, owner: Owner, server: Shared, indexing: Indexed) -> Deleted:
    """Remove a vector store. Its files stay."""
    if not await asyncio.to_thread(server.documents.store.vector_stores.remove, owner, vector_store_id):
        raise missing_store(vector_store_id)
    indexing.stop(vector_store_id)
    return Deleted(id=vector_store_id, object="vector_store.deleted")


@router.post("/v1/vector_stores/{vector_store_id}/search", response_model=Results)
async def search_store(
    request: Request, vector_store_id: str, given: Search, owner: Owner, server: Shared
) -> Results | Response:
    """Read a vector store with a query: the passages that it needs, the best first, with their places."""
    queries = [given.query] if isinstance(given.query, str) else given.query
    query = "\n".join(queries)
    if not query.strip():
        raise ApiError(400, "The query is empty.", code="invalid_value", param="query")
    check(given.filters, "filters")
    stores = server.documents.store.vector_stores
    found = await asyncio.to_thread(found_store, server, owner, vector_store_id)
    if found.has_expired(time.time()):
        raise ApiError(400, f"The vector store {vector_store_id} has expired.", code="vector_store_expired")
    members, _ = await asyncio.to_thread(stores.members, vector_store_id, status="completed")
    asked = [one for one in members if given.filters is None or given.filters.matches(one.attributes)]
    least = 0.0 if given.ranking_options is None else given.ranking_options.least
    results = await until_gone(
        request, in_time(server, search(server, asked, query, given.max_num_results or USUAL_RESULTS, least))
    )
    if isinstance(results, Response):
        return results
    await asyncio.to_thread(stores.update, owner, vector_store_id, {})
    return Results(search_query=queries, data=results)


async def _shown(stores: VectorStores, owner: str, id: str) -> VectorStoreObject:
    found = await asyncio.to_thread(stores.get, owner, id)
    if found is None:
        raise missing_store(id)
    return VectorStoreObject.of(found, time.time())


router.include_router(vector_store_files.router)
