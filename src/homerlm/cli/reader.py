"""`homer ask --reader`: a small model chooses the passages here, a large one elsewhere answers from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from homerlm.cli.console import err, out, print_json, reading, written
from homerlm.cli.errors import UsageError
from homerlm.cli.options import parse_tokens
from homerlm.config import SELECT_TOKENS, Config, HomerConfig, flag
from homerlm.errors import InputError

if TYPE_CHECKING:
    from homerlm.documents import DocumentSpan
    from homerlm.remote import Endpoint, RemoteAnswer
    from homerlm.selection import Selection


@dataclass(frozen=True)
class RemoteReader:
    """An endpoint that has answered, and how many tokens of the documents it gets."""

    endpoint: Endpoint
    tokens: int

    @classmethod
    def of(
        cls, url: str | None, model: str | None, tokens: str | None, others: dict[str, Any], settings: Config
    ) -> RemoteReader | None:
        """For `--reader`, `--reader-model` and `--reader-tokens`; None without the first. others: options by name that
        cannot act beside it. Raises `UsageError`, `InputError`, `EndpointError`."""
        if url is None:
            for name, value in (("--reader-model", model), ("--reader-tokens", tokens)):
                if value is not None:
                    raise UsageError(f"{name} is {value!r}, but has no effect without --reader: leave it out")
            return None
        _refuse_inert(others, settings)
        count = parse_tokens(tokens or str(SELECT_TOKENS), "--reader-tokens")
        from homerlm.remote import Endpoint

        try:
            endpoint = Endpoint(url, model)
        except InputError as error:
            raise UsageError(f"--reader: {error}") from None
        return cls(endpoint.checked(), count)

    def print_answer(
        self,
        homer: Any,
        document: Any,
        question: str,
        *,
        choosing: dict[str, Any],
        answering: dict[str, Any],
        spans: Sequence[DocumentSpan],
        skipped: list[str],
        show_kept: bool,
        quiet: bool,
        as_json: bool,
    ) -> None:
        """Have the passages of a document (text, or an index) chosen here and answered from there. choosing: arguments
        of `Homer.select`; answering: of the endpoint; spans: where in the text each of several documents is."""
        started = time.perf_counter()
        with reading("Reading", quiet=quiet or as_json) as bar:
            selection = homer.select(document, question, tokens=self.tokens, observer=bar, **choosing)
        selection = selection.by_document(spans)
        chosen = time.perf_counter()
        with written() as show:
            answer = self.endpoint.answer(selection, on_text=None if as_json else show, **answering)
        seconds = {"compress_seconds": chosen - started, "generate_seconds": time.perf_counter() - chosen}
        if as_json:
            print_json(_record(answer, selection, show_kept) | seconds | {"skipped": skipped})
            return
        if show_kept:
            _print_passages(selection)
        if not quiet:
            err.print(_summary(answer, selection, seconds), style="dim", soft_wrap=True, markup=False)


def _refuse_inert(others: dict[str, Any], settings: Config) -> None:
    """Refuse options that cannot act beside `--reader`, and settings whose place `--reader-tokens` takes."""
    for name, value in others.items():
        if value:
            raise UsageError(f"{name} cannot act with --reader, which reads the passages' text: leave it out")
    for name in ("target_len", "min_share", "recap_len"):
        usual = HomerConfig.__dataclass_fields__[name].default
        if getattr(settings, name, usual) != usual:
            raise UsageError(f"{flag(name)} has no effect with --reader: set --reader-tokens instead")


def _print_passages(selection: Selection) -> None:
    for passage in selection.passages:
        where = f"{passage.document} " if passage.document else ""
        out.print(f"{where}[{passage.start:,}, {passage.end:,})", style="cyan", end=" ", markup=False)
        out.print(" ".join(passage.text.split()), markup=False)


def _record(answer: RemoteAnswer, selection: Selection, show_kept: bool) -> dict[str, Any]:
    kept = {"kept": selection.to_dict()["passages"]} if show_kept else {}
    return {**answer.to_dict(), "tokens_read": selection.tokens_read, "tokens_kept": selection.tokens} | kept


def _summary(answer: RemoteAnswer, selection: Selection, seconds: dict[str, float]) -> str:
    """One line: tokens read and chosen here, what the endpoint made of them."""
    cut = "; cut at --max-new-tokens" if answer.finish_reason == "length" else ""
    new = "" if answer.new_tokens is None else f"{answer.new_tokens:,} new "
    return (
        f"{selection.tokens_read:,} tokens read in {seconds['compress_seconds']:.1f} s, "
        f"{selection.tokens:,} chosen; {new}by {answer.model} in {seconds['generate_seconds']:.1f} s{cut}"
    )
