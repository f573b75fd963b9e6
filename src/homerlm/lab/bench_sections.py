"""What a folder of the benchmark's records holds, in sections of tables."""

from __future__ import annotations

from collections.abc import Iterable

from homerlm.lab.case import Source
from homerlm.lab.grids import Record
from homerlm.lab.memory_tables import held, memory_parts, total_memory
from homerlm.lab.records import unique
from homerlm.lab.sections import Section
from homerlm.lab.summary import method_rank, one_setup
from homerlm.lab.time_tables import counts, prefill, profile, requests, steps

_FACTS = ("model", "device", "dtype", "chat")


def sections(records: Iterable[Record]) -> list[Section]:
    """Memory, time and counts of the cells that were measured; where the time goes, of those that were profiled."""
    ready = completed(unique(records))
    measured = _in_order(one_setup([record for record in ready if record["task"] == "bench"]))
    profiled = _in_order(one_setup([record for record in ready if record["task"] == "profile"]))
    made = []
    if measured:
        made.append(
            Section("memory", "Memory", measured, [total_memory(measured), memory_parts(measured), *held(measured)])
        )
        made.append(Section("time", "Time", measured, [requests(measured), prefill(measured), steps(measured)]))
        made.append(Section("counts", "Counted, not timed", measured, [counts(measured)]))
    if profiled:
        made.append(Section("profile", "Where the time of reading goes", profiled, [profile(profiled)]))
    return made


def completed(records: Iterable[Record]) -> list[Record]:
    """A cell that was killed could not say what it ran on: that is taken from another of the same source (or, but for
    the model, from any), so that the row stays in the method's line."""
    records = list(records)
    known: dict[str, Record] = {}
    for record in records:
        if not record.get("error"):
            known[str(_source(record))] = {name: record.get(name) for name in _FACTS}
    some = next(iter(known.values()), {})
    made = []
    for record in records:
        source = _source(record)
        facts = known.get(str(source), some | {"model": source.name}) if record.get("error") else {}
        made.append({**facts, **record, "batch": record["cell"]["batch"]})
    return made


def _source(record: Record) -> Source:
    return Source(**{name: record["cell"].get(name) for name in Source.__dataclass_fields__})


def _in_order(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record["batch"], method_rank(record["method"]), record["length"]))
