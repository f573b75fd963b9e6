"""The default method: what runs when `compress` is called with `HomerConfig()`.

Chunks of the document are scored by what the question attends to; the best tokens of all chunks are read once more,
side by side, and scored again; what deserves a place is read as one short prompt. Not in the paper, whose tree it
replaces by a ranking (docs/how-it-works.md, docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.config import HomerConfig
from homerlm.context import CompactContext, Origin
from homerlm.errors import ConfigError
from homerlm.executor import IN_PROCESS, Executor, LoadedModel
from homerlm.method import Compressing
from homerlm.model.attention import Attended
from homerlm.model.decoder import Decoder
from homerlm.passes import Event, Lengths, pausing, run_steps
from homerlm.prompt import PromptIds, row_of
from homerlm.score.neighbours import top_tokens
from homerlm.score.reading import Chunk, Scorer
from homerlm.score.scores import SCORES
from homerlm.score.sentences import Sentences
from homerlm.select.document import Document
from homerlm.select.likelihood import Candidates, likely
from homerlm.select.links import Following, Links
from homerlm.select.plan import SelectPlan, lengths, scoring
from homerlm.select.prefilter import worth_reading
from homerlm.select.ranking import Ranking
from homerlm.select.reading import Reading, Scored
from homerlm.select.words import Words
from homerlm.suffix import exchange_suffix

LINK_SHARE = 8  # of the room for the document, one part in so many is for what its best sentences lead to


@dataclass(frozen=True)
class Select:
    """The default method on one model. Sentences are known where there is a tokenizer.

    origin: that of a context made now; executor: what reads the chunks.
    """

    loaded: LoadedModel
    config: HomerConfig
    origin: Callable[[], Origin]
    executor: Executor = IN_PROCESS

    @classmethod
    def on(cls, loaded: LoadedModel, config: HomerConfig, origin: Callable[[], Origin], executor: Executor) -> Select:
        """Raises `ConfigError` for settings that do not fit the model."""
        lengths(config, loaded.decoder.shape, 0, 0, 0)
        return cls(loaded, config, origin, executor)

    @property
    def decoder(self) -> Decoder:
        return self.loaded.decoder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.loaded.tokenizer

    @property
    def lengths(self) -> Lengths:
        return Lengths(*lengths(self.config, self.decoder.shape, 0, 0, 0))

    @property
    def sentences(self) -> Sentences | None:
        return self.ranking.sentences

    @property
    def ranking(self) -> Ranking:
        return Ranking.on(self.loaded, self.config)

    def plan(self, prefix_len: int, context_len: int, suffix_len: int, neutral_len: int = 0) -> SelectPlan:
        config = self.config if self.ranking.whole_sentences else replace(self.config, likelihood="never")
        return SelectPlan.of(config, self.decoder.shape, prefix_len, context_len, suffix_len, neutral_len)

    def compress(self, prompt: PromptIds) -> Compressing:
        """Chunks are read and scored, the best tokens are reranked, what is left is read as one short prompt."""
        plan = self.plan(*prompt.lengths)
        looked_at = plan.reranks or plan.read_len < plan.context_len
        with self.decoder.session():
            reading = Reading.on(self.decoder, plan, prompt, self.ranking)
            documents = []
            for ids in prompt.context if looked_at else ():
                documents.append((yield from pausing(self._document(ids), Event(0, plan.read_len))))
            kept = yield from self._candidates(reading, self._worth_reading(reading, documents))
            chosen = (yield from self._rerank(reading, documents, kept)) if plan.reranks else list(kept.places)
            if plan.reranks:
                yield Event(plan.context_len, plan.context_len, 2, in_prompt(plan, chosen[0])[None])
            rows = []
            for row, places in enumerate(chosen):
                rows.append((yield from self._read(reading.of_row(row), places)))
        return CompactContext.stack(rows)

    def ask_again(
        self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None = None
    ) -> CompactContext:
        """What another question needs of a document compressed before. The suffix runs over the context's keys and
        values, which scores the kept tokens; what deserves a place is read as one short prompt, each row by itself.

        Made for documents compressed with rerank "later". Where the settings have no reranking, the suffix is
        exchanged. The context itself stays as it was, for the next question.
        """
        if self.config.rerank == "never":
            return exchange_suffix(self.decoder, context, suffix_ids)
        rows = [
            self._focus(context.row(i), suffix_ids[i : i + 1], row_of(neutral_ids, i))
            for i in range(context.batch_size)
        ]
        return CompactContext.stack(rows)

    def read_candidates(
        self, prompt: PromptIds, plan: SelectPlan, document: Document, candidates: Candidates
    ) -> Generator[Event, None, CompactContext]:
        """What is left of candidates (n,) that were found elsewhere, the context of a prompt of one row, read as one
        short prompt, with pauses. plan: about the document that they are in. To be run inside the decoder's session."""
        places = candidates.places
        if plan.reranks:
            reading = Reading(self.decoder, plan, prompt, self.ranking)
            scores = (yield from reading.scoring(prompt.context, plan.reranking))[0]
            places = yield from self._chosen(reading, document, scores, candidates)
            yield plan.pause
        parts = prompt.prefix, document.at(places)[None].to(prompt.prefix.device), prompt.suffix
        return (yield from self._recomputed(torch.cat(parts, dim=1), in_prompt(plan, places)[None], plan))

    def candidates_among(
        self, prompt: PromptIds, plan: SelectPlan, places: Tensor
    ) -> Generator[Event, None, Candidates]:
        """The candidates (m,) among places (n,) in the document that the plan is about, which were found elsewhere and
        are the context of a prompt of one row: read in chunks with the question, with pauses. To be run inside the
        decoder's session."""
        whole = SelectPlan.of(replace(self.config, prefilter=None), self.decoder.shape, *prompt.lengths)
        look = replace(whole, asked_len=plan.asked_len)
        reading = Reading.on(self.decoder, look, prompt, self.ranking)
        ranked = yield from self._ranked(reading, places[None], lambda _: plan.pause)
        return (yield from self._best_of(reading, places[None], ranked)).row(0)

    def _worth_reading(self, reading: Reading, documents: Sequence[Document]) -> Tensor:
        """(B, read_len) context indices of what is read: all, or the best passages by the question's words."""
        plan, prompt = reading.plan, reading.prompt
        if plan.read_len == plan.context_len:
            return torch.arange(plan.context_len, device=prompt.context.device).expand(len(prompt.context), -1)
        if self.tokenizer is None:
            raise ConfigError("prefilter compares words, which needs a tokenizer: pass one, or leave it out")
        neutral = [None] * len(prompt.context) if prompt.neutral is None else prompt.neutral
        rows = [
            worth_reading(document, self.tokenizer, suffix, usual, plan.read_len)
            for document, suffix, usual in zip(documents, prompt.suffix, neutral, strict=True)
        ]
        return torch.stack(rows).to(prompt.context.device)

    def _candidates(self, reading: Reading, read: Tensor) -> Generator[Event, None, Candidates]:
        """Events of the chunks of what is read, context indices (B, n) ascending; the value is the candidates', (B, m)
        ascending."""
        plan, total = reading.plan, reading.plan.read_len
        if not plan.spans:
            yield Event(total, total)
            return Candidates(read)
        reading = reading.of(read)
        ranked = yield from self._ranked(reading, read, lambda done: Event(done, total))
        if plan.again:
            best = top_tokens(ranked, plan.again_len)
            reading, read = replace(reading.of(best), plan=replace(plan, spans=plan.again)), read.gather(1, best)
            ranked = yield from self._ranked(reading, read, lambda _: plan.pause)
        kept = yield from self._best_of(reading, read, ranked)
        yield Event(total, total, 1, in_prompt(plan, kept.places))
        return kept

    def _best_of(self, reading: Reading, places: Tensor, ranked: Tensor) -> Generator[Event, None, Candidates]:
        """The candidates (B, m) of a reading's context, at `places` (B, n) in the document and of significance
        (B, n)."""
        plan = reading.plan
        if plan.asked_len:
            return (yield from likely(reading, ranked, places, plan.candidate_room))
        return Candidates(places.gather(1, top_tokens(ranked, plan.candidate_room)))

    def _ranked(self, reading: Reading, places: Tensor, told: Callable[[int], Event]) -> Generator[Event, None, Tensor]:
        """What `told` makes of the number of tokens that have been read, after each chunk and wherever others get their
        turn; the value is the significance (B, n) of a reading's context, at `places` (B, n) in the document."""
        scored: list[Scored] = []
        done = 0
        with closing(reading.chunks_by(self.executor, self.loaded)) as chunks:
            for chunk in chunks:
                if chunk is not None:
                    done = chunk[0][-1][1]
                    scored.append(chunk[1])
                yield told(done)
        whole = Scored.joined(scored)
        return self.ranking.ranked(whole.scores, reading.context_ids, places, whole.closeness)

    def _rerank(
        self, reading: Reading, documents: Sequence[Document], candidates: Candidates
    ) -> Generator[Event, None, list[Tensor]]:
        """Context indices of what is left of each row's candidates (B, n), the recap's after the others."""
        ids = reading.context_ids.gather(1, candidates.places)
        scores = yield from reading.scoring(ids, reading.plan.reranking)
        chosen = []
        for row, (document, own) in enumerate(zip(documents, scores, strict=True)):
            chosen.append((yield from self._chosen(reading.of_row(row), document, own, candidates.row(row))))
        return chosen

    def _chosen(
        self, reading: Reading, document: Document, scores: Tensor, candidates: Candidates
    ) -> Generator[Event, None, Tensor]:
        """Context indices of what is read of one document, in order: the best of its candidates (C,), with scores (C,),
        and what they lead to; then the recap. reading: of its row."""
        room, places = reading.plan.room, candidates.places.to(scores.device)
        again = min(self.config.recap_len, room // 2)
        apart = document.apart(places)
        ids = document.at(places)
        ranked = self.ranking.reranked(scores, ids, apart)
        best = float(ranked.amax()) if len(ranked) else 0.0
        ranked = candidates.weighted(ranked)
        linked = (yield from self._linked(reading, document, ranked, places, room - again, best)).to(places.device)
        kept, repeated = self._kept(ranked, scores, ids, apart, room - again - len(linked), again)
        return torch.cat([torch.cat([places[kept], linked]).unique(), places[repeated]])

    def _kept(
        self, ranked: Tensor, scores: Tensor, ids: Tensor, places: Tensor, room: int, again: int
    ) -> tuple[Tensor, Tensor]:
        """Indices of the candidates, of significance, scores, ids and places (C,), that are read, at most `room` of
        them in order, and of those that the recap of at most `again` repeats."""
        kept = self.ranking.kept(ranked, room)
        return kept, kept[self.ranking.recap(scores[kept], ids[kept], places[kept], again)]

    def _linked(
        self, reading: Reading, document: Document, ranked: Tensor, places: Tensor, room: int, best: float
    ) -> Generator[Event, None, Tensor]:
        """Context indices of the sentences that the best candidates, of significance (C,), lead to, of those that they
        leave room for."""
        most = min(self.config.link_len, room // LINK_SHARE)
        known = self.config.unit == "sentence" and len(document.starts)
        if not most or not len(places) or not known or self.tokenizer is None:
            return places[:0]
        kept = places[self.ranking.kept(ranked, room - most)]
        first = places[self.ranking.leading(ranked)]
        sources = list(dict.fromkeys(document.units_of(first).tolist()))
        links = Links(document, Words(self.tokenizer), reading.prompt.suffix[0])
        following = Following(reading, document, links, best)
        return document.tokens_of((yield from following.follow(sources, document.units_of(kept).tolist(), most)))

    def _document(self, ids: Tensor) -> Generator[None, None, Document]:
        """A document of ids (C,), its sentences known where they are kept as a whole. Pauses after each block of it."""
        sentences = self.ranking.whole_sentences
        if sentences is None or not len(ids):
            return Document(ids)
        starts = []
        for found in sentences.unit_starts(ids):
            starts.append(found)
            yield
        return Document(ids.cpu(), torch.cat(starts))

    def _best(self, scores: Tensor, ids: Tensor, places: Tensor, room: int) -> Tensor:
        """Indices (n,) of the candidates that are read, at most `room`: the best of them in order, then the recap."""
        again = min(self.config.recap_len, room // 2)
        ranked = self.ranking.reranked(scores, ids, places)
        return torch.cat(self._kept(ranked, scores, ids, places, room - again, again))

    def _read(self, reading: Reading, places: Tensor) -> Generator[Event, None, CompactContext]:
        """The chosen context tokens of one row, indices (n,), between its affixes, run through all layers as a fresh
        prompt at contiguous positions: every kept token has seen all others before it."""
        whole = torch.cat([reading.prompt.prefix, reading.context_ids[:, places], reading.prompt.suffix], dim=1)
        return (yield from self._recomputed(whole, in_prompt(reading.plan, places)[None], reading.plan))

    def _recomputed(
        self, input_ids: Tensor, token_indices: Tensor, plan: SelectPlan
    ) -> Generator[Event, None, CompactContext]:
        """The context of ids (1, S), whose value comes after pauses wherever it has been as much work as a chunk."""
        decoder, every = self.decoder, plan.layers_of_a_turn(input_ids.shape[1])
        ids = input_ids.to(decoder.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden, keys, values = decoder.embed(ids), [], []
        for step in decoder.steps(hidden, positions, 0, len(decoder.layers)):
            assert step.hidden is not None
            hidden = step.hidden
            keys.append(step.attended.keys)
            values.append(step.attended.values)
            if len(keys) % every == 0 and len(keys) < len(decoder.layers):
                yield plan.pause
        return CompactContext(
            keys=tuple(keys),
            values=tuple(values),
            position_ids=positions,
            token_indices=token_indices,
            input_ids=ids,
            logits=decoder.logits(hidden[:, -1:])[:, -1],
            prefix_len=plan.prefix_len,
            suffix_len=plan.suffix_len,
            prompt_len=plan.prompt_len,
            model_config=decoder.config,
            origin=self.origin(),
        )

    def _focus(self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None) -> CompactContext:
        """One row of a context cut to what another question, suffix ids (1, S), asks for."""
        old, new, p = context.suffix_len, suffix_ids.shape[1], context.prefix_len
        length = len(context) - old + new
        plan = self.plan(p, context.prompt_len - p - old, new, 0 if neutral_ids is None else neutral_ids.shape[1])
        asked, scores = self._scored(context, suffix_ids, neutral_ids if plan.neutral_len else None, plan)
        inside = slice(p, length - new)
        ids, at = asked.input_ids[0, inside], asked.token_indices[0, inside]
        kept = self._best(scores[0, p:].to(ids.device), ids, at, plan.target_len - p - new)
        chosen = torch.cat([torch.arange(p), kept.cpu() + p, torch.arange(length - new, length)]).to(ids.device)
        with self.decoder.session():
            return run_steps(self._recomputed(asked.input_ids[:, chosen], asked.token_indices[:, chosen], plan))

    def _scored(
        self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None, plan: SelectPlan
    ) -> tuple[CompactContext, Tensor]:
        """The context with another suffix, and the scores (1, N) of the N tokens before it."""
        common = len(context) - context.suffix_len
        ids = torch.cat([context.input_ids[:, :common], suffix_ids.to(context.input_ids.device)], dim=1)
        places = torch.arange(common + max(suffix_ids.shape[1], plan.neutral_len), device=ids.device)[None]
        layers = scoring(self.config, self.decoder.shape, len(context), again=True)
        chunk = Chunk(ids, places, common, None)
        scorer = Scorer(self.decoder, SCORES[self.config.score], layers, plan.queries, chunk)

        def run(ids: Tensor, queries: int) -> tuple[CompactContext, dict[int, Tensor]]:
            by_layer: dict[int, Tensor] = {}

            def listen(attended: Attended) -> None:
                if attended.layer in layers.layers:
                    by_layer[attended.layer] = scorer.by_head(attended, queries)

            with self.decoder.watched(listen):
                return exchange_suffix(self.decoder, context, ids), by_layer

        asked, found = run(suffix_ids, plan.queries)
        usual = {} if neutral_ids is None else run(neutral_ids, plan.neutral_len)[1]
        for layer, scores in found.items():
            scorer.add(layer, scorer.score.above_neutral(scores, usual[layer]) if usual else scores)
        return asked, scorer.total


def in_prompt(plan: SelectPlan, places: Tensor) -> Tensor:
    """Indices in the prompt of its affixes and the context tokens at `places` (..., n), between them."""
    head = torch.arange(plan.prefix_len, device=places.device).expand(*places.shape[:-1], -1)
    tail = torch.arange(plan.prompt_len - plan.suffix_len, plan.prompt_len, device=places.device)
    return torch.cat([head, places + plan.prefix_len, tail.expand(*places.shape[:-1], -1)], dim=-1)
