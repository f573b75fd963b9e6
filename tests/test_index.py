"""The index: every token of a document, found again by the keys it had when it was read, without the question."""

import json
import random
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import psutil
import pytest
import torch

import families
from homerlm import Homer, HomerConfig, load_model, mapped
from homerlm.errors import Cancelled, ConfigError, CorruptFileError, InputError, MismatchError
from homerlm.index.asking import SHARE, WIDER, Search
from homerlm.index.index import KIND, VERSION, Index
from homerlm.index.pieces import pieces
from homerlm.index.question import Ending, LayerQuestion, Question, ask_together
from homerlm.index.scoring import alike
from homerlm.index.units import UnitScores, best_units, significance_of, tokens_of
from homerlm.lab.measure import peak_of_tensors
from homerlm.score.heads import Head
from homerlm.score.neighbours import top_tokens, unit_significance
from homerlm.score.profile import Profile
from homerlm.score.reading import Chunk, Scorer
from homerlm.score.scores import SCORES
from homerlm.select.links import Following
from homerlm.select.plan import even_spans
from homerlm.select.ranking import Ranking
from tiny import VOCAB, llama
from words import tokenizer_of

SIZES = {"max_chunk_len": 60, "target_len": 40, "pooling": 3, "recap_len": 0}
P, S, N = 4, 5, 3
HEADS = (Head(2, 1), Head(2, 5, 2.0), Head(4, 0))


def ids_of(seed, *lengths):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, VOCAB, (1, n), generator=generator) for n in lengths)


@pytest.fixture(scope="module")
def model():
    model = llama(attn_implementation="eager")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 60  # heads that tell tokens apart
    return model


@pytest.fixture(scope="module")
def profile(model):
    from homerlm.model.identity import ModelIdentity

    return Profile(HEADS[:1], HEADS[1:], HEADS, 0.1, ModelIdentity.of(model))


def homer_of(model, **changes):
    return Homer(model, None, HomerConfig(**(SIZES | changes)))


@torch.no_grad()
def literal_scores(model, index, prefix, document, suffix, neutral, heads):
    """(T,) from the model's own projections: a question behind the stand-in, over each chunk's keys."""
    layers = model.model.layers
    chunk_len, behind = index.frame.chunk_len, torch.tensor([index.frame.stand_in])
    group = 2

    def states(ids, positions):
        """{layer: (queries, keys)} with RoPE, from the hidden states before each layer."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        output = model.model(ids, position_ids=positions, output_hidden_states=True)
        found = {}
        for layer in {head.layer for head in heads}:
            block = layers[layer]
            normed = block.input_layernorm(output.hidden_states[layer])
            shape = (*normed.shape[:2], -1, 12)
            q, k = (
                proj(normed).view(shape).transpose(1, 2) for proj in (block.self_attn.q_proj, block.self_attn.k_proj)
            )
            cos, sin = model.model.rotary_emb(normed, positions)
            found[layer] = apply_rotary_pos_emb(q, k, cos, sin)
        return found

    n = behind.shape[1]
    at = P + max(chunk_len, n)

    def asked(ending):
        ids = torch.cat([prefix, behind, ending], dim=1)
        places = [*range(P), *range(at - n, at), *range(at, at + ending.shape[1])]
        return states(ids, torch.tensor([places]))

    question, nothing = asked(suffix), None if neutral is None else asked(neutral)
    total = []
    for start, stop in even_spans(document.shape[1], chunk_len):
        chunk = torch.cat([prefix, document[:, start:stop]], dim=1)
        seen = states(chunk, torch.arange(chunk.shape[1])[None])
        scores = torch.zeros(stop - start)
        for head in heads:
            shared = head.index // group

            def peak(ending, count, head=head, shared=shared, seen=seen, width=stop - start):
                queries, own = ending[head.layer][0][0, head.index, -count:], ending[head.layer][1][0, shared, -count:]
                keys = torch.cat([seen[head.layer][1][0, shared], own])
                logits = queries @ keys.T / 12**0.5
                causal = torch.ones(count, len(keys), dtype=torch.bool).tril(len(keys) - count)
                weights = logits.masked_fill(~causal, float("-inf")).softmax(-1)
                return weights.amax(0)[P : P + width]

            score = peak(question, suffix.shape[1])
            if nothing is not None:
                contrast = score - 1.5 * peak(nothing, neutral.shape[1])
                score = torch.maximum(contrast, 0.01 * score)
            scores += head.weight * score
        total.append(scores)
    return torch.cat(total)


def search_of(homer, index, suffix, neutral=None):
    prefix, behind = (torch.tensor([part]) for part in (index.frame.prefix, index.frame.stand_in))
    question = Question(prefix, behind, suffix, neutral, suffix.shape[1], index.frame.chunk_len)
    with homer.decoder.session(), torch.no_grad():
        return Search.of(homer.method, index, question)


@pytest.mark.parametrize("length", [20, 49, 301])
@pytest.mark.parametrize("contrast", [True, False])
def test_scores_are_those_of_a_literal_question_over_literal_keys(model, profile, length, contrast):
    prefix, document, suffix, neutral = ids_of(1, P, length, S, N)
    homer = homer_of(model, profile=profile)
    index = homer.index(prefix, document, neutral_ids=neutral)
    search = search_of(homer, index, suffix, neutral if contrast else None)
    with torch.no_grad():
        got = torch.zeros(length)
        for blocks in alike(index.blocks):
            for (start, stop), scores in zip(blocks, search.scores(blocks), strict=True):
                got[start:stop] = scores
    expected = literal_scores(model, index, prefix, document, suffix, neutral if contrast else None, HEADS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert got.std() > 1e-3


class TestAsked:
    """The whole way from an index to what is read, against the same from the parts."""

    def literal(self, model, homer, index, prefix, document, suffix, neutral):
        """Indices in the prompt of what is read: the best by literal scores, then as asked at once of them alone."""
        scores = literal_scores(model, index, prefix, document, suffix, neutral, HEADS)
        places = torch.arange(document.shape[1])[None]
        ranked = homer.method.ranking._significance(scores[None], document, places, 7)
        kept = top_tokens(ranked, max(60 - P - S, min(WIDER * (60 - P - S), document.shape[1] // SHARE)))[0]
        return kept, homer.compress(prefix, document[:, kept], suffix, neutral_ids=neutral)

    @pytest.mark.parametrize("length", [120, 301])
    def test_asked_later_equals_a_literal_question_and_a_reranking_of_its_candidates(self, model, profile, length):
        prefix, document, suffix, neutral = ids_of(1, P, length, S, N)
        homer = homer_of(model, profile=profile)
        index = homer.index(prefix, document, neutral_ids=neutral)
        kept, expected = self.literal(model, homer, index, prefix, document, suffix, neutral)
        found = homer.search(index, suffix, neutral)
        inside = found.context.token_indices[0, P:-S] - P
        assert torch.equal(found.context.input_ids, expected.input_ids)
        assert torch.equal(inside, kept[expected.token_indices[0, P:-S] - P])
        torch.testing.assert_close(found.context.logits, expected.logits)
        assert found.context.prompt_len == P + length + S
        assert found.context.token_indices[0, -S:].tolist() == list(range(P + length, P + length + S))
        assert found.tokens_read == S + len(kept)
        assert torch.equal(homer.focus(index, suffix, neutral).input_ids, expected.input_ids)

    def test_sentences_that_the_best_lead_to_are_read_though_they_are_no_candidates(self, model, words, monkeypatch):
        sources, follow = [], Following.follow
        monkeypatch.setattr(
            Following, "follow", lambda this, first, *rest: sources.extend(first) or follow(this, first, *rest)
        )
        (ids,) = ids_of(3, 300)
        for unit in range(30):  # of five tokens: each begins like the one thirty further on
            ids[0, 5 * (unit + 30) :][:2] = ids[0, 5 * unit :][:2]

        def places(link_len):
            sizes = {"max_chunk_len": 120, "target_len": 100, "recap_len": 0, "min_share": 1.0}
            homer = Homer(model, words, HomerConfig(**sizes, link_len=link_len))
            index = replace(homer.index(ids_of(1, P)[0], ids), units=torch.arange(0, 300, 5))
            found = homer.search(index, ids_of(2, S)[0]).context
            assert found.input_ids[0, P:-S].tolist() == ids[0, found.token_indices[0, P:-S] - P].tolist()
            return set((found.token_indices[0, P:-S] - P).tolist())

        alone, linked = places(0), places(16)
        added = linked - alone
        assert len(added) >= 5
        assert {at // 5 for at in added} <= {(unit + 30) % 60 for unit in sources}
        assert len(linked) <= 100 - P - S

    def test_a_prompt_of_its_own_is_answered_behind_its_own_prefix(self, model, profile):
        prefix, document, suffix, other = ids_of(1, P, 301, S, 7)
        homer = homer_of(model, profile=profile)
        index = homer.index(prefix, document)
        found = homer.search(index, suffix, prefix_ids=other).context
        assert found.prefix_len == 7
        assert found.input_ids[0, :7].tolist() == other[0].tolist()
        assert found.input_ids[0, -S:].tolist() == suffix[0].tolist()
        assert len(found) <= 40
        inside = found.token_indices[0, 7:-S] - 7
        assert document[0, inside].tolist() == found.input_ids[0, 7:-S].tolist()
        logits = model(found.input_ids).logits[:, -1]
        torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)

    def test_what_fits_is_read_as_it_is(self, model, profile):
        prefix, document, suffix = ids_of(1, P, 20, S)
        homer = homer_of(model, profile=profile)
        context = homer.focus(homer.index(prefix, document), suffix)
        assert torch.equal(context.logits, homer.compress(prefix, document, suffix).logits)

    @pytest.mark.parametrize(
        "changes", [{"rerank": "never"}, {"rerank": "later"}, {"scoring_queries": 2}, {"chunk_batch": 3}]
    )
    def test_other_settings(self, model, profile, changes):
        prefix, document, suffix = ids_of(1, P, 301, S)
        homer = homer_of(model, profile=profile, **changes)
        context = homer.focus(homer.index(prefix, document), suffix)
        assert P + S < len(context) <= 40

    def test_questions_get_different_tokens_and_leave_the_index_as_it_was(self, model, profile):
        prefix, document = ids_of(1, P, 301)
        homer = homer_of(model, profile=profile)
        index = homer.index(prefix, document)
        before = index.keys.clone()
        contexts = [homer.focus(index, ids_of(seed, S)[0]) for seed in (3, 4)]
        assert contexts[0].token_indices.tolist() != contexts[1].token_indices.tolist()
        assert torch.equal(index.keys, before)
        again = homer.focus(index, ids_of(3, S)[0])
        assert torch.equal(again.logits, contexts[0].logits)


def test_a_soft_cap_and_a_window_are_the_models_own():
    generator = torch.Generator().manual_seed(0)
    q, own, prefix, keys = (torch.randn(1, 1, n, 8, generator=generator) * 3 for n in (S, S, P, 20))
    one = LayerQuestion(0, prefix, Ending(q, own), None, 0.5, 12, 2.0, None)
    whole = torch.cat([prefix, keys, own], dim=2)[0, 0]
    logits = torch.tanh(q[0, 0] @ whole.T * 0.5 / 2.0) * 2.0
    places, asking = torch.arange(len(whole)), torch.arange(P + 20, P + 20 + S)[:, None]
    seen = (places <= asking) & (places > asking - 12)
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1).amax(0)
    torch.testing.assert_close(one.scores(keys, SCORES["peak_softmax"])[0, 0], weights[P : P + 20])


def test_blocks_of_one_length_are_scored_at_once_and_none_waits_for_long():
    blocks, at = [], 0
    for i in range(3000):
        length = 1000 + i % 2 if i < 1000 else 1 + i % 1999
        blocks.append((at, at + length))
        at += length
    groups = list(alike(blocks))
    assert sorted(block for group in groups for block in group) == blocks
    assert all(len({stop - start for start, stop in group}) == 1 for group in groups)
    assert len(list(alike(blocks[:1000]))) <= 1_000_500 // (1 << 14) + 3
    seen = reach = 0
    for group in groups:
        seen += sum(stop - start for start, stop in group)
        reach = max(reach, group[-1][1])
        assert reach - seen <= 1 << 20


def test_units_are_ranked_as_their_tokens_would_be():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (40,), generator=generator)
    units = torch.arange(40).repeat_interleave(sizes)
    scores = torch.randint(0, 4, (len(units),), generator=generator).float()  # with ties
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(len(units)) + (units >= 17)  # another document begins with unit 17
    joined = (torch.arange(40) != 17) & (torch.arange(40) != 0)
    for cut in (1, 7, 50, len(units)):
        found = UnitScores(starts, len(units))
        for start in range(0, len(units), 13):
            found.add(start, scores[start : start + 13])
        for share in (0.0, 0.3):
            expected = top_tokens(unit_significance(scores[None], units[None], places[None], share), cut)[0]
            best = best_units(significance_of(found.sums, sizes, joined, share), sizes, cut)
            assert tokens_of(starts[best], sizes[best], cut).tolist() == expected.tolist()


DOCUMENT = " ".join(f"w{i % 90}" for i in range(300))
OTHER = " ".join(f"w{(7 * i) % 90}" for i in range(130))
FIELDS = ("keys", "ids", "chunks", "units", "spans", "text")


def same(index, other):
    assert index.parts == other.parts
    assert index.frame == other.frame
    for name, tensor in index.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@pytest.fixture(scope="module")
def book(text_homer):
    return text_homer.read(DOCUMENT, name="book")


class TestText:
    def test_an_index_holds_every_token_its_text_and_its_places(self, book, words):
        assert len(book) == 300
        assert book.names == ("book",)
        assert book.ids.tolist() == words(DOCUMENT).input_ids
        assert book.text_of(book.parts[0]) == DOCUMENT
        assert [DOCUMENT[start:end] for start, end in book.spans.tolist()] == DOCUMENT.split()
        chunks = [*book.chunks.tolist(), 300]
        assert max(b - a for a, b in pairwise(chunks)) <= book.frame.chunk_len
        assert "300 tokens" in repr(book)

    def test_it_is_asked_like_a_document_and_tells_the_truth_about_what_it_read(self, text_homer, book):
        answer = text_homer.ask(book, "w1 w2", max_new_tokens=3)
        now = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=3)
        assert answer.source is book
        assert answer.prompt_len == now.prompt_len
        question = answer.context.suffix_len
        room = text_homer.lengths.max_chunk_len - len(book.frame.prefix) - question
        assert answer.tokens_read == max(room, 300 // SHARE) + question
        assert answer.tokens_kept == len(answer.context) <= 40
        with text_homer.ask_stream(book, "w1 w2", max_new_tokens=3) as stream:
            assert "".join(stream).strip() == answer.text
        assert text_homer.ask(book, "w70 w71 w72", max_new_tokens=1).context.token_indices.tolist() != (
            answer.context.token_indices.tolist()
        )

    def test_asked_for_reuse_a_document_answers_as_its_index_does(self, text_homer, book):
        first = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=4, reuse=True)
        assert isinstance(first.source, Index)
        assert first.tokens_read == first.prompt_len
        again = text_homer.ask(first.source, "w1 w2", max_new_tokens=4)
        assert again.token_ids == first.token_ids == text_homer.ask(book, "w1 w2", max_new_tokens=4).token_ids

    def test_passages_are_chosen_from_it(self, text_homer, book):
        found = text_homer.select(book, "w1 w2", tokens=60)
        assert (found.tokens, found.document_tokens) == (60, 300)
        assert 0 < found.tokens_read < 100
        assert all(DOCUMENT[one.start : one.end] == one.text and one.document is None for one in found.passages)
        kept = sum(len(one.text.split()) for one in found.passages)
        assert kept == 60
        everything = text_homer.select(book, "w1 w2", tokens=400)
        assert [one.text for one in everything.passages] == [DOCUMENT]

    def test_short_documents_come_whole_and_empty_ones_hold_nothing(self, text_homer):
        short = text_homer.read("w1 w2 w3")
        assert text_homer.ask(short, "w1", max_new_tokens=1).token_ids == (
            text_homer.ask("w1 w2 w3", "w1", max_new_tokens=1).token_ids
        )
        nothing = text_homer.read("")
        assert len(nothing) == 0
        assert text_homer.ask(nothing, "w1", max_new_tokens=2).token_ids == (
            text_homer.ask("", "w1", max_new_tokens=2).token_ids
        )
        assert text_homer.select(nothing, "w1", tokens=20).passages == ()

    @pytest.mark.parametrize(
        "changes", [{"unit": "neighbours"}, {"rerank": "never"}, {"rerank": "later", "chosen_by": "both"}], ids=str
    )
    def test_other_settings_ask_the_same_index(self, text_homer, book, changes):
        homer = Homer(text_homer.model, text_homer.tokenizer, HomerConfig(max_chunk_len=48, target_len=40, **changes))
        assert len(homer.ask(book, "w1 w2", max_new_tokens=1).context) <= 40
        assert torch.equal(homer.read(DOCUMENT, name="book").units, book.units)

    def test_a_long_text_is_tokenised_in_pieces(self, text_homer, words, monkeypatch):
        for text in (DOCUMENT, DOCUMENT.replace(" ", "\n"), DOCUMENT.replace(" ", "  ")):
            found = list(pieces(text, 200))
            assert len(found) > 3
            assert "".join(piece.text for piece in found) == text
            assert all(len(piece.text) <= 200 for piece in found)
            assert all(text[piece.start :].startswith(piece.text) for piece in found)
            assert [word for piece in found for word in piece.text.split()] == text.split()
            index = text_homer.read(text)
            assert index.ids.tolist() == words(text).input_ids
            assert [text[start:end] for start, end in index.spans.tolist()] == text.split()
        lines = f"{DOCUMENT[:180]}\n{DOCUMENT[180:]}"
        assert next(pieces(lines, 200)).text == DOCUMENT[:180]  # rather at a line's end than at the last space
        monkeypatch.setattr("homerlm.index.building.pieces", lambda *args: pieces(*args, 200))
        events = []
        index = text_homer.read(DOCUMENT, observer=events.append)
        assert index.ids.tolist() == words(DOCUMENT).input_ids
        assert index.text_of(index.parts[0]) == DOCUMENT
        assert [event.read for event in events] == sorted(event.read for event in events)
        assert events[-1].read == events[-1].total == 300

    def test_arguments_without_effect_or_sense_are_refused(self, text_homer, book):
        for name, value in (("instruction", "w1"), ("template_options", {"a": 1}), ("reuse", True)):
            with pytest.raises(InputError, match=f"{name} has no effect"):
                text_homer.ask(book, "w1", **{name: value})
        with pytest.raises(InputError, match="read already"):
            text_homer.read(book)
        with pytest.raises(InputError, match="document is int"):
            text_homer.read(3)
        with pytest.raises(InputError, match="index is str; it must be an Index"):
            text_homer.search("w1", torch.ones(1, 3, dtype=torch.long))
        with pytest.raises(ConfigError, match="paper's preset"):
            Homer(llama(), text_homer.tokenizer, HomerConfig.paper(score="logit")).read(DOCUMENT)
        ids = text_homer.index(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 200, dtype=torch.long))
        with pytest.raises(InputError, match="holds no text"):
            text_homer.select(ids, "w1", tokens=20)

    def test_the_template_is_that_of_the_index(self, text_homer):
        plain = text_homer.read(DOCUMENT, chat=False)
        assert plain.frame.prefix != text_homer.read(DOCUMENT).frame.prefix
        got = text_homer.ask(plain, "w1 w2", max_new_tokens=1).context
        asked = text_homer.ask(DOCUMENT, "w1 w2", chat=False, max_new_tokens=1).context
        assert got.suffix_len == asked.suffix_len
        assert torch.equal(got.input_ids[:, -got.suffix_len :], asked.input_ids[:, -got.suffix_len :])

    def test_reading_can_be_stopped(self, text_homer, tmp_path):
        cancel, events = threading.Event(), []

        def observe(event):
            events.append(event)
            if len(events) == 2:
                cancel.set()

        with pytest.raises(Cancelled):
            text_homer.read(DOCUMENT, path=tmp_path / "x", observer=observe, cancel=cancel)
        assert len(events) == 2
        assert not [*tmp_path.iterdir()]


class TestFile:
    @pytest.fixture
    def saved(self, book, tmp_path):
        book.save(tmp_path / "book.homer")
        return tmp_path / "book.homer"

    def load(self, path, homer):
        return Index.load(path, homer.model, homer.tokenizer)

    def test_comes_back_and_answers_the_same(self, text_homer, book, saved):
        loaded = self.load(saved, text_homer)
        same(book, loaded)
        answers = [text_homer.ask(index, "w1 w2", max_new_tokens=4) for index in (book, loaded, loaded)]
        assert len({answer.token_ids for answer in answers}) == 1
        loaded.forget()
        same(book, loaded)

    def test_written_while_read_it_is_the_same_file(self, text_homer, saved, tmp_path):
        index = text_homer.read(DOCUMENT, name="book", path=tmp_path / "other.homer")
        assert index.mapped is not None
        assert (tmp_path / "other.homer").read_bytes() == saved.read_bytes()
        assert {path.name for path in tmp_path.iterdir()} == {"book.homer", "other.homer"}

    def test_it_is_written_block_by_block_and_never_half_there(self, text_homer, saved, monkeypatch):
        """At every pause, and wherever the work is stopped, what was there before is there, and nothing else."""
        before = saved.read_bytes()
        whole = text_homer.read(OTHER, name="other")
        whole.save(saved.parent / "expected")
        expected = (saved.parent / "expected").read_bytes()
        (saved.parent / "expected").unlink()
        monkeypatch.setattr("homerlm.mapped.BLOCK_BYTES", 1 << 10)
        reading = [("other", OTHER)]

        def pauses():
            for event in text_homer.reading(reading, path=saved):
                if event.read == event.total:
                    yield

        count = 0
        for _ in pauses():
            count += 1
            assert saved.read_bytes() == before
        assert count > whole.keys.nbytes >> 10 > 15
        assert saved.read_bytes() == expected
        for stop in range(count):
            saved.write_bytes(before)
            steps = pauses()
            for _ in range(stop + 1):
                next(steps)
            steps.close()
            assert saved.read_bytes() == before
            assert [path.name for path in saved.parent.iterdir()] == [saved.name]

    def test_other_readers_of_safetensors_can_read_it(self, book, saved):
        from safetensors.torch import load_file

        tensors = load_file(saved)
        assert {*tensors} == {*FIELDS}
        assert torch.equal(tensors["keys"], book.keys)

    def test_another_model_tokenizer_dtype_or_kind_is_refused_by_name(self, text_homer, saved, tmp_path):
        from homerlm import CompactContext

        model, words = text_homer.model, text_homer.tokenizer
        for other, tokenizer, named in (
            (llama(seed=5), words, "belongs to another model, weights"),
            (llama().bfloat16(), words, r"was made in torch.float32, the model given runs in torch.bfloat16"),
            (model, tokenizer_of(VOCAB - 1), "was made with tokenizer"),
        ):
            with pytest.raises(MismatchError, match=named):
                Index.load(saved, other, tokenizer)
        with pytest.raises(MismatchError, match="holds an index, not a compact context"):
            CompactContext.load(saved, model)
        text_homer.ask(DOCUMENT, "w1", max_new_tokens=1).context.save(tmp_path / "c")
        with pytest.raises(MismatchError, match="holds a compact context, not an index"):
            Index.load(tmp_path / "c", model)
        with pytest.raises(MismatchError, match="belongs to another model"):
            Homer(llama(seed=5), words).ask(self.load(saved, text_homer), "w1")
        with pytest.raises(InputError, match="does not exist"):
            Index.load(tmp_path / "none", model)

    def test_damage_anywhere_is_found(self, text_homer, saved):
        whole = saved.read_bytes()
        rng = random.Random(0)
        for at in (4, 30, 2000, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(60))):
            changed = bytearray(whole)
            changed[at] ^= 1 << rng.randrange(8)
            saved.write_bytes(changed)
            with pytest.raises((CorruptFileError, MismatchError)):
                self.load(saved, text_homer)
        for length in (0, 5, 1000, len(whole) // 2, len(whole) - 1):
            saved.write_bytes(whole[:length])
            with pytest.raises(CorruptFileError):
                self.load(saved, text_homer)

    @pytest.mark.parametrize(
        ("name", "change", "named"),
        [
            ("chunks", lambda t: t.flip(0), "chunks are not ascending"),
            ("units", lambda t: t + 1000, "units are not ascending"),
            ("spans", lambda t: t[:-1], "spans"),
            ("keys", lambda t: t[:, :-1], "keys"),
            ("text", lambda t: t[:-1], "do not follow each other"),
            ("ids", lambda t: t.long(), "dtype"),
            ("ids", lambda t: t + 1000, "ids run from"),
            ("chunks", lambda t: t[:0], "0 chunks"),
        ],
    )
    def test_a_forged_file_with_a_right_digest_is_refused(self, text_homer, book, tmp_path, name, change, named):
        forged = replace(book, **{name: change(getattr(book, name)).contiguous()})
        forged.save(tmp_path / "f")
        with pytest.raises((CorruptFileError, MismatchError), match=named):
            self.load(tmp_path / "f", text_homer)

    def test_what_cannot_be_written_is_refused_before_reading(self, text_homer, tmp_path, monkeypatch):
        monkeypatch.setattr(text_homer.decoder, "embed", lambda *_a, **_k: pytest.fail("it was read"))
        with pytest.raises(InputError, match="folder"):
            text_homer.read(DOCUMENT, path=tmp_path / "none" / "x")
        with pytest.raises(InputError, match="is a folder"):
            text_homer.read(DOCUMENT, path=tmp_path)

    def test_a_failure_while_writing_keeps_what_was_there(self, text_homer, saved, monkeypatch):
        before = saved.read_bytes()

        def full(*_args):
            raise OSError(28, "No space left on device")

        for where in ("Spool.add", "Rows.of"):
            with monkeypatch.context() as patch:
                patch.setattr(f"homerlm.mapped.{where}", full)
                with pytest.raises((InputError, OSError), match="No space"):
                    text_homer.read(OTHER, path=saved)
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]


class TestCollection:
    def test_a_document_is_added_without_reading_the_others_again(self, text_homer, book):
        events = []
        both = text_homer.read(OTHER, name="other", into=book, observer=events.append)
        assert events[-1].total == 130
        assert (len(book), len(both)) == (300, 430)
        assert both.names == ("book", "other")
        alone = text_homer.read(OTHER)
        assert torch.equal(both.keys, torch.cat([book.keys, alone.keys]))
        assert both.chunks.tolist() == [*book.chunks.tolist(), *(300 + c for c in alone.chunks.tolist())]
        assert both.units.tolist() == [*book.units.tolist(), *(300 + u for u in alone.units.tolist())]
        assert [both.text_of(part) for part in both.parts] == [DOCUMENT, OTHER]
        same(both, text_homer.read_all([("book", DOCUMENT), ("other", OTHER)]))

    def test_in_a_file_too(self, text_homer, tmp_path):
        path = tmp_path / "all.homer"
        first = text_homer.read(DOCUMENT, name="book", path=path)
        both = text_homer.read(OTHER, name="other", into=first, path=path)
        same(both, text_homer.read_all([("book", DOCUMENT), ("other", OTHER)]))
        same(first, text_homer.read(DOCUMENT, name="book"))  # still there, though its file was replaced
        three = text_homer.read("w5 w6", into=both, path=path)
        assert three.names == ("book", "other", "document")

    def test_passages_name_their_document_and_never_cross_its_end(self, text_homer):
        texts = {f"d{i}": " ".join(f"w{(i * 11 + j * 7) % 90}" for j in range(17)) for i in range(12)}
        index = text_homer.read_all(texts.items())
        found = text_homer.select(index, "w1 w2", tokens=90)
        assert len({one.document for one in found.passages}) > 3
        for one in found.passages:
            assert texts[one.document][one.start : one.end] == one.text
        assert sum(len(one.text.split()) for one in found.passages) == 90
        assert found.to_dict()["passages"][0]["document"] in texts

    def test_neighbours_in_two_documents_are_not_one_sentence(self, text_homer, monkeypatch):
        index = text_homer.read_all([("a", "w1 w2 w3 " * 9), ("b", "w4 w5 w6 " * 9)])
        seen = []
        reranked = Ranking.reranked

        def watched(self, scores, ids, places):
            seen.extend(places.tolist())
            return reranked(self, scores, ids, places)

        monkeypatch.setattr(Ranking, "reranked", watched)
        text_homer.ask(index, "w1", max_new_tokens=1)
        assert {27, 29} <= set(seen)
        assert 28 not in seen  # between the first document's last token and the second's first one

    def test_short_documents_have_no_advantage(self, text_homer):
        """A chunk of three tokens alone would give each of them more attention than one of thirty could."""
        texts = [(f"d{i}", f"w{i} w{i + 1} w{i + 2}") for i in range(60)]
        index = text_homer.read_all(texts)
        assert len(index.chunks) == 60
        sizes = [stop - start for start, stop in index.blocks]
        assert sum(sizes) == 180
        assert min(sizes[:-1]) > index.frame.chunk_len - 3
        assert max(sizes) <= index.frame.chunk_len

    def test_what_was_made_otherwise_is_not_mixed(self, text_homer, book):
        for options in ({"instruction": "w1 w2"}, {"chat": False}):
            with pytest.raises(MismatchError, match="another instruction, or another chat template"):
                text_homer.read(OTHER, into=book, **options)
        longer = Homer(text_homer.model, text_homer.tokenizer, HomerConfig(max_chunk_len=60, target_len=40))
        with pytest.raises(MismatchError, match="chunk_len"):
            longer.read(OTHER, into=book)
        with pytest.raises(MismatchError, match="another model"):
            Homer(llama(seed=4), text_homer.tokenizer).read(OTHER, into=book)


class TestInt8:
    def test_keys_come_back_to_a_part_in_hundred_in_half_the_space(self, text_homer, book, tmp_path):
        small = text_homer.read(DOCUMENT, name="book", int8=True, path=tmp_path / "s")
        assert small.keys.dtype == torch.int8
        error = (small.keys_of(0, 300) - book.keys).abs().amax() / book.keys.abs().amax()
        assert 0 < error < 0.01
        assert small.tensors()["keys"].nbytes * 4 == book.keys.nbytes  # of float32
        answers = [text_homer.ask(index, "w1 w2", max_new_tokens=1).context.token_indices for index in (small, book)]
        left, right = ({*tokens[0].tolist()} for tokens in answers)
        assert len(left & right) > 0.9 * len(right)

    def test_what_is_added_is_int8_too(self, text_homer):
        small = text_homer.read(DOCUMENT, int8=True)
        both = text_homer.read(OTHER, into=small)
        assert both.keys.dtype == torch.int8
        assert len(both.scales) == 430


@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_every_familys_kept_keys_give_its_own_scores(family):
    """Sliding windows, sinks, soft caps, query norms: a question that stands behind the very chunk, in the stand-in's
    place, scores it exactly as one that was read with it."""
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    model = family.build()
    homer = Homer(model, None, HomerConfig(max_chunk_len=60, target_len=40))
    prefix, document, suffix, neutral = ids_of(1, P, 17, S, N)  # more than a window of 24 in all
    index = homer.index(prefix, document, neutral_ids=neutral)
    layers = index.frame.layout.scoring.layers
    with homer.decoder.session(), torch.no_grad():
        question = Question(prefix, document, suffix, neutral, S, document.shape[1])
        search = Search.of(homer.method, index, question)
        chunk = Chunk.of(prefix, document, suffix, neutral)
        scorer = Scorer(homer.decoder, SCORES["peak_softmax"], index.frame.layout.scoring, S, chunk)
        hidden = homer.decoder.embed(chunk.input_ids)
        for step in homer.decoder.steps(hidden, chunk.position_ids, 0, max(layers) + 1, finish=False, fork=chunk.fork):
            scorer(step.attended)
        torch.testing.assert_close(search.scores([(0, 17)])[0], scorer.total[0, P:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("with_neutral", [True, False])
def test_questions_that_run_together_ask_what_each_asks_alone(model, with_neutral):
    prefix, behind, neutral = ids_of(1, P, 17, N)
    suffixes = ids_of(2, 4, 1, 9)
    nothing = neutral if with_neutral else None
    questions = [Question(prefix, behind, suffix, nothing, min(3, suffix.shape[1]), 29) for suffix in suffixes]
    decoder, layers = homer_of(model).decoder, [0, 3, 7]
    with decoder.session(), torch.no_grad():
        together = list(ask_together(decoder, layers, questions))
        for question, found in zip(questions, zip(*together, strict=True), strict=True):
            for alone, beside in zip(question.ask(decoder, layers), found, strict=True):
                assert (beside.layer, beside.neutral is None) == (alone.layer, not with_neutral)
                torch.testing.assert_close(beside.prefix, alone.prefix)
                endings = [(beside.asked, alone.asked)] + [(beside.neutral, alone.neutral)] * with_neutral
                for mine, theirs in endings:
                    torch.testing.assert_close(mine.queries, theirs.queries, rtol=1e-3, atol=1e-5)
                    torch.testing.assert_close(mine.keys, theirs.keys, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc of Linux")
def test_what_was_read_of_a_file_is_given_back(book, tmp_path):
    many = replace(book, text=torch.zeros(1 << 26, dtype=torch.uint8))
    parts = (replace(book.parts[0], bytes=1 << 26),)
    replace(many, parts=parts).save(tmp_path / "big")
    window, _ = mapped.read(tmp_path / "big", kind=KIND, version=VERSION)
    before = psutil.Process().memory_info().rss
    window.tensors["text"][::1024].clone()  # every page, in little memory of its own
    assert psutil.Process().memory_info().rss - before > 1 << 25
    window.forget()
    assert psutil.Process().memory_info().rss - before < 1 << 24
    assert torch.equal(window.tensors["ids"], book.ids)


def test_threads_ask_and_read_at_once(text_homer, book, tmp_path):
    path = tmp_path / "b"
    book.save(path)
    loaded = Index.load(path, text_homer.model, text_homer.tokenizer)
    questions = ["w1 w2", "w50 w51", "w7 w8 w9"]
    alone = [text_homer.ask(book, question, max_new_tokens=3).token_ids for question in questions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            asked = [(i, pool.submit(text_homer.ask, loaded, questions[i], max_new_tokens=3)) for i in [0, 1, 2] * 4]
            read = [pool.submit(text_homer.read, DOCUMENT, name="book") for _ in range(3)]
            for i, job in asked:
                assert job.result().token_ids == alone[i]
            for job in read:
                same(job.result(), book)
    finally:
        sys.setswitchinterval(interval)


def test_what_a_long_reading_holds_does_not_grow_with_it(text_homer, tmp_path, monkeypatch):
    """Into a file, and asked from there: tensors alive at once, for two lengths."""
    monkeypatch.setattr("homerlm.index.building.pieces", lambda *args: pieces(*args, 3000))
    monkeypatch.setattr("homerlm.mapped.BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr("homerlm.index.scoring.GROUP_TOKENS", 200)
    monkeypatch.setattr("homerlm.index.shards.PART_TOKENS", 1000)
    monkeypatch.setattr("homerlm.select.document.BLOCK", 200)
    reading, asking = [], []
    for times in (10, 40):
        text, path = f"{DOCUMENT} " * times, tmp_path / "x"
        reading.append(peak_of_tensors(lambda text=text, path=path: text_homer.read(text, path=path)))
        index = Index.load(path, text_homer.model, text_homer.tokenizer)
        asking.append(peak_of_tensors(lambda index=index: text_homer.ask(index, "w1 w2", max_new_tokens=1)))
        assert len(index) == 300 * times
    more, rows = 30 * 300, index.keys[:1].nbytes
    assert reading[1] < reading[0] + 4 * more < reading[0] + more * rows / 30
    assert asking[1] < asking[0] + 16 * more


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path):
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "a.txt").write_text(DOCUMENT)
        (folder / "b.txt").write_text(OTHER)
        (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        return folder

    INDEX = ("-m", "MODEL", "--max-chunk-len", "64")
    ASK = ("-m", "MODEL", "--max-new-tokens", "4", "--max-chunk-len", "64", "--target-len", "50", "--pooling", "3")

    def test_indexes_a_folder_and_is_asked(self, run, files, tmp_path):
        path = tmp_path / "all.homer"
        code, out, err = run("index", files, "-o", path, *self.INDEX)
        assert (code, out) == (0, "")
        line = " ".join(err.split())
        assert "c.png" in line
        assert re.search(r"430 tokens read in [\d.]+ s .*all.homer holds 2 documents, 430 tokens, [\d.]+ kB", line)
        code, out, err = run("ask", "--context", path, "w1 w2", "--json", *self.ASK)
        record = json.loads(out)
        assert (code, err) == (0, "")
        assert record["tokens_read"] < 120 < 430 < record["prompt_len"]
        assert "asked of 430 indexed tokens" in " ".join(run("ask", "--context", path, "w1 w2", *self.ASK)[2].split())
        code, out, _ = run(
            "select", "--context", path, "w1 w2", "--tokens", "60", "--json", "-m", "MODEL", "--max-chunk-len", "64"
        )
        record = json.loads(out)
        assert (code, record["document"]) == (0, str(path))
        texts = {"a.txt": DOCUMENT, "b.txt": OTHER}
        assert all(texts[one["document"]][one["start"] : one["end"]] == one["text"] for one in record["passages"])
        _, out, _ = run("select", "--context", path, "w1 w2", "--tokens", "60", "-m", "MODEL", "--max-chunk-len", "64")
        assert re.match(r"[ab]\.txt \[\d+, \d+\)\n", out)

    def test_json_and_append(self, run, files, tmp_path):
        path = tmp_path / "all.homer"
        code, out, err = run("index", files / "a.txt", "-o", path, "--json", *self.INDEX)
        record = json.loads(out)
        assert (code, err) == (0, "")
        assert [*record] == ["index", "documents", "tokens", "tokens_read", "seconds", "bytes", "skipped"]
        assert (record["documents"], record["tokens"], record["bytes"]) == (["a.txt"], 300, path.stat().st_size)
        record = json.loads(run("index", files / "b.txt", "-o", path, "--append", "--json", *self.INDEX)[1])
        assert (record["documents"], record["tokens"], record["tokens_read"]) == (["a.txt", "b.txt"], 430, 130)

    def test_a_text_that_is_there_is_not_added_again(self, run, files, tmp_path):
        path = tmp_path / "all.homer"
        run("index", files / "a.txt", "-o", path, "--json", *self.INDEX)
        again = tmp_path / "again.txt"
        again.write_text((files / "a.txt").read_text())
        code, out, _ = run("index", again, files / "b.txt", "-o", path, "--append", "--json", *self.INDEX)
        record = json.loads(out)
        assert (code, record["documents"], record["tokens_read"]) == (0, ["a.txt", "b.txt"], 130)
        assert record["skipped"] == [f"{again}: its text is in the index already, as a.txt"]
        code, out, _ = run("index", again, "-o", path, "--append", "--json", *self.INDEX)
        assert (code, json.loads(out)["documents"], json.loads(out)["tokens_read"]) == (0, ["a.txt", "b.txt"], 0)

    def test_a_compressed_document_is_still_asked(self, run, tmp_path, model_folder):
        model, words = load_model(str(model_folder))
        homer = Homer(model, words, HomerConfig(max_chunk_len=64, target_len=50, pooling=3))
        context = homer.ask(DOCUMENT, "w1 w2", max_new_tokens=1).context
        context.save(tmp_path / "c")
        code, _, err = run("ask", "--context", tmp_path / "c", "w1 w2", *self.ASK)
        assert code == 0
        assert f"asked of {len(context)} kept tokens (of {context.prompt_len})" in " ".join(err.split())
        code, _, err = run("select", "--context", tmp_path / "c", "w1 w2", "-m", "MODEL", "--tokens", "40")
        assert (code, "holds no text" in " ".join(err.split())) == (1, True)

    def test_what_cannot_be_is_refused(self, run, files, tmp_path):
        path, text = tmp_path / "all.homer", files / "a.txt"
        for given, named in (
            ((text, "-o", path, "--append"), "does not exist"),
            ((text, "-o", text), "is an input"),
            ((tmp_path / "none", "-o", path), "does not exist"),
            ((text, "-o", tmp_path / "no" / "x"), "does not exist"),
            ((text, "-o", path, "--target-len", "40"), "--target-len"),
            ((text, "-o", path, "--preset", "paper"), "paper's preset"),
            ((files / "c.png", "-o", path), "image"),
            ((text,), "--output"),
        ):
            code, _, err = run("index", *given, *self.INDEX)
            assert code in (1, 2)
            assert named in " ".join(err.split())
            assert not path.exists()
        assert run("index", text, "-o", path, *self.INDEX)[0] == 0
        code, _, err = run("index", text, "-o", path, *self.INDEX)
        assert code == 2
        assert "--append to add to it, or --force to replace it" in " ".join(err.split())
        assert run("index", text, "-o", path, "--force", *self.INDEX)[0] == 0
        code, _, err = run("index", text, "-o", path, "--append", "--int8", *self.INDEX)
        assert (code, "--int8" in err) == (2, True)
        code, _, err = run("ask", "--context", path, "w1", "--html", tmp_path / "p.html", *self.ASK)
        assert (code, "--html" in err) == (2, True)
