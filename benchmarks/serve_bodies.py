"""A valid request to every endpoint, and what its ids name, made on a server."""

from __future__ import annotations

import json
from typing import Any

import httpx

TEXT = "The lighthouse keeper is called Emma. Her brother lives in Kyoto, and writes to her on Sundays. " * 60
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
UPLOAD = (
    b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    b'--B\r\nContent-Disposition: form-data; name="expires_after[anchor]"\r\n\r\ncreated_at\r\n'
    b'--B\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\nEmma\r\n--B--\r\n"
)


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


def named(given: Any, known: dict[str, str]) -> Any:
    """With the ids of what is there."""
    text = json.dumps(given)
    for name, id in known.items():
        text = text.replace(f"{{{name}}}", id)
    return json.loads(text)
