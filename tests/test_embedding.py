"""Sentence embeddings: the mean of the model's own hidden states, by which an index finds them too."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from homerlm import Homer, HomerConfig, Index
from homerlm.errors import CorruptFileError, MismatchError
from homerlm.executor import LoadedModel
from homerlm.index import shards
from homerlm.index.asking import Search
from homerlm.index.joined import join
from homerlm.index.narrowed import narrowed
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity
from homerlm.passes import run_steps
from homerlm.profiling.choice import Found, choose_depth
from homerlm.profiling.measure import Bench
from homerlm.profiling.probes import probes
from homerlm.prompt import PromptIds
from homerlm.scale.devices import Devices
from homerlm.score.embedding import Embedding, UnitMeans, own_tokens, unit_sums
from homerlm.score.heads import Early, Head
from homerlm.score.neighbours import better_of, by_both_ranks
from homerlm.score.profile import Profile
from homerlm.select.reading import ChunkScores, Reading, Scored
from tiny import HIDDEN, llama

SIZES = {"max_chunk_len": 60, "target_len": 40, "pooling": 3, "recap_len": 0}
HEADS = (Head(2, 1), Head(4, 0))
USUAL = tuple(float(n % 5) / 8 for n in range(HIDDEN))
DEPTHS = [0, 2, 4, 5, 8]  # below the last head, at its layer, above it


@pytest.fixture(scope="module")
def model():
    model = llama(attn_implementation="eager")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 60  # heads that tell tokens apart
    return model


def profile_of(model, depth, usual=USUAL):
    embedding = None if depth is None else Embedding(depth, 7, usual)
    given = dict.fromkeys(("reading_embedding", "indexing_embedding"), embedding)
    return Profile(HEADS, HEADS, HEADS, 0.1, ModelIdentity.of(model), **given)


def homer_of(model, words, depth, **changes):
    return Homer(model, words, HomerConfig(**(SIZES | {"profile": profile_of(model, depth)} | changes)))


def states_of(model, ids, depth):
    """(S, E), by the model's own forward."""
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[depth][0]
    return hidden / hidden.pow(2).mean(-1, keepdim=True).sqrt()


def text_of(words, seed=0):
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(85)}" for _ in range(words))


def literal_embeddings(model, index, depth):
    """(U, E) of the units, from the states of each chunk behind the prefix."""
    prefix = torch.tensor([index.frame.prefix])
    starts = [*index.chunks.tolist(), len(index)]
    states = []
    for start, stop in pairwise(starts):
        ids = torch.cat([prefix, index.ids[start:stop][None].long()], 1)
        states.append(states_of(model, ids, depth)[prefix.shape[1] :])
    states = torch.cat(states)
    units = [*index.units.tolist(), len(index)]
    return torch.stack([states[start:stop].mean(0) for start, stop in pairwise(units)])


class TestQuestion:
    @pytest.mark.parametrize(
        ("suffix", "neutral", "own"),
        [
            ([1, 2, 3, 4, 9], [1, 7, 9], [2, 3, 4]),
            ([1, 2, 3], None, [1, 2, 3]),
            ([1, 2, 3], [1, 2, 3], [1, 2, 3]),
            ([1, 2], [1, 5, 6, 2], [1, 2]),  # nothing of its own is left
            ([5, 5, 5, 1], [5, 5, 1], [5]),
            ([4, 1], [7, 1], [4]),
        ],
    )
    def test_its_own_tokens_are_those_that_the_neutral_one_lacks(self, suffix, neutral, own):
        assert own_tokens(suffix, neutral) == own

    @pytest.mark.parametrize("depth", DEPTHS)
    def test_its_direction_is_the_mean_of_its_states_less_the_usual(self, model, depth):
        decoder = Decoder(model)
        with torch.no_grad(), decoder.session():
            got = Embedding(depth, 7, USUAL).direction(decoder, [3, 9, 11])
        expected = states_of(model, torch.tensor([[7, 3, 9, 11]]), depth)[1:].mean(0) - torch.tensor(USUAL)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_it_comes_back_from_json(self):
        embedding = Embedding(6, 1, USUAL)
        assert Embedding.from_json(embedding.to_json()) == embedding

    @pytest.mark.parametrize("changes", [{"depth": "x"}, {"usual": "%"}, {"usual": None}])
    def test_what_is_none_is_refused(self, changes):
        with pytest.raises(CorruptFileError, match="it must have depth, first and usual"):
            Embedding.from_json(Embedding(6, 1, USUAL).to_json() | changes)
        with pytest.raises(CorruptFileError):
            Embedding.from_json([])


def test_means_of_units_that_come_in_parts_are_those_of_the_whole():
    draw, generator = random.Random(3), torch.Generator().manual_seed(3)
    for _ in range(50):
        sizes = torch.tensor([draw.randint(1, 9) for _ in range(draw.randint(1, 12))])
        tokens = int(sizes.sum())
        states = torch.randn(tokens, 4, generator=generator)
        units = torch.arange(len(sizes)).repeat_interleave(sizes)
        means, got, start = UnitMeans(sizes), [], 0
        while start < tokens:
            stop = min(start + draw.randint(1, 15), tokens)
            got.append(means.add(unit_sums(states[start:stop], units[start:stop] - units[start]), stop - start))
            start = stop
        expected = torch.stack([part.mean(0) for part in states.split(sizes.tolist())])
        torch.testing.assert_close(torch.cat(got), expected)


class TestReading:
    """Of a document that is read with its question."""

    @staticmethod
    def ids_of(words, rows=1, seed=0):
        context = torch.tensor([words(text_of(300, seed + row)).input_ids for row in range(rows)])
        asked = torch.tensor([words(f"w1 w{2 + row} w3").input_ids for row in range(rows)])
        return PromptIds(context[:, :4], context, asked, torch.tensor([words("w1 w9").input_ids] * rows))

    @staticmethod
    @torch.no_grad()
    def scored(homer, ids):
        method = homer.method
        with homer.decoder.session():
            reading = Reading.on(homer.decoder, method.plan(*ids.lengths), ids, method.ranking)
            return reading, Scored.joined([found for _, found in reading.chunks()])

    @pytest.mark.parametrize("depth", DEPTHS)
    @pytest.mark.parametrize(("batch", "rows"), [(1, 1), (3, 1), (2, 2)])
    def test_it_knows_how_close_each_token_is_and_scores_as_without(self, model, words, depth, batch, rows):
        ids = self.ids_of(words, rows)
        homer = homer_of(model, words, depth, chunk_batch=batch)
        reading, found = self.scored(homer, ids)
        assert len(reading.plan.spans) > 4
        for row in range(rows):
            direction = states_of(model, torch.tensor([[7, *words(f"w{2 + row} w3").input_ids]]), depth)[1:].mean(0)
            direction = direction - torch.tensor(USUAL)
            expected = []
            for start, stop in reading.plan.spans:
                chunk = torch.cat([ids.prefix[row], ids.context[row, start:stop]])[None]
                expected.append(states_of(model, chunk, depth)[4:] @ direction)
            torch.testing.assert_close(found.closeness[row], torch.cat(expected), rtol=1e-3, atol=1e-3)
        without = self.scored(homer_of(model, words, None, chunk_batch=batch), ids)[1]
        assert without.closeness is None
        torch.testing.assert_close(found.scores, without.scores)

    def test_candidates_are_the_best_by_both_ranks(self, model, words):
        """By a literal ranking of the sentences of several texts."""
        homer, everywhere = homer_of(model, words, 4, neighbour_share=0.0), torch.arange(300)[None]
        differ = 0
        for seed in range(8):
            ids = self.ids_of(words, seed=seed)
            _, found = self.scored(homer, ids)
            units = homer.method.sentences.units(ids.context, everywhere)[0].tolist()
            groups = [[n for n in range(300) if units[n] == unit] for unit in sorted(set(units))]

            def shares(values, power, groups=groups):
                scores = [sum(values[n] for n in group) / len(group) ** power for group in groups]
                sized = list(zip(scores, map(len, groups), strict=True))
                return [(sum(more for score, more in sized if score > own) + size / 2) / 300 for own, size in sized]

            by_heads, about = shares(found.scores[0].tolist(), 0.5), shares(found.closeness[0].tolist(), 1)
            best = sorted(range(len(groups)), key=lambda unit: by_heads[unit] * about[unit] ** 0.5)
            expected = [n for unit in best for n in groups[unit]][:120]
            ranking = homer.method.ranking
            got = ranking.candidates(found.scores, ids.context, everywhere, 120, found.closeness)[0].tolist()
            assert got == sorted(expected)
            differ += got != ranking.candidates(found.scores, ids.context, everywhere, 120)[0].tolist()
        assert differ

    def test_rows_of_a_batch_and_copies_of_the_model_find_what_each_document_does_alone(self, model, words):
        ids = self.ids_of(words, 2)
        homer = homer_of(model, words, 4)
        copies = Devices([LoadedModel.of(model, words) for _ in range(2)])
        spread = Homer(model, words, homer.config, copies)
        parts = ids.prefix, ids.context, ids.suffix
        for row in range(2):
            alone = homer.compress(*(part[row : row + 1] for part in parts), neutral_ids=ids.neutral[row : row + 1])
            for one in (homer, spread):
                both = one.compress(*parts, neutral_ids=ids.neutral)
                kept = both.token_indices[row][both.token_indices[row] >= 0]
                assert kept.tolist()[: len(alone)] == alone.token_indices[0].tolist()
        copies.close()

    def test_the_plan_says_which_layers_run_for_it(self, model, words):
        def chunk(depth):
            plan = homer_of(model, words, depth).plan(4, 300, 3, 2)
            return next(run for run in plan.passes if run.kind == "chunk"), str(plan)

        assert [(chunk(depth)[0].last_layer, chunk(depth)[0].finish) for depth in (None, 2, 5, 8)] == [
            (5, False),
            (5, False),
            (5, True),
            (8, True),
        ]
        assert "sentences also by what they are about, after 8 layers" in chunk(8)[1]
        assert "about" not in chunk(None)[1]

    @pytest.mark.parametrize(
        "changes", [{"embeddings": "never"}, {"unit": "neighbours"}, {"chosen_by": "surprisal"}, {"chosen_by": "both"}]
    )
    def test_settings_without_a_use_for_them_leave_them_out(self, model, words, changes):
        assert homer_of(model, words, 4, **changes).plan(4, 300, 3, 2).embedding is None

    def test_it_needs_sentences_layers_and_all_of_a_chunk(self, model, words):
        assert homer_of(model, words, 11).plan(4, 300, 3, 2).embedding is None
        assert homer_of(model, words, 4).plan(4, 30, 3, 2).embedding is None  # one candidate as it is
        early = replace(profile_of(model, 4), early=Early((Head(1, 2),), 0.5, 0.0))
        dropping = homer_of(model, words, 4, profile=early, early_drop="profile")
        assert dropping.plan(4, 300, 3, 2).embedding is None
        ids = self.ids_of(words)
        assert self.scored(Homer(model, None, homer_of(model, words, 4).config), ids)[1].closeness is None

    def test_work_for_others_says_no_more_than_it_needs(self, model, words):
        reading, _ = self.scored(homer_of(model, words, 4), self.ids_of(words))
        work = ChunkScores.of(reading)
        assert work.plan.embedding is None
        assert work.directions.vectors.shape == (1, HIDDEN)


class TestIndex:
    @pytest.mark.parametrize("depth", DEPTHS)
    @pytest.mark.parametrize("batch", [1, 3])
    def test_it_keeps_the_mean_of_each_units_states(self, model, words, depth, batch, tmp_path):
        homer = homer_of(model, words, depth, chunk_batch=batch)
        index = homer.read_all([("a", text_of(300)), ("b", text_of(7)), ("c", text_of(130, 1))])
        assert 5 < len(index.units) < len(index.chunks) * 2
        expected = literal_embeddings(model, index, depth)
        torch.testing.assert_close(index.embeddings.float(), expected, rtol=2e-3, atol=2e-3)
        whole = homer.read_all([("a", text_of(300))], path=tmp_path / "i")
        homer.read_all([("b", text_of(7)), ("c", text_of(130, 1))], into=whole, path=tmp_path / "i")
        found = Index.load(tmp_path / "i", model, words)
        assert torch.equal(found.embeddings, index.embeddings)
        assert torch.equal(found.keys, index.keys)

    def test_keys_are_as_without(self, model, words):
        with_them, without = (homer_of(model, words, depth).read(text_of(300)) for depth in (8, None))
        assert torch.equal(with_them.keys, without.keys)
        assert without.embeddings is None

    @pytest.mark.parametrize("int8", [False, True])
    def test_a_unit_that_is_close_becomes_a_candidate_whatever_the_heads_say(self, model, words, int8):
        """Asked for in the direction of each unit in turn."""
        homer = homer_of(model, words, 4)
        index = homer.read(text_of(600), int8=int8)
        embeddings = index.embeddings.float()
        question = torch.tensor([words("w1 w2 w3").input_ids])
        mean = embeddings.mean(0)
        for unit in range(len(embeddings)):
            (own,) = _directions(homer, question)
            usual = own - (embeddings[unit] - mean) * 10
            usual = tuple((usual + torch.tensor(USUAL)).half().tolist())
            other = replace(index, frame=replace(index.frame, embedding=Embedding(4, 7, usual)))
            found = _search(homer, other, question)
            inside = (found >= int(index.units[unit])) & (found < int([*index.units.tolist(), len(index)][unit + 1]))
            assert int(inside.sum()) >= 20, unit  # the last unit that has room is cut

    @pytest.mark.parametrize("part", [1 << 18, 90])
    def test_workers_find_what_one_index_of_all_documents_gives(self, model, words, tmp_path, part, monkeypatch):
        monkeypatch.setattr(shards, "PART_TOKENS", part)
        monkeypatch.setattr(shards, "UNIT_BLOCK", 2)
        texts = [(f"d{n}", text_of((3, 7, 20, 150)[n % 4], n)) for n in range(40)]
        alone = homer_of(model, words, 4)
        whole = alone.read_all(texts)
        for number in range(10):
            alone.read_all(texts[4 * number : 4 * number + 4], path=tmp_path / f"{number}")
        joined = join([Index.load(tmp_path / f"{number}", model, words) for number in range(10)])
        assert torch.equal(joined.embeddings[0 : len(whole.units)], whole.embeddings)
        copies = Devices([LoadedModel.of(model, words) for _ in range(2)])
        spread = Homer(model, words, alone.config, copies)
        never = homer_of(model, words, 4, embeddings="never")
        differ = 0
        for question in ("w1 w2", "w50 w51 w7", "w84"):
            expected = _places(alone, whole, question)
            assert _places(spread, joined, question) == expected
            assert _places(alone, joined, question) == expected
            differ += _places(never, whole, question) != expected
        copies.close()
        assert differ

    def test_what_is_left_of_a_document_keeps_its_units_embeddings(self, model, words):
        index = homer_of(model, words, 4).read(text_of(400))
        spans = [(0, 30), (500, 560), (1400, 1410)]
        part = narrowed(index, spans)
        tokens = [
            n for n, (a, b) in enumerate(index.spans.tolist()) if any(a < end and b > start for start, end in spans)
        ]
        units = sorted({int(torch.searchsorted(index.units, n, right=True)) - 1 for n in tokens})
        assert torch.equal(part.embeddings, index.embeddings[units])
        assert len(part.embeddings) == len(part.units)

    def test_one_without_them_is_asked_and_takes_no_others(self, model, words, tmp_path):
        former = homer_of(model, words, None)
        former.read(text_of(300), path=tmp_path / "i")
        homer = homer_of(model, words, 4)
        index = Index.load(tmp_path / "i", model, words)
        assert _places(homer, index, "w1 w2") == _places(former, index, "w1 w2")
        with pytest.raises(MismatchError, match="made with embedding None"):
            homer.read_all([("b", text_of(30))], into=index)

    def test_a_profile_of_more_layers_than_there_are_makes_none(self, model, words):
        assert homer_of(model, words, 11).read(text_of(300)).embeddings is None

    def test_settings_without_a_use_for_them_make_none(self, model, words):
        for changes in ({"embeddings": "never"}, {"unit": "neighbours"}):
            index = homer_of(model, words, 4, **changes).read(text_of(300))
            assert index.embeddings is None
            assert "embeddings" not in index.tensors()

    def test_a_file_with_as_many_as_it_has_units_is_read_only(self, model, words, tmp_path):
        index = homer_of(model, words, 4).read(text_of(300))
        for wrong in (index.embeddings[1:], index.embeddings[:, 1:], index.embeddings.float()):
            replace(index, embeddings=wrong).save(tmp_path / "i")
            with pytest.raises((CorruptFileError, MismatchError), match="embeddings"):
                Index.load(tmp_path / "i", model, words)


@torch.no_grad()
def _directions(homer, suffix):
    with homer.decoder.session():
        return [homer.config.profile.indexing_embedding.direction(homer.decoder, row) for row in suffix.tolist()]


@torch.no_grad()
def _search(homer, index, suffix):
    """The candidates, as many as in two units."""
    with homer.decoder.session():
        question = index.frame.question(suffix, None, suffix.shape[1])
        return run_steps(Search.of(homer.method, index, question).candidates(128))


def _places(homer, index, question):
    return homer.ask(index, question, max_new_tokens=2).context.token_indices.tolist()


class TestProfile:
    def test_a_bench_sees_how_close_units_are_after_each_number_of_layers(self, model, words):
        bench = Bench(Decoder(model), words)
        assert list(bench.depths) == list(range(10))
        (probe,) = probes(600, 1, 3)
        probe = replace(probe, text="w1 w2 w3 w4", question="w9", spans=[(0, 5)])
        (posed,) = bench.pose([(probe, False)])
        row = bench.row(posed)
        assert row.closeness.shape == (10, len(row.sizes))

    @pytest.mark.parametrize("joined", [better_of, by_both_ranks])
    def test_embeddings_are_taken_where_they_find_what_heads_do_not(self, joined):
        """Of 24 texts the heads find the fact in 18; embeddings find another part of the facts at each depth."""
        generator = torch.Generator().manual_seed(1)
        texts, units = 24, 50
        asked = torch.zeros(texts, units, dtype=torch.bool)
        asked[:, 20] = True
        sizes = torch.full((texts, units), 20.0)
        keys, about = torch.rand(texts, 1, units, generator=generator), torch.rand(texts, 4, units, generator=generator)
        keys[:18, 0, 20], keys[18:, 0, 20] = 2.0, -1.0
        heads = Found(keys, sizes, asked, torch.tensor([9]))

        def chosen(found_at, layers=30, head=3):
            close = about.clone()
            close[:, :, 20] = -1.0
            for depth, count in found_at.items():
                close[18 : 18 + count, depth, 20] = 2.0
            found = Found(close, sizes, asked, torch.arange(4) * 4)
            taken = choose_depth(found, replace(heads, layers=torch.tensor([head])), [Head(head, 0)], layers, joined)
            return taken and taken[0]

        assert chosen({}) is None
        assert chosen({2: 6}) == 2
        assert chosen({1: 6, 2: 6, 3: 6}) == 1  # layers that would not run have their price
        assert chosen({1: 6, 2: 6, 3: 6}, head=29) == 3  # of those that run anyway the last
        assert chosen({1: 6, 2: 3, 3: 1}, head=29) == 1  # that is about as good


def test_a_profile_keeps_them(model, tmp_path):
    both = replace(profile_of(model, 4), reading_embedding=Embedding(2, 7, USUAL))
    both.save(tmp_path / "p")
    found = Profile.load(tmp_path / "p")
    assert (found.reading_embedding, found.indexing_embedding) == (Embedding(2, 7, USUAL), Embedding(4, 7, USUAL))
    profile_of(model, None).save(tmp_path / "p")
    found = Profile.load(tmp_path / "p")
    assert found.reading_embedding is None
    assert found.indexing_embedding is None
