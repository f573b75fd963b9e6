"""`homer demo`: the main job on the bundled model, beside the plain model."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from homerlm.cli.ask import open_homer, summary
from homerlm.cli.console import err, out, print_json, reading
from homerlm.cli.options import Json, Model, with_config
from homerlm.config import HomerConfig
from homerlm.corpora import CITIES, python_documentation
from homerlm.errors import InputError

EXAMPLES = """
Examples:

  homer demo

  homer demo --tokens 65536 --seed 7

  homer demo --model Qwen/Qwen3-0.6B --tokens 200000
"""
INSTRUCTION = "A special magic number is hidden within the following text. Memorize it. I will quiz you about it."


@dataclass(frozen=True)
class Planted:
    """A document with a fact in it, at `depth` (0 to 1) of its `tokens`."""

    document: str
    city: str
    number: str
    depth: float
    tokens: int


@with_config
def demo(
    *,
    model: Model = None,
    tokens: Annotated[int, typer.Option(min=1000, help="Length of the document in tokens.")] = 40_000,
    seed: Annotated[
        int | None, typer.Option(help="Where the fact is planted, and which; default another each time.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Also ask the plain model.")] = True,
    as_json: Json = False,
    settings: HomerConfig,
) -> None:
    """Hide a number in Python's documentation, several times longer than the model's limit, and ask for it."""
    seed = random.randrange(10**6) if seed is None else seed
    homer = open_homer(model, None, None, settings)
    planted = plant(homer.tokenizer, tokens, random.Random(seed))
    question = f"What is the special magic number for {planted.city} mentioned in the provided text?"
    answer_start = f"The special magic number for {planted.city} mentioned in the provided text is"
    if not as_json:
        times = planted.tokens / homer.limit
        out.print(
            f"Document: Python's documentation, {planted.tokens:,} tokens, {times:.1f} times the model's limit of "
            f"{homer.limit:,}.\nPlanted at {planted.depth:.0%} of it: “The special magic number for {planted.city} is: "
            f"{planted.number}.”\nQuestion: {question}"
        )
    with reading("HOMER reads", quiet=as_json) as bar:
        asked = {"instruction": INSTRUCTION, "answer_start": answer_start, "chat": False, "max_new_tokens": 16}
        answer = homer.ask(planted.document, question, observer=bar, **asked)
    rows = [_row("HOMER", answer.text, planted, answer.tokens_kept, answer.compress_seconds + answer.generate_seconds)]
    if plain:
        with err.status("The plain model reads what fits its limit"):
            rows.append(_ask_plain(homer, planted, question, asked))
    if as_json:
        print_json({"seed": seed, "planted": planted.number, "depth": planted.depth, "rows": rows, **answer.to_dict()})
    else:
        out.print(_table(rows))
        out.print(f"{summary(answer)}\n(seed {seed})", style="dim")


def plant(tokenizer: Any, tokens: int, rng: random.Random) -> Planted:
    """Python's documentation cut to about `tokens`, with a number for a city at a random sentence end."""
    text = python_documentation()
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if tokens > len(ids):
        raise InputError(f"--tokens is {tokens}; Python's documentation has {len(ids)}: ask for fewer")
    start = rng.randint(0, len(ids) - tokens)
    body = tokenizer.decode(ids[start : start + tokens - 25])
    city, number = rng.choice(CITIES), str(rng.randint(1_000_000, 9_999_999))
    place = rng.choice([match.end() for match in re.finditer(r"[.:]\s", body)] or [0])
    document = f"{body[:place]}The special magic number for {city} is: {number}. {body[place:]}"
    count = len(tokenizer(document, add_special_tokens=False, verbose=False).input_ids)
    return Planted(document, city, number, place / len(body), count)


def _ask_plain(homer: Any, planted: Planted, question: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The same prompt to the plain model, the document's middle cut out so that it fits the limit."""
    import torch

    from homerlm import prompt

    before, after = prompt.affixes(
        homer.tokenizer,
        question,
        instruction=asked["instruction"],
        answer_start=asked["answer_start"],
        chat=asked["chat"],
    )
    ids = prompt.encode(homer.tokenizer, before, planted.document, after)
    room = homer.limit - ids.prefix.shape[1] - ids.suffix.shape[1] - asked["max_new_tokens"]
    context = ids.context
    if context.shape[1] > room:
        context = torch.cat([context[:, : room // 2], context[:, context.shape[1] - (room - room // 2) :]], dim=1)
    whole = torch.cat([ids.prefix, context, ids.suffix], dim=1).to(homer.decoder.device)
    started = time.perf_counter()
    new = homer.model.generate(whole, max_new_tokens=asked["max_new_tokens"], do_sample=False)[0, whole.shape[1] :]
    text = homer.tokenizer.decode(new, skip_special_tokens=True)
    return _row("plain, clipped to its limit", text, planted, whole.shape[1], time.perf_counter() - started)


def _row(who: str, text: str, planted: Planted, cache_tokens: int, seconds: float) -> dict[str, Any]:
    found = re.search(r"\d+", text.replace(",", ""))
    right = found is not None and found.group() == planted.number
    return {
        "who": who,
        "answer": text.strip(),
        "right": right,
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
