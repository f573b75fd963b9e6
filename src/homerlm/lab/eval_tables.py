"""Tables of `homer eval`: answers, perplexity, tokens kept, memory and time, by method and length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from homerlm.formatting import size
from homerlm.lab import paper
from homerlm.lab.summary import (
    PERPLEXITY_TASKS,
    limit_of,
    one_setup,
    rounded_lengths,
    summarise,
)
from homerlm.lab.tables import DASH, Cell, Section, Table, by_field, by_length, failures, shown_lengths

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
JUDGED_TITLES = {"perplexity": "Perplexity up to a length", "passkey-perplexity": "Perplexity of the right answer"}
BOTH_TITLE = "Kept: share of the tokens that are needed for the answer. Right: share of right answers"
KEPT_TITLE = "Tokens kept, share of the needed ones among them"
COST_TITLE = "Peak memory above what was in use; median seconds of a request (of which reading)"


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
    costs = labelled(summarise(records.assign(variant="")))  # the variants of a task are read alike and share a row
    return [_judged(summary, limit), *_kept_and_right(summary, limit), *_costs(costs, limit)]


def _judged(summary: pd.DataFrame, limit: int | None, corner: str = "method") -> Table:
    """A table of scores; how many samples each stands for is in its note where they are equally many."""
    task = summary["task"].iloc[0]
    printed = paper.by_length(task)
    lengths = shown_lengths(summary, printed)
    same = len(summary.loc[summary["length"].isin(lengths), ["n", "errors"]].drop_duplicates()) == 1
    show, places = (_perplexity, 2) if task in PERPLEXITY_TASKS else (_score, 3)
    what = "documents" if task == "perplexity" else "samples"
    n = f"{summary['n'].iloc[0]} {what} in every cell." if same else f"In round brackets: {what}."
    between = "" if set(summary["length"]) <= set(lengths) else "The plot has the lengths between."
    note = " ".join(filter(None, (n, _note(summary), between)))
    texts = None if printed is None else printed.map(lambda value: _number(value, f".{places}f") or DASH)
    title = JUDGED_TITLES.get(task, SCORE_TITLE)
    return by_length(title, summary, lambda row: show(row, with_n=not same), limit, note, corner, texts)


def _kept_and_right(summary: pd.DataFrame, limit: int | None, corner: str = "method") -> list[Table]:
    """Two columns a length, what a method chose and what was answered from it; nothing where no choice was judged."""
    if not summary["needle_kept"].notna().any():
        return []
    kept, right = (by_length("", summary, show, limit).cells for show in (_answer_kept, _right))
    both = pd.concat([kept.add_suffix(": kept"), right.add_suffix(": right")], axis=1)
    columns = [f"{length}: {what}" for length in kept.columns for what in ("kept", "right")]
    return [Table(BOTH_TITLE, both[columns], corner=corner)]


def _costs(summary: pd.DataFrame, limit: int | None, corner: str = "method") -> list[Table]:
    """Tokens kept, memory and time."""
    shown: dict[str, Cell] = {
        KEPT_TITLE: lambda row: _entry(_kept(row), _answer_kept(row), "" if row.n else row.failed),
        COST_TITLE: lambda row: _entry(_memory(row), _seconds(row), "" if row.n else row.failed),
    }
    tables = [by_length(title, summary, show, limit, corner=corner) for title, show in shown.items()]
    return [table for table in tables if table.filled]


def _answers(records: pd.DataFrame, limit: int | None) -> list[Table]:
    """By generation and by likelihood over all lengths, beside table 2, then as any task by length."""
    whole = labelled(summarise(records.assign(length=0)))
    cells = by_field(whole, {"answer": _score, "likeliest choice": lambda row: _number(row.likelihood_score, ".3f")})
    for name, value in paper.quality().items():
        cells.loc[(f"{paper.CHAT}, table 2", f"paper: {name}"), :] = [f"{value:.3f}", ""]
    note = f"In round brackets: samples. {_note(whole)}".replace(" at 0", "")
    by_lengths = _task(records, limit)
    return [
        Table(f"{SCORE_TITLE}, all lengths", cells, note),
        *(by_lengths if records["length"].nunique() > 1 else by_lengths[1:]),
    ]


def _ablation(records: pd.DataFrame, limit: int | None) -> list[Table]:
    """Rows are what was changed: the paper's in its order with its numbers, then ours as they were run."""
    several = records.groupby("variant")["method"].transform("nunique") > 1
    names = records["variant"].where(~several, records["variant"] + ", " + records["method"])
    methods, printed = dict(zip(names, records["method"], strict=True)), paper.ablation()
    order = {name: k for k, name in enumerate(sorted(names.unique(), key=_paper_rank))}
    summary = labelled(summarise(records.assign(method=names, variant="")))
    summary = summary.assign(place=summary["method"].map(order)).sort_values(["ask", "place", "length"])
    tables = [_judged(summary, limit, "changed"), *_kept_and_right(summary, limit, "changed")]
    tables += _costs(summary, limit, "changed")
    for table in tables:
        changes = table.cells.index.get_level_values(1)
        if table.title == SCORE_TITLE:
            column = f"{paper.CHAT} (tables 4a, 4b; {paper.ABLATION_LENGTH:,})"
            table.cells[column] = [_number(printed.get(name.removeprefix("passkey, ")), ".3f") for name in changes]
        table.cells["method"] = changes.map(methods)
    return tables


def _paper_rank(label: str) -> tuple[str, int]:
    """Sorts by the task before a comma, if any, then in the paper's order."""
    rows = list(paper.ablation())
    task, _, change = label.rpartition(", ") if label.rpartition(", ")[2] in rows else ("", "", label)
    return task, rows.index(change) if change in rows else len(rows)


def _sensitivity(records: pd.DataFrame, _limit: int | None) -> list[Table]:
    """A table for each swept setting, its values as rows."""
    cells = {"share right": _score, "tokens kept": _kept, "answer kept": _answer_kept, "peak memory": _memory}
    cells["seconds (reading)"] = _seconds
    summary = swept(summarise(records))
    where = summary["method"] + ", " + summary["length"].map("{:,}".format) + " tokens"
    where += summary["ask"].map(lambda ask: f", {ASKS.get(ask, ask)}" if ask else "")
    single = where.nunique() == 1
    ending = f": {where.iloc[0]}" if single else ""
    summary = summary.assign(group="" if single else where)
    tables = []
    for name, members in summary.groupby("setting", sort=False):
        note = f"{SCORE_TITLE}; in round brackets: samples. {_note(members)}".strip()
        values = by_field(members.assign(method=members["value"]), cells)
        tables.append(Table(f"{name} swept{ending}", values, note, corner=str(name)))
    return tables


def swept(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary of a sweep with each variant's `setting` and `value`, sorted by these."""
    parts = summary["variant"].str.rpartition("=")
    summary = summary.assign(setting=parts[0], value=parts[2], number=pd.to_numeric(parts[2], errors="coerce"))
    return summary.sort_values(["ask", "rank", "length", "setting", "number"], kind="stable")


def without_setting(records: pd.DataFrame) -> pd.DataFrame:
    """Records of a sweep with the swept setting taken out of the method, so that its values make one line."""

    def shortened(method: str, setting: str) -> str:
        for old, new in ((f":{setting},", ":"), (f",{setting}", ""), (f":{setting}", "")):
            method = method.replace(old, new)
        return method

    settings = records["variant"].str.rpartition(", ")[2]
    return records.assign(method=[shortened(*pair) for pair in zip(records["method"], settings, strict=True)])


def labelled(summary: pd.DataFrame, asks: Mapping[str, str] = ASKS) -> pd.DataFrame:
    """The summary with a `group`: what tells a row's variant and way of asking from the others'."""
    variants = summary["variant"] if summary["variant"].nunique() > 1 else [""] * len(summary)
    ways = summary["ask"].replace(dict(asks)) if summary["ask"].nunique() > 1 else [""] * len(summary)
    return summary.assign(group=[", ".join(filter(None, pair)) for pair in zip(variants, ways, strict=True)])


def _note(summary: pd.DataFrame) -> str:
    """What all rows share, and the first words of what failed."""
    asks = [] if summary["task"].iloc[0] in PERPLEXITY_TASKS else summary["ask"].replace(ASKS).unique()
    shared = [values[0] for values in (summary["variant"].unique(), asks) if len(values) == 1]
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
