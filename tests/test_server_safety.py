"""Who may ask, how much, and what happens when somebody leaves, breaks or overloads something."""

import asyncio
import gzip
import json
import logging
import re
import socket
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homerlm.errors import ConfigError
from homerlm.server.keys import Keys, hash_of
from homerlm.server.settings import Settings
from serving import WORDS, client, openai_client, serving, until

CHAT = "/v1/chat/completions"
METHODS = {"search": "finding", "kept": "preparing", "rerank": "ranking"}
LONG, SHORTER = " ".join([WORDS] * 20), " ".join([WORDS] * 5)


def said(text, **more):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 3, **more}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store"), max_messages=5, max_parts=4, max_body_bytes=200_000) as running:
        yield running


@pytest.fixture
def http(server):
    with client(server) as made:
        yield made


# --- settings


def test_an_address_that_others_reach_needs_a_key(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ConfigError, match="without-key"):
            Settings.of(host=host)
        Settings.of(host=host, without_key=True)
        Settings.of(host=host, api_key=("k",))
    file = tmp_path / "keys"
    file.write_text(f"# mine\none\nsha256:{hash_of('two')}\n")
    kept = Settings.of(host="0.0.0.0", key_file=file).keys()
    assert kept.owner("Bearer one") != kept.owner("Bearer two") == hash_of("two")[:16]
    for host in ("localhost", "127.0.0.1", "::1", "127.8.8.8"):
        Settings.of(host=host)


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path, monkeypatch):
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nwaiting = 2\nstreams = 3\napi_key = ["x"]\n')
    monkeypatch.setenv("HOMER_SERVE_PORT", "4")
    monkeypatch.setenv("HOMER_SERVE_WAITING", "5")
    read = Settings.of(file, port=6, host=None)
    assert (read.port, read.waiting, read.streams) == (6, 5, 3)
    monkeypatch.setenv("HOMER_SERVE_API_KEY", "one,two")
    assert len(Settings.of(file).api_key) == 2


def test_wrong_settings_are_named_and_keys_never_shown(tmp_path):
    with pytest.raises(ConfigError, match="port"):
        Settings.of(port=70000)
    with pytest.raises(ConfigError, match="bogus"):
        Settings.of(bogus=1)
    with pytest.raises(ConfigError, match="no file"):
        Settings.of(tmp_path / "none.toml")
    with pytest.raises(ConfigError) as refused:
        Settings.of(api_key=("my secret",))
    assert "my secret" not in str(refused.value)
    assert "hidden" not in repr(Settings.of(api_key=("hidden",)))
    with pytest.raises(ConfigError, match="cannot be read"):
        Settings.of(key_file=tmp_path / "none")


def test_the_documentation_has_every_setting():
    page = (Path(__file__).parents[1] / "docs" / "server.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        default, description = rows.pop(name).split(" | ")
        assert description == field.description
        assert _value(default) == (None if field.default == () else field.default), name
    assert not rows


def _value(written):
    """A default as the documentation writes it: `20 GiB`, `4,096`, `False`, or nothing."""
    number, _, unit = written.replace(",", "").partition(" ")
    if number.isdecimal():
        return int(number) * {"": 1, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    return {"": None, "False": False}.get(written, written)


# --- keys


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store"), api_key=("first", "second")) as running:
        yield running


def test_nothing_is_answered_without_a_key(locked):
    with client(locked) as http:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic first"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer first second"},
        ):
            for method, path in (
                ("POST", CHAT),
                ("POST", "/v1/completions"),
                ("POST", "/v1/responses"),
                ("GET", "/v1/models"),
                ("GET", "/metrics"),
                ("GET", "/v1/responses/resp_1"),
            ):
                body = {"content": b"{}"} if method == "POST" else {}
                answer = http.request(method, path, headers=header, **body)
                assert answer.status_code == 401, (header, path)
                assert answer.json()["error"]["type"] == "authentication_error"
        assert http.get("/health").status_code == 200
        http.post(CHAT, json=said("w1"), headers={"Authorization": "Bearer first"}).raise_for_status()


def test_another_keys_things_are_not_there(locked):
    first, second = (openai_client(locked, key) for key in ("first", "second"))
    made = first.responses.create(model="tiny", input="w1", max_output_tokens=2)
    assert first.responses.retrieve(made.id).id == made.id
    with pytest.raises(openai.NotFoundError):
        second.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        second.responses.delete(made.id)
    for api, cached in ((first, False), (first, True), (second, False), (second, True)):
        answer = api.chat.completions.create(model="tiny", **said(f"{WORDS}\n\nw1 ?"))
        assert bool(answer.usage.prompt_tokens_details.cached_tokens) == cached


def test_keys_are_compared_whole_and_as_hashes():
    keys = Keys(["one"])
    assert keys.owner("Bearer one") == keys.owner("bearer  one") == hash_of("one")[:16]
    assert "one" not in repr(vars(keys))
    assert Keys().owner(None) == "local"


# --- limits


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit(http, path, chunked):
    body = json.dumps(said("w" * 300_000)).encode()
    answer = http.post(
        path,
        content=(body[at : at + 50_000] for at in range(0, len(body), 50_000)) if chunked else body,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_messages_and_parts_have_limits(http):
    many = http.post(CHAT, json={"messages": [{"role": "user", "content": "w1"}] * 6})
    parts = http.post(CHAT, json={"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}] * 5}]})
    for answer in (many, parts):
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many")


def test_tokens_have_limits(tmp_path):
    with serving(tmp_path, max_prompt_tokens=300) as running, client(running) as http:
        answer = http.post(CHAT, json=said(f"{WORDS}\n\nw1 ?"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        streamed = http.post(CHAT, json=said(f"{WORDS}\n\nw1 ?", stream=True))
        assert streamed.status_code == 400
        assert http.post(CHAT, json=said("w1", max_tokens=10_000)).json()["usage"]["completion_tokens"] <= 20


def test_time_has_a_limit(tmp_path):
    with serving(tmp_path, request_seconds=0.2) as running, client(running) as http:
        slow(running.homer)
        answer = http.post(CHAT, json=said(f"{LONG}\n\nw1 ?"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


@pytest.mark.parametrize("what", ["search", "kept", "rerank"])
def test_finding_has_the_time_of_an_answer_and_ends_with_it(tmp_path, what):
    with serving(tmp_path, request_seconds=2) as running, client(running) as http:
        request = finding(http, what)
        steps = slow(running.homer, METHODS[what], seconds=0.5)
        answer = http.request(*request[:2], json=request[2])
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert_ended(steps, 0.7)
        http.post(CHAT, json=said("w1")).raise_for_status()


def test_who_comes_to_a_full_server_is_told_to_come_later_and_who_is_in_is_served(tmp_path):
    with serving(tmp_path, waiting=1, streams=1) as running, client(running) as http:
        steps, found = slow(running.homer), []
        bodies = [said(f"{SHORTER} w{number}\n\nw1 ?") for number in (1, 2)]
        readers = [threading.Thread(target=lambda body=body: found.append(asked(running, body))) for body in bodies]
        for reader in readers:
            reader.start()
        until(lambda: len(set(steps)) == 2)
        for stream in (False, True):
            answer = http.post(CHAT, json=said("w1", stream=stream))
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["error"]["type"] == "rate_limit_error"
        assert http.get("/health").status_code == 200
        for reader in readers:
            reader.join()
        assert [answer.status_code for answer in found] == [200, 200]
        http.post(CHAT, json=said("w1")).raise_for_status()


# --- clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_text_is_read_ends_the_reading(tmp_path, stream):
    with serving(tmp_path) as running, client(running) as http:
        steps = slow(running.homer)
        leave(running, said(f"{LONG}\n\nw1 ?", stream=stream), lambda: len(steps) > 2)
        time.sleep(0.5)
        taken = len(steps)
        time.sleep(0.3)
        assert len(steps) == taken < 60, "the reading went on"
        http.post(CHAT, json=said("w1")).raise_for_status()


@pytest.mark.parametrize("what", ["search", "rerank"])
def test_a_client_that_leaves_ends_what_is_found_for_it(tmp_path, what):
    with serving(tmp_path) as running, client(running) as http:
        _, path, body = finding(http, what)
        steps = slow(running.homer, METHODS[what], 0.1)
        leave(running, body, lambda: len(steps) > 1, path)
        assert_ended(steps)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_answer_is_written_ends_the_writing(tmp_path, stream):
    with serving(tmp_path, max_new_tokens=100_000) as running:
        write, pieces, ended = running.engine.write, [], []

        async def slowly(context, writing):
            try:
                async for piece in write(context, writing):
                    pieces.append(piece)
                    await asyncio.sleep(0.02)
                    yield piece
            finally:
                ended.append(True)

        running.engine.write = slowly
        leave(running, said("w1", stream=stream, max_tokens=100_000), lambda: len(pieces) > 2)
        until(lambda: ended)
        assert len(pieces) < 200


def test_signs_of_life_come_while_a_text_is_read(tmp_path):
    with serving(tmp_path, ping_seconds=0.2) as running, client(running) as http:
        slow(running.homer)
        text = http.post(CHAT, json=said(f"{SHORTER}\n\nw1 ?", stream=True)).text
        assert text.count(": ping") > 2
        assert text.index(": ping") < text.index('"content": " w')


def test_a_server_that_ends_tells_those_who_wait(tmp_path):
    with serving(tmp_path, closing_seconds=0.3) as running:
        steps, found = slow(running.homer), []
        reader = threading.Thread(
            target=lambda: found.append(
                httpx.post(f"{running.address}{CHAT}", json=said(f"{LONG}\n\nw1 ?", stream=True))
            )
        )
        reader.start()
        until(lambda: steps)
        time.sleep(0.6)
        running.should_exit = True
        reader.join(10)
        last = found[0].text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"


def slow(homer, method="reading", seconds=0.03):
    """Let every step of a method of its take a while; the list grows with each, by what it was asked for."""
    steps, stepping = [], getattr(homer, method)

    def slowly(*given, **more):
        generator = stepping(*given, **more)
        while True:
            try:
                event = next(generator)
                steps.append(repr(given))
            except StopIteration as done:
                return done.value
            time.sleep(seconds)
            yield event

    setattr(homer, method, slowly)
    return steps


def finding(http, what):
    """Method, path and body of a request that reads passages with a question, for which there are some."""
    if what == "rerank":
        return "POST", "/v1/rerank", {"query": "w1 w2", "documents": [WORDS] * 40}
    text = {"file": ("a.txt", f"{WORDS} w8")}
    file = http.post("/v1/files", files=text, data={"purpose": "user_data"}).json()["id"]
    store = http.post("/v1/vector_stores", json={"file_ids": [file]}).json()["id"]
    until(lambda: http.get(f"/v1/vector_stores/{store}").json()["file_counts"]["completed"])
    if what == "search":
        return "POST", f"/v1/vector_stores/{store}/search", {"query": "w1 w2"}
    (document,) = http.get("/v1/documents").json()["data"]
    return "GET", f"/v1/documents/{document['id']}/kept?question=w1", None


def assert_ended(steps, seconds=0.4):
    time.sleep(seconds)
    taken = len(steps)
    time.sleep(seconds)
    assert len(steps) == taken, "it went on"


def asked(running, body):
    return httpx.post(f"{running.address}{CHAT}", json=body, timeout=60)


def leave(running, body, when, path=CHAT):
    """Ask, and close the connection once something has happened."""
    host, port = running.address.removeprefix("http://").split(":")
    sent = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + sent)
        until(when)


# --- what others see


def test_requests_have_ids_and_logs_hold_no_contents(http, caplog):
    with caplog.at_level(logging.INFO, logger="homerlm.server"):
        answer = http.post(CHAT, json=said("w11 secretword"), headers={"X-Request-Id": "mine-1"})
        other = http.get("/v1/secretpath?secret=1")
        until(lambda: len(caplog.messages) > 1)
    assert answer.headers["X-Request-Id"] == "mine-1"
    assert other.headers["X-Request-Id"].startswith("req_")
    assert any(f"mine-1 POST {CHAT} 200" in line for line in caplog.messages)
    assert "secret" not in "".join(caplog.messages)
    assert http.get("/health", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"].startswith("req_")


def test_pages_of_others_are_kept_out(http, tmp_path):
    assert http.post(CHAT, json=said("w1"), headers={"Origin": "http://evil.example"}).status_code == 403
    assert http.post(CHAT, json=said("w1"), headers={"Host": "evil.example"}).status_code == 403
    for name, none in (("Origin", "http://["), ("Host", "[::1"), ("Host", "[x]")):
        assert http.post(CHAT, json=said("w1"), headers={name: none}).status_code == 403
    assert "Access-Control-Allow-Origin" not in http.get("/health").headers
    own = str(http.base_url).rstrip("/")
    assert http.post(CHAT, json=said("w1"), headers={"Origin": own}).status_code == 200
    limits = {"cors_origin": ("http://page.example",), "max_body_bytes": 1000}
    with serving(tmp_path, **limits) as running, client(running) as other:
        allowed = other.get("/health", headers={"Origin": "http://page.example"})
        assert allowed.headers["Access-Control-Allow-Origin"] == "http://page.example"
        evil = other.get("/health", headers={"Origin": "http://evil.example"})
        assert evil.status_code == 403
        assert "Access-Control-Allow-Origin" not in evil.headers
        long = said("w1 " * 1000)
        refused = other.post(CHAT, json=long, headers={"Origin": "http://page.example"})
        assert refused.status_code == 413
        assert refused.headers["Access-Control-Allow-Origin"] == "http://page.example", "the page sees what is wrong"
        assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]


def test_numbers_for_prometheus_and_a_description(http):
    http.post(CHAT, json=said("w1")).raise_for_status()
    text = http.get("/metrics").text
    assert f'homer_requests_total{{route="{CHAT}",status="200"}}' in text
    assert 'homer_tokens_total{kind="completion"}' in text
    described = http.get("/openapi.json").json()
    assert {CHAT, "/v1/completions", "/v1/responses", "/v1/models", "/health"} <= described["paths"].keys()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("GET", CHAT, None, 405),
        ("POST", CHAT, b"", 400),
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"\xff\xfe", 400),
        ("POST", CHAT, b"[" * 100_000, 400),
        ("POST", CHAT, b"null", 400),
        ("POST", CHAT, json.dumps(said("\ud800")).encode(), 400),
        ("POST", CHAT, json.dumps(said("w1", temperature=float("nan"))).encode(), 400),
        ("POST", "/v1/responses", json.dumps({"input": "w1", "metadata": {"\ud800": "\ud800"}}).encode(), 400),
        ("POST", "/v1/responses", json.dumps({"input": "w1", "tool_choice": {"type": float("nan")}}).encode(), 400),
        ("GET", "/v1/responses/%00%ff", None, 404),
        ("GET", "/v1/models/..%2f..%2fetc", None, 404),
    ],
)
def test_broken_requests_get_errors_in_openais_shape(http, method, path, body, status):
    answer = http.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "Content-Type: application/json"),
        (b'{"messages": ', None, "no JSON: Expecting value at character 13"),
        (b'{"model": "\xff"}', None, "JSON in UTF-8"),
        (b"[" * 100_000, None, "nesting"),
        (b'{"seed": %s}' % (b"9" * 5000), None, "numbers"),
        (json.dumps(said("\ud800")).encode(), "messages.0.content", "content: the text holds"),
        (json.dumps(said([{"text": "w1"}])).encode(), "messages.0.content.0.type", "type: Field required"),
        (json.dumps(said([{"type": "text", "text": 5}])).encode(), "messages.0.content.0.text", "valid string"),
        (json.dumps({"messages": [{"content": "w1"}]}).encode(), "messages.0.role", "role: Field required"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_why_and_where(http, body, param, message):
    """The place as the client wrote it, without the names that our own types have."""
    error = http.post(CHAT, content=body, headers={"Content-Type": "application/json"}).json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert error["code"]


def test_a_compressed_body_is_refused_by_name(http):
    body = gzip.compress(json.dumps(said("w1")).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = http.post(CHAT, content=body, headers=headers)
    assert answer.status_code == 415
    assert "without Content-Encoding" in answer.json()["error"]["message"]
    assert http.post(CHAT, json=said("w1"), headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/nothing"])
def test_head_tells_what_get_would(http, path):
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.headers["content-type"]) == (whole.status_code, whole.headers["content-type"])
    assert not head.content


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "messages",
    "prompt",
    "input",
    "model",
    "temperature",
    "top_p",
    "max_tokens",
    "max_output_tokens",
    "stop",
    "seed",
    "n",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "response_format",
    "text",
    "metadata",
    "instructions",
    "include",
    "truncation",
    "previous_response_id",
    "logit_bias",
    "modalities",
)
RIGHT = {
    "messages": [{"role": "user", "content": "w1"}],
    "prompt": "w1",
    "input": "w1",
    "max_tokens": 1,
    "max_output_tokens": 1,
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([CHAT, "/v1/completions", "/v1/responses"]),
    st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=3),
)
def test_no_request_makes_the_server_fail(http, path, changes):
    answer = http.post(
        path, content=json.dumps({**RIGHT, **changes}).encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
