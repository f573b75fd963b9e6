"""What was in use at the peak: everything, beside the paper's table 5, and what a prompt alone takes."""

from __future__ import annotations

from collections.abc import Sequence

from homerlm.formatting import size
from homerlm.lab import paper
from homerlm.lab.grids import Record, by_length, failures, lengths_of
from homerlm.lab.sections import add_paper
from homerlm.lab.tables import Entry, Grid


def total_memory(records: Sequence[Record]) -> Grid:
    table = paper.paper_table("memory")
    assert table is not None
    note = (
        "Weights, what any prompt leaves behind (Python's modules on a CPU, libraries' copies and workspaces), and the "
        f"highest use above these while the prompt is read and new tokens are written. {failures(records)}"
    )
    lengths = lengths_of(records, table.lengths)
    grid = by_length(
        "Peak memory, everything in use: total (weights, constant) (table 5)", records, _total, note.strip(), lengths
    )
    add_paper(grid, table, lengths, 1, " GB")
    return grid


def _total(record: Record) -> Entry:
    return Entry(size(record["total_bytes"]), f"({size(record['weights_bytes'])}, {size(record['constant_bytes'])})")


def memory_parts(records: Sequence[Record]) -> Grid:
    note = "Peak above the model after its first, short prompt; of it the keys and values of the finished cache."
    return by_length("Memory above the loaded model: peak (keys and values, transient)", records, _parts, note)


def _parts(record: Record) -> Entry:
    detail = f"({size(record['kv_bytes'])}, {size(record['transient_bytes'])})"
    return Entry(size(record["peak_bytes"]), detail)


def held(records: Sequence[Record]) -> list[Grid]:
    """What the tensors of a reading came to, where that was counted; no table where it was not."""
    counted = [record for record in records if record.get("tensors_bytes")]
    note = (
        "Exact, without libraries' workspaces and what an allocator keeps. Appendix A bounds the keys and values of "
        "the walk by (h/2 + 1) L C_max."
    )
    title = "Tensors alive at once while the prompt is read: peak (appendix A's bound)"
    return [by_length(title, counted, _held, note)] if counted else []


def _held(record: Record) -> Entry:
    bound = record.get("kv_bound_bytes")
    return Entry(size(record["tensors_bytes"]), f"({size(bound)})" if bound else "")
