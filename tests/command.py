"""The command `homer` run inside the tests' process, as a user sees it."""

import io
import signal
import sys

from homerlm import __main__

SIZES = ["--max-chunk-len", "64", "--target-len", "50", "--pooling", "3"]
WORDS = " ".join(f"w{i % 90}" for i in range(300))


def runner(monkeypatch, capsys, model_folder):
    """A function that runs a command: (exit code, stdout, stderr). `MODEL` stands for a tiny model's folder."""

    def run(*args, stdin=None):
        given = [str(model_folder) if arg == "MODEL" else str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", ["homer", *given])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = __main__.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        seen = capsys.readouterr()
        assert "Traceback" not in seen.out + seen.err
        return code, seen.out, seen.err

    return run


def ask(document, *more):
    """A question about a document (or none) to the tiny model, which answers in a few tokens."""
    return ["ask", *([document] if document else []), "w1 w2", "-m", "MODEL", "--max-new-tokens", "5", *SIZES, *more]
