"""`homer serve` as a process of its own, as its users run it: started, looked at from outside, ended or killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import psutil
import torch
from transformers import LlamaConfig

from homerlm import load_model
from homerlm.lab.random_weights import random_model

LAUNCHER = Path(__file__).with_name("serve_launch.py")
TINY = {
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Held:
    """What a server's process holds. uss, rss: bytes, of its own and with what it shares; threads: by name, "" for
    those that are not Python's; sqlite: open handles of the store's database; objects: living Python objects by class,
    of those that belong to a request."""

    uss: int
    rss: int
    threads: dict[str, int]
    files: int
    sqlite: int
    children: int
    objects: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Launcher:
    """Starts processes: each anew, as a user does, or `forked` from one that has imported everything already."""

    def __init__(self, *, forked: bool = False) -> None:
        command = [sys.executable, str(LAUNCHER)]
        self._origin = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) if forked else None

    def start(self, arguments: list[str], environment: dict[str, str], log: Path) -> psutil.Process:
        log.touch()
        if self._origin is None:
            with open(log, "ab") as file:
                command = [sys.executable, str(LAUNCHER), *arguments]
                return psutil.Popen(command, stdout=file, stderr=file, env=os.environ | environment)
        wanted = {"arguments": arguments, "environment": environment, "log": str(log)}
        assert self._origin.stdin is not None
        assert self._origin.stdout is not None
        self._origin.stdin.write(json.dumps(wanted) + "\n")
        self._origin.stdin.flush()
        return psutil.Process(int(self._origin.stdout.readline()))

    def close(self) -> None:
        if self._origin is not None:
            self._origin.communicate()


class ServerProcess:
    """A server and its log. model: a folder, or None for the bundled one; threads: of its model; environment: in which
    it runs, besides this process's; settings: of the server, by name. Raises `RuntimeError` with the log where it does
    not start."""

    def __init__(
        self,
        folder: Path,
        model: Path | None,
        *,
        launcher: Launcher | None = None,
        threads: int = 1,
        dtype: str = "auto",
        store: Path | None = None,
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.store, self.log = store or folder / "store", folder / "log.txt"
        self._counts = folder / "counts.json"
        arguments = [str(self._counts), str(threads), "serve", *([] if model is None else [str(model)])]
        arguments += ["--port", "0", "--store", str(self.store), "--name", "served", "--dtype", dtype]
        given = {f"HOMER_SERVE_{name.upper()}": str(value) for name, value in settings.items()}
        given |= {"OMP_NUM_THREADS": str(threads), "HOMERLM_AUTO_PROFILE": "0", **(environment or {})}
        start = self.log.stat().st_size if self.log.exists() else 0
        self.process = (launcher or Launcher()).start(arguments, given, self.log)
        try:
            self.address = self._address(start)
        except BaseException:
            self.kill()
            raise

    def _address(self, start: int, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.runs:
            found = re.search(r"Listening at (http://[\d.]+:\d+)", self._said(start))
            if found:
                return found[1]
            time.sleep(0.02)
        raise RuntimeError(f"the server did not start:\n{self._said(start)}")

    def _said(self, start: int) -> str:
        return self.log.read_bytes()[start:].decode(errors="replace")

    @property
    def runs(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        return False

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=300, **more)

    def kill(self) -> None:
        """End it as the system does where memory is out: at once, without a word to it."""
        with suppress(psutil.NoSuchProcess):
            self.process.kill()
            self.process.wait()

    def end(self) -> None:
        """Ask it to end, and wait for that."""
        self.process.terminate()
        self.process.wait(60)

    def held(self) -> Held:
        counted = self._counted()
        memory, files = self.process.memory_full_info(), self.process.open_files()
        others = self.process.num_threads() - sum(counted["threads"].values())
        return Held(
            uss=memory.uss,
            rss=memory.rss,
            threads={**counted["threads"], "": others},
            files=self.process.num_fds(),
            sqlite=sum(".sqlite" in file.path for file in files),
            children=len(self.process.children()),
            objects=counted["objects"],
        )

    def _counted(self) -> dict[str, dict[str, int]]:
        """Counted by the process itself, which `serve_launch` has taught to."""
        self._counts.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + 30
        while not self._counts.exists():
            if time.monotonic() > end:
                raise RuntimeError("the server did not count its objects")
            time.sleep(0.02)
        found: dict[str, dict[str, int]] = json.loads(self._counts.read_text())
        return found


@contextmanager
def served(model: Path | None = None, **settings: Any) -> Iterator[ServerProcess]:
    """A server in a folder that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder), model, **settings)
        try:
            yield server
        finally:
            server.kill()


def tiny_model(folder: Path) -> Path:
    """A random model in float32 with the bundled model's tokenizer, saved to a folder."""
    _, tokenizer = load_model()
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **TINY)  # type: ignore[arg-type]
    random_model(config, "cpu", torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def machine() -> dict[str, Any]:
    """What the figures of a run depend on."""
    named = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if os.path.exists("/proc/cpuinfo")
        else None
    )
    return {
        "processor": named[1] if named else "unknown",
        "cores": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "torch": torch.__version__,
    }
