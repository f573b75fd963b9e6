"""`homer store`: what the server keeps of documents, files and vector stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from homerlm.cli.console import err, out, print_json
from homerlm.cli.errors import UsageError
from homerlm.cli.options import Json
from homerlm.cli.serve import check_installed
from homerlm.formatting import size

if TYPE_CHECKING:
    from homerlm.store.store import Store

WIDE = 1000  # columns of what is no terminal, so that no id is folded
app = typer.Typer(help="What the server keeps: documents that were read, uploaded files, vector stores.")
Folder = Annotated[
    str | None,
    typer.Option("--store", help="The folder or s3://bucket/name; default what homer serve uses.", show_default=False),
]
EXAMPLES = """
Examples:

  homer store ls

  homer store rm doc-1f6c0de12f4a9b21d3e8a7c5

  homer store gc --max-bytes 5000000000
"""


@app.command("ls", epilog=EXAMPLES)
def list_(store: Folder = None, as_json: Json = False) -> None:
    """List everything, of all keys and models."""
    with _opened(store) as opened:
        records = list(_records(opened))
    if as_json:
        print_json({"entries": records, "bytes": sum(record["bytes"] for record in records)})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "owner", "name", "model", "tokens", "size", "last used"):
        table.add_column(name, justify="right" if name in ("tokens", "size") else "left", overflow="fold")
    for record in records:
        tokens = "" if record["tokens"] is None else f"{record['tokens']:,}"
        used = datetime.fromtimestamp(record["used"]).strftime("%Y-%m-%d %H:%M")
        cells = (record["id"], record["owner"], record["name"], record["model"] or "", tokens)
        table.add_row(*map(_plain, cells), size(record["bytes"]), used)
    (out if out.is_terminal else Console(width=WIDE)).print(table)
    entries = "1 entry" if len(records) == 1 else f"{len(records):,} entries"
    err.print(f"{entries}, {size(sum(record['bytes'] for record in records))}", style="dim")


@app.command()
def rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As homer store ls prints them.")],
    store: Folder = None,
    as_json: Json = False,
) -> None:
    """Remove documents, files (and what was read of them) or vector stores."""
    with _opened(store) as opened:
        removers = (opened.remove_document, opened.remove_file, opened.vector_stores.remove)
        missing = [id for id in ids if not any(remove(None, id) for remove in removers)]
    if missing:
        raise UsageError(f"{', '.join(missing)}: not in the store; see homer store ls")
    if as_json:
        print_json({"removed": ids})


@app.command()
def gc(
    max_bytes: Annotated[
        int | None, typer.Option(min=0, help="Most bytes to leave; default the server's store_bytes.")
    ] = None,
    store: Folder = None,
    as_json: Json = False,
) -> None:
    """Remove what has expired, what killed processes left, and the documents used longest ago above the limit."""
    with _opened(store, max_bytes) as opened:
        done = opened.gc()
        left = opened.usage()
    if as_json:
        print_json({**vars(done), "bytes_left": left})
        return
    err.print(
        f"{done.documents:,} documents and {done.files:,} files removed, {size(done.bytes)}; {size(left)} are left",
        style="dim",
        soft_wrap=True,
    )


@contextmanager
def _opened(folder: str | None, max_bytes: int | None = None) -> Iterator[Store]:
    """The store in a folder or bucket, or the server's own. A running server goes on with it. Raises `UsageError` where
    there is none."""
    check_installed()
    from homerlm.server.settings import Settings
    from homerlm.store.store import is_store

    settings = Settings.of(store=folder)
    if not is_store(settings.folder):
        raise UsageError(f"{settings.folder} holds no store: homer serve makes one, or give its place with --store")
    store = settings.open_store(max_bytes)
    try:
        yield store
    finally:
        store.close()


def _records(store: Store) -> Iterator[dict[str, Any]]:
    for one in store.documents():
        yield _record("document", one, model=one.model, tokens=one.tokens, used=one.used)
    for file in store.all_files():
        yield _record("file", file, model=None, tokens=None, used=file.created)
    for collection in store.vector_stores.all():
        known = _record("vector_store", collection, model=None, tokens=None, used=collection.active)
        yield {**known, "bytes": 0, "files": sum(collection.counts.values())}


def _record(kind: str, one: Any, **more: Any) -> dict[str, Any]:
    shared = {name: getattr(one, name) for name in ("id", "owner", "name", "bytes", "created", "expires")}
    return {"kind": kind, **shared, **more}


def _plain(text: str) -> Any:
    """Text that is no markup."""
    from rich.text import Text

    return Text(text)
