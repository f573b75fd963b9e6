"""A self-contained page of a document, shaded by how far up the tree each passage was kept."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from homerlm.errors import InputError
from homerlm.trace import LevelTrace, passages

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.6 Georgia, serif; color: #1c1c1c; background: #fff; max-width: 52rem; margin: 2rem auto;
       padding: 0 1rem; }
header { font-family: system-ui, sans-serif; border-bottom: 1px solid #ddd; padding-bottom: 1rem;
         margin-bottom: 1.5rem; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } p { margin: .4rem 0; } .answer { font-size: 1.1rem; }
.facts { color: #555; font-size: .85rem; } .legend span { padding: .1rem .5rem; margin-right: .4rem; font-size: .8rem; }
main { white-space: pre-wrap; overflow-wrap: anywhere; } .l0 { color: #9a9a9a; }
"""


def write_page(path: Path, tokenizer: Any, document: str, trace: LevelTrace, answer: Any, question: str) -> None:
    """The page of a document (text), its `trace` and its `Answer`. Raises `InputError` if it cannot be written."""
    context = answer.context
    first, length = context.prefix_len, context.prompt_len - context.prefix_len - context.suffix_len
    levels = trace.levels[first : first + length]
    top = int(levels.max()) if len(levels) else 1
    body = "".join(
        f'<span class="l{passage.level}">{escape(passage.text)}</span>'
        for passage in passages(tokenizer, document, levels)
    )
    shades = "".join(f".l{k} {{ background: hsl(45 100% {97 - 37 * k / top:.0f}%); }}\n" for k in range(1, top + 1))
    facts = (
        f"{answer.tokens_read:,} tokens read, {answer.tokens_kept:,} kept; "
        f"{answer.compress_seconds:.1f} s to read; the model's own limit is {answer.model_limit:,} tokens"
    )
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(question)}</title><style>{_STYLE}{shades}</style></head>
<body><header><h1>{escape(question)}</h1><p class="answer">{escape(answer.text)}</p>
<p class="facts">{facts}</p><p class="legend">{_legend(top)}</p></header>
<main>{body}</main></body></html>
"""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} could not be written: {error.strerror}") from error


def _legend(top: int) -> str:
    names = {0: "dropped by its first chunk", top: "kept to the end"}
    labels = ((k, names.get(k, f"dropped at level {k}")) for k in range(top + 1))
    return "".join(f'<span class="l{k}">{label}</span>' for k, label in labels)
