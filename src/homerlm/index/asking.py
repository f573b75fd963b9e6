"""A question asked of an index: its tokens scored by their kept keys, the best of them read with the question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.context import CompactContext
from homerlm.index.index import Index
from homerlm.index.question import LayerQuestion, Question
from homerlm.passes import Event
from homerlm.prompt import PromptIds
from homerlm.score.heads import joined
from homerlm.score.scores import SCORES
from homerlm.select.document import Document
from homerlm.select.method import Select, in_prompt

FORGET_BYTES = 1 << 25  # of keys that are read before memory is given back
GROUP_TOKENS, WAITING_TOKENS = 1 << 14, 1 << 20  # that are scored at once, and that wait for others of their length


@dataclass(frozen=True)
class Found:
    """What a question needs of an index. tokens_read: of the prompt, those the model read for it: the question and the
    candidates."""

    context: CompactContext
    tokens_read: int


def asking(
    select: Select,
    index: Index,
    suffix_ids: Tensor,
    neutral_ids: Tensor | None,
    prefix_ids: Tensor | None = None,
) -> Generator[Event, None, Found]:
    """Events of a question, suffix ids (1, S), that is asked of an index; the value is what it needs. neutral_ids:
    (1, N), as a prompt's `neutral`; prefix_ids: (1, P), what the answer's prompt opens with, default the index's own.

    Chunks, candidates, reranking and reading are as in `Select.compress`, but that the chunks were read without the
    question, which runs behind a stand-in for them.
    """
    frame, decoder = index.frame, select.decoder
    own = torch.tensor([frame.prefix], dtype=torch.long, device=decoder.device)
    prefix = own if prefix_ids is None else prefix_ids
    neutral_len = 0 if neutral_ids is None else neutral_ids.shape[1]
    plan = select.plan(prefix.shape[1], len(index), suffix_ids.shape[1], neutral_len)
    neutral = neutral_ids if plan.neutral_len else None
    with decoder.session():
        if plan.spans:
            stand_in = torch.tensor([frame.stand_in], dtype=torch.long)
            question = Question(own, stand_in, suffix_ids, neutral, plan.queries, frame.chunk_len)
            search = Search.of(select, index, question)
            tokens = yield from search.candidates(plan.candidates - plan.prefix_len - plan.suffix_len)
        else:
            tokens = torch.arange(len(index))
        yield Event(len(index), len(index), 1, in_prompt(plan, tokens)[None])
        document = Document(index.ids, index.units, torch.tensor([part.first_token for part in index.parts]))
        prompt = PromptIds(prefix, document.at(tokens)[None].to(decoder.device), suffix_ids, neutral)
        context = yield from select.read_candidates(prompt, plan, document, tokens)
        if plan.reranks:
            yield Event(len(index), len(index), 2, context.token_indices.sort().values)
    return Found(context, len(tokens) + suffix_ids.shape[1])


@dataclass(frozen=True)
class Search:
    """The ranking of an index's tokens by what a question asks in each of the scoring layers, by their heads."""

    select: Select
    index: Index
    asked: list[LayerQuestion]

    @classmethod
    def of(cls, select: Select, index: Index, question: Question) -> Search:
        """To be called inside the decoder's session."""
        scoring = index.frame.layout.scoring
        asked = question.ask(select.decoder, scoring.layers)
        if scoring.heads:
            asked = [one.only([head.index for head in scoring.of_layer(one.layer)]) for one in asked]
        return cls(select, index, asked)

    def scores(self, blocks: Sequence[tuple[int, int]]) -> Tensor:
        """(B, C) of the tokens `[start, stop)` of blocks of one length; those of a block compete with each other."""
        layout, config = self.index.frame.layout, self.select.config
        rows = torch.stack([self.index.keys_of(*block) for block in blocks])
        total = torch.zeros(rows.shape[:2], device=self.select.decoder.device)
        for one in self.asked:
            by_head = one.scores(layout.of_layer(rows, one.layer), SCORES[config.score])
            total += joined(by_head, layout.scoring.of_layer(one.layer)).to(total.device)
        return total.cpu()

    def candidates(self, count: int) -> Generator[Event, None, Tensor]:
        """Events of the blocks that are scored; the value is the best tokens, (count,) ascending."""
        index, config = self.index, self.select.config
        by_unit = config.unit == "sentence" and len(index.units) > 0
        significance = UnitScores(index.units, len(index)) if by_unit else None
        scores = torch.empty(0 if by_unit else len(index))
        read = seen = 0
        for blocks in alike(index.blocks):
            for (start, stop), new in zip(blocks, self.scores(blocks), strict=True):
                if significance is None:
                    scores[start:stop] = new
                else:
                    significance.add(start, new)
                read += stop - start
            seen += new.numel() * len(blocks) * index.keys[:1].nbytes
            if seen > FORGET_BYTES:
                index.forget()
                seen = 0
            yield Event(read, len(index))
        index.forget()
        if significance is not None:
            return significance.best(count)
        whole = scores[None].to(self.select.decoder.device)
        places = torch.arange(len(index), device=whole.device)[None]
        ids = index.ids[None].long().to(whole.device)
        return self.select.ranking.candidates(whole, ids, places, count)[0].cpu()


def alike(blocks: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The blocks in groups of one length, so that few large operations score them, not many small ones. Those of a long
    document have two lengths."""
    waiting: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    tokens = 0
    for block in blocks:
        group, length = waiting[block[1] - block[0]], block[1] - block[0]
        group.append(block)
        tokens += length
        if len(group) * length >= GROUP_TOKENS:
            tokens -= len(group) * length
            yield waiting.pop(length)
        elif tokens >= WAITING_TOKENS:  # of many lengths: do not read the whole index ahead
            yield from waiting.values()
            waiting.clear()
            tokens = 0
    yield from waiting.values()


class UnitScores:
    """The significance of units that begin at `starts` (U,) of so many tokens, summed block by block: as
    `unit_significance`, with one number for each unit instead of each token."""

    def __init__(self, starts: Tensor, tokens: int) -> None:
        self._starts = starts
        self._sizes = torch.diff(starts, append=torch.tensor([tokens]))
        self._sums = torch.zeros(len(starts))

    def add(self, first: int, scores: Tensor) -> None:
        """Scores (C,) of the tokens from `first` on."""
        places = torch.arange(first, first + len(scores))
        self._sums.index_add_(0, torch.searchsorted(self._starts, places, right=True) - 1, scores)

    @property
    def significance(self) -> Tensor:
        """(U,) of the units: the sum of their tokens' scores by the square root of their length."""
        return self._sums / self._sizes.sqrt()

    def best(self, count: int) -> Tensor:
        """(count,) ascending: the tokens of the best units, the last one cut. Ties go to the earlier unit."""
        order = self.significance.argsort(descending=True, stable=True)
        filled = self._sizes[order].cumsum(0)
        order = order[: int(torch.searchsorted(filled, torch.tensor(count))) + 1]
        starts, sizes = self._starts[order], self._sizes[order]
        inside = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return (starts.repeat_interleave(sizes) + inside)[:count].sort().values
