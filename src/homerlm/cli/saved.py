"""What was read before: an index in a file or a folder, or one compressed document."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

from homerlm.errors import CorruptFileError, InputError

FOLDER = "folder"
_MADE_BY = "homer index or homer ask --save"


@dataclass(frozen=True)
class Saved:
    """What a user names by a path or URL. kind: `FOLDER`, or that of the file."""

    place: str
    kind: str

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> Self:
        """Tells what is there, before a model is loaded. Raises `InputError` where there is nothing, `CorruptFileError`
        for a file that is none of ours."""
        from homerlm.index.buckets import is_url, local
        from homerlm.index.manifest import is_collection
        from homerlm.storage import kind_of

        place = os.fspath(place)
        if is_collection(place) if is_url(place) else os.path.isdir(place):
            return cls(place, FOLDER)
        if not is_url(place) and not os.path.exists(place):
            raise InputError(f"{place} does not exist; give what {_MADE_BY} has written")
        kind = kind_of(local(place))
        if kind is None:
            raise CorruptFileError(f"{place} is damaged, or was not written by {_MADE_BY}: make it again")
        return cls(place, kind)

    @property
    def is_index(self) -> bool:
        from homerlm.index.index import KIND

        return self.kind in (FOLDER, KIND)

    def load(self, homer: Any) -> Any:
        """For the model at hand. The files of a folder are not read through where workers do that."""
        from homerlm import CompactContext, Index
        from homerlm.executor import IN_PROCESS
        from homerlm.index.buckets import local
        from homerlm.index.manifest import load_collection

        if self.kind == FOLDER:
            return load_collection(self.place, homer.model, homer.tokenizer, check=homer.executor is IN_PROCESS)
        if self.is_index:
            return Index.load(self.place, homer.model, homer.tokenizer)
        return CompactContext.load(local(self.place), homer.model, homer.tokenizer)
