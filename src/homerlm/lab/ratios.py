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
    model's. `growth`: the same at twice the length, divided by those here. Either is left out where its other cell is
    missing; a single number is None where it was not measured, or is zero.
    """
    done = {_place(record): record for record in records if not record.get("error")}
    made = []
    for (method, length, batch), record in done.items():
        entry: Record = {"method": method, "length": length, "batch": batch}
        if method != "plain" and (plain := done.get(("plain", length, batch))):
            entry["to_plain"] = _compared(record, plain)
        if twice := done.get((method, 2 * length, batch)):
            entry["growth"] = _compared(twice, record)
        made.append(entry)
    return made


def _place(record: Record) -> tuple[str, int, int]:
    return record["method"], record["length"], record["batch"]


def _compared(record: Record, base: Record) -> dict[str, float | None]:
    return {name: _quotient(_value(record, field), _value(base, field)) for name, field in COMPARED.items()}


def _value(record: Record, field: str) -> float | None:
    found = record.get(field)
    return found["total"] if isinstance(found, dict) else found


def _quotient(value: float | None, base: float | None) -> float | None:
    return round(value / base, 4) if value is not None and value == value and base else None
