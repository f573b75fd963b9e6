"""`homer index --shard-tokens`: a corpus of any size into a folder of index files, here or on Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from homerlm.cli import inputs
from homerlm.cli.console import err, print_json, reading, say_skipped
from homerlm.cli.devices import DType, check_device
from homerlm.cli.errors import UsageError
from homerlm.cli.options import parse_tokens
from homerlm.formatting import size

if TYPE_CHECKING:
    from homerlm.index.manifest import Member
    from homerlm.scale.corpus import Engine, Indexed
    from homerlm.scale.ray_actors import RaySettings

PANEL = "A folder of shards"
ShardTokens = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        help="Write a folder of files of about so many tokens each (1M), every document once. The same command goes on "
        "where it was stopped, and adds what is new.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        help="Where JSON lines and Parquet have the text. Default text.", rich_help_panel=PANEL, show_default=False
    ),
]
NameField = Annotated[
    str | None,
    typer.Option(help="Where they have a document's name. Default name.", rich_help_panel=PANEL, show_default=False),
]


@dataclass(frozen=True)
class ModelOptions:
    """What a worker loads the model by."""

    model: str | None
    rope: str | None
    dtype: DType
    device: str | None


@dataclass(frozen=True)
class FolderOptions:
    """What decides about the folder's files."""

    shard_tokens: int
    text_field: str
    name_field: str
    int8: bool
    chat: bool | None
    password: str | None

    @classmethod
    def of(
        cls,
        shard_tokens: str,
        text_field: str | None,
        name_field: str | None,
        *,
        int8: bool,
        chat: bool | None,
        password: str | None,
    ) -> Self:
        """Raises `UsageError`."""
        count = parse_tokens(shard_tokens, "--shard-tokens")
        return cls(count, text_field or "text", name_field or "name", int8, chat, password)


def index_folder(
    given: Sequence[str],
    output: str,
    options: FolderOptions,
    inert: dict[str, Any],
    workers: RaySettings | None,
    open_homer: Callable[[], Any],
    model: ModelOptions,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Index into a folder and say what was done. inert: options by name that cannot act."""
    for name, value in inert.items():
        if value:
            raise UsageError(f"{name} has no effect on a folder of shards, which is always added to: leave it out")
    from homerlm.index import buckets

    urls = [place for place in given if buckets.is_url(place)]
    if os.path.exists(output) and not os.path.isdir(output):
        raise UsageError(f"--output is {output}, a file: shards need a folder")
    if "-" in given:
        raise UsageError("- (standard input) cannot be read again by workers: name files")
    check_device(model.device)
    from homerlm.documents import Inputs
    from homerlm.scale.listing import PDF, files_of, skipped_of

    paths = [place for place in given if place not in urls]
    found = inputs.expand(paths) if paths else Inputs((), ())
    files = files_of(found, buckets.expand(urls))
    if options.password is not None and not any(path.lower().endswith(PDF) for _, path in files):
        raise UsageError("--password: is given, but only PDFs take one, and none is among the files; leave it out")
    homer, engine = open_homer(), _engine(workers, model)
    started = time.perf_counter()
    with reading("Reading", quiet=quiet or as_json) as bar:
        done = _indexed(homer, files, output, options, engine, bar)
    seconds = time.perf_counter() - started
    skipped = [f"{item.path}: {item.reason}" for item in skipped_of(found)]
    record = _record(output, done, seconds) | {"skipped": skipped}
    if as_json:
        print_json(record)
    elif not quiet:
        say_skipped([*skipped, *record["failed"], *record["duplicates"]])
        err.print(_summary(record), style="dim", soft_wrap=True, markup=False)


def _engine(workers: RaySettings | None, model: ModelOptions) -> Engine | None:
    if workers is None:
        return None
    from homerlm.scale.ray_corpus import RayEngine
    from homerlm.scale.source import ModelSource

    return RayEngine(ModelSource(model.model, model.rope, str(model.dtype), model.device), workers)


def _indexed(
    homer: Any, files: list[tuple[str, str]], output: str, options: FolderOptions, engine: Engine | None, bar: Any
) -> Indexed:
    from homerlm.passes import run_steps
    from homerlm.scale.corpus import indexing
    from homerlm.scale.listing import Fields

    steps = indexing(
        homer,
        files,
        output,
        engine=engine,
        shard_tokens=options.shard_tokens,
        fields=Fields(options.text_field, options.name_field),
        int8=options.int8,
        chat=options.chat,
        password=options.password,
    )
    return run_steps(steps, bar)


def _record(output: str, done: Indexed, seconds: float) -> dict[str, Any]:
    from homerlm.index.buckets import inside, size_of

    manifest = done.manifest
    return {
        "index": output,
        "documents": len(manifest.held),
        "tokens": sum(shard.tokens for shard in manifest.shards),
        "tokens_read": done.tokens_read,
        "shards": len(manifest.files),
        "bytes": sum(size_of(inside(output, file)) for file in manifest.files),
        "seconds": seconds,
        "failed": [_failure(member) for member in done.failed],
        "duplicates": [f"{member.name}: {member.reason}" for member in done.duplicates],
    }


def _failure(member: Member) -> str:
    """What could not be read, and why: the reader of a file names it itself."""
    assert member.reason is not None
    return member.reason if member.reason.startswith(f"{member.path}: ") else f"{member.name}: {member.reason}"


def _summary(record: dict[str, Any]) -> str:
    new, seconds = record["tokens_read"], record["seconds"]
    return (
        f"{new:,} tokens read in {seconds:.1f} s ({new / max(seconds, 1e-9):,.0f}/s); {record['index']} holds "
        f"{record['documents']:,} documents, {record['tokens']:,} tokens in {record['shards']:,} files, "
        f"{size(record['bytes'])}"
    )
