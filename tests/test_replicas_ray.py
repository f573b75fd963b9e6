"""`homer serve --replicas` on a real Ray of this machine: replicas that are killed, clients that leave."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")
pytest.importorskip("mmh3")

from homerlm.server.ids import route_in
from homerlm.server.replicas import running
from homerlm.server.replicas.deployment import Replicas
from homerlm.server.settings import Settings
from serving import QUESTION, WORDS, client, tiny_homer, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
STEP_S = 0.03
LONG = 400  # tokens: 12 s at least


def slow_homer():
    """A tiny model that takes its time for each token, so that there is something to interrupt."""
    homer = tiny_homer()
    homer.model.register_forward_pre_hook(lambda module, given: time.sleep(STEP_S))
    homer.model.get_decoder().layers[0].register_forward_pre_hook(lambda module, given: time.sleep(STEP_S))
    return homer


class Served:
    """The running server. address: where it answers; processes: of its replicas."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if "ServeReplica:homer:homer" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tests = Path(__file__).parent
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": "/tmp",  # its sockets' names must be short
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    settings = Settings(port=0, name="tiny", store=tmp_path_factory.mktemp("store"), max_new_tokens=LONG)
    try:
        with running.serving(slow_homer, settings, Replicas(2, 2, cpus=0.5), num_cpus=2) as address:
            yield Served(address)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def body(*texts, **more):
    return {"messages": [{"role": "user", "content": text} for text in texts], "max_tokens": 3} | more


def numbers(http) -> dict[str, float]:
    """The server's, by name and labels; of all replicas together."""
    lines = [line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_two_replicas_answer_as_one_server(server):
    with client(server) as http:
        assert len(server.processes) == 2
        assert http.get("/health").status_code == 200
        first = http.post(CHAT, json=body(WORDS, QUESTION)).json()
        again = http.post(CHAT, json=body(WORDS, QUESTION)).json()
        assert again["choices"] == first["choices"]
        cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (first, again)]
        assert cached[0] == 0 < cached[1]
        assert route_in(again["id"]) == route_in(first["id"])
        assert http.post(CHAT, content=b"[").status_code == 400


def test_responses_are_gone_on_from_where_they_are_remembered(server):
    with client(server) as http:
        for number in range(6):  # they lie on both replicas
            made = http.post(RESPONSES, json={"input": f"w{number} w1 ?", "max_output_tokens": 3}).json()
            assert http.get(f"{RESPONSES}/{made['id']}").json()["id"] == made["id"]
            more = {"input": "w2 ?", "previous_response_id": made["id"], "max_output_tokens": 3}
            assert http.post(RESPONSES, json=more).status_code == 200


def test_a_client_that_leaves_stops_the_work_on_the_replica(server):
    with client(server) as http:
        before = numbers(http).get('homer_tokens_total{kind="completion"}', 0)
        with http.stream("POST", CHAT, json=body("w5 w6 ?", max_tokens=LONG, stream=True)) as answer:
            lines = answer.iter_lines()
            while "content" not in next(lines):
                pass
            assert numbers(http)["homer_requests_running"] == 1
        left = time.monotonic()
        until(lambda: numbers(http)["homer_requests_running"] == 0, 5)
        assert time.monotonic() - left < LONG * STEP_S / 2
        assert numbers(http).get('homer_tokens_total{kind="completion"}', 0) == before  # no answer was finished


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_replica_killed_during_a_stream_is_an_error_event_and_then_it_works_again(server, path):
    with client(server) as http:
        until(lambda: len(server.processes) == 2, 60)
        asked = body("w5 w6 ?", max_tokens=LONG, stream=True)
        if path == RESPONSES:
            asked = {"input": "w5 w6 ?", "max_output_tokens": LONG, "stream": True}
        killed = server.processes
        events = []
        with http.stream("POST", path, json=asked) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    events.append(line.removeprefix("data: "))
                    if len(events) == 6:
                        for process in killed:
                            process.kill()
        assert 6 <= len(events) < LONG
        last = json.loads(events[-1])
        assert (last["error"] if path == CHAT else last)["code"] == "replica_lost"
        assert "[DONE]" not in events

        def works():
            got = http.post(CHAT, json=body("w5 w6 ?"))
            assert got.status_code in (200, 503), got.text
            return got.status_code == 200

        until(works, 60)
        until(lambda: len(server.processes) == 2, 60)
        assert not {process.pid for process in killed} & {process.pid for process in server.processes}


def test_documents_that_were_read_outlive_their_replica(server):
    """The store is shared: what is asked again is not read again, by whichever replica."""
    with client(server) as http:
        text = " ".join(f"w{i % 70}" for i in range(500))
        first = http.post(CHAT, json=body(text, QUESTION)).json()
        for process in server.processes:
            process.kill()

        def answered():
            got = http.post(CHAT, json=body(text, QUESTION))
            return got.json() if got.status_code == 200 else None

        found = []
        until(lambda: found.append(answered()) or found[-1], 60)
        assert found[-1]["choices"] == first["choices"]
        assert found[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
