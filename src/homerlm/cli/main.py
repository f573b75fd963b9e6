"""The commands, and errors as one message and an exit code instead of a traceback."""

from __future__ import annotations

import os
import sys

import typer

from homerlm import __version__
from homerlm.cli import ask, bench, calibrate, demo, eval, index, plan, profile, select, serve, store
from homerlm.cli.chat import command as chat
from homerlm.cli.console import OUTPUT_ERRORS, drop_output
from homerlm.cli.errors import EXIT_ERROR, ParseError, exit_code, report
from homerlm.errors import HomerError

TYPER_INTERRUPTED = 130  # what typer makes of KeyboardInterrupt, without a word

app = typer.Typer(
    help="Long documents through ordinary open LLMs in little memory: hierarchical context merging (HOMER).",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage or settings, 3 out of memory, 130 interrupted, "
    '143 terminated. With --json an error is {"error": {"type": ..., "message": ...}} on standard output.',
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=ask.EXAMPLES)(ask.ask)
app.command(epilog=index.EXAMPLES)(index.index)
app.command(epilog=select.EXAMPLES)(select.select)
app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=plan.EXAMPLES)(plan.plan)
app.command(epilog=profile.EXAMPLES)(profile.profile)
app.command(epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.add_typer(store.app, name="store")
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"homerlm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(  # noqa: ARG001 (its callback has printed it)
        False, "--version", "-V", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    if _asks_for_help():
        return
    from homerlm.model.memory import keep_freed_memory  # imports torch
    from homerlm.model.one_token import let_onednn_be_switched

    keep_freed_memory()
    let_onednn_be_switched()


def run() -> int:
    """Run the command of `sys.argv`; its exit code. Raises `KeyboardInterrupt`, and what is no mistake of a user's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        drop_output(error)
        return EXIT_ERROR
    if code == TYPER_INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _run() -> int:
    try:
        return app(standalone_mode=False, prog_name="homer") or 0
    except (HomerError, ParseError) as error:
        report(error, as_json="--json" in sys.argv[1:])
        return exit_code(error)


def _asks_for_help() -> bool:
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])
