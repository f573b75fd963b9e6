"""`homer ask`: a question about documents of any length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from homerlm.cli.console import err, out, print_json, reading
from homerlm.cli.options import CalibrationFile, Json, Model, Rope, with_config
from homerlm.config import HomerConfig
from homerlm.errors import InputError
from homerlm.formatting import size

EXAMPLES = """
Examples:

  homer ask report.pdf "Who signed the contract?"

  homer ask src/*.py "Where is the cache written?" --model Qwen/Qwen3-4B

  homer ask book.epub "Who is Emma?" --save emma.homer

  homer ask --context emma.homer "Where does she live?"

  cat log.txt | homer ask - "What failed first?" --show-kept
"""


@with_config
def ask(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... QUESTION", help="Documents (- is standard input), then the question.", show_default=False
        ),
    ],
    *,
    model: Model = None,
    rope: Rope = None,
    calibration: CalibrationFile = None,
    save: Annotated[
        Path | None, typer.Option(help="Keep the compressed document in this file, for other questions too.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(help="Ask a document compressed before (by --save); give no FILE.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed for temperatures above 0.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template; default where it has one.")
    ] = None,
    answer_start: Annotated[str, typer.Option(help="Words the answer begins with.")] = "",
    show_kept: Annotated[bool, typer.Option("--show-kept", help="Print the passages that were kept.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page of the document, shaded by what was kept.")] = None,
    as_json: Json = False,
    settings: HomerConfig,
) -> None:
    """Answer a question about documents far longer than the model can read."""
    files, question = inputs[:-1], inputs[-1]
    _check(files, context, html)
    from homerlm.documents.reading import read_documents

    document = read_documents(files) if files else ""
    homer = open_homer(model, rope, calibration, settings)
    with reading("Reading", quiet=as_json) as bar:

        def show(piece: str) -> None:
            bar.stop()
            out.print(piece, end="", markup=False)

        answer = homer.ask(
            _load_context(context, homer) if context else document,
            question,
            max_new_tokens=max_new_tokens,
            on_text=None if as_json else show,
            observer=bar,
            answer_start=answer_start,
            chat=chat,
            reuse=save is not None,
            **_sampling(temperature, seed),
        )
    if save:
        answer.source.save(save)
    if html:
        from homerlm.cli.page import write_page

        write_page(html, homer.tokenizer, document, bar.trace, answer, question)
    if as_json:
        print_json(_record(answer, homer, show_kept, save, html))
        return
    out.print()
    if show_kept:
        _print_kept(homer, answer)
    err.print(summary(answer), style="dim", soft_wrap=True)


def open_homer(model: str | None, rope: str | None, calibration: Path | None, settings: HomerConfig) -> Any:
    """The compressor for a command's options, with a spinner while the model loads."""
    with err.status("Loading the model"):
        from homerlm import Calibration, Homer, load_model

        loaded, tokenizer = load_model(model, rope=rope)
        if calibration is not None:
            settings = replace(settings, calibration=Calibration.load(calibration, loaded))
        return Homer(loaded, tokenizer, settings)


def summary(answer: Any) -> str:
    """One line: tokens read and kept, times, peak memory above the weights, model limit."""
    speed = answer.tokens_read / max(answer.compress_seconds, 1e-9)
    return (
        f"{answer.tokens_read:,} tokens read in {answer.compress_seconds:.1f} s ({speed:,.0f}/s), "
        f"{answer.tokens_kept:,} kept; {answer.new_tokens} new in {answer.generate_seconds:.1f} s; "
        f"peak {size(answer.peak_bytes)} above the weights; model limit {answer.model_limit:,}"
    )


def _check(files: list[str], context: Path | None, html: Path | None) -> None:
    if context is not None and files:
        raise InputError(f"--context takes no documents, but {', '.join(files)} is given: leave out one of them")
    if context is None and not files:
        raise InputError('no document given: homer ask FILE... "QUESTION" (- for standard input), or --context FILE')
    if context is not None and html is not None:
        raise InputError("--html needs the document itself, which a saved context does not hold: give the FILE again")


def _load_context(path: Path, homer: Any) -> Any:
    from homerlm import CompactContext

    return CompactContext.load(path, homer.model, homer.tokenizer)


def _sampling(temperature: float, seed: int | None) -> dict[str, Any]:
    if temperature == 0:
        return {}
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    return {"do_sample": True, "temperature": temperature}


def _record(answer: Any, homer: Any, show_kept: bool, save: Path | None, html: Path | None) -> dict[str, Any]:
    record: dict[str, Any] = answer.to_dict()
    if show_kept:
        from homerlm.trace import kept_passages

        record["kept"] = [{"start": p.start, "text": p.text} for p in kept_passages(homer.tokenizer, answer.context)]
    return record | {"saved": str(save) if save else None, "html": str(html) if html else None}


def _print_kept(homer: Any, answer: Any) -> None:
    from homerlm.trace import kept_passages

    for passage in kept_passages(homer.tokenizer, answer.context):
        out.print(f"[{passage.start:,}]", style="cyan", end=" ", markup=False)
        out.print(" ".join(passage.text.split()), markup=False)
