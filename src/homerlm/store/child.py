"""A process that reads one file's text and writes it to standard output, within limits: `python -m` this module.

Arguments: the file, its name, seconds of processor time, bytes of memory. A refusal is the last line on standard error
and exit code 3.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from homerlm.documents import read_bytes
from homerlm.errors import DocumentError

REFUSED = 3


def main() -> None:
    path, name, seconds, memory = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit(int(seconds), int(memory))
    try:
        text = read_bytes(Path(path).read_bytes(), name)
    except DocumentError as error:
        refuse(str(error))
    except MemoryError:
        refuse(f"{name}: needs more memory to be read than the {int(memory) >> 20:,} MB that are allowed")
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
    os._exit(0)


def limit(seconds: int, memory: int) -> None:
    """Let the system end this process above so many seconds of processor time, and refuse it more memory; nothing where
    the system has no such limits."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, hard))
        except (ValueError, OSError):  # macOS knows RLIMIT_AS and refuses it
            continue


def refuse(message: str) -> None:
    """End with a message for the one who gave the file, as the last line: libraries write there too."""
    sys.stderr.write("\n" + " ".join(message.split()))
    sys.stderr.flush()
    os._exit(REFUSED)


def _end_with_parent() -> None:
    """Standard input ends when the parent does, however it ends."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
