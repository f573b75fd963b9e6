"""A response as it comes into being: its typed events, in the published order."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any

from sse_starlette import ServerSentEvent

from homerlm.answer import Prepared
from homerlm.selection import Excerpt
from homerlm.server.answering import Progress, Step, Usage
from homerlm.server.errors import ApiError
from homerlm.server.file_search import Searched
from homerlm.server.limited_search import Results
from homerlm.server.response_body import RESULTS, ResponseBody, response_usage
from homerlm.server.sse import Events, event
from homerlm.server.writing_out import progress_json
from homerlm.writing import Piece

ERRORS = {429: "rate_limit_exceeded", 400: "invalid_prompt"}  # the published codes
Event = dict[str, Any]


class Making:
    """One response. `response` is the object as far as it has come; on_end: called with it once it is whole."""

    def __init__(
        self,
        body: ResponseBody,
        response: dict[str, Any],
        searched: Searched | None,
        query: str,
        on_end: Callable[[dict[str, Any]], None],
    ) -> None:
        self.response = response
        self._body, self._searched, self._query, self._on_end = body, searched, query, on_end
        self._numbers = itertools.count()
        self._item = f"msg_{secrets.token_hex(12)}"
        self._at = 0 if searched is None else 1  # the message's place in the output
        self._passages: list[tuple[str, Excerpt]] = []
        self._results: Results | None = None
        self._text: list[str] = []
        self._finish = "stop"

    async def events(self, steps: AsyncGenerator[Step | Results, None]) -> Events:
        """Server-sent events of all steps, none before the first step."""
        async with aclosing(steps):
            begun = False
            async for step in steps:
                if not begun:
                    for one in self._begin():
                        yield self._sent(one)
                    begun = True
                for one in self._of(step):
                    yield self._sent(one)

    async def whole(self, steps: AsyncGenerator[Step | Results, None]) -> dict[str, Any]:
        """The response, waited for."""
        async with aclosing(self.events(steps)) as events:
            async for _ in events:
                pass
        return self.response

    def failed(self, error: ApiError) -> list[ServerSentEvent]:
        """How the stream ends where something went wrong."""
        code = ERRORS.get(error.status, "server_error")
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return [self._sent({"type": "response.failed", "response": self.response})]

    def _sent(self, one: Event) -> ServerSentEvent:
        return event({**one, "sequence_number": next(self._numbers)}, one["type"])

    def _begin(self) -> Iterator[Event]:
        yield {"type": "response.created", "response": self.response}
        yield {"type": "response.in_progress", "response": self.response}
        if self._searched is not None:
            call = self._searched.call([self._query], "in_progress", None)
            yield {"type": "response.output_item.added", "output_index": 0, "item": call}
            for state in ("in_progress", "searching"):
                yield self._search_event(f"response.file_search_call.{state}", call["id"])

    def _of(self, step: Step | Results) -> Iterator[Event]:
        if isinstance(step, Results):
            self._results = step
        elif isinstance(step, Progress) and self._body.return_progress:
            told = {"type": "response.in_progress", "response": self.response}
            yield {**told, "prompt_progress": progress_json(step)}
        elif isinstance(step, Prepared):
            yield from self._found(step)
            yield self._item_event("response.output_item.added", item=self._message("in_progress", []))
            yield self._part_event("response.content_part.added", part=self._part("", []))
        elif isinstance(step, Piece):
            self._finish = step.finish or self._finish
            self._text.append(step.text)
            if step.text:
                yield self._part_event("response.output_text.delta", delta=step.text, logprobs=[])
        elif isinstance(step, Usage):
            yield from self._end(step)

    def _found(self, prepared: Prepared) -> Iterator[Event]:
        """The end of the search, if there was one."""
        if self._searched is None:
            return
        self._passages = self._searched.passages(prepared)
        wanted = RESULTS in (self._body.include or ())
        results = self._searched.results(self._results, self._passages) if wanted else None
        call = self._searched.call([self._query], "completed", results)
        self.response = {**self.response, "output": [call]}
        yield self._search_event("response.file_search_call.completed", call["id"])
        yield {"type": "response.output_item.done", "output_index": 0, "item": call}

    def _end(self, usage: Usage) -> Iterator[Event]:
        text = "".join(self._text)
        citations = [] if self._searched is None else self._searched.citations(self._passages, len(text))
        part = self._part(text, citations)
        for number, citation in enumerate(citations):
            name = "response.output_text.annotation.added"
            yield self._part_event(name, annotation=citation, annotation_index=number)
        yield self._part_event("response.output_text.done", text=text, logprobs=[])
        yield self._part_event("response.content_part.done", part=part)
        whole = self._finish == "stop"
        status = "completed" if whole else "incomplete"
        message = self._message(status, [part])
        yield self._item_event("response.output_item.done", item=message)
        self.response = {
            **self.response,
            "status": status,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "output": [*self.response["output"], message],
            "usage": response_usage(usage),
        }
        self._on_end(self.response)
        yield {"type": f"response.{status}", "response": self.response}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, text: str, citations: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": citations, "logprobs": []}

    def _search_event(self, name: str, id: str) -> Event:
        return {"type": name, "output_index": 0, "item_id": id}

    def _item_event(self, name: str, **more: Any) -> Event:
        return {"type": name, "output_index": self._at, **more}

    def _part_event(self, name: str, **more: Any) -> Event:
        return {"type": name, "item_id": self._item, "output_index": self._at, "content_index": 0, **more}
