"""The text of uploaded files, read in a child process: what hangs or grows in it is ended, and nothing else."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path

from homerlm.documents.charsets import join_surrogates
from homerlm.errors import DocumentError
from homerlm.store.child import REFUSED

_BLOCK = 1 << 20
_MESSAGE_BYTES = 4096
_NAME_LEN = 255


@dataclass(frozen=True)
class Limits:
    """Of one file's reading: seconds on the clock, bytes of memory of the child, bytes of the text; and how many
    children run at once."""

    seconds: int = 120
    memory: int = 2 << 30
    text: int = 256 << 20
    children: int = 2


class Parser:
    """Reads files' text, in any event loop. command: the child's program, which is given what `homerlm.store.child`
    is."""

    def __init__(
        self, limits: Limits | None = None, command: tuple[str, ...] = (sys.executable, "-m", "homerlm.store.child")
    ) -> None:
        self.limits, self._command = limits or Limits(), command
        self._places = asyncio.Semaphore(self.limits.children)

    async def text(self, path: Path, name: str) -> str:
        """The text of the file at a path, which its owner calls `name`. Cancelling the task ends the child. Raises
        `DocumentError` for a file that cannot be read within the limits."""
        limits, name = self.limits, printable(name)
        async with self._places:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                *(str(path), name, str(limits.seconds), str(limits.memory)),
                stdin=PIPE,  # its end tells the child that we are gone
                stdout=PIPE,
                stderr=PIPE,
            )
            try:
                async with asyncio.timeout(limits.seconds):
                    text, said = await asyncio.gather(self._output(child), _message(child))
                    code = await child.wait()
            except TimeoutError as error:
                raise DocumentError(
                    f"{name}: was not read within {limits.seconds} seconds; convert it to plain text"
                ) from error
            finally:
                await _end(child)
        return self._judged(name, code, text, said)

    async def _output(self, child: Process) -> bytes:
        """What the child writes; a child that writes more than is allowed is ended, and its output a little too
        long."""
        assert child.stdout is not None
        parts, total = [], 0
        while block := await child.stdout.read(_BLOCK):
            if total <= self.limits.text:
                parts.append(block)
                total += len(block)
                if total > self.limits.text:
                    child.kill()
        return b"".join(parts)

    def _judged(self, name: str, code: int, text: bytes, said: str) -> str:
        if len(text) > self.limits.text:
            raise DocumentError(
                f"{name}: holds more than {self.limits.text >> 20:,} MB of text, the most that is read; cut it"
            )
        if code == 0:
            return text.decode()
        if code == REFUSED:
            raise DocumentError(said.rpartition("\n")[2])
        within = f"{self.limits.seconds} seconds and {self.limits.memory >> 20:,} MB of memory"
        reason = "needed more" if code < 0 or "MemoryError" in said else f"failed (exit code {code})"
        raise DocumentError(f"{name}: reading it {reason}, within {within}; convert it to plain text")


def printable(name: str) -> str:
    """A file's name on one line, at most `_NAME_LEN` characters of its end, in characters that can be printed."""
    return join_surrogates(" ".join(name.replace("\0", " ").split()))[-_NAME_LEN:] or "file"


async def _message(child: Process) -> str:
    """The end of what the child says on standard error."""
    assert child.stderr is not None
    said = b""
    while block := await child.stderr.read(_BLOCK):
        said = (said + block)[-_MESSAGE_BYTES:]
    return said.decode(errors="replace")


async def _end(child: Process) -> None:
    """Kill the child, if it runs, and close what leads to it."""
    if child.returncode is None:
        child.kill()
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdin.close()
    await asyncio.gather(child.stdout.read(), child.stderr.read())  # what is left in a pipe keeps it open
    await child.wait()
