"""A real server in a process of its own: many clients at once, `kill -9`, a full disk, requests that are nearly right.

Short forms of the commands in benchmarks/ whose results are in results/serve.
"""

import os
import subprocess
from functools import partial

import pytest

import serve_faults
import serve_kills
import serve_load
import serve_mutations
from serve_process import Launcher, ServerProcess, tiny_model

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
    found = serve_load.run(model, clients=20, requests=50, seed=3, characters=4_000, launcher=launcher, dtype="float32")
    found["ok"]["memory within 5%"] = (
        found["grown"]["rss"] <= 0.05
    )  # of a forked process all is its own only bit by bit
    assert all(found["ok"].values()), {
        name: found[name] for name in ("ok", "errors", "different", "grown", "before", "after")
    }
    assert found["requests"] == 50
    assert found["answered"] >= 30
    assert sum(found["left"].values()) > 3


def test_a_server_that_is_killed_at_any_moment_leaves_nothing_half_visible(start):
    found = serve_kills.run(partial(start, **serve_kills.SETTINGS), kills=4, seed=11, longest=0.8)
    assert sum(found["totals"]["under_way"].values()) >= 4, "nothing was going on"
    assert found["totals"]["found"]["files"] >= 4


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
