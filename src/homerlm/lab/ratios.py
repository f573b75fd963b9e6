"""What a test can hold a machine to: ratios of a benchmark's numbers, which move far less than the numbers do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

RATIOS = "ratios.json"
Record = dict[str, Any]
COMPARED = {
    "prefill": "prefill_s",
    "step": "step_s",
    "memory": "peak_bytes",
    "tensors": "tensors_bytes",
    "flops": "flops",
}


def ratios(records: Iterable[Record]) -> list[Record]:
    """One entry for each method, length and batch that was measured.

    `to_plain`: its reading time, time of a new token, peak memory above the model, and operations, divided by the plain
    model's. `growth`: the same at twice the length, divided by those here. Either is left out where its other record is
    missing; a single number is None where it was not measured, or is zero.
    """
    done = {(r["method"], r["length"], r["batch"]): r for r in records if not r.get("error")}
    made = []
    for (method, length, batch), record in done.items():
        entry: Record = {"method": method, "length": length, "batch": batch}
        if method != "plain" and (plain := done.get(("plain", length, batch))):
            entry["to_plain"] = _compared(record, plain)
        if twice := done.get((method, 2 * length, batch)):
            entry["growth"] = _compared(twice, record)
        made.append(entry)
    return made


def _compared(record: Record, base: Record) -> dict[str, float | None]:
    pairs = {name: (_value(record, field), _value(base, field)) for name, field in COMPARED.items()}
    return {
        name: round(value / other, 4) if value is not None and other else None for name, (value, other) in pairs.items()
    }


def _value(record: Record, field: str) -> float | None:
    found = record.get(field)
    number = found["total"] if isinstance(found, dict) else found
    return number if number == number else None  # a table of records has NaN for what is not known
