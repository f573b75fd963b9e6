"""Messages as clients write them, and what of them the library reads: text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from homerlm.conversation.messages import SYSTEM, Message
from homerlm.server.errors import ApiError
from homerlm.server.found import text_of
from homerlm.server.parameters import Body, Words
from homerlm.server.state import Server

ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": "user", "assistant": "assistant", "tool": "tool"}
ROLES |= {"function": "tool"}
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # the field of each type
FILES = ("file", "input_file")


class ChatPart(Body):
    """A part of a message: text, or a file that was uploaded."""

    type: Words
    text: Words | None = None
    refusal: Words | None = None
    file: dict[str, Any] | None = None
    file_id: Words | None = None


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
    """Name and text of a file that a part names by its id."""
    id = part.file_id or (part.file or {}).get("file_id")
    if not isinstance(id, str):
        message = "Only files that were uploaded (POST /v1/files) are read: pass their file_id."
        raise ApiError(400, message, code="unsupported_value", param=param)
    return await text_of(server, owner, id)
