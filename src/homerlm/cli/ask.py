"""`homer ask`: a question about documents of any length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homerlm.cli import inputs
from homerlm.cli.console import err, out, print_json, reading, say_skipped, status, written
from homerlm.cli.devices import DType, check_device, placed
from homerlm.cli.errors import UsageError
from homerlm.cli.options import (
    CalibrationFile,
    Chat,
    Device,
    Force,
    Given,
    Json,
    Model,
    Numbers,
    Password,
    Question,
    Rope,
    TemplateOption,
    template_options,
    with_config,
)
from homerlm.cli.outputs import check_outputs
from homerlm.cli.reader import RemoteReader
from homerlm.cli.saved import Saved
from homerlm.cli.workers import CpusPerWorker, GpusPerWorker, NumWorkers, WorkerOptions, Workers
from homerlm.config import SELECT_TOKENS, Config, MergeConfig
from homerlm.formatting import size

if TYPE_CHECKING:
    from homerlm.executor import Executor

EXAMPLES = """
Examples:

  homer ask report.pdf "Who signed the contract?"

  homer ask src/ "Where is the cache written?" --model Qwen/Qwen3-4B --device cuda

  homer ask book.epub "Who is Emma?" --save emma.homer

  homer ask --context emma.homer "Where does she live?"        # as often as you like; see also homer index

  homer ask report.pdf "Who signed the contract?" --reader http://localhost:8000/v1 --reader-tokens 2k

  cat log.txt | homer ask - -q "What failed first?" --show-kept
"""

CUT_OFF = "The answer is cut off: --max-new-tokens sets how long it may be."


@with_config
def ask(
    ctx: typer.Context,
    given: Given = None,
    *,
    question: Question = None,
    model: Model = None,
    rope: Rope = None,
    device: Device = None,
    dtype: Numbers = DType.auto,
    calibration: CalibrationFile = None,
    password: Password = None,
    context: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Ask what was read before (by homer index, or --save); give no FILE."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Keep what was read in this file, as an index for other questions too.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page of the document, with what the answer was read from.")
    ] = None,
    force: Force = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed for temperatures above 0.")] = None,
    chat: Chat = None,
    template_option: TemplateOption = None,
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible endpoint (http://localhost:8000/v1) answers, from the passages that the model "
            "here chooses. Its key is read from OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    reader_model: Annotated[
        str | None, typer.Option(help="The endpoint's model; default its only one.", show_default=False)
    ] = None,
    reader_tokens: Annotated[
        str | None, typer.Option(help=f"Most tokens to choose for --reader; default {SELECT_TOKENS}.")
    ] = None,
    answer_start: Annotated[str, typer.Option(help="Words the answer begins with.")] = "",
    show_kept: Annotated[
        bool,
        typer.Option(
            "--show-kept",
            help="Print the passages that were kept, each behind the place of its first token in the document.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answer and errors, nothing else.")] = False,
    as_json: Json = False,
    workers: Workers = None,
    num_workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    settings: Config,
) -> None:
    """Answer a question about documents far longer than the model can read."""
    paths, question = inputs.split(given or [], question, has_context=context is not None)
    _check(context, save, html, calibration, settings)
    options = template_options(template_option or [], chat)
    saved = None if context is None else Saved.at(context)
    others = {"--save": save, "--html": html, "--answer-start": answer_start}
    others |= {} if saved is None or saved.is_index else {"--context": context}
    remote = RemoteReader.of(reader, reader_model, reader_tokens, others, settings)
    found = inputs.expand(paths) if paths else None
    files = found.files if found else ()
    check_outputs({"--save": save, "--html": html}, [*files, context, calibration, model], force=force)
    check_device(device)
    _check_writing(max_new_tokens, temperature, seed)
    document, found = inputs.read(found, password) if found else ("", None)
    skipped = inputs.described(found)
    if not quiet:
        say_skipped(skipped)
    silent = quiet or as_json
    chosen = WorkerOptions(workers, num_workers, gpus_per_worker, cpus_per_worker)
    executor = chosen.executor(ctx, settings, model, rope, dtype, device)
    homer = open_homer(model, rope, calibration, settings, device=device, dtype=dtype, quiet=silent, executor=executor)
    if remote is not None:
        remote.print_answer(
            homer,
            saved.load(homer) if saved else document,
            question,
            choosing={"chat": chat, **options},
            answering=_remote_settings(max_new_tokens, temperature, seed),
            spans=found.spans if found else (),
            skipped=skipped,
            show_kept=show_kept,
            quiet=quiet,
            as_json=as_json,
        )
        return
    with reading("Reading", quiet=silent) as bar, written(before=bar.stop) as show:
        answer = homer.ask(
            saved.load(homer) if saved else document,
            question,
            max_new_tokens=max_new_tokens,
            on_text=None if as_json else show,
            observer=bar,
            answer_start=answer_start,
            chat=chat,
            reuse=save is not None,
            **options,
            **_sampling(temperature, seed),
        )
    if save:
        answer.source.save(save)
    if html:
        from homerlm.page import render, write_page

        names = inputs.names(found.files if found else ())
        write_page(html, render(homer.tokenizer, document, names, question, answer, bar.trace))
    if as_json:
        print_json(_record(answer, homer, show_kept) | _files(save, html, skipped))
        return
    if show_kept:
        _print_kept(homer, answer)
    if not quiet:
        err.print(summary_of_saved(answer) if context else summary(answer), style="dim", soft_wrap=True)
        if _is_cut_off(answer, homer.model, max_new_tokens):
            err.print(CUT_OFF, style="dim", soft_wrap=True)


def open_homer(
    model: str | None,
    rope: str | None,
    calibration: Path | None,
    settings: Config,
    *,
    device: str | None = None,
    dtype: DType = DType.auto,
    quiet: bool = False,
    executor: Executor | None = None,
) -> Any:
    """The compressor for a command's options, with a spinner while the model loads."""
    with status("Loading the model", quiet):
        from homerlm import Calibration, Homer, load_model

        loaded, tokenizer = load_model(model, rope=rope, dtype=str(dtype), **placed(device))
        if calibration is not None:
            assert isinstance(settings, MergeConfig)
            settings = replace(settings, calibration=Calibration.load(calibration, loaded))
        return Homer(loaded, tokenizer, settings, executor)


def _is_cut_off(answer: Any, model: Any, most: int) -> bool:
    """Whether the answer ends because it may not be longer."""
    from homerlm.sampling import ends_of

    return answer.new_tokens >= most and answer.token_ids[-1] not in ends_of(model.generation_config)


def summary(answer: Any) -> str:
    """One line: tokens read and kept, times, peak memory above the weights, model limit."""
    speed = answer.tokens_read / max(answer.compress_seconds, 1e-9)
    of = f" of {answer.prompt_len:,}" if answer.tokens_read < answer.prompt_len else ""
    kept = f"{answer.tokens_kept:,} kept"
    if answer.source is not answer.context:
        kept = f"{_amount(answer.source)} saved, {kept} for this answer"
    return (
        f"{answer.tokens_read:,}{of} tokens read in {answer.compress_seconds:.1f} s ({speed:,.0f}/s), {kept}; "
        f"{_after_reading(answer)}"
    )


def summary_of_saved(answer: Any) -> str:
    """One line for a question to a saved document, none of which is read anew."""
    return (
        f"asked of {_amount(answer.source)} in {answer.compress_seconds:.1f} s, {answer.tokens_read:,} read and "
        f"{answer.tokens_kept:,} kept for this answer; {_after_reading(answer)}"
    )


def _amount(source: Any) -> str:
    """How much a question was asked of."""
    from homerlm import Index

    if isinstance(source, Index):
        return f"{len(source):,} indexed tokens"
    return f"{len(source):,} kept tokens (of {source.prompt_len:,})"


def _after_reading(answer: Any) -> str:
    return (
        f"{answer.new_tokens} new in {answer.generate_seconds:.1f} s; "
        f"peak {size(answer.peak_bytes)} above the weights; model limit {answer.model_limit:,}"
    )


def check_calibration(calibration: Path | None, settings: Config) -> None:
    """Refuse a calibration that the preset has no use for."""
    if calibration is not None and not isinstance(settings, MergeConfig):
        raise UsageError("--calibration is for scores that need one, which this preset has not: add --preset paper")


def _check(
    context: str | None, save: Path | None, html: Path | None, calibration: Path | None, settings: Config
) -> None:
    """Refuse options that cannot act together."""
    if context is not None and html is not None:
        raise UsageError("--html needs the document itself, which --context does not give: give the FILE again")
    if context is not None and save is not None:
        raise UsageError(f"--save with --context would write the same again: copy {context} instead")
    check_calibration(calibration, settings)


def _check_writing(max_new_tokens: int, temperature: float, seed: int | None) -> None:
    """Raise `ConfigError` for what no answer can be written with."""
    from homerlm.writing import Writing

    Writing(max_new_tokens, temperature, seed=seed)


def _sampling(temperature: float, seed: int | None) -> dict[str, Any]:
    if temperature == 0:
        return {}
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    return {"do_sample": True, "temperature": temperature}


def _remote_settings(max_new_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
    """The same in the endpoint's words."""
    settings = {"max_tokens": max_new_tokens, "temperature": temperature}
    return settings if seed is None else settings | {"seed": seed}


def _record(answer: Any, homer: Any, show_kept: bool) -> dict[str, Any]:
    record: dict[str, Any] = answer.to_dict()
    if show_kept:
        from homerlm.trace import kept_passages

        record["kept"] = [{"start": p.start, "text": p.text} for p in kept_passages(homer.tokenizer, answer.context)]
    return record


def _files(save: Path | None, html: Path | None, skipped: list[str]) -> dict[str, Any]:
    return {"saved": str(save) if save else None, "html": str(html) if html else None, "skipped": skipped}


def _print_kept(homer: Any, answer: Any) -> None:
    from homerlm.trace import kept_passages

    for passage in kept_passages(homer.tokenizer, answer.context):
        out.print(f"[{passage.start:,}]", style="cyan", end=" ", markup=False)
        out.print(" ".join(passage.text.split()), markup=False)
