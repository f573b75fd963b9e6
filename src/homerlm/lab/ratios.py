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
            entry["to_plain"] = {name: _ratio(record, plain, field) for name, field in COMPARED.items()}
        if twice := done.get((method, 2 * length, batch)):
            entry["growth"] = {name: _ratio(twice, record, field) for name, field in COMPARED.items()}
        made.append(entry)
    return made


def _ratio(record: Record, base: Record, field: str) -> float | None:
    value, other = (found["total"] if isinstance(found := r.get(field), dict) else found for r in (record, base))
    known = value == value is not None and other == other  # a table of records has NaN for what is not known
    return round(value / other, 4) if known and other else None
