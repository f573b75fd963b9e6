"""`homer select`: the text of documents that a question needs, for any other program."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from homerlm.cli import inputs
from homerlm.cli.ask import check_calibration, open_homer
from homerlm.cli.console import err, out, print_json, reading, say_skipped
from homerlm.cli.devices import DType, check_device
from homerlm.cli.options import (
    CalibrationFile,
    Chat,
    Device,
    Given,
    Json,
    Model,
    Numbers,
    Password,
    Question,
    Rope,
    TemplateOption,
    parse_tokens,
    template_options,
    with_config,
)
from homerlm.cli.saved import Saved
from homerlm.config import SELECT_TOKENS, Config

EXAMPLES = """
Examples:

  homer select report.pdf "Who signed the contract?"

  homer select --context book.homer "Who is Emma?"

  homer select src/ -q "Where is the cache written?" --tokens 4k --json | my-program
"""


@partial(with_config, without=("target_len", "min_share", "recap_len"))
def select(
    given: Given = None,
    *,
    question: Question = None,
    context: Annotated[
        str | None, typer.Option(metavar="PATH", help="Choose from what homer index has read before; give no FILE.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Most tokens of the documents to choose; 4k is 4,096.")] = str(
        SELECT_TOKENS
    ),
    min_share: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out tokens below this share of the highest significance.")
    ] = 0.0,
    model: Model = None,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    calibration: CalibrationFile = None,
    password: Password = None,
    chat: Chat = None,
    template_option: TemplateOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the passages and errors, nothing else.")] = False,
    as_json: Json = False,
    settings: Config,
) -> None:
    """Print the passages that a question needs, each with its characters [start, end) of its document's text."""
    paths, question = inputs.split(given or [], question, has_context=context is not None)
    check_calibration(calibration, settings)
    count = parse_tokens(tokens, "--tokens")
    options = template_options(template_option or [], chat)
    saved = None if context is None else Saved.at(context)
    check_device(device)
    document, found = inputs.read(inputs.expand(paths), password) if paths else ("", None)
    skipped = inputs.described(found)
    if not quiet:
        say_skipped(skipped)
    silent = quiet or as_json
    homer = open_homer(model, rope, calibration, settings, device=device, dtype=dtype, quiet=silent)
    with reading("Reading", quiet=silent) as bar:
        selection = homer.select(
            saved.load(homer) if saved else document,
            question,
            tokens=count,
            min_share=min_share,
            chat=chat,
            observer=bar,
            **options,
        )
    selection = selection.by_document(found.spans if found else ())
    if as_json:
        files = found.files if found else [context]
        record = {"document": ", ".join(map(str, files)), **selection.to_dict(), "skipped": skipped}
        del record["document_tokens"], record["tokens_read"]
        print_json(record)
        return
    for number, passage in enumerate(selection.passages):
        place = f"{passage.document + ' ' if passage.document else ''}[{passage.start}, {passage.end})"
        out.print(f"{chr(10) * bool(number)}{place}", style="cyan", markup=False)
        print(passage.text)  # as it is: rich would make spaces of its tabs
    if not quiet:
        err.print(f"{selection.tokens:,} of {selection.document_tokens:,} tokens chosen", style="dim", soft_wrap=True)
