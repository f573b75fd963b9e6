"""`homer eval`: the paper's tables, and our own, on any model: tasks, methods, records, reports."""
