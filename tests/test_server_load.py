"""A real server in a process of its own: many clients at once, `kill -9`, a full disk, requests that are nearly right.

Short forms of the commands in benchmarks/ whose results are in results/serve.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

import serve_faults
import serve_kills
import serve_load
import serve_mutations
from serve_process import Launcher, ServerProcess, tiny_model
from serve_requests import CHAT
from serving import client, serving, tiny_homer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def launcher():
    made = Launcher(forked=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def start(tmp_path, model, launcher):
    """Starts servers on one folder, one after the other."""
    return partial(ServerProcess, tmp_path, model, launcher=launcher, dtype="float32")


def test_many_clients_get_what_one_gets_alone_and_leave_nothing_behind(model, launcher):
    found = serve_load.run(
        model, clients=10, requests=20, seed=3, characters=4_000, long=20_000, launcher=launcher, dtype="float32"
    )
    found["ok"]["memory within 5%"] = (
        found["grown"]["rss"] <= 0.05
    )  # of a forked process all is its own only bit by bit
    assert all(found["ok"].values()), {
        name: found[name] for name in ("ok", "errors", "different", "grown", "before", "after")
    }
    assert found["requests"] == 20
    assert found["answered"] >= 12
    assert sum(found["left"].values()) > 2


def test_a_server_that_is_killed_at_any_moment_leaves_nothing_half_visible(start):
    lives = serve_kills.run(partial(start, **serve_kills.SETTINGS), kills=4, seed=11, longest=0.8)
    assert len(lives) == 4
    found = serve_kills.totals(lives)
    assert sum(found["under_way"].values()) >= 4, "nothing was going on"
    assert found["found"]["files"] >= 4


@pytest.mark.parametrize("fault", ["full_store", "full_temporary_folder"])
def test_a_full_disk_is_the_error_of_one_client(start, tmp_path, fault):
    try:
        serve_faults.FAULTS[fault](partial(start, **serve_faults.SETTINGS), tmp_path)
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"no file system may be mounted here: {refused.stderr}")


def test_requests_that_are_nearly_right_are_never_errors_of_the_server(start):
    server = start(**serve_mutations.SETTINGS)
    try:
        found = serve_mutations.run(server, 400, 5, block=200)
        assert server.runs
    finally:
        server.kill()
    assert found["failed"] == {}
    assert sum(found["sent"].values()) == 400
    assert "Traceback" not in server.log.read_text(errors="replace")


POISONS = {
    "out_of_memory": (503, lambda layer, given: _raise(torch.OutOfMemoryError("Tried to allocate 9.00 GiB"))),
    "numerical_error": (500, lambda layer, given: given * float("nan")),
    "internal_error": (500, lambda layer, given: _raise(ZeroDivisionError("w55"))),
}


def _raise(error):
    raise error


@pytest.mark.parametrize("code", POISONS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_poisons_the_model_fails_and_those_beside_it_do_not(tmp_path, code, stream):
    """Whenever the word w90 is in a forward, the model fails."""
    status, poison = POISONS[code]
    homer = tiny_homer()
    bad = homer.tokenizer.convert_tokens_to_ids("w90")

    def poisoned(_module, given, embedded):
        found = (given[0] == bad).any(dim=1)
        return poison(_module, embedded) if found.any() else embedded

    with serving(tmp_path, homer) as server, client(server) as http:
        bodies = [{"messages": [{"role": "user", "content": f"w{n} w2 ?"}], "max_tokens": 15} for n in (3, 4, 90)]
        right = [http.post(CHAT, json=body).json()["choices"] for body in bodies[:2]]
        hook = homer.model.get_input_embeddings().register_forward_hook(poisoned)
        with ThreadPoolExecutor() as pool:
            asked = list(
                pool.map(lambda body: http.post(CHAT, json=body), [*bodies[:2], bodies[2] | {"stream": stream}])
            )
        hook.remove()
        assert [answer.json()["choices"] for answer in asked[:2]] == right
        error = asked[2].json()["error"]
        assert (asked[2].status_code, error["code"]) == (status, code)
        assert "w55" not in asked[2].text
        assert http.post(CHAT, json=bodies[2]).status_code == 200
