"""`homer index`: documents read once, for questions that come later."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from homerlm.cli import inputs
from homerlm.cli.ask import open_homer
from homerlm.cli.console import err, print_json, reading, say_skipped
from homerlm.cli.devices import DType, check_device
from homerlm.cli.errors import UsageError
from homerlm.cli.folder import FolderOptions, ModelOptions, NameField, ShardTokens, TextField, index_folder
from homerlm.cli.options import (
    Chat,
    Device,
    Force,
    Json,
    Model,
    Numbers,
    Password,
    Quiet,
    Rope,
    TemplateOption,
    config_fields,
    template_options,
    with_config,
)
from homerlm.cli.outputs import check_outputs
from homerlm.cli.saved import Saved
from homerlm.cli.workers import CpusPerWorker, GpusPerWorker, NumWorkers, WorkerOptions, Workers
from homerlm.config import Config, MergeConfig
from homerlm.formatting import counted, size

EXAMPLES = """
Examples:

  homer index book.epub -o book.homer

  homer index reports/ minutes/*.pdf -o company.homer

  homer index june.pdf -o company.homer --append

  homer ask --context company.homer "Who signed the contract?"

  homer index library/ records.jsonl table.parquet -o all/ --shard-tokens 1M --workers ray --num-workers 4

  homer index s3://library/books/*.epub -o s3://library/all --shard-tokens 1M

  homer select --context company.homer "Who signed the contract?" --json
"""
ACTING = ("max_chunk_len", "chunk_batch", "scoring_layers")  # settings that make a difference to what is kept


@partial(with_config, without=[name for name in config_fields() if name not in ACTING])
def index(
    ctx: typer.Context,
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Documents, folders or globs (- is standard input).", show_default=False
        ),
    ],
    *,
    place: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="PATH", help="The file to write, or, for shards, the folder (also s3://...)."
        ),
    ],
    append: Annotated[
        bool, typer.Option("--append", help="Add the documents to the index that the file holds.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Half of the space: keys as whole numbers of a byte (docs/index.md).")
    ] = False,
    shard_tokens: ShardTokens = None,
    text_field: TextField = None,
    name_field: NameField = None,
    model: Model = None,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    password: Password = None,
    chat: Chat = None,
    template_option: TemplateOption = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
    workers: Workers = None,
    num_workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    settings: Config,
) -> None:
    """Read documents once and keep what later questions find every passage by (homer ask --context)."""
    options = template_options(template_option or [], chat)
    if isinstance(settings, MergeConfig):
        raise UsageError("--preset paper: the paper's preset keeps no keys to find tokens by: leave it out")
    silent, workers_given = quiet or as_json, WorkerOptions(workers, num_workers, gpus_per_worker, cpus_per_worker)
    if shard_tokens is not None:
        index_folder(
            given,
            place,
            FolderOptions.of(shard_tokens, text_field, name_field, int8=int8, chat=chat, password=password),
            {"--append": append, "--force": force, "--template-option": template_option},
            workers_given.settings(),
            lambda: open_homer(model, rope, None, settings, device=device, dtype=dtype, quiet=silent),
            ModelOptions(model, rope, dtype, device),
            quiet=quiet,
            as_json=as_json,
        )
        return
    for name, value in (("--text-field", text_field), ("--name-field", name_field)):
        if value is not None:
            raise UsageError(f"{name} is for the records of a folder of shards: add --shard-tokens, or leave it out")
    output = _file(place, given)
    if append and not output.exists():
        raise UsageError(f"--append adds to an index, but {output} does not exist: leave --append out to make it")
    if append and int8:
        raise UsageError("--int8 is decided when an index is made: leave it out beside --append")
    saved = Saved.at(output) if append else None
    found = inputs.expand(given)
    adding = "--append to add to it, "
    check_outputs({"--output": output}, [*found.files, model], force=force or append, instead=adding)
    check_device(device)
    executor = workers_given.executor(ctx, settings, model, rope, dtype, device)
    homer = open_homer(model, rope, None, settings, device=device, dtype=dtype, quiet=silent, executor=executor)
    into = saved.load(homer) if saved else None
    before = len(into) if into else 0
    unread: list[Any] = []
    started = time.perf_counter()
    with reading("Reading", quiet=silent) as bar:
        made = homer.read_all(
            _texts(found, password, unread, into),
            into=into,
            path=output,
            int8=int8,
            chat=chat,
            observer=bar,
            **options,
        )
    seconds, new = time.perf_counter() - started, len(made) - before
    skipped = [f"{item.path}: {item.reason}" for item in (*found.skipped, *unread)]
    bytes_written = os.path.getsize(output)
    if as_json:
        record = {"index": str(output), "documents": made.names, "tokens": len(made), "tokens_read": new}
        print_json(record | {"seconds": seconds, "bytes": bytes_written, "skipped": skipped})
        return
    if not quiet:
        say_skipped(skipped)
        count = counted(len(made.parts), "document")
        err.print(
            f"{new:,} tokens read in {seconds:.1f} s ({new / max(seconds, 1e-9):,.0f}/s); {output} holds {count}, "
            f"{len(made):,} tokens, {size(bytes_written)}",
            style="dim",
            soft_wrap=True,
            markup=False,
        )


def _file(output: str, given: list[str]) -> Path:
    """The file to write. Raises `UsageError` for one, or documents, in a bucket."""
    from homerlm.index.buckets import is_url

    for place in filter(is_url, (output, *given)):
        raise UsageError(
            f"{place} is in a bucket, where only folders of shards are made, and made of: add --shard-tokens"
        )
    return Path(output)


def _texts(found: Any, password: str | None, unread: list[Any], into: Any) -> Iterator[tuple[str, str]]:
    """Name and text of each document that can be read, one by one; the others go to `unread`, and so do those that are
    in the index which is added to, if any."""
    from homerlm.documents import Skipped, headings_of, read_each

    for name, (path, text) in zip(headings_of(found.files), read_each(found, password=password), strict=False):
        if isinstance(text, Skipped):
            unread.append(text)
        elif same := into and _same_in(into, text):
            unread.append(Skipped(path, f"its text is in the index already, as {same}"))
        else:
            yield name, text


def _same_in(index: Any, text: str) -> str | None:
    """The name of the document with this text."""
    size = len(text.encode())
    return next((part.name for part in index.parts if part.bytes == size and index.text_of(part) == text), None)
