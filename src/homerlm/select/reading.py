"""Scores of a document's tokens, chunk by chunk, and of the candidates side by side."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homerlm.executor import Executor, LoadedModel, values_of
from homerlm.model.decoder import Decoder, LayerStep
from homerlm.passes import Event, run_steps
from homerlm.prompt import PromptIds
from homerlm.score.embedding import Directions, own_span, run_with_states
from homerlm.score.heads import Early, Scoring
from homerlm.score.likelihood import Asked
from homerlm.score.neighbours import pool
from homerlm.score.reading import Chunk, Scorer
from homerlm.score.scores import SCORES
from homerlm.score.surprisal import ranks, surprisal
from homerlm.select.plan import SelectPlan
from homerlm.select.ranking import Ranking

Span = tuple[int, int]


@dataclass(frozen=True)
class GroupIds:
    """Context ids of a group of spans: (B * n, C) of n spans, which attention scores, or (B, lead + C) of one, behind
    the `lead` tokens before it that surprisal is measured after."""

    ids: Tensor
    lead: int | None = None


@dataclass(frozen=True)
class Scored:
    """Context tokens (B, C). scores: what the question asks for each; closeness: to what it is about, where sentences
    are embedded."""

    scores: Tensor
    closeness: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """Of neighbours, in order."""
        scores = torch.cat([part.scores for part in parts], dim=1)
        closeness = [part.closeness for part in parts if part.closeness is not None]
        return cls(scores, torch.cat(closeness, dim=1) if closeness else None)

    def split(self, rows: int) -> Scored:
        """What chunks (n * B, C) of so many rows B have, side by side (B, n * C)."""
        closeness = None if self.closeness is None else torch.cat(self.closeness.split(rows), dim=1)
        return Scored(torch.cat(self.scores.split(rows), dim=1), closeness)

    def to(self, device: torch.device) -> Scored:
        return Scored(self.scores.to(device), None if self.closeness is None else self.closeness.to(device))


@dataclass(frozen=True)
class Reading:
    """One prompt of ids, (B, tokens) each part, under its plan. directions: in which sentences lie that it asks for,
    where they are embedded. To be used inside the decoder's session."""

    decoder: Decoder
    plan: SelectPlan
    prompt: PromptIds
    ranking: Ranking
    directions: Directions | None = None

    @classmethod
    def on(cls, decoder: Decoder, plan: SelectPlan, prompt: PromptIds, ranking: Ranking) -> Reading:
        """With the directions of its questions."""
        if plan.embedding is None or ranking.whole_sentences is None:
            return cls(decoder, plan, prompt, ranking)
        directions = Directions.of(decoder, plan.embedding, prompt.suffix, prompt.neutral)
        return cls(decoder, plan, prompt, ranking, directions)

    @property
    def context_ids(self) -> Tensor:
        return self.prompt.context

    def of(self, places: Tensor) -> Reading:
        """The reading of the context tokens at `places` (B, n) alone."""
        return replace(self, prompt=replace(self.prompt, context=self.prompt.context.gather(1, places)))

    def of_row(self, row: int) -> Reading:
        """The reading of one row, of what was found in it."""
        return replace(self, prompt=self.prompt.row(row), directions=None)

    def asking(self, before: Tensor) -> Reading:
        """The reading for a question that ids (n,) stand before, in one row."""
        before = before[None].to(self.prompt.suffix.device)
        plan = replace(self.plan, suffix_len=self.plan.suffix_len + before.shape[1])
        prompt = replace(self.prompt, suffix=torch.cat([before, self.prompt.suffix], 1))
        return replace(self, plan=plan, prompt=prompt, directions=None)

    def chunks(self) -> Iterator[tuple[list[Span], Scored]]:
        """Groups of neighbouring spans and what their context tokens (B, C') have, in the document's order."""
        for group in self.plan.span_groups():
            yield group, self.of_group(self._ids_of(group))

    def chunks_by(
        self, executor: Executor, here: LoadedModel
    ) -> Generator[tuple[list[Span], Scored] | None, None, None]:
        """`chunks` by an executor, and its pauses. here: the model that this reading runs on."""
        groups = list(self.plan.span_groups())
        values = values_of(executor, here, ChunkScores.of(self), map(self._ids_of, groups), len(groups))
        left = iter(groups)
        with closing(values):
            for scores in values:
                yield None if scores is None else (next(left), scores.to(self.context_ids.device))

    def of_group(self, ids: GroupIds) -> Scored:
        """What a group's context tokens (B, C') have."""
        return Scored(self._by_surprisal(ids)) if ids.lead is not None else self._by_attention(ids)

    def score(self, context_ids: Tensor, scoring: Scoring) -> Tensor:
        """Scores (B, C) of context tokens (B, C) that are read as one chunk, between the affixes of each row."""
        return run_steps(self.scoring(context_ids, scoring))

    def scoring(self, context_ids: Tensor, scoring: Scoring) -> Generator[Event, None, Tensor]:
        """`score`, with a pause wherever it has been as much work as a chunk of the document."""
        chunk = self._chunk(context_ids)
        scorer, hidden = self._scorer(chunk, scoring), self.decoder.embed(chunk.input_ids)
        every = self.plan.layers_of_a_turn(2 * chunk.input_ids.shape[1])  # to score them takes about as long again
        for number, step in enumerate(self._steps(chunk, hidden, 0, scoring.last + 1), 1):
            scorer(step.attended)
            if number % every == 0 and number <= scoring.last:
                yield self.plan.pause
        return scorer.total[:, self.plan.prefix_len :]

    def likelihoods(self, texts: Sequence[Tensor], asked: Asked) -> Generator[Event, None, Tensor]:
        """Log-likelihoods (n,) float32 in nats of a question right behind each of n texts, ids (T,) each, which run
        through all layers, with a pause wherever it has been as much work as a chunk of the document."""
        found = torch.zeros(len(texts))
        layers = len(self.decoder.layers)
        for batch in asked.behind(texts, self.plan.chunk_len):
            hidden = self.decoder.embed(batch.input_ids)
            every = self.plan.layers_of_a_turn(batch.input_ids.numel())
            for number, step in enumerate(self.decoder.steps(hidden, batch.position_ids, 0, layers), 1):
                assert step.hidden is not None
                hidden = step.hidden
                if number % every == 0:
                    yield self.plan.pause
            found[batch.numbers] = batch.log_likelihood(self.decoder, hidden).cpu()
        return found

    @property
    def asked(self) -> Asked:
        """The question of a reading of one row."""
        prefix, suffix, neutral = self.prompt.prefix, self.prompt.suffix[0], self.prompt.neutral
        own = own_span(suffix.tolist(), None if neutral is None else neutral[0].tolist())
        return Asked.of(prefix[0, :1], suffix, own)

    def score_with_fewer(self, context_ids: Tensor, scoring: Scoring, early: Early) -> Tensor:
        """`score` where the better part of a chunk by its early scores runs to the end: the rest has the scores of the
        layers up to there."""
        chunk = self._chunk(context_ids)
        hidden = self.decoder.embed(chunk.input_ids)
        scorer, finder = self._scorer(chunk, scoring), self._scorer(chunk, Scoring.of(early.heads))
        for step in self._steps(chunk, hidden, 0, early.layer + 1, finish=True):
            assert step.hidden is not None
            hidden = step.hidden
            scorer(step.attended)
            finder(step.attended)
        kept = self._going_on(chunk, finder.total, early)
        fewer = chunk.only(kept)
        last = self._scorer(fewer, scoring)
        for step in self._steps(fewer, chunk.states_of(kept, hidden), early.layer + 1, scoring.last + 1):
            last(step.attended)
        before = scorer.total if scorer.total.numel() else torch.zeros_like(finder.total)
        return before.scatter_add(1, kept, last.total)[:, self.plan.prefix_len :]

    def _going_on(self, chunk: Chunk, scores: Tensor, early: Early) -> Tensor:
        """Indices (B, n) in the chunk of the prefix and of the context tokens that go on, by early scores (B, common
        tokens)."""
        prefix = torch.arange(self.plan.prefix_len, device=scores.device).expand(len(scores), -1)
        context = slice(self.plan.prefix_len, chunk.common)
        best = self.ranking.going_on(scores[:, context], chunk.input_ids[:, context], early.share)
        return torch.cat([prefix, best + self.plan.prefix_len], dim=1)

    def _steps(
        self, chunk: Chunk, hidden: Tensor, first: int, stop: int, *, finish: bool = False
    ) -> Iterator[LayerStep]:
        return self.decoder.steps(hidden, chunk.position_ids, first, stop, finish=finish, fork=chunk.fork)

    def _ids_of(self, group: list[Span]) -> GroupIds:
        if self.plan.config.chosen_by == "attention":
            return GroupIds(torch.cat([self.context_ids[:, start:stop] for start, stop in group]))
        start, stop = group[0]
        first = max(start - self.plan.lead, 0)
        return GroupIds(self.context_ids[:, first:stop], start - first)

    def _by_attention(self, group: GroupIds) -> Scored:
        reading, early = self.plan.reading, self.plan.early
        if self.directions is not None:
            found = self._with_closeness(group.ids, reading, self.directions)
        elif early is not None:
            found = Scored(self.score_with_fewer(group.ids, reading, early))
        else:
            found = Scored(self.score(group.ids, reading))
        return found.split(len(self.context_ids))

    def _with_closeness(self, ids: Tensor, scoring: Scoring, directions: Directions) -> Scored:
        chunk = self._chunk(ids)
        scorer = self._scorer(chunk, scoring)
        positions, depth = chunk.position_ids, directions.depth
        states = run_with_states(self.decoder, chunk.input_ids, positions, scoring, depth, scorer, chunk.fork)
        assert states is not None
        context = slice(self.plan.prefix_len, chunk.common)
        return Scored(scorer.total[:, context], directions.closeness(states[:, context]))

    def _by_surprisal(self, group: GroupIds) -> Tensor:
        """Nats that the model could not have predicted, averaged over neighbours; where attention counts too, the mean
        of two ranks among the chunk's tokens: what does a little of both is rarer than what does much of one."""
        plan = self.plan
        chunk = self._chunk(group.ids)
        scorer = self._scorer(chunk, plan.reading)
        hidden = self.decoder.embed(chunk.input_ids)
        for step in self._steps(chunk, hidden, 0, len(self.decoder.layers), finish=True):
            assert step.hidden is not None
            hidden = step.hidden
            if plan.by_attention:
                scorer(step.attended)
        context = slice(plan.prefix_len + (group.lead or 0), plan.prefix_len + group.ids.shape[1])
        scores = surprisal(self.decoder, chunk.input_ids, hidden, context)
        if not plan.by_attention:
            return scores
        attention = pool(scorer.total[:, context], plan.config.candidate_pooling)
        return (ranks(scores) + ranks(attention)) / 2

    def _chunk(self, context_ids: Tensor) -> Chunk:
        """Context tokens (B * n, C) between the affixes of their rows."""
        prompt, times = self.prompt, len(context_ids) // len(self.prompt.context)
        neutral = prompt.neutral if self.plan.neutral_len else None
        return Chunk.of(
            prompt.prefix.repeat(times, 1),
            context_ids,
            prompt.suffix.repeat(times, 1),
            None if neutral is None else neutral.repeat(times, 1),
        )

    def _scorer(self, chunk: Chunk, scoring: Scoring) -> Scorer:
        return Scorer(self.decoder, SCORES[self.plan.config.score], scoring, self.plan.queries, chunk)


@dataclass(frozen=True)
class ChunkScores:
    """Work of an executor: what a group's context tokens (B, C') have for one question. plan: without its spans, its
    profile and its embedding, which that does not depend on; prefix, suffix, neutral: ids (B, tokens); directions: as
    in `Reading`."""

    plan: SelectPlan
    prefix: Tensor
    suffix: Tensor
    neutral: Tensor | None
    directions: Directions | None

    @classmethod
    def of(cls, reading: Reading) -> ChunkScores:
        plan, prompt = reading.plan, reading.prompt
        short = replace(plan, spans=(), again=(), config=replace(plan.config, profile=None), embedding=None)
        neutral = prompt.neutral if plan.neutral_len else None
        return cls(short, prompt.prefix, prompt.suffix, neutral, reading.directions)

    def __call__(self, model: LoadedModel, item: GroupIds) -> Scored:
        device = model.decoder.device
        prefix, suffix, ids = (part.to(device) for part in (self.prefix, self.suffix, item.ids))
        neutral = None if self.neutral is None else self.neutral.to(device)
        prompt = PromptIds(prefix, prefix[:, :0], suffix, neutral)
        ranking = Ranking.on(model, self.plan.config)
        directions = None if self.directions is None else self.directions.to(device)
        return Reading(model.decoder, self.plan, prompt, ranking, directions).of_group(GroupIds(ids, item.lead))
