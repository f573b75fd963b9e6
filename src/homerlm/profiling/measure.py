"""A model's profile, measured: planted facts are read as chunks are, and every head is graded by what it finds."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homerlm import prompt
from homerlm.index.question import LayerQuestion, Question, ask_together, stand_in
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity
from homerlm.passes import run_steps
from homerlm.profiling.choice import Choice, Found, choose, choose_depth, choose_early
from homerlm.profiling.probes import Probe, kinds, probes, sources
from homerlm.score.embedding import Embedding, mean_states, normed, usual_questions
from homerlm.score.heads import Scoring
from homerlm.score.neighbours import better_of, by_both_ranks, unit_means, unit_scores
from homerlm.score.profile import Profile
from homerlm.score.reading import Chunk, Scorer
from homerlm.score.scores import SCORES
from homerlm.score.sentences import Sentences

COUNT = 84  # texts: four of each kind of fact in each source of text
CHARACTERS = 3600  # of each, about a thousand tokens
TOGETHER = 21  # texts whose questions run at once: one of each kind in each source
SEED = 14


@dataclass(frozen=True)
class Progress:
    """`read` of about `total` tokens have been read, `texts` texts; seconds: expected for the rest, None before the
    first text."""

    read: int
    total: int
    texts: int = 0
    seconds: float | None = None


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int = COUNT, seed: int = SEED
) -> Profile:
    """The profile of a model. `count`: texts that are read, about a thousand tokens each."""
    return run_steps(measuring(model, tokenizer, count=count, seed=seed))


@torch.no_grad()
def measuring(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int = COUNT, seed: int = SEED
) -> Generator[Progress, None, Profile]:
    """`measure` step by step. Closing the generator stops it."""
    decoder, started = Decoder(model), time.perf_counter()
    texts = probes(CHARACTERS, count, seed)
    bench = Bench(decoder, tokenizer)
    asked = [(probe, bench.has_template and number % 2 == 1) for number, probe in enumerate(texts)]
    rows: list[Row] = []
    read, spent = 0, 0.0
    yield Progress(0, count * CHARACTERS // 4)
    for start in range(0, count, TOGETHER):
        for posed in bench.pose(asked[start : start + TOGETHER]):
            begun = time.perf_counter()
            rows.append(bench.row(posed))
            spent += time.perf_counter() - begun
            number, read = len(rows), read + int(rows[-1].sizes.sum())
            yield Progress(read, read * count // number, number, spent / number * (count - number))
    heads = decoder.shape.heads
    found = together(rows, bench.layers_of_heads)
    reading, reranking = choose(found, heads)
    by_keys = together([row.alone for row in rows], bench.layers_of_heads)
    indexing, _ = choose(by_keys, heads)
    about, layers = together([row.about for row in rows], torch.tensor(bench.depths)), decoder.shape.layers
    depths = {
        "reading": choose_depth(about, found, reading.heads, layers, by_both_ranks),
        "indexing": choose_depth(about, by_keys, indexing.heads, layers, better_of),
    }
    choices = {"reading": reading, "reranking": reranking, "indexing": indexing}
    beside = {f"share_above_{use}_embedding": round(chosen[1], 4) for use, chosen in depths.items() if chosen}
    notes = _notes(texts, choices) | beside | {"seconds": round(time.perf_counter() - started, 1), "seed": seed}
    share = float(reranking.shares.mean())
    return Profile(
        reading.heads,
        reranking.heads,
        indexing.heads,
        round(share, 4),
        ModelIdentity.of(model),
        early=choose_early(found, reading, heads),
        **{f"{use}_embedding": bench.embedding(chosen[0]) for use, chosen in depths.items() if chosen},
        notes=notes,
    )


@dataclass(frozen=True)
class Row:
    """One text: scores (H, U) of its units by all heads, sizes (U,), asked (U,); other: the scores by a question that
    ran alone, without the text; closeness: (D, U) of the units to what that question is about, after each number of
    layers."""

    scores: Tensor
    sizes: Tensor
    asked: Tensor
    other: Tensor
    closeness: Tensor

    @property
    def alone(self) -> Row:
        return replace(self, scores=self.other)

    @property
    def about(self) -> Row:
        return replace(self, scores=self.closeness)


@dataclass(frozen=True)
class Posed:
    """A text's prompt, whose question has run alone. asked: what it asks in each layer; directions: (D, E) in which
    sentences lie that it asks for, after each number of layers."""

    probe: Probe
    ids: prompt.PromptIds
    asked: dict[int, LayerQuestion]
    directions: Tensor


class Bench:
    """What all probes of one model share."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.has_template = getattr(tokenizer, "chat_template", None) is not None
        self.sentences = Sentences(tokenizer, decoder.model.get_input_embeddings().weight.shape[0], "cpu")
        longest = CHARACTERS  # a token is a character or more
        self.layers = decoder.shape.layers_seeing(min(longest, decoder.shape.sight))
        self.stand_in = stand_in(tokenizer)
        bos = tokenizer.bos_token_id
        self.first = int(self.stand_in[0, 0]) if bos is None else int(bos)
        self.depths = range(self.layers[-1] + 1)
        with decoder.session(), torch.no_grad():
            self.usual = mean_states(decoder, self.first, usual_questions(tokenizer), self.depths).mean(1)

    def embedding(self, depth: int) -> Embedding:
        """After so many layers."""
        return Embedding(depth, self.first, tuple(self.usual[depth].half().tolist()))

    @property
    def layers_of_heads(self) -> Tensor:
        return torch.tensor(self.layers).repeat_interleave(self.decoder.shape.heads)

    @torch.no_grad()
    def pose(self, texts: Sequence[tuple[Probe, bool]]) -> list[Posed]:
        """Texts, and whether each is asked about as a chat. The questions run together, behind the stand-in, as if each
        were of the longest text."""
        prompts = [self.prompt_of(probe, chat=chat) for probe, chat in texts]
        longest = max(ids.context.shape[1] for ids in prompts)
        questions = [
            Question(ids.prefix, self.stand_in, ids.suffix, ids.neutral, ids.suffix.shape[1], longest)
            for ids in prompts
        ]
        asked: list[dict[int, LayerQuestion]] = [{} for _ in texts]
        with self.decoder.session():
            own = [question.own_tokens for question in questions]
            directions = mean_states(self.decoder, self.first, own, self.depths) - self.usual[:, None]
            for way in {chat for _, chat in texts}:
                alike = [at for at, (_, chat) in enumerate(texts) if chat == way]
                for layer in ask_together(self.decoder, self.layers, [questions[at] for at in alike]):
                    for at, one in zip(alike, layer, strict=True):
                        asked[at][one.layer] = one
        probed = [probe for probe, _ in texts]
        return [Posed(*each) for each in zip(probed, prompts, asked, directions.unbind(1), strict=True)]

    def prompt_of(self, probe: Probe, *, chat: bool) -> prompt.PromptIds:
        before, after = prompt.affixes(self.tokenizer, probe.question, chat=chat)
        return prompt.encode(self.tokenizer, before, probe.text, after, prompt.neutral(self.tokenizer, chat=chat))

    @torch.no_grad()
    def row(self, posed: Posed) -> Row:
        units = self.units_of(posed.ids)
        with self.decoder.session():
            return self.row_of(posed.probe, units, *self._by_head(posed, units))

    def units_of(self, ids: prompt.PromptIds) -> Tensor:
        """(C,) the number of each context token's unit."""
        return self.sentences.units(ids.context, torch.arange(ids.context.shape[1])[None])[0]

    def row_of(self, probe: Probe, units: Tensor, scores: Tensor, other: Tensor, closeness: Tensor) -> Row:
        """Of a text whose tokens are in units (C,), with scores (H, C) at once and alone, and closeness (D, U)."""
        sizes = torch.bincount(units).float()
        asked = torch.zeros(len(sizes), dtype=torch.bool)
        asked[units[self.tokens_of(probe)]] = True
        at_once, alone = (unit_scores(each, units.expand(len(each), -1)) for each in (scores, other))
        return Row(at_once, sizes, asked, alone, closeness)

    def _by_head(self, posed: Posed, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H, C) float32 on the CPU, twice: the default score of every head of every layer that sees the whole text, by
        the question that is read with it, and by the question behind a stand-in for it; and (D, U), how close the units
        (C,) are to what it is about."""
        ids, device = posed.ids, self.decoder.device
        before, count, length, _ = ids.lengths
        assert ids.neutral is not None
        chunk = Chunk.of(*(part.to(device) for part in (ids.prefix, ids.context, ids.suffix, ids.neutral)))
        score = SCORES["peak_softmax"]
        scorer = Scorer(self.decoder, score, Scoring(self.layers), length, chunk)
        rows: list[Tensor] = []
        alone: list[Tensor] = []
        hidden = self.decoder.embed(chunk.input_ids)
        context = slice(before, before + count)
        close = [normed(hidden[0, context]) @ posed.directions[0]]
        steps = self.decoder.steps(hidden, chunk.position_ids, 0, self.layers[-1] + 1, finish=False, fork=chunk.fork)
        for step in steps:
            if step.layer in self.layers:
                rows.append(scorer.of_layer(step.attended)[0, :, before:].float().cpu())
                keys = step.attended.keys[:, :, before : before + count]
                alone.append(posed.asked[step.layer].scores(keys, score)[0].float().cpu())
            if step.hidden is not None and step.layer + 1 in self.depths:
                close.append(normed(step.hidden[0, context]) @ posed.directions[step.layer + 1])
        return torch.cat(rows), torch.cat(alone), unit_means(torch.stack(close).cpu(), units.expand(len(close), -1))

    def tokens_of(self, probe: Probe) -> Tensor:
        """Indices of the tokens that tell the fact."""
        return torch.tensor(prompt.tokens_within(prompt.token_spans(self.tokenizer, probe.text), probe.spans))


def together(rows: Sequence[Row], layers: Tensor) -> Found:
    most = max(row.scores.shape[1] for row in rows)

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(part, (0, most - part.shape[-1])) for part in parts])

    scores, sizes, asked = ([getattr(row, name) for row in rows] for name in ("scores", "sizes", "asked"))
    return Found(padded(scores), padded(sizes), padded(asked), layers)


def _notes(texts: Sequence[Probe], choices: dict[str, Choice]) -> dict[str, Any]:
    """How surely facts are found that the heads were not chosen by, of each kind."""

    def shares(choice: Choice) -> dict[str, float]:
        by_kind = {kind: [i for i, probe in enumerate(texts) if probe.kind == kind] for kind in kinds()}
        return {kind: round(float(choice.shares[at].mean()), 4) for kind, at in by_kind.items() if at}

    found = {f"share_above_{name}": round(float(choices[name].shares.mean()), 4) for name in ("reading", "indexing")}
    return {
        "texts": len(texts),
        "characters": CHARACTERS,
        "sources": sorted({*sources(), *(probe.source for probe in texts)}),
        **found,
        **{f"by_kind_{name}": shares(choice) for name, choice in choices.items()},
    }
