"""Fixtures shared by the tests: a tiny model with a tokenizer, in memory and as a folder."""

import os
import tempfile
import threading
import uuid
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # tiny models on several processes
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HOMERLM_AUTO_PROFILE"] = "0"  # tiny random models know nothing

import pytest

from command import WORDS, runner
from homerlm import Homer, HomerConfig
from homerlm.model.filecache import cache_folder
from tiny import VOCAB, llama
from words import tokenizer_of

if "PYTEST_XDIST_WORKER" not in os.environ:  # no profile that was measured here before; models are the user's
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    of_this_run = tempfile.TemporaryDirectory(prefix="homerlm-cache-")
    (Path(of_this_run.name) / "models").symlink_to(models, target_is_directory=True)
    os.environ["HOMERLM_CACHE"] = of_this_run.name

SIZES = {"max_chunk_len": 48, "target_len": 40, "pooling": 3}


@pytest.fixture(scope="session")
def words():
    return tokenizer_of(VOCAB, chat=True)


@pytest.fixture(scope="session")
def text_homer(words):
    return Homer(llama(), words, HomerConfig(**SIZES))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("model")
    llama().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, model_folder):
    """A function that runs a command of the tiny model: (exit code, stdout, stderr)."""
    return runner(monkeypatch, capsys, model_folder)


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server of the tiny model; one for each module that asks for it."""
    from serving import serving

    with serving(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    """OpenAI's client of it."""
    from serving import openai_client

    return openai_client(server)


@pytest.fixture(scope="session")
def s3_server():
    """A server of S3's protocol, for this process and those that it starts."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `s3`)")
    moto = pytest.importorskip("moto.server", reason="moto is not installed (extra `dev`)")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    answer, one = running._server.app, threading.Lock()

    def in_turns(*request):  # S3 looks whether a file is there and makes it in one step; moto does not
        with one:
            return answer(*request)

    running._server.app = in_turns
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "any")
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield running
    running.stop()


@pytest.fixture
def bucket(s3_server, tmp_path, monkeypatch):
    """The address of an empty bucket, with a cache that nobody else uses."""
    import s3fs

    monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / "cache"))
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    return f"s3://{name}"
