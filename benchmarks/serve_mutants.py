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

TEXT = "The lighthouse keeper is called Emma. Her brother lives in Kyoto, and writes to her on Sundays. " * 60
DEEP, DIGITS = "@deep@", "@digits@"  # stand for what no JSON encoder writes
_FIELD = {"type": "text", "text": "Who is Emma?"}
_TOOL = {"type": "file_search", "vector_store_ids": ["{store}"]}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "served",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [_FIELD]}],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    "/v1/completions": {"prompt": "Once upon", "max_tokens": 2, "stop": "y", "logprobs": 1, "stream": False, "seed": 3},
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Who is Emma?"}]}],
        "instructions": "Be brief.",
        "max_output_tokens": 2,
        "tools": [_TOOL],
        "include": ["file_search_call.results"],
        "metadata": {"a": "b"},
        "truncation": "auto",
        "previous_response_id": "{response}",
        "stream": False,
    },
    "/v1/vector_stores": {
        "name": "s",
        "file_ids": ["{file}"],
        "metadata": {"a": "b"},
        "expires_after": {"anchor": "last_active_at", "days": 1},
        "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}},
    },
    "/v1/vector_stores/{store}": {"name": "t", "metadata": {"c": "d"}, "expires_after": None},
    "/v1/vector_stores/{store}/search": {
        "query": ["Emma"],
        "max_num_results": 2,
        "filters": {
            "type": "or",
            "filters": [{"type": "eq", "key": "a", "value": 1}, {"type": "in", "key": "a", "value": []}],
        },
        "ranking_options": {"ranker": "auto", "score_threshold": 0.1},
    },
    "/v1/vector_stores/{store}/files": {"file_id": "{file}", "attributes": {"a": 1, "b": True, "c": "x", "d": 0.5}},
    "/v1/vector_stores/{store}/files/{file}": {"attributes": {"a": 2}},
    "/v1/vector_stores/{store}/file_batches": {"files": [{"file_id": "{file}", "attributes": {"a": 1}}]},
    "/v1/vector_stores/{store}/file_batches/{batch}/cancel": {},
    "/v1/rerank": {
        "query": "Emma",
        "documents": ["Emma is here.", {"text": "Nobody."}],
        "top_n": 1,
        "return_documents": True,
    },
}
READ = (
    "/v1/models",
    "/v1/models/served",
    "/v1/responses/{response}",
    "/v1/responses/{response}/input_items",
    "/v1/files?limit=2&order=asc&after={file}&purpose=user_data",
    "/v1/files/{file}",
    "/v1/files/{file}/content",
    "/v1/vector_stores?limit=2&order=desc&before={store}",
    "/v1/vector_stores/{store}/files?limit=1&filter=completed&after={file}",
    "/v1/vector_stores/{store}/files/{file}/content",
    "/v1/vector_stores/{store}/file_batches/{batch}",
    "/v1/vector_stores/{store}/file_batches/{batch}/files?order=asc",
    "/v1/documents?limit=1&sha256=00&order=asc",
    "/v1/documents/{document}",
    "/v1/documents/{document}/kept?question=Who",
    "/v1/answers/{answer}/kept?text=false",
    "/metrics",
    "/health",
    "/",
    "/static/app.js",
)
REMOVED = ("/v1/responses/{response}", "/v1/files/x{file}", "/v1/vector_stores/{store}/files/x", "/v1/documents/x")
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
UPLOAD = (
    b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    b'--B\r\nContent-Disposition: form-data; name="expires_after[anchor]"\r\n\r\ncreated_at\r\n'
    b'--B\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\nEmma\r\n--B--\r\n'
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
        headers = {name: value.encode("utf-8", "surrogatepass") for name, value in self.headers.items()}
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
        body = sent.body or b""
        headers = {name: str(value) for name, value in sent.headers.items() if name not in ("Host", "Content-Length")}
        content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        return cls(sent.method or "GET", case.operation.path, path, content, headers)


def furnished(http: httpx.Client) -> dict[str, str]:
    """Ids of one of each thing that requests name, made now."""
    file = http.post("/v1/files", files={"file": ("a.txt", TEXT)}, data={"purpose": "user_data"}).json()["id"]
    store = http.post("/v1/vector_stores", json={"file_ids": [file]}).json()["id"]
    batch = http.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": [file]}).json()["id"]
    asked = {"messages": [{"role": "user", "content": f"{TEXT}\n\nWho is Emma?"}]}
    answer = http.post("/v1/chat/completions", json=asked).json()["id"]
    response = http.post("/v1/responses", json={"input": "Hello"}).json()["id"]
    document = http.get("/v1/documents").json()["data"][0]["id"]
    return {"file": file, "store": store, "batch": batch, "answer": answer, "response": response, "document": document}


def by_parameter(known: dict[str, str]) -> dict[str, str]:
    """The same by the OpenAPI document's names."""
    named = {f"{name}_id": known[name] for name in ("file", "batch", "document")}
    return {**named, "vector_store_id": known["store"], "id": known["response"], "name": "served"}


ANY = st.recursive(
    st.sampled_from(
        [None, True, False, 0, -1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, -0.0, float("nan"), float("inf")]
        + [
            "",
            "\ud800",
            "\0",
            "x" * 70_000,
            "😀\u202e",
            "../../etc/passwd",
            "<|im_start|>",
            "%s{0}",
            DEEP,
            DIGITS,
            "auto",
        ]
        + [[], {}, [[]], [None], {"type": "text"}, {"": None}, {"type": "file", "file": {"file_id": "x"}}]
    )
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


def _named(given: Any, known: dict[str, str]) -> Any:
    """With the ids of what is there."""
    text = json.dumps(given)
    for name, id in known.items():
        text = text.replace(f"{{{name}}}", id)
    return json.loads(text)


def _body(draw: Any, known: dict[str, str]) -> tuple[str, str, Any]:
    route = draw(st.sampled_from(sorted(BODIES)))
    return route, _named(route, known), _named(BODIES[route], known)


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
    path, _, query = _named(route, known).partition("?")
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
