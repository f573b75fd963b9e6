"""`homer demo`: the main job on the bundled model, beside the plain model."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from homerlm.cli.ask import open_homer, summary
from homerlm.cli.console import out, print_json, reading, status
from homerlm.cli.options import Json, Model, parse_tokens, with_config
from homerlm.config import HomerConfig
from homerlm.lab.corpora import python_documentation

EXAMPLES = """
Examples:

  homer demo

  homer demo --tokens 64k --seed 7

  homer demo --model Qwen/Qwen3-0.6B --tokens 200000
"""
MAX_NEW_TOKENS = 16


@with_config
def demo(
    *,
    model: Model = None,
    tokens: Annotated[str, typer.Option(help="Length of the whole prompt in tokens; 40k is 40,960.")] = "40000",
    seed: Annotated[
        int | None, typer.Option(help="Where the fact is planted, and which; default another each time.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Also ask the plain model.")] = True,
    as_json: Json = False,
    settings: HomerConfig,
) -> None:
    """Hide a number in Python's documentation, several times longer than the model's limit, and ask for it."""
    from homerlm.lab.tasks.needle import needle

    prompt_len = parse_tokens(tokens, "--tokens", least=1000)
    seed = random.randrange(10**6) if seed is None else seed
    homer = open_homer(model, None, None, settings, quiet=as_json)
    sample = needle("single", python_documentation(), "Python's documentation").sample(
        homer.tokenizer, prompt_len, seed, seed
    )
    (question,) = sample.questions
    (number,) = question.expected
    if not as_json:
        out.print(
            f"Document: Python's documentation, about {prompt_len:,} tokens, {prompt_len / homer.limit:.1f} times the "
            f"model's limit of {homer.limit:,}.\nPlanted at {sample.depth:.0%} of it: {number}.\n"
            f"Question: {question.text}"
        )
    with reading("HOMER reads", quiet=as_json) as bar:
        answer = homer.ask(
            sample.document,
            question.text,
            observer=bar,
            instruction=sample.instruction,
            answer_start=question.answer_start,
            chat=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    seconds = answer.compress_seconds + answer.generate_seconds
    rows = [_row("HOMER", answer.text, question, answer.tokens_kept, seconds)]
    if plain:
        with status("The plain model reads what fits its limit", quiet=as_json):
            rows.append(_ask_plain(homer, sample))
    if as_json:
        print_json({"seed": seed, "planted": number, "depth": sample.depth, "rows": rows, **answer.to_dict()})
    else:
        out.print(_table(rows))
        out.print(f"{summary(answer)}\n(seed {seed})", style="dim")


def _ask_plain(homer: Any, sample: Any) -> dict[str, Any]:
    """The same prompt to the plain model, the document's middle cut out so that it fits the limit."""
    from homerlm.lab.methods import Method
    from homerlm.lab.questions import Setup
    from homerlm.lab.readers import reader_for

    setup = Setup(homer.model, homer.tokenizer, reader_for(Method("truncate"), homer.model, homer.tokenizer))
    (question,) = sample.questions
    started = time.perf_counter()
    read = setup.reader.read(setup.ids(sample, question), MAX_NEW_TOKENS)
    text = homer.tokenizer.decode(read.generate(MAX_NEW_TOKENS), skip_special_tokens=True)
    return _row("plain, clipped to its limit", text, question, len(read.token_indices), time.perf_counter() - started)


def _row(who: str, text: str, question: Any, cache_tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "who": who,
        "answer": text.strip(),
        "right": question.grade(text) == 1.0,
        "cache_tokens": cache_tokens,
        "seconds": round(seconds, 2),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("", "answer", "right", "tokens in cache", "seconds")
    for row in rows:
        mark = "[green]yes[/]" if row["right"] else "[red]no[/]"
        answer = " ".join(row["answer"].split())
        table.add_row(row["who"], answer, mark, f"{row['cache_tokens']:,}", f"{row['seconds']:.1f}")
    return table
