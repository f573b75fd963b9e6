"""Messages as clients write them, and what of them the library reads: text."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from homerlm.conversation.messages import SYSTEM, Message
from homerlm.server.errors import ApiError
from homerlm.server.found import text_of
from homerlm.server.parameters import Body, Words
from homerlm.server.state import Server
from homerlm.store.parsing import printable

ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": "user", "assistant": "assistant", "tool": "tool"}
ROLES |= {"function": "tool"}
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # the field of each type
FILES = ("file", "input_file")


class ChatPart(Body):
    """A part of a message: text, or a file, which was uploaded or stands in it."""

    type: Words
    text: Words | None = None
    refusal: Words | None = None
    file: dict[str, Any] | None = None
    file_id: Words | None = None
    file_data: str | None = None
    filename: Words | None = None


class ChatMessage(Body):
    role: Words = Field(description="system, developer, user, assistant or tool")
    content: Words | list[ChatPart] | None = None


async def read_messages(server: Server, owner: str, given: Sequence[ChatMessage], param: str) -> list[Message]:
    """Messages with the texts of their files. Raises `ApiError` for too many, for roles and parts that are not read
    here, and for files that the owner has not."""
    settings = server.settings
    if not given:
        raise ApiError(400, f"{param} is empty: send at least one message.", code="invalid_value", param=param)
    parts = sum(len(message.content) for message in given if isinstance(message.content, list))
    for count, most, what in ((len(given), settings.max_messages, "messages"), (parts, settings.max_parts, "parts")):
        if count > most:
            message = f"{param} has {count:,} {what}; this server takes {most:,} at most."
            raise ApiError(400, message, code="too_many", param=param)
    return [await _message(server, owner, one, f"{param}.{number}") for number, one in enumerate(given)]


async def _message(server: Server, owner: str, given: ChatMessage, param: str) -> Message:
    if given.role not in ROLES:
        known = ", ".join(ROLES)
        raise ApiError(400, f"role must be one of {known}.", code="invalid_value", param=f"{param}.role")
    texts: list[str] = [given.content] if isinstance(given.content, str) else []
    files: list[tuple[str, str]] = []
    for number, part in enumerate(given.content if isinstance(given.content, list) else ()):
        place = f"{param}.content.{number}"
        if part.type in TEXTS:
            texts.append(getattr(part, TEXTS[part.type]) or "")
        elif part.type in FILES:
            files.append(await _file(server, owner, part, place))
        else:
            message = f"Parts of this type are not read here: this server reads text and uploaded files ({place})."
            raise ApiError(400, message, code="unsupported_value", param=f"{place}.type")
    return Message(ROLES[given.role], tuple(texts), tuple(files))


async def _file(server: Server, owner: str, part: ChatPart, param: str) -> tuple[str, str]:
    """Name and text of a file that a part names by its id, or holds as base64, with `data:TYPE;base64,` before it or
    without."""
    given = {"file_id": part.file_id, "file_data": part.file_data, "filename": part.filename} | (part.file or {})
    id, data, name = given["file_id"], given["file_data"], given["filename"]
    if isinstance(id, str):
        return await text_of(server, owner, id)
    if not isinstance(data, str):
        message = (
            "A file is read that was uploaded (POST /v1/files) or stands in the message: pass file_id or file_data."
        )
        raise ApiError(400, message, code="unsupported_value", param=param)
    name = printable(name if isinstance(name, str) else "file.txt")
    return name, await _inline_text(server, data, name, param)


async def _inline_text(server: Server, data: str, name: str, param: str) -> str:
    try:
        content = base64.b64decode(data.partition(";base64,")[2] or data, validate=True)
    except ValueError:
        raise ApiError(400, "file_data is no base64.", code="invalid_value", param=param) from None
    path = server.documents.store.temporary()
    try:
        await asyncio.to_thread(path.write_bytes, content)
        return await server.parser.text(path, name)
    except OSError as error:
        raise ApiError(507, "The server's disk cannot take this file.", code="disk_full") from error
    finally:
        path.unlink(missing_ok=True)
