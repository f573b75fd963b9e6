"""Which requests belong together, so that one replica answers them: those about one document, one vector store, one
conversation, of one key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from homerlm.server.ids import ROUTE_LEN, route_in

DOCUMENT_CHARACTERS = 2000  # of a text that is taken for a document, at least
_NAMED = re.compile(r"/v1/(vector_stores|documents|files)/([^/]+)")
_ANSWER = re.compile(r"/v1/(?:responses|answers)/([^/]+)")


def route_of(owner: str, path: str, body: bytes) -> str:
    """The route of a request, `ROUTE_LEN` hexadecimal digits; "" where any replica will do. owner: whose key it has.

    An answer's id holds the route to the replica that remembers it. A conversation goes by its longest text, which is
    the document it is about, or, where nothing is long, by its first one.
    """
    path = path.rstrip("/")
    if answer := _ANSWER.fullmatch(path.removesuffix("/kept").removesuffix("/input_items")):
        return route_in(answer[1]) or ""
    if named := _NAMED.match(path):
        return _hash(owner, named[1], named[2])
    given = _json(body) if path.startswith("/v1/") else {}
    for id in _remembered(given):
        if (known := route_in(id)) is not None:
            return known
    for store in _stores(given):
        return _hash(owner, "vector_stores", store)
    texts = [text for text in _texts(given) if text]
    if not texts or "query" in given:
        return ""
    longest = max(texts, key=len)
    return _hash(owner, "text", longest if len(longest) >= DOCUMENT_CHARACTERS else texts[0])


def _hash(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:ROUTE_LEN]


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _remembered(given: dict[str, Any]) -> Iterator[str]:
    """Ids of what the request goes on from, which a replica has in its memory."""
    if isinstance(id := given.get("previous_response_id"), str):
        yield id
    for item in _objects(given.get("input")):
        if isinstance(id := item.get("encrypted_content"), str):
            yield id


def _stores(given: dict[str, Any]) -> Iterator[str]:
    for tool in _objects(given.get("tools")):
        ids = tool.get("vector_store_ids")
        yield from (id for id in (ids if isinstance(ids, list) else ()) if isinstance(id, str))


def _texts(given: dict[str, Any]) -> Iterator[str]:
    """The texts of a request, and the ids of files in place of theirs, in order; instructions last, since many
    conversations share them."""
    system = []
    for name in ("prompt", "input"):
        if isinstance(text := given.get(name), str):
            yield text
    for message in (*_objects(given.get("messages")), *_objects(given.get("input"))):
        found = list(_parts(message.get("content")))
        if message.get("role") in ("system", "developer"):
            system += found
        else:
            yield from found
    yield from system


def _parts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in _objects(content):
        facts = part | (part["file"] if isinstance(part.get("file"), dict) else {})
        for name in ("text", "file_data", "file_id"):
            if isinstance(text := facts.get(name), str):
                yield text


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())
