"""What responses are an answer to: messages, and compacted conversations that stand for what was said before them."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

from homerlm.conversation.messages import Message
from homerlm.server.errors import ApiError
from homerlm.server.parameters import Body, Words
from homerlm.server.parts import ChatMessage, ChatPart, read_messages
from homerlm.server.remembered import Remembered
from homerlm.server.state import Server

COMPACTION = "compaction"
SKIPPED = ("file_search_call", "reasoning", "web_search_call")  # items of earlier answers that hold no text
LISTED = {"type", "text", "refusal", "file_id"}


class InputItem(Body):
    type: Words | None = None
    role: Words | None = None
    content: Words | list[ChatPart] | None = None
    encrypted_content: Words | None = None

    @property
    def message(self) -> ChatMessage:
        return ChatMessage(role=self.role or "user", content=self.content)


class Conversed(Body):
    """The part of a request that says what was said."""

    model: Words | None = None
    input: Words | list[InputItem] | None = None
    instructions: Words | None = None
    previous_response_id: Words | None = None

    def read_items(self) -> list[InputItem]:
        """The messages and compactions among the items. Raises `ApiError` for others that hold something."""
        if self.input is None or isinstance(self.input, str):
            return [] if self.input is None else [InputItem(role="user", content=self.input)]
        found = []
        for number, item in enumerate(self.input):
            if item.type in (None, "message", COMPACTION):
                found.append(item)
            elif item.type not in SKIPPED:
                message = f"input.{number} is of a type that is not read here: this server reads messages."
                raise ApiError(400, message, code="unsupported_value", param=f"input.{number}.type")
        return found

    def listed(self) -> list[dict[str, Any]]:
        """The items as they are listed afterwards."""
        return [_listed(item) for item in self.read_items()]


async def conversation(server: Server, owner: str, given: Conversed) -> list[Message]:
    """All messages up to now but the instructions, which are not carried over. Raises `ApiError` for an earlier
    response or a compaction that the owner has not, and as `read_messages`."""
    said: list[Message] = []
    if given.previous_response_id is not None:
        said += known(server, owner, given.previous_response_id, "previous_response_id").messages
    items = given.read_items()
    messages = [item.message for item in items if item.type != COMPACTION]
    some = items or (said and given.input is None)
    read = iter(await read_messages(server, owner, messages, "input") if messages or not some else ())
    for item in items:
        if item.type != COMPACTION:
            said.append(next(read))
            continue
        stored = known(server, owner, item.encrypted_content or "", "input").messages
        said = [*_others(said, stored), *stored]
    return said


def known(server: Server, owner: str, id: str, param: str | None = None) -> Remembered:
    """What is remembered of a response or a compaction. param: of a request that goes on from it. Raises `ApiError`."""
    found = server.memory.get(owner, id)
    if found is None:
        raise unknown(id, param)
    return found


def unknown(id: str, param: str | None = None) -> ApiError:
    """The error for a response that the caller has not, or not any more."""
    codes = {None: "not_found", "previous_response_id": "previous_response_not_found", "input": "compaction_not_found"}
    what = "Compacted conversation" if param == "input" else "Response"
    return ApiError(400 if param else 404, f"{what} with id '{id[:100]}' not found.", code=codes[param], param=param)


def _others(said: Sequence[Message], stored: Sequence[Message]) -> list[Message]:
    """The messages that a compaction does not hold: those of the user stand before it once more."""
    held = Counter((message.role, message.text) for message in stored)
    left = []
    for message in said:
        key = message.role, message.text
        if held[key]:
            held[key] -= 1
        else:
            left.append(message)
    return left


def _listed(item: InputItem) -> dict[str, Any]:
    if item.type == COMPACTION:
        id = f"cmp_{secrets.token_hex(12)}"
        return {"id": id, "type": COMPACTION, "encrypted_content": item.encrypted_content}
    message = item.message
    kind = "output_text" if message.role == "assistant" else "input_text"
    parts = message.content if isinstance(message.content, list) else [{"type": kind, "text": message.content}]
    content = [part if isinstance(part, dict) else part.model_dump(include=LISTED, exclude_none=True) for part in parts]
    return message_item(message.role, content)


def message_item(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    """A message as an item."""
    id = f"msg_{secrets.token_hex(12)}"
    return {"id": id, "type": "message", "role": role, "status": "completed", "content": content}
