"""Tables of `homer eval`: answers, perplexity, tokens kept, memory and time, by method and length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from homerlm.formatting import counted, size
from homerlm.lab import paper
from homerlm.lab.summary import PERPLEXITY_TASKS, one_setup, rounded_lengths, summarise
from homerlm.lab.tables import DASH, Cell, Kind, Section, Table, by_field, by_length, failures, shown_lengths

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
ROUNDED = "Lengths are those of the documents, rounded up to a power of two."


def eval_sections(records: pd.DataFrame) -> list[Section]:
    """One section for each task that has records, in a fixed order."""
    tasks = dict(tuple(records.groupby("task", sort=False)))
    return [_section(task, tasks[task]) for task in dict.fromkeys([*TITLES, *tasks]) if task in tasks]


def _section(task: str, records: pd.DataFrame) -> Section:
    made = {"qa": _answers, "ablation": _ablation, "sensitivity": _sensitivity}.get(task, _task)
    records = one_setup(records)
    if task == "sensitivity":
        records = without_setting(records)
    ready = records if task in PERPLEXITY_TASKS else rounded_lengths(records)
    note = "" if set(ready["length"]) == set(records["length"]) else ROUNDED
    return Section(task, TITLES.get(task, task), ready, made(ready), note)


def _task(records: pd.DataFrame) -> list[Table]:
    costs = labelled(summarise(records.assign(variant="")))  # the variants of a task are read alike and share a row
    return _by_length(labelled(summarise(records)), costs)


def _by_length(summary: pd.DataFrame, costs: pd.DataFrame) -> list[Table]:
    """What was answered and what of the document was kept; tokens, memory and time, where they were measured."""
    spent = [by_length(kind, costs) for kind in _costs(costs)]
    return [
        _judged(summary),
        *_kept_and_right(summary),
        *(table for table in spent if (table.cells != "").any(axis=None)),
    ]


def _judged(summary: pd.DataFrame) -> Table:
    """A table of scores; how many samples each stands for is in its note where they are equally many."""
    task = summary["task"].iloc[0]
    printed = paper.by_length(task)
    lengths = shown_lengths(summary, printed)
    same = len(summary.loc[summary["length"].isin(lengths), ["n", "errors"]].drop_duplicates()) == 1
    show, places = (_perplexity, 2) if task in PERPLEXITY_TASKS else (_score, 3)
    what = "document" if task == "perplexity" else "sample"
    n = f"{counted(summary['n'].iloc[0], what)} in every cell." if same else f"In round brackets: {what}s."
    between = "" if set(summary["length"]) <= set(lengths) else "The plot has the lengths between."
    texts = None if printed is None else printed.map(lambda value: _number(value, f".{places}f") or DASH)
    kind = Kind(
        JUDGED_TITLES.get(task, SCORE_TITLE),
        lambda row: show(row, with_n=not same),
        _joined(n, _note(summary), between),
    )
    return by_length(kind, summary, texts)


def _kept_and_right(summary: pd.DataFrame) -> list[Table]:
    """Two columns a length, what a method chose and what was answered from it; nothing where no choice was judged."""
    if not summary["needle_kept"].notna().any():
        return []
    cells: dict[str, Cell] = {"kept": CELLS["answer kept"], "right": lambda row: _number(row.score, ".2f")}
    both = [by_length(Kind("", cell), summary).cells.add_suffix(f": {what}") for what, cell in cells.items()]
    columns = [name for pair in zip(*both, strict=True) for name in pair]
    return [Table(BOTH_TITLE, pd.concat(both, axis=1)[columns])]


def _answers(records: pd.DataFrame) -> list[Table]:
    """By generation and by likelihood over all lengths, beside table 2, then as any task by length."""
    whole = labelled(summarise(records.assign(length=0)))
    cells = by_field(whole, {"answer": _score, "likeliest choice": lambda row: _number(row.likelihood_score, ".3f")})
    for name, value in paper.quality().items():
        cells.loc[(f"{paper.CHAT}, table 2", f"paper: {name}"), :] = [f"{value:.3f}", ""]
    note = f"In round brackets: samples. {_note(whole)}".replace(" at 0", "")
    several = records["length"].nunique() > 1
    return [Table(f"{SCORE_TITLE}, all lengths", cells, note), *_task(records)[0 if several else 1 :]]


def _ablation(records: pd.DataFrame) -> list[Table]:
    """Rows are what was changed: the paper's in its order with its numbers, then ours as they were run."""
    several = records.groupby("variant")["method"].transform("nunique") > 1
    names = records["variant"].where(~several, records["variant"] + ", " + records["method"])
    methods, printed = dict(zip(names, records["method"], strict=True)), paper.ablation()
    order = sorted(names.unique(), key=_paper_rank)
    summary = labelled(summarise(records.assign(method=names, variant="")))
    summary = summary.assign(place=summary["method"].map(order.index)).sort_values(["ask", "place", "length"])
    tables = _by_length(summary, summary)
    for table in tables:
        table.corner = "changed"
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


def _sensitivity(records: pd.DataFrame) -> list[Table]:
    """A table for each swept setting, its values as rows."""
    summary = swept(summarise(records))
    where = summary["method"] + ", " + summary["length"].map("{:,} tokens".format)
    where += summary["ask"].map(lambda ask: f", {ASKS.get(ask, ask)}" if ask else "")
    single = where.nunique() == 1
    summary = summary.assign(group="" if single else where)
    tables = []
    for name, members in summary.groupby("setting", sort=False):
        note = f"{SCORE_TITLE}; in round brackets: samples. {_note(members)}".strip()
        title = f"{name} swept" + (f": {where.iloc[0]}" if single else "")
        cells = by_field(members.assign(method=members["value"]), {"share right": _score, **CELLS})
        tables.append(Table(title, cells, note, str(name)))
    return tables


def swept(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary of a sweep with each variant's `setting` and `value`, sorted by these."""
    parts = summary["variant"].str.rpartition("=")
    numbers = pd.to_numeric(parts[2], errors="coerce")
    summary = summary.assign(setting=parts[0], value=parts[2], number=numbers)
    return summary.sort_values(["ask", "rank", "length", "setting", "number"], kind="stable")


def without_setting(records: pd.DataFrame) -> pd.DataFrame:
    """Records of a sweep with the swept setting taken out of the method, so that its values make one line."""

    def shortened(method: str, setting: str) -> str:
        for old, new in ((f":{setting},", ":"), (f",{setting}", ""), (f":{setting}", "")):
            method = method.replace(old, new)
        return method

    settings = records["variant"].str.rpartition(", ")[2]
    return records.assign(method=list(map(shortened, records["method"], settings)))


def labelled(summary: pd.DataFrame, asks: Mapping[str, str] = ASKS) -> pd.DataFrame:
    """The summary with a `group`: what tells a row's variant and way of asking from the others'."""
    told = [summary["variant"], summary["ask"].replace(dict(asks))]
    differing = [values for values in told if values.nunique() > 1]
    return summary.assign(group=list(map(_joined_by_commas, *differing)) if differing else "")


def _note(summary: pd.DataFrame) -> str:
    """What all rows share, and the first words of what failed."""
    asks = [] if summary["task"].iloc[0] in PERPLEXITY_TASKS else summary["ask"].replace(ASKS).unique()
    shared = [values[0] for values in (summary["variant"].unique(), asks) if len(values) == 1]
    listed = _joined_by_commas(*(text for text in shared if "=" not in text))
    return _joined(listed and f"All rows: {listed}.", failures(summary))


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _joined_by_commas(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _score(row: Any, with_n: bool = True) -> str:
    if pd.isna(row.score):
        return row.failed or DASH
    places = 3 if row.n >= 200 else 2
    interval = f"[{row.low:.{places}f}, {row.high:.{places}f}]"
    return _joined_by_commas(_joined(f"{row.score:.{places}f}", interval, f"({row.n})" * with_n), row.failed)


def _perplexity(row: Any, with_n: bool = True) -> str:
    if pd.isna(row.perplexity):
        return row.failed or DASH
    return _joined_by_commas(_joined(f"{row.perplexity:.2f}", f"({row.n})" * with_n), row.failed)


def _seconds(row: Any) -> str:
    reading = "" if pd.isna(row.prefill_s) else f" ({row.prefill_s:.1f})"
    return "" if pd.isna(row.seconds) else f"{row.seconds:.1f} s{reading}"


def _number(value: float | None, form: str) -> str:
    """Nothing for a number that is not known."""
    return "" if value is None or pd.isna(value) else format(value, form)


CELLS: dict[str, Cell] = {
    "tokens kept": lambda row: _number(row.kept, ",.0f"),
    "answer kept": lambda row: _number(row.needle_kept, ".0%"),
    "peak memory": lambda row: "" if pd.isna(row.peak_bytes) else size(row.peak_bytes),
    "seconds (reading)": _seconds,
}


def _spent(*names: str) -> Cell:
    """Some of `CELLS` side by side, and what failed where nothing was done."""
    return lambda row: _joined(*(CELLS[name](row) for name in names)) if row.n else row.failed


def _costs(summary: pd.DataFrame) -> list[Kind]:
    """What a request took; of its time the reading is told where it was measured by itself."""
    seconds = "median seconds of a request" + " (of which reading)" * bool(summary["prefill_s"].notna().any())
    return [
        Kind("Tokens kept, share of the needed ones among them", _spent("tokens kept", "answer kept")),
        Kind(f"Peak memory above what was in use; {seconds}", _spent("peak memory", "seconds (reading)")),
    ]
