"""The command `homer`, and `python -m homerlm`: hardly anything is imported before it can be interrupted cleanly."""

from __future__ import annotations

import signal
import sys
from types import FrameType

_DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def main() -> int:
    """Run the command of `sys.argv`; its exit code, 128 + the signal's number where one stopped it."""
    received = stop_on_signals()
    try:
        from homerlm.cli.main import run

        return run()
    except BaseException as error:  # interrupted imports of C extensions leave as errors of their own
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
    print("Stopped. Nothing was left half written.", file=sys.stderr)
    return 128 + (received or [signal.SIGINT])[0]


def stop_on_signals() -> list[int]:
    """Let SIGINT and SIGTERM end the work as `KeyboardInterrupt`; the list then holds the signal.

    A second one ends the process at once. Signals that are ignored or handled already stay as they are.
    """
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for handled in _DEFAULTS:
            if signal.getsignal(handled) is stop:
                signal.signal(handled, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number, usual in _DEFAULTS.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, stop)
    return received


if __name__ == "__main__":
    sys.exit(main())
