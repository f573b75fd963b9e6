"""The documents of an index in several files, searched for rare words by the workers that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from homerlm.executor import IN_PROCESS, Executor, LoadedModel, values_of
from homerlm.index.index import Index, IndexFile
from homerlm.index.shards import opened
from homerlm.select.document import Document, Run
from homerlm.select.method import Select


@dataclass(frozen=True)
class RunsOfFile:
    """Work of an executor: where in a file runs of ids stand, as `Document.units_with`. Its value: (2, m) numbers of a
    run and of a unit of the file."""

    runs: tuple[Run, ...]
    most: int

    def __call__(self, model: LoadedModel, item: IndexFile) -> Tensor:
        index = opened([item], model)
        found = list(chain.from_iterable(Document(index.ids, index.units).units_with(self.runs, self.most)))
        index.forget()
        return torch.tensor(found, dtype=torch.long).view(-1, 2).T


@dataclass(frozen=True)
class SpreadDocument(Document):
    """An index's documents, whose words workers look for."""

    files: tuple[IndexFile, ...] = ()
    executor: Executor = IN_PROCESS
    here: LoadedModel | None = None

    def units_with(self, runs: Sequence[Run], most: int) -> Iterator[list[tuple[int, int]]]:
        """As `Document.units_with`, file by file."""
        assert self.here is not None
        left = iter(self.files)
        count = len(self.files)
        values = values_of(self.executor, self.here, RunsOfFile(tuple(runs), most), self.files, count, range(count))
        with closing(values):
            for value in values:
                found = []
                if value is not None:
                    first = int(torch.searchsorted(self.starts, next(left).first_token))
                    found = [(run, unit + first) for run, unit in value.T.tolist()]
                yield found


def document_of(select: Select, index: Index) -> Document:
    """An index's documents as the choice knows them."""
    texts = torch.tensor([part.first_token for part in index.parts])
    if select.executor is IN_PROCESS or not index.files:
        return Document(index.ids, index.units, texts)
    return SpreadDocument(index.ids, index.units, texts, index.files, select.executor, select.loaded)
