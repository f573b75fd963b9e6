"""Answers of an OpenAI-compatible endpoint from chosen passages, against a server in a thread of its own."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from command import WORDS, ask
from homerlm.errors import EndpointError, InputError
from homerlm.remote import KEY, Endpoint
from homerlm.selection import Excerpt, Selection

SELECTION = Selection("Who is Emma?", 5, 90, (Excerpt(3, 14, "Emma lives."), Excerpt(40, 50, "In a house")))
SECRET = "sk-very-secret"


def completion(text, **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 31, "completion_tokens": 3}} | more


def event(text=None, reason=None, **more):
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}]} | more


def stream(*events, done=True):
    lines = [": a comment", *(f"data: {json.dumps(one)}" for one in events), *(["data: [DONE]"] if done else [])]
    return "\n\n".join(lines) + "\n\n"


def listing(*names):
    return as_json({"data": [{"id": name} for name in names]})


def as_json(found, status=200):
    return status, "application/json", json.dumps(found)


def as_stream(*events, **more):
    return 200, "text/event-stream", stream(*events, **more)


@contextmanager
def serving(reply, models=None):
    """A server whose POSTs get `reply`, (status, type, body) or a function of the request that makes it, and whose GETs
    get `models`; its address and the requests that it has seen."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(None, *(models or listing("large")))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(body, *(reply(body) if callable(reply) else reply))

        def _answer(self, asked, status, kind, body):
            seen.append(SimpleNamespace(path=self.path, headers=self.headers, body=asked))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if 300 <= status < 400:
                self.send_header("Location", body)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def both(body):
    """A server that streams where it is asked to."""
    if not body["stream"]:
        return as_json(completion("She is 7 ö."))
    return as_stream(event("She is"), event(" 7 ö."), event(reason="stop"), {"choices": [], "usage": {"x": 1}})


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


class TestAnswer:
    def test_the_passages_and_the_question_are_asked(self):
        with serving(both) as (url, seen):
            answer = Endpoint(url, "large").answer(SELECTION, max_tokens=9, temperature=0.5)
        assert (answer.text, answer.model, answer.finish_reason) == ("She is 7 ö.", "large", "stop")
        assert (answer.prompt_tokens, answer.new_tokens) == (31, 3)
        (request,) = [one for one in seen if one.body]
        assert request.path == "/v1/chat/completions"
        assert "Authorization" not in request.headers
        system, user = request.body.pop("messages")
        assert (system["role"], user["role"]) == ("system", "user")
        assert user["content"] == "Emma lives.\n\n[...]\n\nIn a house\n\nQuestion: Who is Emma?"
        assert request.body == {"model": "large", "stream": False, "max_tokens": 9, "temperature": 0.5}

    def test_a_stream_comes_in_pieces(self):
        pieces = []
        with serving(both) as (url, _):
            answer = Endpoint(url, "large").answer(SELECTION, on_text=pieces.append)
        assert pieces == ["She is", " 7 ö."]
        assert (answer.text, answer.finish_reason, answer.new_tokens) == ("She is 7 ö.", "stop", None)

    def test_a_stream_without_its_last_mark_is_whole_where_a_reason_was_given(self):
        with serving(as_stream(event("Yes"), event(reason="length"), done=False)) as (url, _):
            answer = Endpoint(url, "large").answer(SELECTION, on_text=[].append)
        assert (answer.text, answer.finish_reason) == ("Yes", "length")

    def test_a_server_that_does_not_stream_gives_all_at_once(self):
        pieces = []
        with serving(as_json(completion("Yes"))) as (url, _):
            Endpoint(url, "large").answer(SELECTION, on_text=pieces.append)
        assert pieces == ["Yes"]

    def test_the_key_is_sent_and_never_shown(self, monkeypatch):
        monkeypatch.setenv(KEY, SECRET)
        with serving(as_json({"error": {"message": f"Incorrect key {SECRET}"}}, 401)) as (url, seen):
            endpoint = Endpoint(url, "large")
            with pytest.raises(EndpointError) as caught:
                endpoint.answer(SELECTION)
        assert seen[0].headers["Authorization"] == f"Bearer {SECRET}"
        assert f"check the key in {KEY}" in str(caught.value)
        assert SECRET not in str(caught.value) + repr(endpoint)

    @pytest.mark.parametrize("status", [302, 303, 307])
    def test_it_does_not_follow_to_another_address(self, monkeypatch, status):
        monkeypatch.setenv(KEY, SECRET)
        with (
            serving(both) as (other, seen),
            serving((status, "text/plain", f"{other}/chat/completions")) as (url, _),
            pytest.raises(EndpointError, match=f"somewhere else: {other}"),
        ):
            Endpoint(url, "large").answer(SELECTION)
        assert seen == []

    def test_what_the_caller_raises_is_the_callers(self):
        def stop(_piece):
            raise BrokenPipeError

        with serving(both) as (url, _), pytest.raises(BrokenPipeError):
            Endpoint(url, "large").answer(SELECTION, on_text=stop)


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (as_json({"error": {"message": "no such key"}}, 401), rf"answers 401 .*\(no such key\): set {KEY}"),
        (
            as_json({"error": {"message": "The model `large` does not exist"}}, 404),
            "does not exist.*the model's name, ",
        ),
        (as_json({"detail": "max_tokens is too large"}, 400), r"answers 400 .*\(max_tokens is too large\)"),
        ((500, "text/html", "<h1>Oops</h1>" + "x" * 1000), r"answers 500 .*\(<h1>Oops</h1>x+ \.\.\.\)"),
        ((200, "text/html", "<html>Welcome</html>"), r"no JSON \(<html>Welcome</html>\).*ends in /v1"),
        (as_json({"choices": []}), "without a choice of text"),
        (as_json([1]), "without a choice of text"),
        (as_stream(event("Hal"), done=False), "broke the answer off before its end"),
        (as_stream(event("Hal"), {"error": {"message": "out of memory"}}), "broke the answer off .out of memory"),
        ((200, "text/event-stream", "data: {nonsense\n\n"), "no JSON"),
    ],
)
def test_what_goes_wrong_is_said(reply, named):
    with serving(reply) as (url, _), pytest.raises(EndpointError, match=named):
        Endpoint(url, "large").answer(SELECTION, on_text=[].append)


def test_a_server_that_is_not_there_or_silent():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"cannot be reached .*refused"):
            Endpoint(url, "large").answer(SELECTION)
        bound.listen()
        with pytest.raises(EndpointError, match=r"silent for 0\.2 s"):
            Endpoint(url, "large", timeout_s=0.2).answer(SELECTION)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "http://", "http://user:key@a/v1", "http://a:b/v1", "http://a/v1?key=1"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match=KEY):
        Endpoint(url)


def test_the_address_may_be_given_with_its_path():
    assert Endpoint("http://a/v1/chat/completions/").url == Endpoint("http://a/v1/").url == "http://a/v1"


class TestChecked:
    def test_the_only_model_is_the_one(self):
        with serving(both) as (url, _):
            assert Endpoint(url).checked() == Endpoint(url, "large")
            assert Endpoint(url).answer(SELECTION).model == "large"

    @pytest.mark.parametrize(
        ("models", "named"),
        [
            (listing("a", "b"), "serves a, b: name one"),
            (listing(), "no model that it names: name one"),
            (as_json({}, 404), "no model that it names: name one"),
            (as_json([]), "no model that it names: name one"),
        ],
    )
    def test_of_several_or_none_one_must_be_named(self, models, named):
        with serving(both, models) as (url, _):
            with pytest.raises(EndpointError, match=named):
                Endpoint(url).checked()
            assert Endpoint(url, "c").checked().model == "c"

    @pytest.mark.parametrize(
        ("models", "named"), [(as_json({}, 401), f"set {KEY}"), ((200, "text/html", "<html>"), "ends in /v1")]
    )
    def test_a_missing_key_and_a_wrong_address_are_known_before_a_document_is_read(self, models, named):
        with serving(both, models) as (url, _), pytest.raises(EndpointError, match=named):
            Endpoint(url, "large").checked()


class TestCommand:
    @staticmethod
    def given(document, url, *more):
        return [
            *("ask", document, "w1 w2", "-m", "MODEL", "--max-chunk-len", "64", "--pooling", "3"),
            *("--reader", url, "--reader-tokens", "40", *more),
        ]

    def test_passages_of_several_documents_are_shown_with_their_names(self, run, tmp_path):
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text(WORDS[ord(name[0]) % 7 :])
        settings = ("-m", "MODEL", "--max-chunk-len", "64")
        assert run("index", tmp_path / "a.txt", tmp_path / "b.txt", "-o", tmp_path / "all", *settings)[0] == 0
        with serving(both) as (url, seen):
            given = ("--context", tmp_path / "all", "w1 w2", "--reader", url, "--reader-tokens", "200", "--show-kept")
            code, out, _ = run("ask", *given, *settings)
        assert code == 0
        assert {line.split()[0] for line in out.splitlines() if "[" in line} == {"a.txt", "b.txt"}
        content = next(one.body for one in seen if one.body)["messages"][1]["content"]
        assert content.startswith("# a.txt\n\n")
        assert content.count("# a.txt") == content.count("[...]\n\n# b.txt\n\n") == 1

    def test_the_answer_streams_and_the_passages_are_those_of_select(self, run, document):
        with serving(both) as (url, seen):
            code, out, err = run(*self.given(document, url, "--max-new-tokens", "7", "--show-kept"))
        assert code == 0
        assert out.startswith("She is 7 ö.\n[")
        assert "300 tokens read" in " ".join(err.split())
        assert "40 chosen; by large" in " ".join(err.split())
        body = next(one.body for one in seen if one.body)
        assert (body["stream"], body["max_tokens"], body["temperature"]) == (True, 7, 0)
        select = [
            "select",
            document,
            "w1 w2",
            "--tokens",
            "40",
            "-m",
            "MODEL",
            "--max-chunk-len",
            "64",
            "--pooling",
            "3",
        ]
        passages = json.loads(run(*select, "--json")[1])["passages"]
        content = "\n\n[...]\n\n".join(one["text"] for one in passages)
        assert body["messages"][1]["content"] == f"{content}\n\nQuestion: w1 w2"

    def test_json_and_quiet(self, run, document):
        with serving(both) as (url, seen):
            code, out, err = run(*self.given(document, url, "--json", "--show-kept", "--seed", "3"))
            assert (code, err) == (0, "")
            record = json.loads(out)
            assert (record["text"], record["model"], record["new_tokens"]) == ("She is 7 ö.", "large", 3)
            assert (record["tokens_read"], record["tokens_kept"], record["skipped"]) == (300, 40, [])
            assert all(WORDS[one["start"] : one["end"]] == one["text"] for one in record["kept"])
            body = next(one.body for one in seen if one.body)
            assert (body["stream"], body["seed"]) == (False, 3)
            assert run(*self.given(document, url, "--quiet")) == (0, "She is 7 ö.\n", "")

    def test_an_endpoint_that_is_not_there_is_told_before_the_model_is_loaded(self, run, document, monkeypatch):
        def fail(*_args, **_kwargs):
            raise AssertionError("the model is loaded")

        monkeypatch.setattr("homerlm.model.loading.load_model", fail)
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
            code, out, _ = run(*self.given(document, url, "--json"))
        assert code == 1
        error = json.loads(out)["error"]
        assert error["type"] == "EndpointError"
        assert "cannot be reached" in error["message"]

    def test_what_cannot_act_with_it_or_without_it_is_refused(self, run, document, tmp_path):
        url = "http://127.0.0.1:9/v1"
        for more in (
            ["--save", tmp_path / "c"],
            ["--html", tmp_path / "h"],
            ["--answer-start", "It is"],
            ["--target-len", "30"],
            ["--min-share", "0.5"],
            ["--reader-tokens", "many"],
        ):
            code, _, err = run(*self.given(document, url, *more))
            assert code == 2, more
            assert more[0] in " ".join(err.split())
        code, _, err = run(*self.given(document, "large-model"))
        assert code == 2
        assert "--reader: the endpoint is 'large-model'" in " ".join(err.split())
        for more in (["--reader-model", "large"], ["--reader-tokens", "40"]):
            code, _, err = run(*ask(document, *more))
            assert code == 2
            assert "without --reader" in " ".join(err.split())
