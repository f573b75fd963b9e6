"""A real server of a tiny random model on a free port, in a thread."""

import threading
import time
from contextlib import contextmanager

import httpx
import openai

from homerlm import Homer, HomerConfig
from homerlm.engine import Engine
from homerlm.server.app import ANY_NUMBER, create_app
from homerlm.server.running import Running
from homerlm.server.settings import Settings
from homerlm.store.documents import Documents
from homerlm.store.store import Store
from tiny import VOCAB, llama
from words import tokenizer_of

SIZES = {"max_chunk_len": 64, "target_len": 60, "neighbour_share": 0.0}  # else all of these texts is one passage
WORDS = " ".join(f"w{i % 80}" for i in range(400))
QUESTION = "w1 w2 ?"


def tiny_homer(tokenizer=None, **changes) -> Homer:
    return Homer(llama(), tokenizer or tokenizer_of(VOCAB, chat=True), HomerConfig(**(SIZES | changes)))


@contextmanager
def serving(folder, homer: Homer | None = None, **settings):
    """Yields the running server; `address` is where it answers."""
    homer = homer or tiny_homer()
    given = Settings(**({"port": 0, "name": "tiny", "max_new_tokens": 20, "closing_seconds": 2} | settings))
    engine = Engine(homer, waiting=ANY_NUMBER, streams=given.streams)
    store = Store(folder, max_bytes=given.store_bytes, owner_bytes=given.owner_bytes)
    documents = Documents(homer, engine, store)
    running = Running(create_app(given, engine, documents), given, engine)
    running.documents, running.homer, running.engine = documents, homer, engine
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until(lambda: running.started)
    try:
        yield running
    finally:
        running.should_exit = True
        thread.join(20)
        store.close()


def until(happened, seconds: float = 20) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def client(server, **more) -> httpx.Client:
    return httpx.Client(base_url=server.address, timeout=60, **more)


def openai_client(server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)
