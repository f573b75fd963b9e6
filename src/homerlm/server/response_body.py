"""The published subset of a request to `/v1/responses`, and the object that answers it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from homerlm.server.answering import Usage
from homerlm.server.file_search import FileSearch
from homerlm.server.ids import token
from homerlm.server.input_items import Conversed, InputItem
from homerlm.server.parameters import Body, Sampling, Words, refuse_format, refuse_tools, unsupported
from homerlm.server.writing_out import homer_json
from homerlm.writing import Writing

RESULTS, LOGPROBS = "file_search_call.results", "message.output_text.logprobs"
MOST_METADATA = 16


class FileSearchTool(FileSearch):
    type: Literal["file_search"]


class OtherTool(Body):
    """A tool that is not used."""

    type: Words


def _kind(given: Any) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return "file_search" if kind == "file_search" else "other"


Tool = Annotated[
    Annotated[FileSearchTool, Tag("file_search")] | Annotated[OtherTool, Tag("other")], Discriminator(_kind)
]


class ResponseBody(Conversed, Sampling):
    """What this server reads of a request; other fields are ignored."""

    input: Words | list[InputItem]
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    store: bool | None = None
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
        if LOGPROBS in (self.include or ()):
            raise unsupported("include", "no probabilities in responses: chat completions have them")
        if self.top_logprobs:
            raise unsupported("top_logprobs", "no probabilities in responses: chat completions have them")
        return self.writing(self.max_output_tokens)

    @property
    def tool_kind(self) -> Any:
        """The choice of tools, without its form."""
        return self.tool_choice.get("type") if isinstance(self.tool_choice, dict) else self.tool_choice

    @property
    def searches(self) -> list[FileSearchTool]:
        """The tools that are used."""
        if self.tool_choice == "none":
            return []
        return [tool for tool in self.tools or () if isinstance(tool, FileSearchTool) and tool.vector_store_ids]


def response_json(body: ResponseBody, model: str) -> dict[str, Any]:
    """The object of a response that has begun."""
    return {
        "id": f"resp_{token(16)}",
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
            tool.model_dump(mode="json", exclude_none=True)
            for tool in body.tools or ()
            if isinstance(tool, FileSearchTool)
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
