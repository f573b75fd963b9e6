"""Files, vector stores, reranking and what was kept, as OpenAI's own client and plain HTTP see them."""

import asyncio
import errno
import json
import os
import time

import httpx
import openai
import pytest
from starlette import formparsers

from homerlm import mapped
from homerlm.passes import run_steps
from homerlm.selection import Excerpt, Selection
from homerlm.server import files, vector_store_files, vector_stores
from homerlm.server.filters import Comparison, Compound
from homerlm.server.searching import clustered
from homerlm.store.documents import sha256_of
from homerlm.trace import kept_indices
from serving import WORDS, client, openai_client, serving, tiny_homer, until

OTHER = " ".join(f"w{(7 * i * i) % 77}" for i in range(3000))
KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(
        tmp_path_factory.mktemp("store"), api_key=tuple(KEYS.values()), max_upload_bytes=2 << 20, max_body_bytes=1 << 20
    ) as running:
        yield running


def _api(server, who="ann"):
    return openai_client(server, KEYS[who])


def _http(server, who="ann"):
    return client(server, headers={"Authorization": f"Bearer {KEYS[who]}"})


@pytest.fixture(scope="module")
def api(server):
    return _api(server)


def _upload(api, name="a.txt", text=WORDS, **more):
    return api.files.create(file=(name, text.encode()), purpose="assistants", **more)


@pytest.fixture(scope="module")
def collection(api):
    """A vector store of two files that were read, and their ids."""
    store = api.vector_stores.create(name="both")
    files = [_upload(api), _upload(api, "b.txt", OTHER)]
    for file, year in zip(files, (2001, 2020), strict=True):
        done = api.vector_stores.files.create_and_poll(
            file.id, vector_store_id=store.id, attributes={"year": year, "name": file.filename}, poll_interval_ms=50
        )
        assert done.status == "completed"
    return store.id, [file.id for file in files]


def test_a_file_is_kept_as_it_came(api, server):
    made = _upload(
        api, "../../folder\\Grüße 1.txt", "w1\r\nw2", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", 6, "Grüße 1.txt", "assistants")
    assert made.expires_at - made.created_at == 3600
    assert api.files.retrieve(made.id) == made
    content = api.files.content(made.id)
    assert content.content == b"w1\r\nw2"
    assert content.response.headers["content-disposition"].startswith("attachment;")
    assert content.response.headers["x-content-type-options"] == "nosniff"
    assert api.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File"):
        api.files.retrieve(made.id)
    assert not (server.documents.store.folder / "files" / made.id).exists()


def test_files_are_listed_page_by_page(server):
    api = _api(server, "bob")
    names = [_upload(api, f"{number}.txt").filename for number in range(5)]
    assert [file.filename for file in api.files.list(limit=2)] == names[::-1]  # the client asks for every page
    page = api.files.list(limit=2, order="asc")
    assert ([file.filename for file in page.data], page.has_more) == (names[:2], True)
    assert api.files.list(purpose="vision").data == []


def test_a_file_that_is_too_large_or_empty_is_refused(api, server):
    with pytest.raises(openai.APIStatusError, match="2,097,152 bytes") as error:
        _upload(api, text="x" * ((2 << 20) + 1))
    assert error.value.status_code == 413
    with pytest.raises(openai.APIStatusError, match="too large") as error:
        _upload(api, text="x" * (5 << 20))
    assert error.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="empty"):
        _upload(api, text="")
    with _http(server) as http:
        assert http.post("/v1/files", data={"purpose": "assistants"}).status_code == 400
        assert http.post("/v1/files", files={"file": b"x"}, data={"purpose": "nonsense"}).status_code == 400

        def endless():
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            yield head
            for _ in range(64):
                yield b"x" * (1 << 17)

        response = http.post(
            "/v1/files", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert response.status_code == 413
    assert not list(server.documents.store.folder.glob("incoming/*/*"))


def test_what_is_not_mine_is_not_there(server, api, collection):
    store, (file, _) = collection
    other, before = _api(server, "bob"), api.files.retrieve(file)
    document = server.documents.store.documents()[0].id
    tries = [
        lambda: other.files.retrieve(file),
        lambda: other.files.content(file),
        lambda: other.files.delete(file),
        lambda: other.vector_stores.retrieve(store),
        lambda: other.vector_stores.update(store, name="mine"),
        lambda: other.vector_stores.delete(store),
        lambda: other.vector_stores.search(store, query="w1"),
        lambda: other.vector_stores.files.list(store),
        lambda: other.vector_stores.files.create(store, file_id=_upload(other).id),
        lambda: other.vector_stores.files.retrieve(file, vector_store_id=store),
        lambda: other.vector_stores.files.content(file, vector_store_id=store),
        lambda: other.vector_stores.files.delete(file, vector_store_id=store),
        lambda: other.vector_stores.create(file_ids=[file]),
    ]
    for attempt in tries:
        with pytest.raises(openai.NotFoundError):
            attempt()
    with _http(server, "bob") as http:
        assert http.get(f"/v1/documents/{document}").status_code == 404
        assert http.get(f"/v1/documents/{document}/kept?question=w1").status_code == 404
        assert http.delete(f"/v1/documents/{document}").status_code == 404
    assert api.files.retrieve(file) == before
    assert api.vector_stores.retrieve(store).name == "both"
    with httpx.Client(base_url=server.address) as nobody:
        for path in ("files", "vector_stores", "documents", f"files/{file}", f"documents/{document}/kept?question=w"):
            assert nobody.get(f"/v1/{path}").status_code == 401
        assert nobody.post("/v1/rerank", json={"query": "w1", "documents": ["w1"]}).status_code == 401


def test_a_vector_store_is_made_changed_listed_and_removed(api, collection):
    made = api.vector_stores.create(
        name="one", metadata={"a": "b"}, expires_after={"anchor": "last_active_at", "days": 3}
    )
    assert (made.object, made.status, made.file_counts.total, made.usage_bytes) == ("vector_store", "completed", 0, 0)
    assert made.expires_at - made.last_active_at == 3 * 86_400
    changed = api.vector_stores.update(made.id, name="two", metadata={"c": "d"}, expires_after=None)
    assert (changed.name, changed.metadata) == ("two", {"c": "d"})
    assert api.vector_stores.update(made.id, name="three").metadata == {"c": "d"}
    assert api.vector_stores.retrieve(made.id).name == "three"
    ids = [store.id for store in api.vector_stores.list(limit=1)]
    assert ids[0] == made.id
    assert collection[0] in ids
    assert api.vector_stores.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.vector_stores.retrieve(made.id)


def test_the_files_of_a_vector_store(api, collection):
    store, (first, second) = collection
    found = api.vector_stores.retrieve(store)
    assert (found.status, found.file_counts.completed, found.file_counts.total) == ("completed", 2, 2)
    assert found.usage_bytes > 0
    assert [file.id for file in api.vector_stores.files.list(store, limit=1, order="asc")] == [first, second]
    assert api.vector_stores.files.list(store, filter="failed").data == []
    file = api.vector_stores.files.retrieve(first, vector_store_id=store)
    assert (file.attributes, file.last_error) == ({"year": 2001, "name": "a.txt"}, None)
    assert "".join(part.text for part in api.vector_stores.files.content(second, vector_store_id=store)) == OTHER
    changed = api.vector_stores.files.update(first, vector_store_id=store, attributes={"year": 1999, "read": True})
    assert changed.attributes == {"year": 1999, "read": True}
    api.vector_stores.files.update(first, vector_store_id=store, attributes={"year": 2001, "name": "a.txt"})


def test_a_search_finds_what_selecting_finds(api, collection, server):
    store, ids = collection
    page = api.vector_stores.search(store, query="w5 w6", max_num_results=50)
    homer = tiny_homer()
    whole = homer.read_all(zip(ids, (WORDS, OTHER), strict=True))
    chosen = homer.select(whole, "w5 w6", tokens=min(50 * 100, homer.limit // 2))
    assert page.search_query == ["w5 w6"]
    parts = {(result.file_id, part.text) for result in page.data for part in result.content}
    assert parts == {(passage.document, passage.text) for passage in chosen.passages}
    scores = [result.score for result in page.data]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0
    assert len({*scores}) > 1
    assert all(0 <= score <= 1 for score in scores)
    texts = dict(zip(ids, (WORDS, OTHER), strict=True))
    for result in page.data:
        assert result.filename == {ids[0]: "a.txt", ids[1]: "b.txt"}[result.file_id]
        for part in result.content:
            assert texts[result.file_id][part.start : part.end] == part.text


def test_a_search_keeps_to_its_limits_and_filters(api, collection):
    store, (first, second) = collection
    assert len(api.vector_stores.search(store, query=["w5", "w6"], max_num_results=2).data) <= 2

    def files(**filters):
        return {one.file_id for one in api.vector_stores.search(store, query="w5 w6", filters=filters)}

    assert files(type="eq", key="year", value=2001) == {first}
    assert files(type="gte", key="year", value=2002) == {second}
    assert files(type="eq", key="year", value=1) == set()
    both = [{"type": "gt", "key": "year", "value": 1990}, {"type": "ne", "key": "name", "value": "a.txt"}]
    assert files(type="and", filters=both) == {second}
    every = api.vector_stores.search(store, query="w5 w6").data
    assert len(every) > 2
    middle = every[1].score
    some = api.vector_stores.search(store, query="w5 w6", ranking_options={"score_threshold": middle}).data
    assert some == [one for one in every if one.score >= middle] != every
    for wrong in ({"query": " "}, {"query": "w", "max_num_results": 51}, {"query": "w", "filters": {"type": "eq"}}):
        with pytest.raises(openai.BadRequestError):
            api.vector_stores.search(store, **wrong)


def test_an_index_that_gave_way_is_read_again_by_the_search(api, collection, server):
    store, _ = collection
    before = api.vector_stores.search(store, query="w5 w6")
    documents = server.documents.store
    for stored in documents.documents():
        if stored.sha256 in {sha256_of(WORDS), sha256_of(OTHER)}:
            documents.remove_document(None, stored.id)
    assert api.vector_stores.search(store, query="w5 w6").data == before.data
    assert {sha256_of(WORDS), sha256_of(OTHER)} <= {one.sha256 for one in documents.documents()}


def test_a_file_that_cannot_be_read_fails_with_its_reason(api):
    store = api.vector_stores.create(file_ids=[_upload(api, "x.pdf", "%PDF-1.7 and no more").id])
    until(lambda: api.vector_stores.retrieve(store.id).file_counts.failed == 1)
    (file,) = api.vector_stores.files.list(store.id)
    assert (file.status, file.last_error.code) == ("failed", "invalid_file")
    assert "x.pdf: is damaged or is not a PDF" in file.last_error.message
    assert api.vector_stores.search(store.id, query="w1").data == []


def test_files_are_added_together_and_what_is_not_read_yet_is_cancelled(api, server):
    text = " ".join(f"w{i % 60}" for i in range(60_000))
    text_hash = sha256_of(text)
    files = [_upload(api, f"{number}.txt", f"w{number} w1 w2").id for number in range(3)]
    store = api.vector_stores.create()
    batch = api.vector_stores.file_batches.create_and_poll(store.id, file_ids=files, poll_interval_ms=50)
    assert (batch.status, batch.file_counts.completed, batch.object) == ("completed", 3, "vector_store.files_batch")
    listed = api.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {file.id for file in listed} == set(files)
    late = api.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert late.status == "completed", "nothing of it was left to cancel"
    long = _upload(api, "long.txt", text).id
    batch = api.vector_stores.file_batches.create(
        store.id, files=[{"file_id": long, "attributes": {"a": 1}}, {"file_id": files[0]}]
    )
    cancelled = api.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert (cancelled.status, cancelled.file_counts.in_progress) == ("cancelled", 0)
    assert api.vector_stores.files.retrieve(long, vector_store_id=store.id).status == "cancelled"
    until(lambda: not server.config.app.state.indexing._tasks)
    assert text_hash not in {one.sha256 for one in server.documents.store.documents()}
    with pytest.raises(openai.BadRequestError, match="either file_ids or files"):
        api.vector_stores.file_batches.create(store.id)


def test_how_a_file_is_to_be_cut_is_repeated_and_checked(api, server):
    file = _upload(api, "cut.txt", "w1 w2")
    store = api.vector_stores.create(file_ids=None, chunking_strategy={"type": "auto"})
    sizes = {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}
    strategy = {"type": "static", "static": sizes}
    added = api.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, chunking_strategy=strategy)
    assert added.chunking_strategy.static.max_chunk_size_tokens == 200
    assert api.vector_stores.search(store.id, query="w1", max_num_results=None).data
    for wrong in (
        {"type": "static"},
        {"type": "static", "static": {**sizes, "chunk_overlap_tokens": -1}},
        {"type": "x"},
    ):
        with pytest.raises(openai.BadRequestError, match="chunking_strategy"):
            api.vector_stores.files.create(store.id, file_id=file.id, chunking_strategy=wrong)


def test_taking_a_file_out_leaves_the_file(api):
    file = _upload(api, "c.txt", "w9 w8")
    store = api.vector_stores.create(file_ids=[file.id])
    until(lambda: api.vector_stores.retrieve(store.id).status == "completed")
    assert api.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
    assert api.vector_stores.files.list(store.id).data == []
    assert api.files.retrieve(file.id).id == file.id


def test_a_deleted_file_leaves_nothing_of_its_text(api, server):
    text = "w44 w43 w42 w41"
    file = _upload(api, "secret.txt", text)
    store = api.vector_stores.create(file_ids=[file.id])
    until(lambda: api.vector_stores.retrieve(store.id).file_counts.completed == 1)
    assert sha256_of(text) in {one.sha256 for one in server.documents.store.documents()}
    api.files.delete(file.id)
    assert api.vector_stores.retrieve(store.id).file_counts.total == 0
    assert sha256_of(text) not in {one.sha256 for one in server.documents.store.documents()}


@pytest.mark.parametrize("way", ["removed with its vector store", "taken out", "in a message"])
def test_a_file_that_is_in_no_vector_store_any_more_leaves_nothing_either(api, server, way):
    text = " ".join([*way.split(), *(f"w{n % 60}" for n in range(300))])
    file, again = _upload(api, "secret.txt", text), _upload(api, "same.txt", text)
    if way == "in a message":
        parts = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "w3 ?"}]
        api.responses.create(model="tiny", input=[{"role": "user", "content": parts}], max_output_tokens=1)
    else:
        store = api.vector_stores.create(file_ids=[file.id])
        until(lambda: api.vector_stores.retrieve(store.id).file_counts.completed == 1)
        if way == "taken out":
            api.vector_stores.files.delete(file.id, vector_store_id=store.id)
        else:
            api.vector_stores.delete(store.id)
    other = api.vector_stores.create(file_ids=[again.id])
    until(lambda: api.vector_stores.retrieve(other.id).file_counts.completed == 1)
    api.vector_stores.delete(other.id)

    def there():
        return sha256_of(text) in {one.sha256 for one in server.documents.store.documents()}

    api.files.delete(file.id)
    assert there(), "another file has the same text"
    api.files.delete(again.id)
    assert not there()


def test_what_was_left_undone_is_read_after_the_next_start(tmp_path):
    text = " ".join(f"w{i % 60}" for i in range(40_000))
    with serving(tmp_path, closing_seconds=0) as server:
        api = openai_client(server)
        store = api.vector_stores.create(file_ids=[_upload(api, "long.txt", text).id])
        assert store.status == "in_progress"
        assert api.vector_stores.search(store.id, query="w1").data == []
    with serving(tmp_path) as server:
        assert server.documents.store.vector_stores.unfinished() or server.documents.store.documents()
        api = openai_client(server)
        until(lambda: api.vector_stores.retrieve(store.id).status == "completed", 60)
        assert api.vector_stores.retrieve(store.id).file_counts.completed == 1


def test_a_file_or_vector_store_that_goes_while_it_is_added_is_missing(server, api, monkeypatch):
    async def passed(*_):
        return None

    store, base = api.vector_stores.create(), "/v1/vector_stores"
    monkeypatch.setattr(vector_stores, "check_files", passed)
    monkeypatch.setattr(vector_store_files, "check_files", passed)
    with _http(server) as http:
        assert http.post(base, json={"file_ids": ["file-gone"]}).json()["file_counts"]["total"] == 0
        assert http.post(f"{base}/{store.id}/files", json={"file_id": "file-gone"}).status_code == 404
        monkeypatch.setattr(vector_store_files, "found_store", lambda *_: store)
        assert http.post(f"{base}/vs_gone/file_batches", json={"file_ids": ["file-gone"]}).status_code == 404


def test_an_expired_vector_store_says_so(api, server):
    made = api.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1})
    sql, values = "UPDATE vector_stores SET active = ? WHERE id = ?", (time.time() - 90_000, made.id)
    server.documents.store._database.write(lambda connection: connection.execute(sql, values))
    assert api.vector_stores.retrieve(made.id).status == "expired"
    with pytest.raises(openai.BadRequestError, match="expired"):
        api.vector_stores.search(made.id, query="w1")


def test_passages_are_ranked(server):
    texts = ["w1 w2 w3", "w40 w41", "w5 w6 w7 w8", "w5"] * 20
    expected = run_steps(tiny_homer().ranking("w5 w6", texts))
    with _http(server) as http:
        given = {"query": "w5 w6", "documents": texts, "top_n": 7, "return_documents": True}
        body = http.post("/v1/rerank", json=given).json()
        results = body["results"]
        assert len(results) == 7
        assert [one["relevance_score"] for one in results] == sorted(expected, reverse=True)[:7]
        assert all(one["relevance_score"] == expected[one["index"]] for one in results)
        assert all(one["document"]["text"] == texts[one["index"]] for one in results)
        assert (body["model"], body["object"]) == ("tiny", "rerank")
        assert body["usage"]["total_tokens"] == 2 + 10 * 20
        given = {"query": "w5 w6", "passages": [{"text": text} for text in texts[:3]]}
        nothing = {"top_n": None, "return_documents": None}
        results = http.post("/v1/rerank", json={**given, **nothing}).json()["results"]
        assert {one["index"] for one in results} == {0, 1, 2}
        assert "document" not in results[0]
        for wrong in (
            {"documents": ["w1"]},
            {"query": "", "documents": ["w1"]},
            {"query": "w1"},
            {"query": "w1", "documents": []},
        ):
            assert http.post("/v1/rerank", json=wrong).status_code == 400
        assert http.post("/v1/rerank", json={**given, "model": "other"}).status_code == 404


def test_documents_are_listed_with_what_was_kept(server, collection):
    homer = tiny_homer()
    with _http(server) as http:
        (document,) = http.get("/v1/documents", params={"sha256": sha256_of(WORDS)}).json()["data"]
        assert (document["tokens"], document["usable"], document["name"]) == (400, True, "a.txt")
        assert http.get(f"/v1/documents/{document['id']}").json()["id"] == document["id"]
        url, asked = f"/v1/documents/{document['id']}/kept", {"question": "w5 w6"}
        kept = http.get(url, params=asked).json()
        answer = homer.ask(homer.read(WORDS), "w5 w6", max_new_tokens=1)
        assert kept["tokens"] == len(kept_indices(answer.context))
        assert (kept["document_tokens"], kept["tokens_read"]) == (400, answer.tokens_read)
        assert all(WORDS[one["start"] : one["end"]] == one["text"] for one in kept["passages"])
        page = http.get(url, params=asked, headers={"Accept": "text/html,application/json;q=0.5"})
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert f"read from {kept['tokens']} of the document’s 400 tokens" in " ".join(page.text.split())
        assert 'class="seen l1"' in page.text
        assert http.get(url).status_code == 400
        assert http.get("/v1/documents/doc-none/kept", params=asked).status_code == 404
        ids = [one["id"] for one in http.get("/v1/documents", params={"limit": 1000}).json()["data"]]
        later = http.get("/v1/documents", params={"after": ids[0], "limit": 1}).json()
        assert [one["id"] for one in later["data"]] == ids[1:2]
        assert http.delete(f"/v1/documents/{document['id']}").json()["deleted"]
        assert http.get(f"/v1/documents/{document['id']}").status_code == 404


def test_another_models_document_is_listed_and_refused_by_name(tmp_path):
    with serving(tmp_path) as server, client(server) as http:
        store = server.documents.store
        path = store.temporary()
        path.write_bytes(b"an index")
        facts = {"owner": "local", "name": "a", "sha256": "s", "model": "Other-1B", "maker": "m", "tokens": 9}
        stored = store.add_document(path, **facts)
        (document,) = http.get("/v1/documents").json()["data"]
        assert (document["model"], document["usable"]) == ("Other-1B", False)
        refused = http.get(f"/v1/documents/{stored.id}/kept", params={"question": "w1"})
        assert refused.status_code == 409
        assert "was read by Other-1B" in refused.json()["error"]["message"]


def test_no_room_is_the_clients_error(tmp_path):
    with serving(tmp_path, owner_bytes=100_000) as server:
        api = openai_client(server)
        _upload(api, text="w1 " * 20_000)
        with pytest.raises(openai.APIStatusError, match="limit of one owner") as error:
            _upload(api, text="w1 " * 20_000)
        assert (error.value.status_code, error.value.code) == (413, "quota_exceeded")


def test_a_full_disk_is_told_and_leaves_nothing(api, server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(api.files.list().data)
    monkeypatch.setattr(files, "_copy", full)
    with pytest.raises(openai.APIStatusError, match="disk") as error:
        _upload(api)
    assert error.value.status_code == 507
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(openai.APIStatusError, match="No space left") as error:
        _upload(api)
    assert error.value.status_code == 413
    monkeypatch.undo()
    assert len(api.files.list().data) == before
    assert not list(server.documents.store.folder.glob("incoming/*/*"))


def test_a_disk_that_is_full_while_a_document_is_read_is_told_without_its_place(server, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    body = {"messages": [{"role": "user", "content": f"{OTHER} w9\n\nw1 ?"}], "max_tokens": 2}
    with _http(server) as http:
        monkeypatch.setattr(mapped, "TemporaryFile", full)
        told = http.post("/v1/chat/completions", json=body)
        assert (told.status_code, told.json()["error"]["code"]) == (413, "quota_exceeded")
        assert "disk does not take it: No space left" in told.text
        assert str(server.documents.store.folder) not in told.text
        monkeypatch.undo()
        assert not list(server.documents.store.folder.glob("incoming/*/*"))
        assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_full_disk_for_the_parts_of_a_request_is_told(server, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with _http(server) as http:
        monkeypatch.setattr(formparsers, "SpooledTemporaryFile", full)
        sent = {"files": {"file": ("a.txt", b"w1 w2")}, "data": {"purpose": "user_data"}}
        told = http.post("/v1/files", **sent)
        assert (told.status_code, told.json()["error"]["code"]) == (507, "disk_full")
        monkeypatch.undo()
        assert http.post("/v1/files", **sent).status_code == 200


@pytest.mark.parametrize(
    ("type", "value", "met"),
    [
        ("eq", 3, True),
        ("eq", "3", False),
        ("eq", True, False),
        ("ne", 4, True),
        ("gt", 2, True),
        ("gt", "2", False),
        ("gte", 3.0, True),
        ("lt", 3, False),
        ("lte", 3, True),
        ("in", [1, 3], True),
        ("in", ["3"], False),
        ("nin", [1, 2], True),
    ],
)
def test_conditions_on_attributes(type, value, met):
    assert Comparison(type=type, key="a", value=value).matches({"a": 3}) is met
    assert Compound(type="or", filters=[Comparison(type=type, key="a", value=value)]).matches({"a": 3}) is met


def test_true_is_not_one():
    assert not Comparison(type="eq", key="a", value=True).matches({"a": 1})
    assert not Comparison(type="in", key="a", value=[1]).matches({"a": True})
    assert Comparison(type="eq", key="a", value=True).matches({"a": True})
    assert not Comparison(type="gt", key="a", value=0).matches({"a": True})


def test_a_missing_attribute_meets_only_its_denial():
    met = {
        type: Comparison(type=type, key="a", value=[1] if "in" in type else 1).matches({})
        for type in ("eq", "ne", "gt", "lte", "in", "nin")
    }
    assert met == {"eq": False, "ne": True, "gt": False, "lte": False, "in": False, "nin": True}


def test_filters_within_filters_end_somewhere(api, collection):
    deep = {"type": "eq", "key": "a", "value": 1}
    for _ in range(50):
        deep = {"type": "and", "filters": [deep]}
    with pytest.raises(openai.BadRequestError, match="filters"):
        api.vector_stores.search(collection[0], query="w1", filters=deep)


@pytest.mark.parametrize("id", ["\ud800", "\0", "../../etc/passwd", "x" * 10_000, ""])
def test_ids_that_are_none_are_the_clients_error(server, collection, id):
    tries = [
        ("/v1/vector_stores", {"file_ids": [id]}),
        (f"/v1/vector_stores/{collection[0]}/files", {"file_id": id}),
        (f"/v1/vector_stores/{collection[0]}/file_batches", {"files": [{"file_id": id}]}),
    ]
    with _http(server) as http:
        for path, given in tries:
            answer = http.post(path, content=json.dumps(given), headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 404), path


def test_neighbouring_passages_are_one_result():
    def passage(start, document):
        return Excerpt(start, start + 10, "x" * 10, document)

    found = Selection("q", 3, 9, (passage(0, "a"), passage(150, "a"), passage(500, "a"), passage(510, "b")))
    assert [(one.file, len(one.passages)) for one in clustered(found, "z")] == [("a", 2), ("a", 1), ("b", 1)]
    alone = Selection("q", 3, 9, (passage(0, None),))
    assert [one.file for one in clustered(alone, "z")] == ["z"]


def test_two_uploads_of_one_text_are_read_once(api, server):
    text = " ".join(f"w{(3 * i) % 71}" for i in range(200))
    store = api.vector_stores.create(file_ids=[_upload(api, name, text).id for name in ("x.txt", "y.txt")])
    until(lambda: api.vector_stores.retrieve(store.id).file_counts.completed == 2)
    found = [one for one in server.documents.store.documents() if one.sha256 == sha256_of(text)]
    assert len(found) == 1
    names = {one.filename for one in api.vector_stores.search(store.id, query="w3 w6", max_num_results=50)}
    assert names == {"x.txt", "y.txt"}


def test_the_documents_of_the_openapi_description(server):
    with _http(server) as http:
        paths = http.get("/openapi.json").json()["paths"]
    assert "multipart/form-data" in paths["/v1/files"]["post"]["requestBody"]["content"]
    assert {"/v1/vector_stores/{vector_store_id}/search", "/v1/rerank", "/v1/documents/{document_id}/kept"} <= set(
        paths
    )


def test_an_async_client_works_too(server):
    async def work():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key=KEYS["ann"]) as api:
            store = await api.vector_stores.create()
            file = await api.vector_stores.files.upload_and_poll(
                vector_store_id=store.id, file=("z.txt", b"w70 w71 w72"), poll_interval_ms=50
            )
            return file.status

    assert asyncio.run(work()) == "completed"
