"""Valid requests to every endpoint, and hypothesis' strategies that make them wrong: values of other types, huge
numbers, lone surrogates, depth, missing and additional fields, other content types, broken multipart, bytes changed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx
import requests
from hypothesis import reject
from hypothesis import strategies as st

from serve_bodies import BODIES, READ, REMOVED, UPLOAD, named

DEEP, DIGITS = "@deep@", "@digits@"  # stand for what no JSON encoder writes
JSON_TYPE = "application/json"
SENT = ("method", "url", "headers", "files", "data", "json", "params", "auth", "cookies")
TYPES = (
    JSON_TYPE,
    "text/plain",
    "application/xml",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "",
    "a/b; c",
)


@dataclass(frozen=True)
class Mutant:
    """A request. route: the path before it was changed; path: with its query."""

    method: str
    route: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def request(self, http: httpx.Client) -> httpx.Request:
        headers: Any = {name: value.encode("utf-8", "surrogatepass") for name, value in self.headers.items()}
        return http.build_request(self.method, self.path, content=self.content, headers=headers)

    @classmethod
    def of_case(cls, case: Any) -> Mutant:
        """Of a case of schemathesis'; one that no client can send is passed over."""
        given = case.as_transport_kwargs(base_url="http://s")
        try:
            sent = requests.Request(**{name: given.get(name) for name in SENT}).prepare()
            path = httpx.URL(sent.url or "").raw_path.decode("ascii")
        except (requests.exceptions.RequestException, httpx.InvalidURL, UnicodeError):
            reject()
        body: Any = sent.body or b""
        headers = {name: str(value) for name, value in sent.headers.items() if name not in ("Host", "Content-Length")}
        content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        return cls(sent.method or "GET", case.operation.path, path, content, headers)


NUMBERS = [0, -1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, -0.0, float("nan"), float("inf"), DIGITS]
WORDS = ["", "\ud800", "\0", "x" * 70_000, "😀\u202e", "../../etc/passwd", "<|im_start|>", "%s{0}", DEEP, "auto"]
PARTS: list[Any] = [{"type": "text"}, {"": None}, {"type": "file", "file": {"file_id": "x"}}]
OTHERS = [None, True, False, [], {}, [[]], [None], *PARTS]
ANY: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([*NUMBERS, *WORDS, *OTHERS])
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def encoded(body: Any) -> bytes:
    """JSON, with `DEEP` and `DIGITS` for what they stand for."""
    text = json.dumps(body)
    return text.replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000).replace(f'"{DIGITS}"', "9" * 6000).encode()


@st.composite
def mutants(draw: Any, known: dict[str, str]) -> Mutant:
    """A request to any endpoint, wrong in some place."""
    kinds: list[Callable[..., Mutant]] = [_of_body] * 5 + [_of_bytes, _of_path, _of_path, _of_upload, _of_upload]
    mutant = draw(st.sampled_from(kinds))(draw, known)
    return draw(_elsewhere(mutant)) if draw(st.integers(0, 5)) == 0 else mutant


def _body(draw: Any, known: dict[str, str]) -> tuple[str, str, Any]:
    route = draw(st.sampled_from(sorted(BODIES)))
    return route, named(route, known), named(BODIES[route], known)


def _of_body(draw: Any, known: dict[str, str]) -> Mutant:
    route, path, body = _body(draw, known)
    for _ in range(draw(st.integers(0, 3))):
        body = _changed(draw, body)
    headers = {"Content-Type": JSON_TYPE}
    return Mutant("POST", route, path, encoded(body), headers)


def _changed(draw: Any, body: Any) -> Any:
    """One value anywhere in a body replaced, taken away, repeated, or put beside another."""
    body = copy.deepcopy(body)
    inner = [one for one in _containers(body) if one]
    if not inner or draw(st.integers(0, 20)) == 0:
        return draw(ANY)
    place = draw(st.sampled_from(inner))
    key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "many", "add"]))
    if how == "replace":
        place[key] = draw(ANY)
    elif how == "many":
        place[key] = [place[key]] * draw(st.sampled_from([2, 30, 600]))
    elif how == "remove":
        del place[key]
    elif isinstance(place, dict):
        place[draw(st.sampled_from(["file_id", "type", "text", "n", "content"]) | st.text(max_size=6))] = draw(ANY)
    else:
        place.append(draw(ANY))
    return body


def _containers(value: Any) -> list[Any]:
    if not isinstance(value, dict | list):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [value, *(found for one in inside for found in _containers(one))]


def _of_bytes(draw: Any, known: dict[str, str]) -> Mutant:
    route, path, body = _body(draw, known)
    content = draw(
        _broken(json.dumps(body).encode()) | st.binary(max_size=40) | st.just(json.dumps(body).encode("utf-16"))
    )
    return Mutant("POST", route, path, content, {"Content-Type": draw(st.sampled_from(TYPES))})


def _of_path(draw: Any, known: dict[str, str]) -> Mutant:
    method = draw(st.sampled_from(["GET", "GET", "GET", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH", "POST"]))
    route = draw(st.sampled_from(REMOVED if method == "DELETE" else READ))
    path, _, query = named(route, known).partition("?")
    parts, pairs = path.split("/"), [pair.partition("=")[::2] for pair in query.split("&") if query]
    if draw(st.booleans()):
        parts[draw(st.integers(1, len(parts) - 1))] = _quoted(draw)
    if pairs:
        at = draw(st.integers(0, len(pairs) - 1))
        pairs[at] = pairs[at][0], _quoted(draw)
    more = [(draw(st.sampled_from(["after", "limit", "text", "question", "order"])), _quoted(draw))]
    asked = "&".join(f"{name}={value}" for name, value in pairs + more * draw(st.integers(0, 1)))
    headers = {"Accept": draw(st.sampled_from(["*/*", "text/html", "", ";;,", "text/html;q=\udcff"]))}
    return Mutant(method, route, "/".join(parts) + (f"?{asked}" if asked else ""), b"", headers)


def _quoted(draw: Any) -> str:
    odd = ["", "..", "\0", "0", "-1", "1e9", "9" * 30, "null", "%", "x" * 3000, "a/b", "\ud800", "true"]
    text = draw(st.sampled_from(odd) | st.text(st.characters(codec=None), max_size=10))
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def _of_upload(draw: Any, known: dict[str, str]) -> Mutant:  # noqa: ARG001
    content = draw(_broken(UPLOAD) | st.just(UPLOAD))
    for old, new in (
        (
            b'filename="a.txt"',
            [b'filename=""', b"filename*=UTF-8''%ff%00", b'filename="' + b"x" * 5000 + b'"', b'filename="../\0"', b""],
        ),
        (b"assistants", [b"", b"\xff", b"vision", b"x" * 3000]),
        (b"3600", [b"-1", b"1e5", b"9" * 40, b""]),
        (
            b"Content-Type: text/plain",
            [b"Content-Type: ", b"X" * 9000 + b": y", b"Content-Transfer-Encoding: base64", b"\xff: \xff"],
        ),
        (b"Emma", [b"", b"\0" * 1000, b"%PDF-1.4", b"PK\x03\x04", b"\xff\xfe"]),
    ):
        if draw(st.integers(0, 3)) == 0:
            content = content.replace(old, draw(st.sampled_from(new)))
    boundary = draw(
        st.sampled_from(
            ["; boundary=B"] * 6 + ["", "; boundary=", "; boundary=C", '; boundary="B', "; boundary=B; charset=x"]
        )
    )
    return Mutant("POST", "/v1/files", "/v1/files", content, {"Content-Type": f"multipart/form-data{boundary}"})


@st.composite
def _broken(draw: Any, content: bytes) -> bytes:
    """Bytes cut off, changed or repeated."""
    at = draw(st.integers(0, len(content) - 1))
    how = draw(st.sampled_from(["cut", "change", "repeat", "insert"]))
    if how == "cut":
        return content[:at]
    if how == "change":
        return content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]
    return content[:at] + (content[:at] if how == "repeat" else draw(st.binary(max_size=9))) + content[at:]


@st.composite
def _elsewhere(draw: Any, mutant: Mutant) -> Mutant:
    """The same with other headers, or by another method."""
    if draw(st.booleans()):
        return replace(mutant, method=draw(st.sampled_from(["PUT", "PATCH", "GET", "POST", "DELETE", "HEAD", "BREW"])))
    name = draw(
        st.sampled_from(
            ["Content-Type", "Content-Encoding", "Authorization", "X-Request-Id", "Origin", "Host", "Accept"]
        )
    )
    odd = [
        "",
        "gzip",
        "Bearer \u00ff",
        "null",
        "http://[",
        "[::1",
        "::1",
        "127.0.0.1:x",
        "a" * 5000,
        "charset=\u00e9",
        "*/*;q=x",
    ]
    return replace(mutant, headers={**mutant.headers, name: draw(st.sampled_from([*odd, *TYPES]))})
