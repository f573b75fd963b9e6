"""The published subset of a request to `/v1/responses`, and the object that answers it."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

from pydantic import Field

from homerlm.server.answering import Usage
from homerlm.server.errors import ApiError
from homerlm.server.parameters import Body, Sampling, Words, refuse_format, refuse_tools, unsupported
from homerlm.server.parts import ChatMessage, ChatPart
from homerlm.server.writing_out import homer_json
from homerlm.writing import Writing

SKIPPED = ("file_search_call", "reasoning", "web_search_call")  # items of earlier answers that hold no text
RESULTS = "file_search_call.results"
LISTED = {"type", "text", "refusal", "file_id"}
MOST_METADATA = 16


class InputItem(Body):
    type: Words | None = None
    role: Words | None = None
    content: Words | list[ChatPart] | None = None


class Tool(Body):
    type: Words
    vector_store_ids: list[Words] | None = Field(None, max_length=64)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: dict[Words, Any] | None = None


class ResponseBody(Sampling):
    """What this server reads of a request; other fields are ignored."""

    input: Words | list[InputItem]
    instructions: Words | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: Words | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Any = None
    text: dict[Words, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[Words, Words] | None = Field(None, max_length=MOST_METADATA)
    include: list[Words] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    return_progress: bool | None = None

    def checked(self) -> Writing:
        """How the answer is to be written. Raises `ApiError` for what would change it and is not done here."""
        refuse_tools(self.tool_kind, ("auto", "none", "file_search"))
        refuse_format((self.text or {}).get("format"), "text.format")
        if self.background:
            raise unsupported("background", "answers to those who wait for them: leave it out")
        for name in ("conversation", "prompt"):
            if getattr(self, name) is not None:
                raise unsupported(name, "what the request itself holds: use previous_response_id, or send the text")
        if self.top_logprobs:
            raise unsupported("top_logprobs", "no probabilities in responses: chat completions have them")
        return self.writing(self.max_output_tokens)

    @property
    def tool_kind(self) -> Any:
        """The choice of tools, without its form."""
        return self.tool_choice.get("type") if isinstance(self.tool_choice, dict) else self.tool_choice

    @property
    def vector_stores(self) -> list[str]:
        """Ids of those that are to be searched. Raises `ApiError` for other filters than none."""
        if self.tool_choice == "none":
            return []
        found: list[str] = []
        for tool in self.tools or ():
            if tool.type == "file_search":
                if tool.filters:
                    raise unsupported("tools.filters", "an answer from all files of a vector store: leave it out")
                found += tool.vector_store_ids or []
        return list(dict.fromkeys(found))

    def messages(self) -> list[ChatMessage]:
        """The input as messages. Raises `ApiError` for items that are none."""
        if isinstance(self.input, str):
            return [ChatMessage(role="user", content=self.input)]
        found = []
        for number, item in enumerate(self.input):
            if item.type in (None, "message"):
                found.append(ChatMessage(role=item.role or "user", content=item.content))
            elif item.type not in SKIPPED:
                message = f"input.{number} is of a type that is not read here: this server reads messages."
                raise ApiError(400, message, code="unsupported_value", param=f"input.{number}.type")
        return found

    def items(self) -> list[dict[str, Any]]:
        """The input's messages as they are listed afterwards."""
        listed = []
        for message in self.messages():
            kind = "output_text" if message.role == "assistant" else "input_text"
            parts = message.content if isinstance(message.content, list) else [{"type": kind, "text": message.content}]
            content = [
                part if isinstance(part, dict) else part.model_dump(include=LISTED, exclude_none=True) for part in parts
            ]
            id = f"msg_{secrets.token_hex(12)}"
            listed.append(
                {"id": id, "type": "message", "role": message.role, "status": "completed", "content": content}
            )
        return listed


def response_json(body: ResponseBody, model: str) -> dict[str, Any]:
    """The object of a response that has begun."""
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature or 0.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": {"type": "file_search"} if body.tool_kind == "file_search" else body.tool_kind or "auto",
        "tools": [
            {"type": tool.type, "vector_store_ids": tool.vector_store_ids}
            for tool in body.tools or ()
            if tool.type == "file_search"
        ],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "auto",
        "usage": None,
        "metadata": body.metadata or {},
    }


def response_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
        "homer": homer_json(usage),
    }
