"""The entry point: commands, and errors as one message and an exit code instead of a traceback."""

from __future__ import annotations

import os
import sys

import typer

from homerlm import __version__
from homerlm.cli import ask, bench, calibrate, demo, eval, plan
from homerlm.cli.console import err
from homerlm.errors import HomerError, OutOfMemoryError
from homerlm.model.memory import keep_freed_memory

EXIT_ERROR, EXIT_MEMORY, EXIT_INTERRUPTED = 1, 3, 130

app = typer.Typer(
    help="Long documents through ordinary open LLMs in little memory: hierarchical context merging (HOMER).",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 3 out of memory, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=ask.EXAMPLES)(ask.ask)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=plan.EXAMPLES)(plan.plan)
app.command(epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"homerlm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run() -> None:
    """The command `homer`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_freed_memory()
    try:
        app(standalone_mode=True)
    except HomerError as error:
        err.print("[bold red]Error:[/]", end=" ")
        err.print(str(error), markup=False)
        sys.exit(EXIT_MEMORY if isinstance(error, OutOfMemoryError) else EXIT_ERROR)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns the first into the second, without a word
        if isinstance(stop, SystemExit) and stop.code != EXIT_INTERRUPTED:
            raise
        err.print("Stopped. Nothing was left half written.")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
