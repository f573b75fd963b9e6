"""`/v1/responses/compact`: a conversation as one item, which stands for its stored text."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from homerlm.conversation.messages import Message
from homerlm.server.answering import Usage
from homerlm.server.errors import ApiError
from homerlm.server.ids import token
from homerlm.server.input_items import COMPACTION, Conversed, conversation, message_item
from homerlm.server.remembered import Remembered
from homerlm.server.response_body import response_usage
from homerlm.server.state import Owner, Server, Shared

router = APIRouter(prefix="/v1", tags=["Responses"])


@router.post("/responses/compact", response_model=None)
async def compact(body: Conversed, owner: Owner, server: Shared) -> dict[str, Any]:
    """Store a conversation, and give its user's messages and an item that stands for all of it. Nothing is summarised:
    where the item is given again, the conversation is read as if it had been sent. It lives as long as a response, by
    whose endpoints it is found and deleted, too."""
    server.check_model(body.model)
    messages = await conversation(server, owner, body)
    started = time.perf_counter()
    tokens = await asyncio.to_thread(_count, server, messages)
    server.check_tokens(tokens, "conversation", "input")
    usage = Usage(tokens, tokens, 0, 0, 0, time.perf_counter() - started)
    made = _compacted(messages, usage)
    server.memory.put(owner, Remembered(made, tuple(messages), tuple(body.listed())))
    if server.memory.get(owner, made["id"]) is None:
        message = "The conversation is too large to be kept here (--response-bytes, --max-responses)."
        raise ApiError(413, message, code="request_too_large", param="input")
    return made


def _compacted(messages: Sequence[Message], usage: Usage) -> dict[str, Any]:
    id = f"resp_{token(16)}"
    asked = [_item(message) for message in messages if message.role == "user" and message.text]
    item = {"id": f"cmp_{secrets.token_hex(12)}", "type": COMPACTION, "encrypted_content": id}
    return {
        "id": id,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*asked, item],
        "usage": response_usage(usage),
    }


def _item(message: Message) -> dict[str, Any]:
    return message_item(message.role, [{"type": "input_text", "text": part} for part in message.parts if part])


def _count(server: Server, messages: Sequence[Message]) -> int:
    """Tokens of all that was said, files included."""
    texts = [text for one in messages for text in (*one.parts, *(text for _, text in one.files))]
    return sum(map(server.reader.count, texts))
