"""An answer by a larger model behind an OpenAI-compatible endpoint, from the passages that a small one chose here.

The key comes from the environment variable `OPENAI_API_KEY` and goes to that endpoint alone: redirects are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from homerlm import __version__
from homerlm.errors import EndpointError, InputError

if TYPE_CHECKING:
    from homerlm.selection import Excerpt, Selection

KEY = "OPENAI_API_KEY"
INSTRUCTION = (
    "Answer the question from the passages that follow. They were chosen from a longer document, in its order. "
    "If they do not hold the answer, say so."
)
BETWEEN = "\n\n[...]\n\n"
_MOST_SHOWN = 300  # characters of what a server says


@dataclass(frozen=True)
class RemoteAnswer:
    """What an endpoint answered. finish_reason: "stop", "length" ...; prompt_tokens, new_tokens: as the endpoint counts
    them; None where it does not tell."""

    text: str
    model: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. url: what its paths begin with, "http://localhost:8000/v1"; model: one of those that
    it serves, None for its only one; timeout_s: the longest silence.

    Raises `InputError` for what is no such address, and `EndpointError` whenever the server cannot be used.
    """

    url: str
    model: str | None = None
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(str(self.url))
            right = (
                isinstance(self.url, str)
                and parts.scheme in ("http", "https")
                and bool(parts.hostname)
                and parts.port != 0
            )
        except ValueError:
            right = False
        if not right or "@" in parts.netloc or parts.query or parts.fragment:
            raise InputError(
                f"the endpoint is {self.url!r}; it must be an address such as http://localhost:8000/v1, its key in the "
                f"environment variable {KEY}"
            )
        object.__setattr__(self, "url", self.url.rstrip("/").removesuffix("/chat/completions"))

    def checked(self) -> Endpoint:
        """This endpoint with the name of its model, once it has answered: what is wrong is known before a document is
        read."""
        try:
            listed = self._parsed(self._read(self._opened("/models")))
        except EndpointError as error:
            if error.status not in (404, 405, 501):
                raise
            listed = None  # not every server lists its models
        if self.model is not None:
            return self
        entries = listed.get("data") if isinstance(listed, dict) else None
        names = [str(entry["id"]) for entry in entries or () if "id" in entry]
        if len(names) != 1:
            shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
            raise EndpointError(
                f"{self.url} serves {shown or 'no model that it names'}: name one, model=... (--reader-model)"
            )
        return replace(self, model=names[0])

    def answer(
        self,
        selection: Selection,
        *,
        instruction: str = INSTRUCTION,
        on_text: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> RemoteAnswer:
        """The answer to a selection's question, read from its passages. `on_text` gets it in pieces as they come;
        `settings` (max_tokens, temperature, seed, ...) go to the server."""
        from homerlm.selection import Selection

        if not isinstance(selection, Selection):
            raise InputError(f"selection is {type(selection).__name__}; it must be what `Homer.select` gives")
        name = self.model or self.checked().model
        passages = BETWEEN.join(_under_names(selection.passages))
        messages = [
            {"role": "system", "content": instruction},
            {"role": "user", "content": f"{passages}\n\nQuestion: {selection.question}"},
        ]
        body = {"model": name, "messages": messages, "stream": on_text is not None, **settings}
        with self._opened("/chat/completions", body) as response:
            if response.headers.get_content_type() == "text/event-stream":
                return _streamed(self._events(response), str(name), on_text or (lambda _piece: None))
            answer = self._whole(self._parsed(self._read(response)), str(name))
        if on_text is not None and answer.text:  # a server that does not stream
            on_text(answer.text)
        return answer

    def _opened(self, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        """The server's response to a GET, or to a POST of a body. To be closed."""
        key = os.environ.get(KEY, "").strip()
        headers = {"User-Agent": f"homerlm/{__version__}", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        data = None if body is None else json.dumps(body).encode()
        with self._explained():
            try:
                request = Request(self.url + path, data, headers)
                response: HTTPResponse = build_opener(_NoRedirect).open(request, timeout=self.timeout_s)
            except HTTPError as error:
                with error:
                    raise EndpointError(self._refused(error, path, bool(key)), error.code) from None
        return response

    def _read(self, response: HTTPResponse) -> bytes:
        with self._explained(), response:
            return response.read()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Failures of the connection as `EndpointError`."""
        try:
            yield
        except TimeoutError as error:
            raise EndpointError(f"{self.url} was silent for {self.timeout_s:g} s: is it overloaded?") from error
        except URLError as error:
            raise EndpointError(f"{self.url} cannot be reached ({error.reason}): check that it runs there") from error
        except (OSError, HTTPException, UnicodeError) as error:
            raise EndpointError(f"{self.url} broke the connection off ({error or type(error).__name__})") from error

    def _refused(self, error: HTTPError, path: str, has_key: bool) -> str:
        """What to say of a response that is an error."""
        said = ""
        with suppress(OSError, HTTPException):
            said = _said(error.read(1 << 16))
        if error.code in (401, 403):
            fix = f"check the key in {KEY}" if has_key else f"set {KEY} to its key"
        elif error.code == 404:
            fix = f"check the address, which often ends in /v1, and the model's name, {self.model}"
        elif 300 <= error.code < 400:
            fix = f"it is somewhere else: {error.headers.get('Location', 'it does not say where')}"
        else:
            fix = "it says no more" if not said else "change what it names, or try later"
        return f"{self.url}{path} answers {error.code} {error.reason}{f' ({said})' if said else ''}: {fix}"

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise EndpointError(
                f"{self.url} answers with what is no JSON ({_said(data)}): check the address, which often ends in /v1"
            ) from None

    def _events(self, response: HTTPResponse) -> Iterator[dict[str, Any]]:
        """The objects of a stream of server-sent events, up to its end. Raises `EndpointError` where it breaks off."""
        finished = False
        for line in self._lines(response):
            name, _, value = line.strip().partition(b":")
            if name != b"data":
                continue
            if value.strip() == b"[DONE]":
                return
            event = self._parsed(value)
            if not isinstance(event, dict) or event.get("error"):
                raise EndpointError(f"{self.url} broke the answer off ({_said(value)})")
            finished = finished or any(choice.get("finish_reason") for choice in event.get("choices") or ())
            yield event
        if not finished:
            raise EndpointError(f"{self.url} broke the answer off before its end: ask again")

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._explained():
                line = response.readline()
            if not line:
                return
            yield line

    def _whole(self, found: Any, model: str) -> RemoteAnswer:
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"] or ""
            return _record(text.strip(), model, choice.get("finish_reason"), found.get("usage") or {})
        except (KeyError, IndexError, TypeError, AttributeError):
            said = _said(json.dumps(found).encode())
            raise EndpointError(f"{self.url} answers without a choice of text ({said})") from None


class _NoRedirect(HTTPRedirectHandler):
    """Another address would be given the key."""

    def redirect_request(self, *_args: Any) -> None:
        return None


def _under_names(passages: Sequence[Excerpt]) -> Iterator[str]:
    """Their texts, the first of each document under its name where there are several."""
    name = None
    for passage in passages:
        yield passage.text if passage.document == name else f"# {passage.document}\n\n{passage.text}"
        name = passage.document


def _streamed(events: Iterator[dict[str, Any]], model: str, on_text: Callable[[str], None]) -> RemoteAnswer:
    pieces: list[str] = []
    reason: str | None = None
    usage: dict[str, Any] = {}
    for event in events:
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            reason = choice.get("finish_reason") or reason
            if piece := (choice.get("delta") or {}).get("content"):
                pieces.append(piece)
                on_text(piece)
    return _record("".join(pieces).strip(), model, reason, usage)


def _record(text: str, model: str, reason: str | None, usage: dict[str, Any]) -> RemoteAnswer:
    return RemoteAnswer(text, model, reason, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _said(data: bytes) -> str:
    """What a server says, its own words where they are found, on one line and without the key."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        if isinstance(found, dict):
            found = found.get("message") or found.get("detail") or found
        text = found if isinstance(found, str) else json.dumps(found)
    except ValueError:
        pass
    if key := os.environ.get(KEY, "").strip():
        text = text.replace(key, "***")
    line = " ".join(text.split())
    return line if len(line) <= _MOST_SHOWN else line[:_MOST_SHOWN] + " ..."
