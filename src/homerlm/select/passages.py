"""Passages ranked by what a question attends to in them: chunks of several side by side, and the best of all once more.

Not in the paper. The scores are those that the tokens of a document are chosen by.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homerlm.errors import ScheduleError
from homerlm.passes import Event
from homerlm.prompt import PromptIds
from homerlm.score.heads import Scoring
from homerlm.score.neighbours import pool, unit_scores
from homerlm.select.method import Select
from homerlm.select.plan import SelectPlan, even_spans
from homerlm.select.reading import Reading


@dataclass(frozen=True)
class _Part:
    """Tokens (n,) of one passage, all or as many as fit a chunk."""

    passage: int
    ids: Tensor


def ranking(
    select: Select, prefix: Tensor, suffix: Tensor, neutral: Tensor | None, passages: Sequence[Tensor]
) -> Generator[Event, None, list[float]]:
    """Events of passages, ids (n,) each, that are read behind a prefix (1, P) with a question, suffix ids (1, S), and a
    neutral one; the value is a score for each: the significance of its best unit as a share of the highest one.

    To be called inside the decoder's session. Raises `ScheduleError` for a question that leaves no room.
    """
    total = sum(map(len, passages))
    neutral_len = 0 if neutral is None else neutral.shape[1]
    plan = select.plan(prefix.shape[1], max(total, 1), suffix.shape[1], neutral_len)
    room = plan.chunk_len - plan.prefix_len - max(plan.suffix_len, plan.neutral_len)
    if room < 1:
        raise ScheduleError(
            f"instruction and question take {plan.prefix_len + plan.suffix_len} tokens of a chunk's {plan.chunk_len}, "
            "and leave no room for a passage: shorten the question, or raise max_chunk_len (--max-chunk-len)"
        )
    prompt = PromptIds(prefix, prefix[:, :0], suffix, neutral)
    parts = [part for number, ids in enumerate(passages) for part in _parts(number, ids, room)]
    groups, scored, read = list(_groups(parts, room)), list[tuple[float, _Part]](), 0
    for group in groups:
        scored += _scored(select, plan, prompt, group, plan.reading)
        read += sum(len(part.ids) for part in group)
        yield Event(read, total)
    found = _best_of(scored, len(passages))
    if len(groups) > 1:
        again = list(_scored(select, plan, prompt, _leading(scored, room), plan.reranking))
        found = _above(_best_of(again, len(passages)), found, {part.passage for _, part in again})
        yield Event(total, total, 2)
    return (found / found.amax().clamp(min=torch.finfo(found.dtype).tiny)).tolist() if len(found) else []


def _parts(number: int, ids: Tensor, room: int) -> Iterator[_Part]:
    for start, stop in even_spans(len(ids), room) if len(ids) else ():
        yield _Part(number, ids[start:stop])


def _groups(parts: Sequence[_Part], room: int) -> Iterator[list[_Part]]:
    """Neighbours that fill a chunk each, of about the same number of tokens: what competes in a small one has it
    easier."""
    left = sum(len(part.ids) for part in parts)
    group: list[_Part] = []
    filled = 0
    chunks = max(-(-left // room), 1)
    for part in parts:
        if group and (filled + len(part.ids) > room or filled >= left / chunks):
            yield group
            left, chunks, group, filled = left - filled, max(chunks - 1, 1), [], 0
        group.append(part)
        filled += len(part.ids)
    if group:
        yield group


def _best_of(scored: Sequence[tuple[float, _Part]], count: int) -> Tensor:
    """(count,) each passage's highest score, 0 for one without tokens."""
    found = torch.zeros(count)
    for score, part in scored:
        found[part.passage] = max(float(found[part.passage]), score)
    return found


def _leading(scored: Sequence[tuple[float, _Part]], room: int) -> list[_Part]:
    """The best part of each of the best passages, as many as fit one chunk, in the order in which they came."""
    leading: dict[int, int] = {}
    for number in sorted(range(len(scored)), key=lambda number: -scored[number][0]):
        part = scored[number][1]
        if part.passage in leading:
            continue
        room -= len(part.ids)
        if room < 0:
            break
        leading[part.passage] = number
    return [scored[number][1] for number in sorted(leading.values())]


def _above(again: Tensor, found: Tensor, reranked: set[int]) -> Tensor:
    """Scores of all: those that were read again as they are now, the others below the lowest of them."""
    chosen = torch.tensor([passage in reranked for passage in range(len(found))])
    if not chosen.any() or chosen.all():
        return again if chosen.any() else found
    lowest, highest = again[chosen].amin(), found[~chosen].amax()
    return torch.where(chosen, again, found * (lowest / highest.clamp(min=1e-30)).clamp(max=1))


def _scored(
    select: Select, plan: SelectPlan, prompt: PromptIds, group: Sequence[_Part], scoring: Scoring
) -> Iterator[tuple[float, _Part]]:
    """The significance of each part's best unit, of parts that are read as one chunk."""
    sizes = [len(part.ids) for part in group]
    ids = torch.cat([part.ids for part in group])[None].to(select.decoder.device)
    scores = Reading(select.decoder, plan, prompt, select.ranking).score(ids, scoring)
    for part, own, mine in zip(group, ids.split(sizes, dim=1), scores.split(sizes, dim=1), strict=True):
        yield max(float(_units(select, own, mine).amax()), 0.0), part


def _units(select: Select, ids: Tensor, scores: Tensor) -> Tensor:
    """(1, U) significance of a part's units, ids and scores (1, n)."""
    sentences = select.ranking.whole_sentences
    if sentences is None:
        return pool(scores, select.config.pooling)
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    return unit_scores(scores, sentences.units(ids, places))
