"""A folder of documents, uploaded files and vector stores."""

from __future__ import annotations

from pathlib import Path


class Store:
    """A folder with a database and the files that it knows. Any number of threads and processes may use it.

    max_bytes: of all files and documents, above which the documents used longest ago go; owner_bytes: of one owner's.
    """

    def __init__(self, folder: Path, *, max_bytes: int, owner_bytes: int) -> None:
        self.folder, self.max_bytes, self.owner_bytes = folder, max_bytes, owner_bytes

    def close(self) -> None:
        """Give the database back."""
