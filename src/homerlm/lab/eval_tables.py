"""Tables of `homer eval`: answers, perplexity, tokens kept, memory and time, by method and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pandas as pd

from homerlm.formatting import size
from homerlm.lab import paper
from homerlm.lab.summary import (
    MOST_LENGTHS,
    PERPLEXITY_TASKS,
    limit_of,
    method_rank,
    one_setup,
    rounded_lengths,
    summarise,
)
from homerlm.lab.tables import DASH, Section, Show, Table, by_length, failures, length_columns

TITLES = {
    "passkey": "Passkey retrieval",
    "needle": "Facts planted in a document",
    "associations": "Facts that only general knowledge ties to their questions",
    "relations": "Relations asked for from the other side",
    "paraphrases": "Facts asked for in other words",
    "stories": "Facts of a story put together",
    "variables": "Chains of variables",
    "common-words": "Most common words of a list",
    "frequent-words": "Most frequent codes of a text",
    "headings": "Sections by their headings (kept: 64 tokens of the right one; right: more than of any other)",
    "qa": "Question answering",
    "perplexity": "Perplexity",
    "passkey-perplexity": "Passkey perplexity",
    "ablation": "Ablation",
    "sensitivity": "Sensitivity to settings",
}
ASKS = {"now": "question known while reading", "later": "read first, asked later"}
SCORE_TITLE = "Share right, [Wilson's 95% interval]"
BOTH_TITLE = "Kept: share of the tokens that are needed for the answer. Right: share of right answers"
KEPT_TITLE = "Tokens kept, share of the needed ones among them"
COST_TITLE = "Peak memory above what was in use; median seconds of a request (of which reading)"
_BETWEEN = " \0 "  # a row's name and the method that it stands for, which gets a column of its own


def eval_sections(records: pd.DataFrame) -> list[Section]:
    """One section for each task that has records, in a fixed order."""
    present = list(records["task"].unique())
    order = [*(task for task in TITLES if task in present), *(task for task in present if task not in TITLES)]
    return [_section(task, one_setup(records[records["task"] == task])) for task in order]


def _section(task: str, records: pd.DataFrame) -> Section:
    if task == "sensitivity":
        records = without_setting(records)
    ready = records if task in PERPLEXITY_TASKS else rounded_lengths(records)
    make = {"qa": _answers, "ablation": _ablation, "sensitivity": _sensitivity}.get(task, _task)
    section = Section(task, TITLES.get(task, task), ready, make(ready, limit_of(ready)))
    if set(ready["length"]) != set(records["length"]):
        section.note = "Lengths are those of the documents, rounded up to a power of two."
    return section


def _task(records: pd.DataFrame, limit: int | None) -> list[Table]:
    summary = labelled(summarise(records))
    task, ours = records["task"].iloc[0], sorted(records["length"].unique())
    printed = paper.paper_table(task)
    lengths = sorted({*shown_lengths(ours), *(printed.lengths if printed else ())})
    title, places = SCORE_TITLE, 3
    if task in PERPLEXITY_TASKS:
        title = "Perplexity of the right answer" if task.startswith("passkey") else "Perplexity up to a length"
        places = 2
    table = _judged(title, summary, lengths, limit)
    if not set(ours) <= set(lengths):
        table.note += " The plot has the lengths between."
    if printed:
        table.add_paper(printed, lengths, lambda _name, _length, value: f"{value:.{places}f}")
    both = _kept_and_right(summary, shown_lengths(ours), limit)
    return [table, *both, *_costs(labelled(summarise(records.assign(variant=""))), limit)]


def _judged(
    title: str, summary: pd.DataFrame, lengths: Sequence[int], limit: int | None, corner: str = "method"
) -> Table:
    """A table of scores; how many samples each stands for is in its note where they are equally many."""
    same = len(summary[summary["length"].isin(lengths)][["n", "errors"]].drop_duplicates()) == 1
    task = summary["task"].iloc[0]
    show = _perplexity if task in PERPLEXITY_TASKS else _score
    what = "documents" if task == "perplexity" else "samples"
    n = f"{summary['n'].iloc[0]} {what} in every cell." if same else f"In round brackets: {what}."
    note = f"{n} {_note(summary)}".strip()
    return by_length(title, summary, lambda row: show(row, with_n=not same), lengths, limit, note, corner)


def _kept_and_right(
    summary: pd.DataFrame, lengths: Sequence[int], limit: int | None, corner: str = "method"
) -> list[Table]:
    """Two columns a length, what a method chose and what was answered from it; nothing where no choice was judged."""
    if not summary["needle_kept"].notna().any():
        return []
    kept, right = (by_length("", summary, show, lengths, None).rows for show in (_answer_kept, _right))
    columns = [f"{length}: {what}" for length in length_columns(lengths, limit) for what in ("kept", "right")]
    pairs = [(row, zip(row[1:], other[1:], strict=True)) for row, other in zip(kept, right, strict=True)]
    return [Table(BOTH_TITLE, [corner, *columns], [[row[0], *chain.from_iterable(pair)] for row, pair in pairs])]


def _costs(summary: pd.DataFrame, limit: int | None, corner: str = "method") -> list[Table]:
    """Tokens kept, memory and time. The variants of a task are read alike and share a row."""
    lengths = shown_lengths(sorted(summary["length"].unique()))
    shown: list[tuple[str, Show]] = [
        (KEPT_TITLE, lambda row: _entry(_kept(row), _answer_kept(row), "" if row.n else row.failed)),
        (COST_TITLE, lambda row: _entry(_memory(row), _seconds(row), "" if row.n else row.failed)),
    ]
    tables = [by_length(title, summary, show, lengths, limit, corner=corner) for title, show in shown]
    return [table for table in tables if table.filled]


def _answers(records: pd.DataFrame, limit: int | None) -> list[Table]:
    whole = labelled(summarise(records.assign(length=0)))
    table = Table(f"{SCORE_TITLE}, all lengths", ["method", "answer", "likeliest choice"])
    for group, members in whole.groupby("group", sort=False):
        table.add_heading(str(group))
        table.rows += [[row.method, _score(row), _number(row.likelihood_score, ".3f")] for row in members.itertuples()]
    table.add_heading(f"{paper.CHAT}, table 2")
    table.rows += [[f"paper: {name}", f"{value:.3f}", ""] for name, value in paper.quality().items()]
    table.note = f"In round brackets: samples. {_note(whole)}".replace(" at 0", "")
    by_lengths = _task(records, limit)
    return [table, *(by_lengths if records["length"].nunique() > 1 else by_lengths[1:])]


def _ablation(records: pd.DataFrame, limit: int | None) -> list[Table]:
    """Rows are what was changed: the paper's in its order with its numbers, then ours as they were run."""
    records = records.assign(method=records["variant"] + _BETWEEN + records["method"], variant="")
    place = {name: (*_paper_rank(name.partition(_BETWEEN)[0]), k) for k, name in enumerate(records["method"].unique())}
    summary = labelled(summarise(records))
    order = sorted((row.ask, place[row.method], row.Index) for row in summary.itertuples())
    summary = summary.loc[[index for _, _, index in order]]
    scores = _judged(SCORE_TITLE, summary, sorted(summary["length"].unique()), limit, "changed")
    both = _kept_and_right(summary, sorted(summary["length"].unique()), limit, "changed")
    tables = [scores, *both, *_costs(summary, limit, "changed")]
    printed = paper.ablation()
    for table in tables:
        table.note = table.note.replace(_BETWEEN, ", ")
        extra = [f"{paper.CHAT} (tables 4a, 4b; {paper.ABLATION_LENGTH:,})"] if table is scores else []
        table.columns += [*extra, "method"]
        for row in table.rows:
            if row[1:]:
                row[0], _, method = row[0].partition(_BETWEEN)
                row += [_number(printed.get(row[0].removeprefix("passkey, ")), ".3f") for _ in extra] + [method]
    return [table for table in tables if table.filled]


def _paper_rank(label: str) -> tuple[str, int]:
    """Sorts by the task before a comma, if any, then in the paper's order."""
    rows = list(paper.ablation())
    task, _, change = label.rpartition(", ") if label.rpartition(", ")[2] in rows else ("", "", label)
    return task, rows.index(change) if change in rows else len(rows)


def _sensitivity(records: pd.DataFrame, _limit: int | None) -> list[Table]:
    """A table for each swept setting, its values as rows."""
    columns = ["share right", "tokens kept", "answer kept", "peak memory", "seconds (reading)"]
    shows: list[Show] = [_score, _kept, _answer_kept, _memory, _seconds]
    summary = swept(summarise(records))
    settings = summary[["method", "length", "ask"]].drop_duplicates()
    tables = []
    for name, members in summary.groupby("setting", sort=False):
        note = f"{SCORE_TITLE}; in round brackets: samples. {_note(members)}".strip()
        table = Table(f"{name} swept", [str(name), *columns], note=note)
        if len(settings) == 1:
            table.title += f": {_where(*settings.iloc[0])}"
        for where, rows in members.groupby(["method", "length", "ask"], sort=False):
            if len(settings) > 1:
                table.add_heading(_where(*where))
            table.rows += [[row.value, *(show(row) for show in shows)] for row in rows.itertuples()]
        tables.append(table)
    return tables


def _where(method: str, length: int, ask: str) -> str:
    return ", ".join(part for part in (method, f"{length:,} tokens", ASKS.get(ask, ask)) if part)


def swept(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary of a sweep with each variant's `setting` and `value`, sorted by these."""
    parts = summary["variant"].str.rpartition("=")
    summary = summary.assign(setting=parts[0], value=parts[2], number=pd.to_numeric(parts[2], errors="coerce"))
    rank = summary["method"].map({m: k for k, m in enumerate(sorted(summary["method"].unique(), key=method_rank))})
    return summary.assign(rank=rank).sort_values(["ask", "rank", "length", "setting", "number"], kind="stable")


def without_setting(records: pd.DataFrame) -> pd.DataFrame:
    """Records of a sweep with the swept setting taken out of the method, so that its values make one line."""

    def shortened(method: str, setting: str) -> str:
        for old, new in ((f":{setting},", ":"), (f",{setting}", ""), (f":{setting}", "")):
            method = method.replace(old, new)
        return method

    settings = records["variant"].str.rpartition(", ")[2]
    return records.assign(method=[shortened(*pair) for pair in zip(records["method"], settings, strict=True)])


def shown_lengths(lengths: list[int]) -> list[int]:
    """All lengths, or, of too many, the last one up to each doubling of the first, and the longest."""
    if len(lengths) <= MOST_LENGTHS:
        return lengths
    chosen, step = {lengths[-1]}, lengths[0]
    while step < lengths[-1]:
        chosen.add(max(n for n in lengths if n <= step))
        step *= 2
    return sorted(chosen)


def labelled(summary: pd.DataFrame, asks: Mapping[str, str] = ASKS) -> pd.DataFrame:
    """The summary with a `group`: what tells a row's variant and way of asking from the others'."""
    variants = summary["variant"] if summary["variant"].nunique() > 1 else [""] * len(summary)
    ways = summary["ask"].replace(dict(asks)) if summary["ask"].nunique() > 1 else [""] * len(summary)
    return summary.assign(group=[", ".join(filter(None, pair)) for pair in zip(variants, ways, strict=True)])


def _note(summary: pd.DataFrame) -> str:
    """What all rows share, and the first words of what failed."""
    variants = list(summary["variant"].unique())
    asks = list(summary["ask"].unique()) if summary["task"].iloc[0] not in PERPLEXITY_TASKS else []
    shared = [values[0] for values in (variants, [ASKS.get(ask, ask) for ask in asks]) if len(values) == 1]
    listed = ", ".join(text for text in shared if text and "=" not in text)
    return " ".join(filter(None, (f"All rows: {listed}." if listed else "", failures(summary))))


def _entry(main: str, detail: str, failed: str) -> str:
    return ", ".join(filter(None, (f"{main} {detail}".strip(), failed)))


def _score(row: Any, with_n: bool = True) -> str:
    if pd.isna(row.score):
        return row.failed or DASH
    places = 3 if row.n >= 200 else 2
    interval = f"[{row.low:.{places}f}, {row.high:.{places}f}]" + f" ({row.n})" * with_n
    return _entry(f"{row.score:.{places}f}", interval, row.failed)


def _perplexity(row: Any, with_n: bool = True) -> str:
    if pd.isna(row.perplexity):
        return row.failed or DASH
    return _entry(f"{row.perplexity:.2f}", f"({row.n})" * with_n, row.failed)


def _kept(row: Any) -> str:
    return _number(row.kept, ",.0f")


def _answer_kept(row: Any) -> str:
    return _number(row.needle_kept, ".0%")


def _right(row: Any) -> str:
    return _number(row.score, ".2f")


def _memory(row: Any) -> str:
    return "" if pd.isna(row.peak_bytes) else size(row.peak_bytes)


def _seconds(row: Any) -> str:
    reading = "" if pd.isna(row.prefill_s) else f" ({row.prefill_s:.1f})"
    return "" if pd.isna(row.seconds) else f"{row.seconds:.1f} s{reading}"


def _number(value: float | None, form: str) -> str:
    """Nothing for a number that is not known."""
    return "" if value is None or pd.isna(value) else format(value, form)
