"""Fixtures shared by the tests: a tiny model with a tokenizer, in memory and as a folder."""

import os
import tempfile
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
