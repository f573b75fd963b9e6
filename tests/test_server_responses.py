"""The published subset of responses, as OpenAI's own client sees it."""

import asyncio
import base64
import time

import openai
import pytest
from openai.types.responses import Response

from homerlm.conversation.messages import Message
from homerlm.server.remembered import Memory, Remembered
from homerlm.store.documents import sha256_of
from serving import WORDS, client, serving, until

NESTED = {"type": "eq", "key": "a", "value": 1}
for _ in range(9):
    NESTED = {"type": "and", "filters": [NESTED]}


def respond(api, given, **more):
    return api.responses.create(model="tiny", input=given, **({"max_output_tokens": 6} | more))


@pytest.fixture(scope="module")
def vector_store(server):
    """Two files that were read into a vector store of the server's one owner."""
    documents = server.documents
    store = documents.store
    made = store.vector_stores.create("local", name="words")
    for name, text in (("a.txt", WORDS), ("b.txt", " ".join(reversed(WORDS.split())))):
        path = store.temporary()
        path.write_text(text)
        file = store.add_file(path, owner="local", name=name, purpose="assistants")
        store.vector_stores.add(made.id, [file.id])
        asyncio.run(documents.index("local", name, text))
        member = store.vector_stores.member(made.id, file.id)
        store.vector_stores.finish(member, "completed", sha256=sha256_of(text), bytes=1)
    return made.id


def test_a_response_is_what_the_client_expects(server, api):
    with client(server) as http:
        made = http.post("/v1/responses", json={"model": "tiny", "input": "w3 w4", "max_output_tokens": 6}).json()
    parsed = Response.model_validate(made, strict=False)
    assert parsed.status == "incomplete"
    assert parsed.incomplete_details.reason == "max_output_tokens"
    assert parsed.usage.output_tokens == 6
    chat = api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "w3 w4"}], max_tokens=6)
    assert parsed.output_text == chat.choices[0].message.content


def test_instructions_and_items(api):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "w3"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "w5"}]},
        {"role": "user", "content": "w6"},
    ]
    made = respond(api, items, instructions="w9")
    messages = [
        {"role": "system", "content": "w9"},
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w5"},
        {"role": "user", "content": "w6"},
    ]
    chat = api.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
    assert made.output_text == chat.choices[0].message.content


def test_events_come_in_order_and_are_numbered(api):
    events = list(respond(api, "w3 w4", stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == respond(api, "w3 w4").output_text


def test_progress_is_told_where_it_is_asked_for(api):
    made = respond(api, f"{WORDS} w2\n\nw1 ?", stream=True, extra_body={"return_progress": True})
    told = [event.prompt_progress for event in made if getattr(event, "prompt_progress", None)]
    assert told
    assert told[-1]["processed"] <= told[-1]["total"]


def test_a_response_can_be_gone_on_from(api):
    first = respond(api, "w3 w4", instructions="w9")
    second = respond(api, "w7", previous_response_id=first.id)
    messages = [
        {"role": "user", "content": "w3 w4"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "w7"},
    ]
    chat = api.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
    assert second.output_text == chat.choices[0].message.content, "instructions are not carried over"
    third = respond(api, "w8", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens
    assert api.responses.retrieve(first.id).output_text == first.output_text
    assert api.responses.input_items.list(second.id).data[0].content[0].text == "w7"
    api.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        respond(api, "w7", previous_response_id=first.id)
    assert refused.value.code == "previous_response_not_found"


def test_what_is_not_to_be_stored_is_not(api):
    made = respond(api, "w3", store=False)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(made.id)


def test_a_long_input_is_read_and_refused_where_nothing_may_be_left_out(api):
    assert respond(api, f"{WORDS} {WORDS}\n\nw1 ?").usage.input_tokens > 800
    with pytest.raises(openai.BadRequestError, match="truncation") as refused:
        respond(api, f"{WORDS} {WORDS}\n\nw1 ?", truncation="disabled")
    assert refused.value.code == "context_length_exceeded"
    assert respond(api, "w1", truncation="disabled").output_text


def test_files_are_searched_and_cited(api, server, vector_store):
    tools = [{"type": "file_search", "vector_store_ids": [vector_store]}]
    made = respond(api, "w4 w5 ?", tools=tools, include=["file_search_call.results"])
    call, message = made.output
    assert (call.type, call.status) == ("file_search_call", "completed")
    citations = message.content[0].annotations
    assert {one.filename for one in citations} <= {"a.txt", "b.txt"}
    assert citations
    texts = {"a.txt": WORDS, "b.txt": " ".join(reversed(WORDS.split()))}
    for result, citation in zip(call.results, citations, strict=True):
        span = citation.homer
        assert texts[citation.filename][span["start"] : span["end"]] == result.text
    assert made.usage.input_tokens > 800
    assert made.usage.input_tokens_details.cached_tokens > 600  # of both files less than a quarter is read again
    plain = respond(api, "w4 w5 ?", tools=tools)
    assert plain.output[0].results is None

    kinds = [event.type for event in respond(api, "w4 w5 ?", tools=tools, stream=True)]
    assert kinds[2:8] == [
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
        "response.output_item.done",
        "response.output_item.added",
    ]
    assert kinds[-5:] == [
        "response.output_text.annotation.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]


@pytest.fixture(scope="module")
def dated(server, vector_store):
    """The same files with attributes; their names by number."""
    stores = server.documents.store.vector_stores
    for member in stores.members(vector_store)[0]:
        stores.set_attributes(vector_store, member.id, {"year": 2020 if member.name == "a.txt" else 2024})
    return vector_store


def searching(api, question, store, **limits):
    """The passages' files, and the results, of an answer."""
    tools = [{"type": "file_search", "vector_store_ids": [store], **limits}]
    made = respond(api, question, tools=tools, include=["file_search_call.results"])
    return made, [one.filename for one in made.output[1].content[0].annotations], made.output[0].results


@pytest.mark.parametrize(
    ("filters", "files"),
    [
        ({"type": "gt", "key": "year", "value": 2021}, {"b.txt"}),
        ({"type": "eq", "key": "year", "value": 2020}, {"a.txt"}),
        (
            {
                "type": "or",
                "filters": [
                    {"type": "lt", "key": "year", "value": 2000},
                    {"type": "in", "key": "year", "value": [2020]},
                ],
            },
            {"a.txt"},
        ),
    ],
)
def test_filters_choose_the_files(api, dated, filters, files):
    made, cited, results = searching(api, "w4 w5 ?", dated, filters=filters)
    assert set(cited) == files
    assert {one.filename for one in results} == files
    assert all(one.attributes["year"] in (2020, 2024) for one in results)
    assert 400 < made.usage.input_tokens < 500, "one file of two"
    assert made.tools[0].filters.to_dict() == filters


def test_filters_that_no_file_passes_leave_the_question(api, dated):
    made, cited, results = searching(api, "w4 w5 ?", dated, filters={"type": "eq", "key": "year", "value": 1})
    assert (cited, results) == ([], [])
    assert made.output_text == respond(api, "w4 w5 ?").output_text


def test_a_number_of_results_limits_what_is_read(api, server, dated):
    made, cited, results = searching(api, "w4 w5 ?", dated, max_num_results=1)
    assert len(results) == 1
    assert results[0].score == 1
    assert set(cited) == {results[0].filename}
    place = results[0].homer
    for one in made.output[1].content[0].annotations:
        assert place["start"] <= one.homer["start"] < one.homer["end"] <= place["end"]
    assert made.usage.input_tokens < len(results[0].text.split()) + 60, "nothing else of the files"
    more, _, several = searching(api, "w4 w5 ?", dated, max_num_results=50)
    assert len(several) > 1
    assert made.usage.input_tokens < more.usage.input_tokens
    with client(server) as http:
        body = {"query": "w4 w5 ?", "max_num_results": 1}
        (found,) = http.post(f"/v1/vector_stores/{dated}/search", json=body).json()["data"]
        assert found["content"][0]["start"] == place["start"], "it is what a search of the store finds"
        kept = http.get(f"/v1/answers/{made.id}/kept?text=false").json()
    spans = [(one["start"], one["end"]) for one in kept["documents"][0]["passages"]]
    assert spans == [(one.homer["start"], one.homer["end"]) for one in made.output[1].content[0].annotations]


def test_a_least_score_limits_what_is_read(api, dated):
    _, _, every = searching(api, "w4 w5 ?", dated, max_num_results=50)
    scores = sorted((one.score for one in every), reverse=True)
    least = (scores[0] + scores[-1]) / 2
    _, cited, results = searching(api, "w4 w5 ?", dated, max_num_results=50, ranking_options={"score_threshold": least})
    assert 0 < len(results) < len(every)
    assert all(one.score >= least for one in results)
    assert set(cited) <= {one.filename for one in results}


@pytest.mark.parametrize("again", [False, True])
def test_a_search_tells_its_progress(api, server, dated, again):
    if again:
        with client(server) as http:
            for one in http.get("/v1/documents").json()["data"]:
                http.delete(f"/v1/documents/{one['id']}")
    tools = [{"type": "file_search", "vector_store_ids": [dated], "max_num_results": 1}]
    events = list(respond(api, "w4 w5 ?", tools=tools, stream=True, extra_body={"return_progress": True}))
    kinds = [event.type for event in events]
    assert kinds[:5] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
    ]
    searching = events[5 : kinds.index("response.file_search_call.completed")]
    told = [event.prompt_progress for event in searching]
    assert len(told) > 4
    assert {one["total"] for one in told} == {800}
    assert [told[0][name] for name in ("cache", "processed")] == ([0, 0] if again else [800, 800])
    processed = [one["processed"] for one in told]
    assert processed == sorted(processed)
    assert processed[-1] == 800
    assert len(set(processed)) > 3 or not again


def test_a_search_takes_of_the_time_that_an_answer_has(tmp_path):
    with serving(tmp_path, request_seconds=3) as running, client(running) as http:
        file = http.post("/v1/files", files={"file": ("a.txt", WORDS)}, data={"purpose": "user_data"}).json()["id"]
        store = http.post("/v1/vector_stores", json={"file_ids": [file]}).json()["id"]
        until(lambda: http.get(f"/v1/vector_stores/{store}").json()["file_counts"]["completed"])
        body = {"input": "w4 w5 ?", "max_output_tokens": 16}
        body["tools"] = [{"type": "file_search", "vector_store_ids": [store], "max_num_results": 1}]
        search, write = running.documents.search, running.engine.write

        async def slow_search(*given):
            await asyncio.sleep(1.6)
            return await search(*given)

        async def slow_write(*given):
            async for piece in write(*given):
                await asyncio.sleep(0.12)
                yield piece

        running.documents.search = slow_search
        assert http.post("/v1/responses", json=body).status_code == 200
        running.engine.write = slow_write
        answer = http.post("/v1/responses", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        ended = []

        async def endless_search(*given):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(True)

        running.documents.search = endless_search
        told = http.post("/v1/responses", json=body | {"stream": True}).text
        assert ended
        assert "event: response.failed" in told
        assert "longer than this server allows" in told


def test_a_file_whose_index_has_gone_is_read_again(api, server, vector_store):
    tools = [{"type": "file_search", "vector_store_ids": [vector_store]}]
    before = respond(api, "w4 w5 ?", tools=tools)
    store = server.documents.store
    for document in store.documents("local"):
        store.remove_document("local", document.id)
    again = respond(api, "w4 w5 ?", tools=tools)
    assert again.usage.input_tokens_details.cached_tokens < before.usage.input_tokens_details.cached_tokens
    assert again.output_text == before.output_text


def test_a_file_in_a_message(api, server):
    store = server.documents.store
    path = store.temporary()
    path.write_text(f"{WORDS} w3")
    file = store.add_file(path, owner="local", name="c.txt", purpose="user_data")
    content = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "w4 ?"}]
    assert respond(api, [{"role": "user", "content": content}]).usage.input_tokens > 400
    content[0] = {"type": "file", "file": {"file_id": "file-none"}}
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


@pytest.mark.parametrize("prefix", ["", "data:text/plain;base64,"])
def test_a_file_that_stands_in_a_message(api, prefix):
    data = prefix + base64.b64encode(f"{WORDS} w77".encode()).decode()
    parts = [
        {"type": "input_file", "filename": "d.txt", "file_data": data},
        {"type": "input_text", "text": "w4 ?"},
    ]
    made = respond(api, [{"role": "user", "content": parts}])
    assert made.usage.input_tokens > 400
    chat = [{"type": "file", "file": {"filename": "d.txt", "file_data": data}}, {"type": "text", "text": "w4 ?"}]
    again = api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": chat}], max_tokens=6)
    assert again.choices[0].message.content == made.output_text
    assert again.usage.prompt_tokens_details.cached_tokens > 300
    parts[0]["file_data"] = "w w"
    with pytest.raises(openai.BadRequestError, match="base64"):
        respond(api, [{"role": "user", "content": parts}])


def test_input_items_come_in_pages(api):
    made = respond(api, [{"role": "user", "content": f"w{n}"} for n in range(5)])
    listed = api.responses.input_items.list(made.id, order="asc", limit=2)
    assert [len(page.data) for page in listed.iter_pages()] == [2, 2, 1]
    assert [item.content[0].text for item in api.responses.input_items.list(made.id, limit=3)] == [
        f"w{n}" for n in reversed(range(5))
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": [1]}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input.0.type"),
        ({"input": []}, "input"),
        ({"truncation": "some"}, "truncation"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_none"]}]}, "vector_store_ids"),
        ({"tools": [{"type": "file_search", "max_num_results": 51}]}, "tools.0.max_num_results"),
        (
            {"tools": [{"type": "file_search", "ranking_options": {"score_threshold": 2}}]},
            "tools.0.ranking_options.score_threshold",
        ),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs"], "filters": NESTED}]}, "tools"),
    ],
)
def test_what_is_not_done_is_refused(server, change, param):
    with client(server) as http:
        answer = http.post("/v1/responses", json={"input": "w1", **change})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_stream_of_what_was_written_before_is_refused(api):
    made = respond(api, "w3")
    with pytest.raises(openai.BadRequestError, match="stream is not supported"):
        api.responses.retrieve(made.id, stream=True)
    assert api.responses.retrieve(made.id, include=["file_search_call.results"]).id == made.id


def test_other_tools_are_passed_over(api):
    tools = [{"type": "web_search", "filters": {"allowed_domains": ["a.org"]}}]
    assert respond(api, "w3", tools=tools).output_text == respond(api, "w3").output_text


def test_a_stream_that_fails_ends_with_an_event(api, server, monkeypatch):
    monkeypatch.setattr(server.engine, "write", failing)
    events = list(respond(api, "w3", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message
    assert "w77" not in events[-1].response.error.message


async def failing(_context, _writing):
    await asyncio.sleep(0.8)
    raise ZeroDivisionError("w77")
    yield


def test_the_memory_has_an_end():
    now = [0.0]
    memory = Memory(2, 10_000, 5, clock=lambda: now[0])
    one, two, three = (Remembered({"id": name}, (Message("user", ("w" * 100,)),), ()) for name in "abc")
    memory.put("x", one)
    assert memory.get("x", "a") is one
    assert memory.get("y", "a") is None
    memory.put("x", two)
    memory.put("x", three)
    assert memory.get("x", "a") is None
    now[0] = 5
    assert memory.get("x", "b") is None
    large = Remembered({"id": "d"}, (Message("user", ("w" * 20_000,)),), ())
    memory.put("x", large)
    assert memory.get("x", "d") is None
    memory.put("x", one)
    assert memory.get("x", "a") is one


def test_responses_live_for_a_while(tmp_path):
    with serving(tmp_path, response_seconds=0.3) as running, client(running) as http:
        made = http.post("/v1/responses", json={"input": "w1", "max_output_tokens": 2}).json()
        time.sleep(0.4)
        assert http.get(f"/v1/responses/{made['id']}").status_code == 404
