"""A question asked of an index: its tokens scored by their kept keys, the best of them read with the question."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.context import CompactContext
from homerlm.index.index import Index
from homerlm.index.question import LayerQuestion, Question
from homerlm.index.scoring import Block, group_scores
from homerlm.index.shards import PartScores, candidates
from homerlm.index.spread import document_of
from homerlm.passes import Event
from homerlm.prompt import PromptIds
from homerlm.select.likelihood import Candidates
from homerlm.select.method import Select, in_prompt
from homerlm.select.plan import SelectPlan

WIDER = 4  # times the candidates are read with the question, so that it finds nearly what it finds where it is known,
SHARE = 4  # but one part in so many of the index: more would be to read a short document anew for each question


@dataclass(frozen=True)
class Found:
    """What a question needs of an index. tokens_read: of the prompt, those the model read for it: the question and what
    was read to find the candidates in."""

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

    Candidates, reranking and reading are as in `Select.compress`, but that the chunks were read without the question,
    which runs behind a stand-in for them. So what it finds there is more than what becomes candidates
    (`worth_reading`), and these are found in that, read in chunks with the question.
    """
    frame, decoder = index.frame, select.decoder
    prefix = torch.tensor([frame.prefix], dtype=torch.long, device=decoder.device) if prefix_ids is None else prefix_ids
    neutral_len = 0 if neutral_ids is None else neutral_ids.shape[1]
    plan = select.plan(prefix.shape[1], len(index), suffix_ids.shape[1], neutral_len)
    neutral = neutral_ids if plan.neutral_len else None
    with decoder.session():
        if plan.spans:
            search = Search.of(select, index, frame.question(suffix_ids, neutral, plan.queries))
            yield Event(0, len(index))
            tokens = yield from search.candidates(worth_reading(plan))
        else:
            tokens = torch.arange(len(index))
        document, read = document_of(select, index), len(tokens)

        def prompt_of(places: Tensor) -> PromptIds:
            return PromptIds(prefix, document.at(places)[None].to(decoder.device), suffix_ids, neutral)

        candidates = Candidates(tokens)
        if plan.spans and read > plan.candidate_room:
            candidates = yield from select.candidates_among(prompt_of(tokens), plan, tokens.to(decoder.device))
            tokens = candidates.places.cpu()
        yield Event(len(index), len(index), 1, in_prompt(plan, tokens)[None])
        context = yield from select.read_candidates(prompt_of(tokens), plan, document, candidates)
        if plan.reranks:
            yield Event(len(index), len(index), 2, context.token_indices.sort().values)
    return Found(context, read + suffix_ids.shape[1])


def worth_reading(plan: SelectPlan) -> int:
    """Tokens of an index that a question reads to find the candidates in: a share of all, but no fewer than these, and
    at most some times as many; just these where nothing is read twice."""
    most = WIDER if plan.reranks else 1
    return max(plan.candidate_room, min(most * plan.candidate_room, plan.context_len // SHARE))


@dataclass(frozen=True)
class Search:
    """The ranking of an index's tokens by what a question asks in each of the scoring layers, by their heads."""

    select: Select
    index: Index
    asked: list[LayerQuestion]
    direction: Tensor | None

    @classmethod
    def of(cls, select: Select, index: Index, question: Question) -> Search:
        """To be called inside the decoder's session."""
        scoring = index.frame.layout.scoring
        asked = question.ask(select.decoder, scoring.layers)
        if scoring.heads:
            asked = [one.only([head.index for head in scoring.of_layer(one.layer)]) for one in asked]
        return cls(select, index, asked, _direction(select, index, question))

    def scores(self, blocks: Sequence[Block]) -> Tensor:
        """(B, C) of the tokens `[start, stop)` of blocks of one length; those of a block compete with each other."""
        return group_scores(self.index, self.asked, self.select.config.score, blocks, self.select.decoder.device)

    def candidates(self, count: int) -> Generator[Event, None, Tensor]:
        """Events of the parts that are scored; the value is the best tokens, (count,) ascending."""
        index, select = self.index, self.select
        by_unit = select.config.unit == "sentence" and len(index.units) > 0
        share = select.config.neighbour_share
        wanted = count if by_unit else None
        work = PartScores(tuple(self.asked), select.config.score, wanted, share, self.direction)
        found = yield from candidates(select.executor, select.loaded, index, work)
        if by_unit:
            return found
        whole = found[None].to(select.decoder.device)
        places = torch.arange(len(index), device=whole.device)[None]
        ids = index.ids[:][None].long().to(whole.device)
        return select.ranking.candidates(whole, ids, places, count)[0].cpu()


def _direction(select: Select, index: Index, question: Question) -> Tensor | None:
    """(E,) in which the units lie that a question asks for, where the index embeds them and the settings want it."""
    embedding = index.frame.embedding
    if embedding is None or select.config.embeddings == "never":
        return None
    return embedding.direction(select.decoder, question.own_tokens).cpu()
