"""`/v1/files`: uploaded files, which messages and vector stores name by their ids."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Response, UploadFile
from fastapi.responses import FileResponse

from homerlm.server.errors import ApiError
from homerlm.server.state import Owner, Server, Shared
from homerlm.store.records import StoredFile

BLOCK = 1 << 20  # bytes that are written at once
MOST_LISTED = 10_000
router = APIRouter(prefix="/v1/files", tags=["Files"])


@router.post("")
async def upload(
    owner: Owner,
    server: Shared,
    file: UploadFile,
    purpose: Annotated[str, Form()] = "user_data",
    expires: Annotated[int | None, Form(alias="expires_after[seconds]", ge=1)] = None,
) -> dict[str, Any]:
    """Keep a file. What it holds is read when it is first asked about."""
    name = Path(file.filename or "").name
    if not name:
        raise ApiError(400, "The file has no name.", code="invalid_value", param="file")
    store = server.documents.store
    temporary = store.temporary()
    try:
        await _written(file, temporary, server.settings.max_upload_bytes)
        kept = await asyncio.to_thread(
            store.add_file, temporary, owner=owner, name=name, purpose=purpose, lifetime=expires,
            in_use=server.documents.in_use,
        )  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)
    return file_json(kept)


@router.get("")
async def listed(
    owner: Owner,
    server: Shared,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """A page of the caller's files."""
    found, more = await asyncio.to_thread(
        server.documents.store.files, owner, purpose=purpose, limit=limit, descending=order == "desc", after=after
    )
    ids = [one.id for one in found]
    ends = {"first_id": ids[0], "last_id": ids[-1]} if ids else {"first_id": None, "last_id": None}
    return {"object": "list", "data": [file_json(one) for one in found], **ends, "has_more": more}


@router.get("/{id}")
async def retrieved(owner: Owner, server: Shared, id: str) -> dict[str, Any]:
    return file_json(await _found(server, owner, id))


@router.get("/{id}/content", response_model=None)
async def content(owner: Owner, server: Shared, id: str) -> Response:
    """The file as it was uploaded, to be saved and never shown as a page of this server."""
    found = await _found(server, owner, id)
    path = server.documents.store.file_path(id)
    return FileResponse(path, media_type="application/octet-stream", filename=found.name)


@router.delete("/{id}")
async def deleted(owner: Owner, server: Shared, id: str) -> dict[str, Any]:
    """Delete a file, and what was read of it."""
    if not await asyncio.to_thread(server.documents.store.remove_file, owner, id):
        raise missing(id)
    return {"id": id, "object": "file", "deleted": True}


async def text_of(server: Server, owner: str, id: str) -> tuple[str, str]:
    """Name and text of an owner's file. Raises `ApiError` where there is none, `DocumentError` where it cannot be
    read."""
    found = await _found(server, owner, id)
    return found.name, await server.parser.text(server.documents.store.file_path(id), found.name)


def missing(id: str) -> ApiError:
    return ApiError(404, f"There is no file {id}.", code="not_found", param="file_id")


def file_json(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "expires_at": None if file.expires is None else int(file.expires),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


async def _found(server: Server, owner: str, id: str) -> StoredFile:
    found = await asyncio.to_thread(server.documents.store.file, owner, id)
    if found is None:
        raise missing(id)
    return found


async def _written(file: UploadFile, path: Path, most: int) -> None:
    """Write an upload to a path, block by block. Raises `ApiError` 413 beyond `most` bytes."""
    written = 0
    with path.open("wb") as target:
        while block := await file.read(BLOCK):
            written += len(block)
            if written > most:
                raise ApiError(413, f"The file is larger than {most:,} bytes, the most that is taken here.")
            await asyncio.to_thread(target.write, block)
