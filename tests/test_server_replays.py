"""What open-webui and continue send, replayed: the requests that their documentation and code describe, in texts of our
own."""

import json

import pytest

from serving import WORDS, client, serving, tiny_homer

BOOK = f"{WORDS} {' '.join(reversed(WORDS.split()))} {WORDS}"
TASK = f"### Task:\n{' '.join(f'w{n}' for n in range(60))}\n\n### Guidelines:\n- w3 w4 w5\n- w6 w7 w8\n- w9"
STOPS = ["<|endoftext|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "\n\n", "\r\n\r\n", "/src/"]
STOPS += ["#- coding: utf-8", "```", *(f"\nw{n}" for n in range(10))]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store"), tiny_homer(target_len=300, max_chunk_len=310)) as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    with client(server) as opened:
        yield opened


def events(answer):
    """The JSON of a stream's events; it ends as all do."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *data, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert end == "[DONE]"
    return [json.loads(one) for one in data]


def said(answer):
    """Text and usage of a chat's stream."""
    told = events(answer)
    text = "".join(choice["delta"].get("content") or "" for one in told for choice in one["choices"])
    return text, told[-1]["usage"]


# open-webui


def with_book(question, book=BOOK):
    """The newest message where files are given entire: a task, the sources in marks, and the question behind."""
    source = f'<source id="1" name="book.txt">{book}</source>'
    return f"{TASK}\n\n<context>\n{source}\n</context>\n\n{question}"


def webui(http, messages, **more):
    body = {"model": "tiny", "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **more}
    return http.post("/v1/chat/completions", json=body, headers={"Authorization": "Bearer"})


def test_open_webui_finds_the_model(http):
    answer = http.get("/v1/models", headers={"Authorization": "Bearer"})
    assert [model["id"] for model in answer.json()["data"]] == ["tiny"]


def test_open_webui_sends_the_entire_document_with_every_turn_and_it_is_read_once(http):
    messages = [{"role": "system", "content": "w70 w71"}, {"role": "user", "content": with_book("w4 w5 ?")}]
    first, usage = said(webui(http, messages))
    assert usage["prompt_tokens"] > 1200
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["homer"]["read"] > 1200

    messages[1:] = [
        {"role": "user", "content": "w4 w5 ?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": with_book("w60 w61 ?")},
    ]
    _, usage = said(webui(http, messages))
    assert usage["prompt_tokens"] > 1200
    assert usage["prompt_tokens_details"]["cached_tokens"] > 850
    assert usage["homer"]["read"] < 400, "the question, and what is read again for it"

    _, usage = said(webui(http, [messages[0], {"role": "user", "content": with_book("w8 ?", f"{BOOK} w77")}]))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0, "another book is another document"


def test_open_webui_has_the_document_apart_from_the_task_and_the_question(http, server):
    answer = webui(http, [{"role": "user", "content": with_book("w33 ?")}])
    (document,) = http.get(f"/v1/answers/{events(answer)[0]['id']}/kept").json()["documents"]
    assert BOOK in document["text"]
    assert "### Task" not in document["text"]
    assert "w33 ?" not in document["text"]


@pytest.mark.parametrize("limit", [{"max_completion_tokens": 1000}, {}])
def test_open_webui_asks_for_titles_tags_and_what_to_ask_next(http, limit):
    history = "<chat_history>\nUSER: w4 w5 ?\nASSISTANT: w6 w7\n</chat_history>"
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"{TASK}\n{history}"}], "stream": False, **limit}
    before = len(http.get("/v1/documents?limit=1000").json()["data"])
    made = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert made["choices"][0]["message"]["content"]
    assert made["usage"]["completion_tokens"] <= 20, "no more than the server allows"
    assert len(http.get("/v1/documents?limit=1000").json()["data"]) == before, "nothing of it is a document"


def test_open_webui_continues_an_answer_and_sends_settings_of_other_servers(http):
    messages = [{"role": "user", "content": "w4 ?"}, {"role": "assistant", "content": "w5"}]
    more = {"top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1, "num_ctx": 8192, "keep_alive": "5m", "user": {"id": "a"}}
    assert said(webui(http, messages, temperature=0.7, seed=1, **more))[0]


# continue


def continuing(http, path, **body):
    headers = {"Authorization": "Bearer undefined", "api-key": "", "Accept": "application/json"}
    return http.post(f"/v1/{path}", json={"model": "tiny", "stream": True, **body}, headers=headers)


def test_continue_completes_code(http):
    prompt = "<fim_prefix>w1 w2 w3\n<fim_suffix>\nw9<fim_middle>"
    answer = continuing(http, "completions", prompt=prompt, max_tokens=12, temperature=0.01, stop=STOPS)
    told = events(answer)
    assert all(one["object"] == "text_completion" for one in told)
    text = "".join(one["choices"][0]["text"] for one in told)
    assert text
    assert not any(stop in text for stop in STOPS)
    assert told[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_continue_completes_behind_a_long_file_that_is_read_once(http):
    prompts = [f"{BOOK} w79\n\nw20 w21 {typed}" for typed in ("w22", "w22 w23")]
    known = []
    for prompt in prompts:
        body = {"prompt": prompt, "max_tokens": 4, "stop": STOPS, "stream_options": {"include_usage": True}}
        known.append(events(continuing(http, "completions", **body))[-1]["usage"]["prompt_tokens_details"])
    assert known[0]["cached_tokens"] == 0
    assert known[1]["cached_tokens"] > 850, "what is typed behind the file does not make it another one"


def test_continue_chats_without_tools(http):
    messages = [
        {"role": "system", "content": "w70"},
        {"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2 ?"}]},
        {"role": "assistant", "content": " "},
        {"role": "user", "content": "w3 ?"},
    ]
    told = events(continuing(http, "chat/completions", messages=messages, max_tokens=5))
    assert "".join(choice["delta"].get("content") or "" for one in told for choice in one["choices"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embeddings", {"input": ["w1"]}),
        ("fim/completions", {"prompt": "w1", "suffix": "w2"}),
    ],
)
def test_continue_is_told_what_there_is_not(http, path, body):
    answer = continuing(http, path, **body)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "unknown_url"
    assert f"POST /v1/{path}" in error["message"]
    assert http.get("/static/none.js").json()["error"]["message"] == "There is no such file."


def test_continue_is_told_that_nothing_is_filled_in(http):
    refused = continuing(http, "completions", prompt="w1", suffix="w2", max_tokens=4)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "suffix"


def test_continue_reranks(http):
    body = {"query": "w4 w5", "documents": ["w1 w2", "w4 w5", "w9"]}
    found = continuing(http, "rerank", **body).raise_for_status().json()
    assert {one["index"] for one in found["results"]} == {0, 1, 2}
