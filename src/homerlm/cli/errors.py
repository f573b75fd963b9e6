"""Errors as a user sees them: one message on stderr, or one JSON object on stdout, and an exit code."""

from __future__ import annotations

from typing import Any

import typer

from homerlm.cli.console import err, print_json
from homerlm.errors import ConfigError, InputError, OutOfMemoryError

EXIT_ERROR, EXIT_USAGE, EXIT_MEMORY = 1, 2, 3
ParseError: Any = typer.BadParameter.__base__  # what typer raises for a command line it cannot parse


class UsageError(InputError):
    """The command cannot run with the arguments given."""


def exit_code(error: Exception) -> int:
    """3 out of memory, 2 for arguments and settings that cannot be used as given, else 1."""
    if isinstance(error, OutOfMemoryError):
        return EXIT_MEMORY
    return EXIT_USAGE if isinstance(error, (UsageError, ConfigError, ParseError)) else EXIT_ERROR


def report(error: Exception, *, as_json: bool) -> None:
    """Print an error, as `{"error": {"type", "message"}}` on stdout if `as_json`, else as text on stderr."""
    message = error.format_message() if isinstance(error, ParseError) else str(error)
    if not message:  # a command without arguments, which has shown its help
        return
    if as_json:
        print_json({"error": {"type": _type(error), "message": message}})
        return
    err.print("[bold red]Error:[/]", end=" ")
    err.print(message, markup=False, soft_wrap=not err.is_terminal)  # a log's lines stay whole
    if isinstance(error, ParseError) and (context := getattr(error, "ctx", None)) is not None:
        err.print(f"Try: {context.command_path} --help", markup=False, style="dim")


def _type(error: Exception) -> str:
    return UsageError.__name__ if isinstance(error, ParseError) else type(error).__name__
