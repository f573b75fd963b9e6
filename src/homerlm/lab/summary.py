"""Records of one evaluation (JSON lines), and the cells that the tables and plots show."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from homerlm.lab.records import Record, unique

PERPLEXITY_TASKS = ("perplexity", "passkey-perplexity")
MOST_LENGTHS = 12  # a table with more columns than this is not read
_Z95 = 1.959964
_FAMILIES = ("plain", "truncate", "streaming", "pi", "ntk", "yarn")


@dataclass(frozen=True)
class Cell:
    """All samples of one method at one length. `None`: no record holds the quantity."""

    task: str
    variant: str
    ask: str
    method: str
    length: int
    n: int  # scored samples; for perplexity, documents
    errors: int
    out_of_memory: int  # of the errors
    first_error: str | None
    score: float | None  # mean share right
    low: float | None  # Wilson's 95% interval of `score`
    high: float | None
    likelihood_score: float | None
    perplexity: float | None
    tokens: float | None  # means over the samples that did not fail
    kept: float | None
    needle_kept: float | None
    prefill_s: float | None  # medians
    seconds: float | None
    peak_bytes: int | None  # highest

    @property
    def failed(self) -> str:
        """`oom 3/50`, `error 1/50`, both, or nothing."""
        kinds = {"oom": self.out_of_memory, "error": self.errors - self.out_of_memory}
        return ", ".join(f"{kind} {k}/{self.n + self.errors}" for kind, k in kinds.items() if k)


def one_setup(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One task's records, with what differs (model, device, chat template ...) behind the method: nothing is mixed."""
    made = [dict(record) for record in records]
    differing = [k for k in ("model", "dtype", "device", "chat") if len({str(record.get(k)) for record in made}) > 1]
    texts: dict[Any, set[str]] = {}
    for record in made:
        texts.setdefault(record.get("variant"), set()).add(str(record.get("text")))
    for record in made:
        names = [*differing, *(("text",) if len(texts[record.get("variant")]) > 1 else ())]
        if names:
            record["method"] = f"{record.get('method')} ({', '.join(_short(name, record.get(name)) for name in names)})"
    return made


def _short(name: str, value: Any) -> str:
    if name == "chat":
        return "chat template" if value else "plain text"
    return str(value).rstrip("/").rsplit("/", 1)[-1]


def rounded_lengths(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Lengths raised to a power of two where there are too many to tell apart, as with real documents.

    A length of 0 means that the document was not made to measure: its tokens count.
    """
    made = [{**record, "length": record["length"] or int(record.get("tokens") or 0)} for record in records]
    if len({record["length"] for record in made}) > MOST_LENGTHS:
        made = [{**record, "length": 1 << max(record["length"] - 1, 0).bit_length()} for record in made]
    return made


def merged_variants(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [{**record, "variant": ""} for record in records]


def summarise(records: Iterable[Record]) -> list[Cell]:
    """One cell for each task, variant, ask, method and length, in the records' order but methods by family."""
    return cells_of(unique(records))


def cells_of(records: Iterable[Record]) -> list[Cell]:
    """`summarise` for records that are already unique, or were made alike on purpose."""
    groups: dict[tuple[str, str, str, str], dict[int, list[Record]]] = {}
    for record in records:
        key = (str(record["task"]), *(str(record.get(name) or "") for name in ("variant", "ask", "method")))
        groups.setdefault(key, {}).setdefault(record["length"], []).append(record)  # type: ignore[arg-type]
    order = {key: place for place, key in enumerate({group[:3]: None for group in groups})}
    cells = []
    for group in sorted(groups, key=lambda g: (order[g[:3]], method_rank(g[3]))):
        by_length = groups[group]
        for length in sorted(by_length):
            cells.append(_cell(group, length, by_length))
    return cells


def _cell(group: tuple[str, str, str, str], length: int, by_length: Mapping[int, list[Record]]) -> Cell:
    here = by_length[length]
    failures = [record for record in here if record.get("error")]
    done = [record for record in here if not record.get("error")]
    scores = _numbers(done, "score")
    n, perplexity = len(scores), None
    if group[0] == "perplexity":
        n, failures, perplexity = _accumulated(by_length, length)
    elif group[0] == "passkey-perplexity":
        n, perplexity = len(_numbers(done, "nll")), _perplexity(done)
    elif not scores:
        n = len(done)  # a task without scores: memory and time
    low, high = wilson(statistics.fmean(scores), len(scores)) if scores else (None, None)
    peaks = _numbers(done, "peak_bytes")
    return Cell(
        *group,
        length=length,
        n=n,
        errors=len(failures),
        out_of_memory=sum(str(record["error"]).startswith("out of memory") for record in failures),
        first_error=str(failures[0]["error"]) if failures else None,
        score=_mean(done, "score"),
        low=low,
        high=high,
        likelihood_score=_mean(done, "likelihood_score"),
        perplexity=perplexity,
        tokens=_mean(done, "tokens"),
        kept=_mean(done, "kept"),
        needle_kept=_mean(done, "needle_kept"),
        prefill_s=_median(done, "prefill_s"),
        seconds=_median(done, "seconds"),
        peak_bytes=int(max(peaks)) if peaks else None,
    )


def _accumulated(by_length: Mapping[int, list[Record]], length: int) -> tuple[int, list[Record], float | None]:
    """(Documents, failures, perplexity) of all windows that end at or before `length`.

    A document counts if it reaches `length` without a failure; one that failed on the way is a failure here too.
    """
    documents: dict[Any, list[Record]] = {}
    for end in sorted(by_length):
        for record in by_length[end]:
            documents.setdefault((record.get("sample"), record.get("seed")), []).append(record)
    whole, failures = [], []
    for windows in documents.values():
        before = [record for record in windows if record["length"] <= length]
        if failure := next((record for record in before if record.get("error")), None):
            failures.append(failure)
        elif windows[-1]["length"] >= length:
            whole.append(before)
    return len(whole), failures, _perplexity([record for windows in whole for record in windows])


def _perplexity(records: Iterable[Record]) -> float | None:
    pairs = [
        (record["nll"], record["count"]) for record in records if record.get("count") and _numbers([record], "nll")
    ]
    if not pairs:
        return None
    mean = sum(nll for nll, _ in pairs) / sum(count for _, count in pairs)
    return math.exp(mean) if mean < 700 else math.inf


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share among n > 0 samples. For shares of a sample (2 of 4 names) it is wider than
    need be."""
    spread = _Z95**2 / n
    middle = share + spread / 2
    half = _Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max((middle - half) / (1 + spread), 0.0), min((middle + half) / (1 + spread), 1.0)


def method_rank(method: str) -> tuple[int, int, float, str]:
    """Sorts methods: the others before HOMER, each by RoPE scaling and its factor."""
    numbers = re.findall(r"\d+(?:\.\d+)?", method)
    families = [k for k, family in enumerate(_FAMILIES) if family in re.split(r"[^a-z]+", method.lower())]
    return "homer" in method, max(families, default=-1), float(numbers[-1]) if numbers else 0.0, method


def _numbers(records: Iterable[Record], name: str) -> list[float]:
    values = (record.get(name) for record in records)
    return [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def _mean(records: Iterable[Record], name: str) -> float | None:
    values = _numbers(records, name)
    return statistics.fmean(values) if values else None


def _median(records: Iterable[Record], name: str) -> float | None:
    values = _numbers(records, name)
    return statistics.median(values) if values else None
