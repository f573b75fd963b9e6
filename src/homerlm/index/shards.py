"""An index scored part by part: in several files, by the workers that hold them.

Blocks are those of the whole index, so the scores are what one process gets: a block that reaches into the next file is
scored with the one that it begins in. Of each part the best units travel, no scores of tokens.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from homerlm import mapped
from homerlm.executor import IN_PROCESS, Executor, LoadedModel, values_of
from homerlm.index.buckets import local
from homerlm.index.index import KIND, VERSION, Index, IndexFile, rebuilt
from homerlm.index.joined import join
from homerlm.index.question import LayerQuestion
from homerlm.index.scoring import Block, scored
from homerlm.index.units import UnitScores, best_units, significance_of, tokens_of
from homerlm.passes import Event, run_steps
from homerlm.score.neighbours import better_of

PART_TOKENS = 1 << 18  # that are one item: the work stops within one
OPEN_FILES = 512  # that a worker holds
UNIT_BLOCK = 1 << 10  # units whose embeddings are in memory at once
ENDS = 2  # units at each end of a part: the first may be cut, the next is its neighbour


@dataclass(frozen=True)
class Part:
    """Blocks (n, 2), tokens `[start, stop)` of the whole index, that follow each other and begin in one file. files: it
    and those that the last block reaches into."""

    files: tuple[IndexFile, ...]
    blocks: Tensor

    @property
    def first(self) -> int:
        return int(self.blocks[0, 0])

    @property
    def stop(self) -> int:
        return int(self.blocks[-1, 1])


@dataclass(frozen=True)
class FoundUnits:
    """numbers: (n,) of units, counted from the part's first file on; sums: (n,) of the scores of their tokens in the
    part; closeness: (n,) to what the question is about, where units are embedded."""

    numbers: Tensor
    sums: Tensor
    closeness: Tensor | None


@dataclass(frozen=True)
class PartScores:
    """Work of an executor: how much a question asks for each token of a part. asked: in each scoring layer; count:
    tokens that are wanted of the whole index, of the best units, or None where each token's score is; share: of its
    neighbours' significance that a unit gains; direction: (E,) in which the units lie that it asks for, where their
    embeddings count too."""

    asked: tuple[LayerQuestion, ...]
    score: str
    count: int | None
    share: float
    direction: Tensor | None = None

    def __call__(self, model: LoadedModel, item: Part) -> FoundUnits | Tensor:
        index = opened(item.files, model)
        return run_steps(self.steps(index, item.files[0].first_token, item, model.decoder.device))

    def steps(
        self, index: Index, before: int, part: Part, device: torch.device
    ) -> Generator[None, None, FoundUnits | Tensor]:
        """A part's, of an index without the first tokens, so many, of the whole one; pauses after each group of blocks
        that are scored at once."""
        first, stop = part.first - before, part.stop - before
        blocks = [(start - before, end - before) for start, end in part.blocks.tolist()]
        groups = scored(index, self.asked, self.score, blocks, device)
        if self.count is None:
            found: FoundUnits | Tensor = yield from _by_token(groups, first, stop)
        else:
            found = yield from _by_unit(groups, index, (first, stop), self.count, self.share, self.direction)
        index.forget()
        return found

    @torch.no_grad()
    def here(
        self, index: Index, parts: Iterable[Part], device: torch.device
    ) -> Generator[FoundUnits | Tensor | None, None, None]:
        """Of an index that is here, whether it is in files or not: as an executor gives them, with pauses."""
        for part in parts:
            found = yield from self.steps(index, 0, part, device)
            if isinstance(found, FoundUnits):
                found = replace(found, numbers=found.numbers - _first_unit(index, part))
            yield found


Groups = Iterable[list[tuple[Block, Tensor]]]


def _by_token(groups: Groups, first: int, stop: int) -> Generator[None, None, Tensor]:
    found = torch.empty(stop - first)
    for group in groups:
        for (start, end), new in group:
            found[start - first : end - first] = new
        yield
    return found


def _by_unit(
    groups: Groups, index: Index, part: tuple[int, int], count: int, share: float, direction: Tensor | None
) -> Generator[None, None, FoundUnits]:
    """The best units of the tokens `[first, stop)` of an index, by their keys and by their embeddings, those at both
    ends, some of whose tokens or neighbours are elsewhere, and the neighbours of all these."""
    first, stop = part
    begin, end = torch.searchsorted(index.units, torch.tensor([first + 1, stop])).tolist()
    starts, after = index.units[begin - 1 : end], index.units[end : end + 1].tolist() or [len(index)]
    units = UnitScores(starts, after[0])
    for group in groups:
        for (start, _), new in group:
            units.add(start, new)
        yield
    numbers = torch.arange(begin - 1, end)
    whole = significance_of(units.sums, units.sizes, joined_units(index, numbers), share)[ENDS:-ENDS]
    best = best_units(whole, units.sizes[ENDS:-ENDS], count) + ENDS
    ends = torch.cat([torch.arange(len(starts))[:ENDS], torch.arange(len(starts))[-ENDS:]])
    wanted = torch.cat([best, ends])
    closeness = None
    if direction is not None and index.embeddings is not None:
        blocks = [slice(start, min(start + UNIT_BLOCK, end)) for start in range(begin - 1, end, UNIT_BLOCK)]
        closeness = torch.cat([index.embeddings[block].float() @ direction for block in blocks])
        yield
        wanted = torch.cat([wanted, best_units(closeness, units.sizes, count)])
    near = torch.cat([wanted - 1, wanted, wanted + 1]).clamp(0, len(starts) - 1).unique()
    return FoundUnits(numbers[near], units.sums[near], None if closeness is None else closeness[near])


def joined_units(index: Index, numbers: Tensor) -> Tensor:
    """(n,) whether each of the units of these numbers (n,), ascending, begins where the one before it among them ends,
    in the same document."""
    follows = torch.nn.functional.pad(numbers[1:] == numbers[:-1] + 1, (1, 0))
    return follows & ~torch.isin(index.units[numbers], torch.tensor([part.first_token for part in index.parts]))


def parts_of(index: Index) -> list[Part]:
    """The blocks of an index by the files that they begin in, cut at `PART_TOKENS`."""
    return [Part(files, torch.tensor(blocks)) for files, blocks in _grouped(index)]


def _grouped(index: Index) -> Iterator[tuple[tuple[IndexFile, ...], list[Block]]]:
    number, group = 0, list[Block]()
    files = index.files or (IndexFile("", 0, len(index)),)

    def files_of(group: Sequence[Block]) -> tuple[IndexFile, ...]:
        end = next(n for n in range(number, len(files)) if files[n].first_token + files[n].tokens >= group[-1][1])
        return files[number : end + 1]

    for block in index.blocks:
        in_next = block[0] >= files[number].first_token + files[number].tokens
        if group and (in_next or block[1] - group[0][0] > PART_TOKENS):
            yield files_of(group), group
            group = []
        while block[0] >= files[number].first_token + files[number].tokens:
            number += 1
        group.append(block)
    if group:
        yield files_of(group), group


def candidates(executor: Executor, here: LoadedModel, index: Index, work: PartScores) -> Generator[Event, None, Tensor]:
    """Events of the parts that are scored; the value is the best tokens of the whole index, (count,) ascending, or the
    scores of all, (T,)."""
    parts = parts_of(index)
    found: list[FoundUnits | Tensor] = []
    read = 0
    if executor is IN_PROCESS or not index.files:
        mapped_parts = work.here(index, parts, here.decoder.device)
    else:
        numbers = {file.path: number for number, file in enumerate(index.files)}
        homes = [numbers[part.files[0].path] for part in parts]
        mapped_parts = values_of(executor, here, work, parts, len(parts), homes)
    with closing(mapped_parts) as values:
        for value in values:
            if value is not None:
                read = parts[len(found)].stop
                found.append(value)
            yield Event(read, len(index))
    if work.count is None:
        return torch.cat([value for value in found if isinstance(value, Tensor)])
    return _best(index, parts, [value for value in found if isinstance(value, FoundUnits)], work)


def _best(index: Index, parts: Sequence[Part], found: Sequence[FoundUnits], work: PartScores) -> Tensor:
    """(count,) tokens of the best of the units that were found; what several parts have of one is added up."""
    assert work.count is not None
    numbers = torch.cat([one.numbers + _first_unit(index, part) for one, part in zip(found, parts, strict=True)])
    units, places = numbers.unique(return_inverse=True)
    sums = torch.zeros(len(units), dtype=torch.float64).index_add_(0, places, torch.cat([one.sums for one in found]))
    ends = torch.cat([index.units, torch.tensor([len(index)])])
    starts, sizes = ends[units], ends[units + 1] - ends[units]
    significance = significance_of(sums, sizes, joined_units(index, units), work.share)
    if work.direction is not None:
        closeness = torch.empty(len(units))
        closeness[places] = torch.cat([one.closeness for one in found if one.closeness is not None])
        significance = better_of(significance, closeness, sizes)
    order = best_units(significance, sizes, work.count)
    return tokens_of(starts[order], sizes[order], work.count)


def _first_unit(index: Index, part: Part) -> int:
    """The number of a part's first file's first unit."""
    return int(torch.searchsorted(index.units, part.files[0].first_token))


def opened(files: Sequence[IndexFile], model: LoadedModel) -> Index:
    """Files that follow each other as one index, for the model that made them. They stay open in this process."""
    vocab = model.decoder.model.get_input_embeddings().weight.shape[0]
    return join([_file(one.path, local(one.path), vocab) for one in files])


def _file(place: str, path: Path, vocab: int) -> Index:
    facts = os.stat(path)
    return _read_file(place, path, vocab, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=OPEN_FILES)
def _read_file(place: str, path: Path, vocab: int, modified: int, size: int) -> Index:  # noqa: ARG001 (another file's)
    """A file's index, read through once to see that it is whole."""
    return rebuilt(place, *mapped.read(path, kind=KIND, version=VERSION), vocab=vocab)
