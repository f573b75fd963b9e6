"""`homer serve` as a user runs it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest
from typer.main import get_command

from command import runner
from homerlm.cli import main, serve
from homerlm.server.settings import Settings
from serving import WORDS, until

LAUNCH = """
import sys, torch
from homerlm.__main__ import main
sys.argv = ["homer", *sys.argv[1:]]
torch.set_num_threads(1)
sys.exit(main())
"""


@pytest.fixture
def homer(monkeypatch, capsys, model_folder):
    return runner(monkeypatch, capsys, model_folder)


@pytest.fixture
def launched(model_folder, tmp_path):
    """A server in a process of its own, its address, and the lines of its log."""
    command = [sys.executable, "-c", LAUNCH, "serve", str(model_folder), "--port", "0", "--store", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOMER_SERVE_CLOSING_SECONDS": "3"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()
    until(lambda: any("Listening" in line for line in lines) or process.poll() is not None, seconds=60)
    yield process, re.search(r"http://[\d.:]+", "".join(lines))[0], lines
    process.kill()
    process.wait()
    reader.join()
    process.stdout.close()
    process.stderr.close()


def test_flags_are_settings():
    given = {option.name for option in get_command(main.app).commands["serve"].params}
    own = {"model", "config", "rope", "device", "dtype", "quiet"}
    own |= {"replicas", "ray", "cpus_per_replica", "gpus_per_replica"}
    assert given - own <= Settings.model_fields.keys()
    assert {"host", "port", "api_key", "key_file", "without_key", "store", "cors_origin", "name"} <= given


def test_a_missing_package_is_named(homer, monkeypatch):
    find = serve.importlib.util.find_spec
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    code, _, told = homer("serve", "MODEL")
    assert code == 2
    assert "uvicorn" in told
    assert 'pip install "homerlm[server]"' in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "999.1.1.1", "--without-key"], "999.1.1.1"),
        (["--host", "192.0.2.1", "--without-key", "--port", "0"], "192.0.2.1"),
        (["--port", "99999"], "port"),
        (["--config", "none.toml"], "none.toml"),
        (["--port", "0", "--store", "/dev/null/store"], "/dev/null/store"),
    ],
)
def test_wrong_settings_end_before_the_model_is_loaded(homer, arguments, named):
    code, _, told = homer("serve", "no-such-model", *arguments)
    assert code == (1 if "--store" in arguments else 2)
    assert named in told


def test_a_taken_port_ends_before_the_model_is_loaded(homer):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, told = homer("serve", "no-such-model", "--port", taken.getsockname()[1])
    assert code == 2
    assert "is taken" in told


def answers(address):
    try:
        return httpx.get(f"{address}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def test_it_serves_and_ends_in_order(launched):
    process, address, lines = launched
    api = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
    name = api.models.list().data[0].id
    assert "/" not in name, "no path of this machine"
    text = [{"role": "user", "content": f"{WORDS} {WORDS} {WORDS}\n\nw1 w2 ?"}]
    stream = api.chat.completions.create(model=name, messages=text, max_tokens=200, stream=True)
    pieces = [next(stream)]
    process.send_signal(signal.SIGTERM)
    until(lambda: not answers(address))
    pieces += list(stream)
    assert pieces[-1].choices[0].finish_reason in ("length", "stop"), "what runs is finished"
    assert process.wait(20) == 128 + signal.SIGTERM
    assert "Traceback" not in "".join(lines)
    assert "w1 w2" not in "".join(lines)
