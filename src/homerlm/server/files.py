"""`/v1/files`: documents that clients upload, to be asked about through vector stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import StreamingResponse

from homerlm.server.errors import ApiError
from homerlm.server.found import found_file, missing_file
from homerlm.server.indexing import Indexed
from homerlm.server.objects import Deleted, FileObject, Order, Page
from homerlm.server.state import Owner, Shared
from homerlm.store.parsing import printable

router = APIRouter(tags=["Files"])
BLOCK = 1 << 20
Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]


@router.post("/v1/files")
def create(
    owner: Owner,
    server: Shared,
    file: Annotated[UploadFile, File(description="The document: text, PDF, EPUB, DOCX and others.")],
    purpose: Annotated[Purpose, Form(description="Of use to the client alone.")],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=1, le=10 * 365 * 86_400)] = None,
) -> FileObject:
    """Upload a file."""
    if (anchor is None) != (seconds is None):
        raise ApiError(400, "expires_after needs both anchor and seconds.", code="invalid_value", param="expires_after")
    store = server.documents.store
    temporary = store.temporary()
    try:
        _copy(file.file, temporary, server.settings.max_upload_bytes)
        made = store.add_file(
            temporary,
            owner=owner,
            name=_name(file.filename),
            purpose=purpose,
            lifetime=seconds,
            in_use=server.documents.in_use,
        )
    except OSError as error:
        raise ApiError(507, "The server's disk cannot take this file.", code="disk_full") from error
    finally:
        temporary.unlink(missing_ok=True)
    return FileObject.of(made)


@router.get("/v1/files")
def files(
    owner: Owner,
    server: Shared,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    after: str | None = None,
) -> Page[FileObject]:
    """The files of the caller's key."""
    found, more = server.documents.store.files(
        owner, purpose=purpose, limit=limit, descending=order == "desc", after=after
    )
    return Page[FileObject].of([FileObject.of(one) for one in found], more)


@router.get("/v1/files/{file_id}")
def file(file_id: str, owner: Owner, server: Shared) -> FileObject:
    """What is known of a file."""
    return FileObject.of(found_file(server, owner, file_id))


@router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
def content(file_id: str, owner: Owner, server: Shared) -> StreamingResponse:
    """A file as it was uploaded."""
    found = found_file(server, owner, file_id)
    try:
        opened = open(server.documents.store.file_path(found.id), "rb")  # noqa: SIM115 (_blocks closes it)
    except FileNotFoundError:
        raise missing_file(file_id) from None
    headers = {
        "Content-Length": str(found.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.name, safe='')}",
    }
    return StreamingResponse(_blocks(opened), media_type="application/octet-stream", headers=headers)


@router.delete("/v1/files/{file_id}")
async def delete(file_id: str, owner: Owner, server: Shared, indexing: Indexed) -> Deleted:
    """Remove a file, and what was read of it, from here and from every vector store."""
    if not await server.documents.remove_file(owner, file_id):
        raise missing_file(file_id)
    indexing.stop(file=file_id)
    return Deleted(id=file_id, object="file")


def _name(given: str | None) -> str:
    """The last part of what a client calls its file."""
    return printable(PurePosixPath((given or "").replace("\\", "/")).name)


def _copy(source: IO[bytes], target: Path, most: int) -> None:
    """Raises `ApiError` for a file that is empty or larger than `most` bytes."""
    read = 0
    with open(target, "xb") as file:
        while block := source.read(BLOCK):
            read += len(block)
            if read > most:
                message = f"The file is too large: this server takes {most:,} bytes at most."
                raise ApiError(413, message, code="request_too_large", param="file")
            file.write(block)
    if not read:
        raise ApiError(400, "The file is empty.", code="invalid_value", param="file")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while block := file.read(BLOCK):
            yield block
