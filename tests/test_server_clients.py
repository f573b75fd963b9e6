"""Programs that people use, against a running server: OpenAI's client, llm and litellm."""

import asyncio
import os
import threading
import time

import openai
import pytest
from click.testing import CliRunner

from homerlm.server import errors
from serving import QUESTION, WORDS, client, openai_client, serving

MESSAGES = [{"role": "user", "content": "w3 w4"}]


# OpenAI's client


def test_a_busy_server_is_asked_again_when_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "RETRY_AFTER_S", 1)
    free = threading.Event()
    with serving(tmp_path, streams=1, waiting=1) as running:
        writing = running.engine.write

        async def held(context, settings):
            async for piece in writing(context, settings):
                while not free.is_set():
                    await asyncio.sleep(0.01)
                yield piece

        monkeypatch.setattr(running.engine, "write", held)
        patient = openai_client(running).with_options(max_retries=2)
        ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
        streams = [patient.chat.completions.create(**ask, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as refused:
            openai_client(running).chat.completions.create(**ask)
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.code == "server_busy"
        threading.Timer(0.6, free.set).start()
        start = time.monotonic()
        raw = patient.chat.completions.with_raw_response.create(**ask)
        assert raw.retries_taken == 1
        assert time.monotonic() - start >= 1, "its own wait would be half a second at most"
        assert raw.parse().usage.completion_tokens == 2
        for stream in streams:
            assert list(stream)[-1].choices[0].finish_reason == "length"


def test_ids_of_requests_come_with_answers_and_errors(api, server):
    raw = api.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=2)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    named = api.responses.with_raw_response.create(model="tiny", input="w3", extra_headers={"X-Request-Id": "mine-1"})
    assert named.request_id == "mine-1"
    with pytest.raises(openai.NotFoundError) as refused:
        api.chat.completions.create(model="gpt-none", messages=MESSAGES)
    assert refused.value.request_id.startswith("req_")
    assert refused.value.code == "model_not_found"
    with api.chat.completions.with_streaming_response.create(model="tiny", messages=MESSAGES, stream=True) as streamed:
        assert streamed.headers["x-request-id"].startswith("req_")
        assert list(streamed.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_files_a_vector_store_and_an_answer_from_it(api):
    store = api.vector_stores.create(name="words", metadata={"a": "b"})
    first = api.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("a.txt", WORDS.encode()), attributes={"year": 2020}
    )
    second = api.files.create(file=("b.txt", f"{WORDS} w81".encode()), purpose="assistants")
    added = api.vector_stores.files.create_and_poll(second.id, vector_store_id=store.id, attributes={"year": 2024})
    assert (first.status, added.status) == ("completed", "completed")
    assert api.vector_stores.retrieve(store.id).file_counts.completed == 2
    newer = {"type": "gte", "key": "year", "value": 2022}
    found = api.vector_stores.search(store.id, query="w4 w5 ?", filters=newer, max_num_results=3)
    assert {result.file_id for result in found} == {second.id}
    tools = [{"type": "file_search", "vector_store_ids": [store.id], "filters": newer}]
    made = api.responses.create(model="tiny", input="w4 w5 ?", tools=tools, max_output_tokens=4)
    assert {one.file_id for one in made.output[1].content[0].annotations} == {second.id}
    assert api.files.content(second.id).read() == f"{WORDS} w81".encode()
    assert [one.id for one in api.files.list()] == [second.id, first.id]
    api.files.delete(second.id)
    assert [one.id for one in api.vector_stores.files.list(store.id)] == [first.id]
    api.vector_stores.delete(store.id)
    with pytest.raises(openai.NotFoundError):
        api.vector_stores.retrieve(store.id)


# llm


@pytest.fixture
def llm(tmp_path, server, monkeypatch):
    """A function that runs llm's command with settings of its own."""
    model = f'- {{model_id: homer, model_name: tiny, api_base: "{server.address}/v1"}}\n'
    (tmp_path / "extra-openai-models.yaml").write_text(model)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # of those that are installed some need more than they have here
    from llm.cli import cli

    return lambda *arguments, given="": CliRunner().invoke(cli, list(arguments), input=given)


def test_llm_asks_about_a_document_and_goes_on(llm, api, server):
    store = server.documents.store
    before = len(store.documents("local"))
    asked = llm("-m", "homer", "-s", QUESTION, given=f"{WORDS} w55")
    assert asked.exit_code == 0, asked.stderr
    messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": f"{WORDS} w55"}]
    assert (
        asked.stdout.strip() == api.chat.completions.create(model="tiny", messages=messages).choices[0].message.content
    )
    later = llm("-m", "homer", "-c", "--no-stream", "w5 ?")
    assert later.exit_code == 0, later.stderr
    assert later.stdout.strip()
    assert len(store.documents("local")) == before + 1, "what was said before is known"


def test_llm_shows_what_the_server_refuses(llm):
    refused = llm("-m", "homer", "-o", "temperature", "1", "-o", "frequency_penalty", "1", "w5")
    assert refused.exit_code != 0
    assert "frequency_penalty is not supported here" in refused.stderr


# litellm


@pytest.fixture(scope="module")
def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the internet for prices
    return pytest.importorskip(
        "litellm", reason="litellm (245 MB with what it needs) is in the extra `clients`, not in `dev`"
    )


def test_litellm_chats_streams_and_sees_errors(litellm, server):
    place = {"model": "openai/tiny", "api_base": f"{server.address}/v1", "api_key": "none", "num_retries": 0}
    messages = [{"role": "user", "content": f"{WORDS}\n\n{QUESTION}"}]
    whole = litellm.completion(messages=messages, max_tokens=6, **place)
    assert whole.usage.completion_tokens == 6
    assert whole.usage.prompt_tokens > 400
    streamed = litellm.completion(
        messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}, **place
    )
    chunks = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usage[-1].prompt_tokens_details.cached_tokens > 300
    with pytest.raises(litellm.BadRequestError, match="frequency_penalty is not supported"):
        litellm.completion(messages=messages, frequency_penalty=1, **place)
    with pytest.raises(litellm.NotFoundError, match="does not exist here"):
        litellm.completion(messages=messages, **(place | {"model": "openai/gpt-none"}))
    made = litellm.responses(input="w3 w4", max_output_tokens=4, **place)
    assert made.status == "incomplete"
    with client(server) as http:
        assert http.get(f"/v1/answers/{whole.id}/kept").status_code == 200
