"""What stands before the replicas, without Ray: routes, the bridge to an application, errors in the middle, sums."""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

from homerlm.scale import ray_start
from homerlm.server.door import Door
from homerlm.server.ids import ROUTE, ROUTE_LEN, route_in, token
from homerlm.server.keys import Keys
from homerlm.server.metrics import Metrics
from homerlm.server.replicas.bridge import AHEAD, answering
from homerlm.server.replicas.front import Front, lost
from homerlm.server.replicas.metrics import summed
from homerlm.server.replicas.routing import DOCUMENT_CHARACTERS, route_of
from homerlm.server.settings import Settings

BOOK, OTHER = "a" * DOCUMENT_CHARACTERS, "b" * (DOCUMENT_CHARACTERS + 1)
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def route(path=CHAT, owner="me", **body):
    return route_of(owner, path, json.dumps(body).encode())


def user(*texts):
    return [{"role": "user", "content": text} for text in texts]


def test_questions_about_one_document_have_one_route():
    first = route(messages=user(BOOK, "Who?"))
    assert len(first) == ROUTE_LEN
    assert route(messages=user(BOOK, "Where?")) == first
    assert route(messages=user(f"{BOOK}", "Who?", "Her.", "Why?")) == first
    assert route(messages=[{"role": "user", "content": [{"type": "text", "text": BOOK}]}]) == first
    assert route(RESPONSES, input=BOOK) == first
    assert route("/v1/completions", prompt=BOOK) == first
    assert route(messages=user(OTHER, "Who?")) != first
    assert route(owner="you", messages=user(BOOK, "Who?")) != first


def test_a_conversation_without_a_document_goes_by_its_beginning():
    first = route(messages=user("Hello", "How are you today?"))
    assert route(messages=user("Hello", "How are you today?", "Well. And you?")) == first
    assert route(messages=[{"role": "system", "content": "Be kind."}, *user("Hello")]) == first
    assert route(messages=user("Good morning")) != first


def test_a_vector_store_is_one_place_however_it_is_named():
    one = route("/v1/vector_stores/vs_1/search", query="x")
    assert route("/v1/vector_stores/vs_1/files/file-2/") == one
    assert route(RESPONSES, input=BOOK, tools=[{"type": "file_search", "vector_store_ids": ["vs_1"]}]) == one
    assert route("/v1/vector_stores/vs_2/search", query="x") != one


def test_an_answer_is_asked_for_where_it_is_remembered():
    made = route(messages=user(BOOK))
    ROUTE.set(made)
    ids = [f"resp_{token(16)}", f"chatcmpl-{token(12)}"]
    ROUTE.set("")
    assert [route_in(id) for id in ids] == [made, made]
    assert route_in(f"resp_{token(16)}") is None
    assert route(f"{RESPONSES}/{ids[0]}") == made
    assert route(f"{RESPONSES}/{ids[0]}/input_items") == made
    assert route(f"/v1/answers/{ids[1]}/kept") == made
    assert route(RESPONSES, previous_response_id=ids[0], input=OTHER) == made
    assert route(RESPONSES, input=[{"type": "compaction", "encrypted_content": ids[0]}, *user(OTHER)]) == made


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[1]", b'{"messages": 3}', b'{"messages": [3, {"content": [4]}]}', b"\xff"]
)
def test_what_has_no_route_goes_anywhere(body):
    assert route_of("me", CHAT, body) == ""
    assert route_of("me", "/v1/models", b"") == ""
    assert route("/v1/rerank", query=BOOK, documents=[BOOK]) == ""


SCOPE = {"type": "http", "method": "POST", "path": "/x", "headers": [], "query_string": b"", "root_path": ""}


async def collected(app, body=b"", take=1 << 30):
    found = []
    messages = answering(app, SCOPE | {"path": app.path}, body, "r" * ROUTE_LEN)
    async for message in messages:
        found.append(message)
        if len(found) == take:
            break
    await messages.aclose()
    return found


def application(endpoint):
    app = Starlette(routes=[Route("/x", endpoint, methods=["POST", "GET"])])
    app.path = "/x"
    return app


def test_the_bridge_gives_the_application_its_request_and_the_answers_messages():
    async def echo(request: Request):
        return JSONResponse({"body": (await request.body()).decode(), "route": ROUTE.get()})

    start, *rest = asyncio.run(collected(application(echo), b"hello"))
    assert start["status"] == 200
    assert json.loads(b"".join(one.get("body", b"") for one in rest)) == {"body": "hello", "route": "r" * ROUTE_LEN}


@pytest.mark.parametrize("ahead", [0, 3 * AHEAD])
def test_leaving_the_bridge_ends_the_application(ahead):
    """Also one that has more to say than is taken from it."""
    ended = []

    async def endless(request: Request):
        async def parts():
            try:
                for _ in range(ahead):
                    yield b"."
                while True:
                    yield b"."
                    await asyncio.sleep(0.001)
            finally:
                ended.append(True)

        return StreamingResponse(parts())

    found = asyncio.run(asyncio.wait_for(collected(application(endless), take=3), 10))
    assert len(found) == 3
    assert ended == [True]


def test_leaving_before_the_first_message_ends_the_application_too():
    """One that does not look whether its client is there."""
    ended = []

    async def waiting(request: Request):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def leave():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collected(application(waiting)), 0.2)
        assert ended == [True]

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_what_the_application_raises_comes_out_of_the_bridge():
    async def broken(request: Request):
        raise ZeroDivisionError("w55")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(collected(application(broken)))


def fronted(send, keys=()):
    given = Settings(host="127.0.0.1", api_key=keys)

    async def metrics():
        return "homer_x 1.0\n"

    door = Middleware(Door, settings=given, keys=given.keys(), metrics=Metrics())
    return Starlette(routes=[Mount("/", Front(given.keys(), send, metrics))], middleware=[door])


async def asked(app, method="POST", path=CHAT, **more):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, **more)


def start(kind):
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]}


def part(data, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.mark.parametrize(
    ("path", "begin"), [(CHAT, 'data: {"error"'), (RESPONSES, 'event: error\ndata: {"type": "error"')]
)
def test_a_replica_that_ends_in_a_stream_is_an_event_of_the_stream(path, begin):
    async def send(scope, body, route):
        yield start("text/event-stream; charset=utf-8")
        yield part(b"data: 1\n\n")
        raise lost()

    got = asyncio.run(asked(fronted(send), path=path, json={"stream": True}))
    assert got.status_code == 200
    whole, last = got.text.split("\n\n", 1)
    assert whole == "data: 1"
    assert last.startswith(begin)
    assert "replica_lost" in last
    assert last.endswith("\n\n")
    if path == RESPONSES:
        assert json.loads(last.partition("data: ")[2])["sequence_number"] == 1


def test_a_replica_that_ends_before_its_answer_is_an_error_to_try_again_after():
    async def send(scope, body, route):
        raise lost()
        yield

    got = asyncio.run(asked(fronted(send), json={}))
    assert got.status_code == 503
    assert got.json()["error"]["code"] == "replica_lost"
    assert int(got.headers["Retry-After"]) > 0


def test_a_request_comes_to_the_replica_as_it_was_sent_with_its_id():
    seen = []

    async def send(scope, body, route):
        seen.append((scope, body, route))
        yield start("application/json")
        yield part(b"{}", more=False)

    body = json.dumps({"messages": user(BOOK)}).encode()
    got = asyncio.run(asked(fronted(send), content=body, headers={"X-Request-Id": "mine", "X-Other": "1"}))
    assert (got.status_code, got.json()) == (200, {})
    scope, given, given_route = seen[0]
    assert (scope["method"], scope["path"], given) == ("POST", CHAT, body)
    assert (b"x-other", b"1") in scope["headers"]
    assert (b"x-request-id", b"mine") in scope["headers"]
    assert given_route == route_of("local", CHAT, body)


def test_nobody_without_a_key_reaches_a_replica():
    async def send(scope, body, route):
        yield start("text/plain")
        yield part(b"ok", more=False)

    app = fronted(send, keys=["secret"])
    for path, method in ((CHAT, "POST"), ("/metrics", "GET"), ("/v1/models", "GET")):
        assert asyncio.run(asked(app, method, path)).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert asyncio.run(asked(app, method, path, headers=headers)).status_code == 200
    assert asyncio.run(asked(app, "GET", "/health")).status_code == 200


def test_a_client_that_leaves_ends_its_request():
    ended = asyncio.Event()

    async def send(scope, body, route):
        try:
            yield start("text/event-stream")
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def leave():
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]

        async def receive():
            if len(messages) == 1:
                await asyncio.sleep(0.05)
            return messages.pop(0)

        async def sent(message):
            pass

        scope = SCOPE | {"path": CHAT, "state": {"request_id": "r"}}

        async def metrics():
            return ""

        front = Front(Keys(), send, metrics)
        await asyncio.wait_for(front(scope, receive, sent), 10)
        assert ended.is_set()

    asyncio.run(leave())


def test_the_numbers_of_replicas_are_added_up():
    texts = []
    for count in (2, 5):
        metrics = Metrics()
        metrics.requests.labels(CHAT, "200").inc(count)
        metrics.seconds.labels(CHAT).observe(count)
        texts.append(generate_latest(metrics.registry).decode())
    lines = summed(texts).splitlines()
    assert f'homer_requests_total{{route="{CHAT}",status="200"}} 7.0' in lines
    assert f'homer_request_seconds_sum{{route="{CHAT}"}} 7.0' in lines
    assert f'homer_request_seconds_bucket{{le="2.5",route="{CHAT}"}} 1.0' in lines


def test_without_ray_the_extra_is_named(monkeypatch, run):
    monkeypatch.setattr(ray_start.importlib.util, "find_spec", lambda name: None if name == "ray" else object())
    code, _, err = run("serve", "MODEL", "--replicas", "2", "--port", "0")
    assert code == 2
    assert 'pip install "homerlm[ray]"' in " ".join(err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "0"], "--replicas is '0'"),
        (["--replicas", "4:2"], "the least and the most"),
        (["--gpus-per-replica", "1"], "--gpus-per-replica has no effect without --replicas"),
    ],
)
def test_options_of_replicas_that_do_not_fit_are_refused(run, options, message):
    code, _, err = run("serve", "MODEL", "--port", "0", *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_the_server_without_replicas_does_not_import_ray():
    code = "import sys, homerlm, homerlm.server.app, homerlm.cli.main; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
