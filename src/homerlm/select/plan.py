"""What the default method runs for one prompt, in plain integers: spans, candidates and every pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from homerlm.config import HomerConfig, flag
from homerlm.errors import ConfigError, ScheduleError
from homerlm.model.shape import DecoderShape
from homerlm.passes import Event, Pass, check_target, head_pass
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Early, Scoring, early_len, layers_run
from homerlm.score.likelihood import LONGEST

CHUNK_LEN, CHUNK_SHARE = 1024, 1 / 4  # the default: tokens, and at most this share of the model's limit
TARGET_LEN, TARGET_SHARE = 1024, 1 / 8
MIDDLE = (0.5, 0.6)  # of the layers, where no profile is known: they match the question's words to the text
TURN_SHARE = 3  # one part of the layers in so many is what a chunk of an index runs through, about
AGAIN, AGAIN_SHARE = 4, 8  # times the candidates are read again, at most, and one part in so many of what is read
ASKED, ASKED_SHARE = 3, 3 / 8  # times the candidates that the question is asked behind, at most, and of what is read
SENTENCE = 32  # tokens, about, by which it is counted how often that is
LEAD = 128  # context tokens before a chunk that surprisal is measured after, so that its beginning surprises no more


@dataclass(frozen=True)
class SelectPlan:
    """The passes of one compression.

    read_len: context tokens that are read, fewer than there are where `prefilter` says so; spans: `[start, stop)` of
    them, of each chunk, none where all that is read is one candidate; again: `[start, stop)` of the best of these in
    the chunks that they are read in once more, to find the candidates in, none in a short document; asked_len: tokens
    that the question is asked behind, those of the question included, 0 for none; chunk_len, target_len: the config's,
    or those that follow from the model and the affixes; candidates: tokens, affixes included, that the chunks' scores
    leave; reranks: whether these are read and scored once more; lead: context tokens that a chunk is read after where
    surprisal counts; neutral_len: tokens of the neutral question, 0 for none; reading, reranking: what scores the
    chunks and the candidates; early: what lets tokens leave a chunk before its last layers; embedding: of sentences, by
    which the chunks' are found too.
    """

    config: HomerConfig
    shape: DecoderShape
    prefix_len: int
    context_len: int
    suffix_len: int
    chunk_len: int
    target_len: int
    lead: int
    read_len: int
    spans: tuple[tuple[int, int], ...]
    again: tuple[tuple[int, int], ...]
    asked_len: int
    candidates: int
    reranks: bool
    neutral_len: int
    reading: Scoring
    reranking: Scoring
    early: Early | None
    embedding: Embedding | None

    @classmethod
    def of(
        cls,
        config: HomerConfig,
        shape: DecoderShape,
        prefix_len: int,
        context_len: int,
        suffix_len: int,
        neutral_len: int = 0,
    ) -> SelectPlan:
        """Raises `ScheduleError` for a prompt that does not fit, `ConfigError` for lengths above the model's."""
        if prefix_len < 0 or context_len < 0 or suffix_len < 1:
            raise ScheduleError(
                f"prefix, context and suffix have {prefix_len}, {context_len}, {suffix_len} tokens; the suffix, whose "
                "attention scores the context, needs at least one, and none may be negative"
            )
        neutral_len = 0 if config.contrast == "none" else neutral_len
        affixes = prefix_len + max(suffix_len, neutral_len)  # the two questions stand side by side
        chunk_len, target_len = lengths(config, shape, prefix_len, context_len, suffix_len)
        prompt_len = prefix_len + context_len + suffix_len
        candidates = (
            prompt_len if prompt_len <= target_len else min(max(chunk_len, target_len), shape.sight, prompt_len)
        )
        if config.rerank == "never":
            candidates = min(target_len, prompt_len)
        read_len = context_len if candidates == prompt_len else min(config.prefilter or context_len, context_len)
        whole = prefix_len + read_len + suffix_len
        candidates = min(candidates, whole)
        lead = 0 if config.chosen_by == "attention" else min(LEAD, (chunk_len - affixes) // 2)
        chunk_room = chunk_len - affixes - lead
        spans = even_spans(read_len, chunk_room) if candidates < whole else ()
        reading = scoring(config, shape, min(chunk_len, prompt_len))
        reranks = config.rerank == "now" and target_len < whole  # what fits the target is read as it is
        again_len = read_again(read_len, candidates - prefix_len - suffix_len) if spans and reranks else 0
        again = even_spans(again_len, chunk_room) if config.chosen_by == "attention" and again_len else ()
        by_sentence = config.chosen_by == "attention" and config.unit == "sentence"
        asks = spans and reranks and by_sentence and config.likelihood == "always"
        asked_len = asked_behind(read_len, candidates - prefix_len - suffix_len) if asks else 0
        dropping = early(config, shape, reading, chunk_len)
        return cls(
            config,
            shape,
            prefix_len,
            context_len,
            suffix_len,
            chunk_len,
            target_len,
            lead,
            read_len,
            spans,
            again,
            asked_len,
            candidates,
            reranks,
            neutral_len,
            reading,
            scoring(config, shape, candidates if reranks else min(chunk_len, prompt_len), again=True),
            dropping,
            embedding(config, shape) if spans and dropping is None else None,
        )

    @property
    def prompt_len(self) -> int:
        return self.prefix_len + self.context_len + self.suffix_len

    @property
    def cache_len(self) -> int:
        return min(self.target_len, self.prompt_len) if self.reranks else self.candidates

    @property
    def candidate_room(self) -> int:
        """Tokens of the document that are candidates."""
        return self.candidates - self.prefix_len - self.suffix_len

    @property
    def room(self) -> int:
        """Tokens of the document that the target leaves room for."""
        return self.target_len - self.prefix_len - self.suffix_len

    @property
    def pause(self) -> Event:
        """What is told where others get their turn in the middle of a pass: all of the document has been read."""
        return Event(self.context_len, self.context_len)

    def layers_of_a_turn(self, tokens: int) -> int:
        """Layers of so many tokens that are about as much work as a chunk of an index is."""
        return max(self.chunk_len * self.shape.layers // (TURN_SHARE * tokens), 1)

    def kv_during(self, run: Pass) -> int:
        """Only what is read at the end is kept."""
        return self.cache_len * self.shape.layers if run.kind == "read" else 0

    @property
    def queries(self) -> int:
        """Number of the last suffix tokens whose attention scores the context."""
        return min(self.config.scoring_queries or self.suffix_len, self.suffix_len)

    @property
    def by_attention(self) -> bool:
        """Whether the suffix's attention has a part in choosing the candidates."""
        return self.config.chosen_by != "surprisal"

    @property
    def again_len(self) -> int:
        """Tokens of the document that are read once more to find the candidates in."""
        return self.again[-1][1] if self.again else 0

    def span_groups(self) -> Iterator[list[tuple[int, int]]]:
        """The spans that run as one batch: at most `chunk_batch` neighbours of one length."""
        return groups_alike(self.spans, self.config.chunk_batch if self.config.chosen_by == "attention" else 1)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The chunks, the reranking and the reading of what is left, at its largest. What the best sentences lead to
        follows from the text: it is read in addition, never more than the candidates."""
        passes: list[Pass] = []
        head = [head_pass(self.shape.layers)]  # is the head alone all that the model does to its logits?
        for group in self.span_groups():
            passes.extend(self._chunk_passes(group))
            if self.config.chosen_by != "attention":
                passes, head = passes + head, []
        for group in groups_alike(self.again, self.config.chunk_batch):
            passes.extend(replace(run, kind="again") for run in self._chunk_passes(group))
        if self.asked_len:
            passes, head = [*passes, *head, *self._asking_passes()], []
        if self.reranks:
            passes.append(self._scoring_pass("rerank", self.candidates, self.reranking))
        return (*passes, Pass("read", self.cache_len, 0, self.shape.layers), *head)

    def __str__(self) -> str:
        head = (
            f"{self.prompt_len:,} tokens (prefix {self.prefix_len:,}, context {self.context_len:,}, suffix "
            f"{self.suffix_len:,})"
        )
        return "\n".join([head, *self._lines()])

    def _lines(self) -> Iterator[str]:
        if self.read_len < self.context_len:
            yield f"the {self.read_len:,} tokens of the document that BM25 ranks first are read"
        if self.spans:
            chunks = [run for run in self.passes if run.kind == "chunk"]
            yield (
                f"read in {len(self.spans):,} chunks of up to {max(run.tokens for run in chunks):,} tokens, "
                f"layers [0, {max(run.last_layer for run in chunks)}) of {self.shape.layers}"
                + (f"; scored by {self.reading}" if self.by_attention else "; scored by surprisal")
            )
            if self.embedding is not None:
                yield f"sentences also by what they are about, after {self.embedding.depth} layers"
            if self.early is not None:
                yield (
                    f"above layer {self.early.layer} only the {self.early.share:.0%} of a chunk that "
                    f"{Scoring.of(self.early.heads)} find"
                )
            if self.again:
                yield f"the best {self.again_len:,} tokens of these are read again, in {len(self.again):,} chunks"
            if self.asked_len:
                yield f"the question is asked behind the best sentences of these, {self.asked_len:,} tokens in all"
            yield f"the best {self.candidate_room:,} tokens of what was read stay"
        if self.reranks:
            yield f"reranked as one chunk of {self.candidates:,} tokens by {self.reranking}"
        if self.reranks and self.config.link_len and self.config.unit == "sentence":
            yield f"at most {self.candidate_room:,} tokens that share a rare word with the best are read likewise"
        yield f"at most {self.cache_len:,} tokens read as one prompt through all layers, contiguous positions"

    def _chunk_passes(self, group: list[tuple[int, int]]) -> list[Pass]:
        start, stop = group[0]
        if self.config.chosen_by == "attention":
            tokens = self.prefix_len + stop - start + self.suffix_len
            whole = self._scoring_pass("chunk", tokens, self.reading, len(group), self.embedding)
            return [whole] if self.early is None else list(self._with_fewer(whole, stop - start, self.early))
        tokens = self.prefix_len + stop - max(start - self.lead, 0) + self.suffix_len + self.neutral_len
        layers = self.reading.layers if self.by_attention else ()
        queries = self.queries + self.neutral_len
        logits = stop - start + 1
        return [Pass("chunk", tokens, 0, self.shape.layers, scoring_layers=layers, queries=queries, logits=logits)]

    def _asking_passes(self) -> Iterator[Pass]:
        """How long the sentences are that the question is asked behind follows from the text."""
        question = min(self.suffix_len, LONGEST)
        tokens = min(SENTENCE + question, self.chunk_len)
        most, left = max(self.chunk_len // tokens, 1), self.asked_len // tokens
        while left > 0:
            yield Pass("ask", tokens, 0, self.shape.layers, min(most, left), logits=question)
            left -= most

    def _with_fewer(self, whole: Pass, context_len: int, early: Early) -> Iterator[Pass]:
        """A chunk's pass in two: up to the early layer, and above it with fewer tokens."""
        below = {head.layer for head in (*early.heads, *self.reading.heads) if head.layer <= early.layer}
        above = tuple(layer for layer in self.reading.layers if layer > early.layer)
        dropped = context_len - early_len(context_len, early.share)
        first, last = early.layer + 1, whole.last_layer
        yield replace(whole, last_layer=first, finish=True, scoring_layers=tuple(sorted(below)))
        yield replace(whole, tokens=whole.tokens - dropped, first_layer=first, last_layer=last, scoring_layers=above)

    def _scoring_pass(
        self, kind: str, tokens: int, scoring: Scoring, rows: int = 1, embedding: Embedding | None = None
    ) -> Pass:
        queries, depth = self.queries + self.neutral_len, None if embedding is None else embedding.depth
        stop = layers_run(scoring, depth)
        return Pass(kind, tokens + self.neutral_len, 0, stop, rows, depth == stop, scoring.layers, queries)


def lengths(
    config: HomerConfig, shape: DecoderShape, prefix_len: int, context_len: int, suffix_len: int
) -> tuple[int, int]:
    """Chunk and target length for affixes of so many tokens. Where the config leaves them open they are absolute, at
    most a share of the model's limit, and follow long affixes up to it; chunks are at most what some layer sees.

    Raises `ConfigError` for a length above the model's limit, `ScheduleError` where the affixes leave no room.
    """
    for name in ("max_chunk_len", "target_len"):
        if (value := getattr(config, name) or 0) > shape.limit:
            raise ConfigError(f"{name} is {value}, above the model's limit of {shape.limit} tokens: lower it")
    if context_len and prefix_len + suffix_len >= shape.limit:
        raise ScheduleError(
            f"prefix ({prefix_len}) and suffix ({suffix_len}) leave no room for the document within the model's limit "
            f"of {shape.limit} tokens: shorten the instruction or the question"
        )
    affixes, chunk, target = prefix_len + suffix_len, config.max_chunk_len, config.target_len
    if chunk is None:
        usual = min(CHUNK_LEN, int(shape.limit * CHUNK_SHARE))
        chunk = min(max(usual, affixes + min(affixes, usual)), shape.limit)
    if target is None:
        usual = min(TARGET_LEN, int(shape.limit * TARGET_SHARE))
        target = min(max(usual, affixes + usual // 2), shape.limit)
    chunk = min(chunk, shape.sight)
    check_target(prefix_len, context_len, suffix_len, target)
    if context_len and chunk <= affixes and affixes + context_len > target:
        name, seen = "max_chunk_len", f"what the model's layers see is {shape.sight}"
        raise ScheduleError(
            f"{name} is {chunk} ({seen}), but instruction and question already take {affixes} tokens: shorten them"
            + (f", or raise {name} ({flag(name)})" if chunk < shape.sight else "")
        )
    return chunk, target


def read_again(read_len: int, room: int) -> int:
    """Tokens that are read once more to find the candidates in, of so many that are read and leave room for so many:
    what chunks beside the best leave to chance, the best side by side tell. None where it would cost much."""
    times = min(AGAIN, read_len // (AGAIN_SHARE * max(room, 1)))
    return times * room if times > 1 else 0


def asked_behind(read_len: int, room: int) -> int:
    """Tokens that the question is asked behind, of so many that are read and leave room for so many candidates."""
    return min(ASKED * room, int(ASKED_SHARE * read_len))


def groups_alike(spans: Iterable[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Neighbouring spans of one length, at most so many at a time."""
    group: list[tuple[int, int]] = []
    for span in spans:
        if group and (len(group) == most or span[1] - span[0] != group[0][1] - group[0][0]):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def even_spans(context_len: int, room: int) -> tuple[tuple[int, int], ...]:
    """`[start, stop)` of the fewest spans of at most `room` tokens that cover the context, sizes differing by one."""
    count = math.ceil(context_len / room)
    cuts = [i * context_len // count for i in range(count + 1)]
    return tuple(itertools.pairwise(cuts))


def scoring(config: HomerConfig, shape: DecoderShape, tokens: int, *, again: bool = False) -> Scoring:
    """What scores a chunk of so many tokens, or, `again`, the candidates: the profile's heads that see all of them;
    without any, the layers that the settings name, or the middle ones, that do, or the nearest one."""
    seeing = shape.layers_seeing(tokens)
    if not seeing:
        raise ScheduleError(
            f"no layer sees {tokens} tokens at once; the longest sliding window is {shape.sight}: lower "
            "target_len (--target-len)"
        )
    if config.profile is not None and config.profile.above_chance:
        heads = config.profile.reranking if again else config.profile.reading
        if found := Scoring.by_heads(heads, seeing):
            return found
    layers, name = shape.layers, config.scoring_layers
    start = 0 if name == "all" else math.floor(layers * MIDDLE[0])
    stop = layers if name in ("all", "upper_half") else max(round(layers * MIDDLE[1]), start + 1)
    inside = tuple(layer for layer in seeing if start <= layer < stop)
    middle = (start + stop - 1) / 2
    return Scoring(inside or (min(seeing, key=lambda layer: (abs(layer - middle), layer)),))


def early(config: HomerConfig, shape: DecoderShape, reading: Scoring, tokens: int) -> Early | None:
    """What lets tokens leave a chunk of so many tokens before its last layers: the profile's early heads, where they
    see all of it and some reading head is above them."""
    profile = config.profile
    if profile is None or profile.early is None or config.early_drop == "never" or config.chosen_by != "attention":
        return None
    known = reading.heads and {head.layer for head in profile.early.heads} <= set(shape.layers_seeing(tokens))
    return profile.early if known and profile.early.layer < reading.last else None


def embedding(config: HomerConfig, shape: DecoderShape) -> Embedding | None:
    """How a chunk's sentences are embedded: as the profile says, where attention alone chooses among them."""
    if config.profile is None or config.unit != "sentence" or config.chosen_by != "attention":
        return None
    return usable(config, shape, config.profile.reading_embedding)


def usable(config: HomerConfig, shape: DecoderShape, known: Embedding | None) -> Embedding | None:
    """An embedding of the profile's, where its heads found anything, the settings want it and there are the layers."""
    trusted = config.profile is not None and config.profile.above_chance and config.embeddings == "profile"
    return known if trusted and known is not None and known.depth <= shape.layers else None
