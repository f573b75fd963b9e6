"""Scores by few heads, above a neutral question, in whole sentences; and the profile that names the heads."""

import json
from dataclasses import replace

import pytest
import torch

import families
from homerlm import Homer, HomerConfig
from homerlm.errors import ConfigError, CorruptFileError, InputError, MismatchError
from homerlm.model.attention import Fork
from homerlm.model.decoder import Decoder
from homerlm.model.identity import ModelIdentity
from homerlm.profiling.choice import Found, choose, loss
from homerlm.profiling.measure import measure, measuring
from homerlm.profiling.probes import RECORDS, kinds, probes, sources
from homerlm.prompt import PromptIds
from homerlm.score.heads import Early, Head, Scoring
from homerlm.score.neighbours import unit_significance
from homerlm.score.profile import Profile
from homerlm.score.scores import LEAST_SHARE, NEUTRAL_WEIGHT
from homerlm.score.sentences import LONGEST_UNIT, Sentences
from homerlm.select.reading import Reading
from tiny import VOCAB, llama, prompt
from words import tokenizer_of

P, S, N = 4, 5, 3
SIZES = {"max_chunk_len": 60, "target_len": 40, "recap_len": 0}


@pytest.fixture(scope="module")
def model():
    return llama(attn_implementation="eager")


def profile_of(model, reading, reranking=None):
    return Profile(reading, reranking or reading, reading, 0.01, ModelIdentity.of(model))


class TestEndings:
    @pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
    def test_each_ending_runs_as_if_it_were_alone(self, family):
        if not family.available():
            pytest.skip(f"this transformers has no {family.name} that runs")
        decoder = Decoder(family.build())
        prefix, context, suffix = prompt(context=40)
        endings = [suffix, prompt(suffix=N, seed=3)[2], prompt(suffix=1, seed=4)[2], prompt(suffix=7, seed=5)[2]]
        common, sizes = torch.cat([prefix, context], dim=1), [ending.shape[1] for ending in endings]
        n, layers = common.shape[1], len(decoder.layers)

        def run(ids, positions, fork=None):
            with torch.no_grad(), decoder.session():
                steps = decoder.steps(decoder.embed(ids), positions[None], 0, layers, fork=fork)
                return [step.hidden for step in steps][-1]

        places = torch.cat([torch.arange(n), *(torch.arange(n, n + size) for size in sizes)])
        forked = run(torch.cat([common, *endings], dim=1), places, Fork.of(n, sizes))
        for ending, own in zip(endings, forked[:, n:].split(sizes, dim=1), strict=True):
            ids = torch.cat([common, ending], dim=1)
            alone = run(ids, torch.arange(ids.shape[1]))
            torch.testing.assert_close(torch.cat([forked[:, :n], own], 1), alone, rtol=1e-3, atol=1e-4)


class TestScores:
    @pytest.mark.parametrize("heads", [(Head(2, 1),), (Head(1, 0, 2.0), Head(1, 3), Head(4, 2, 0.5))])
    def test_are_the_heads_weights_above_the_neutral_questions(self, model, heads):
        """By the model's own attention weights, on two plain forwards."""
        prefix, context, suffix = prompt(context=40)
        neutral = prompt(suffix=N, seed=3)[2]
        homer = Homer(model, None, HomerConfig(**SIZES, profile=profile_of(model, heads)))
        ids = PromptIds(prefix, context, suffix, neutral)
        reading = Reading(homer.decoder, homer.method.plan(*ids.lengths), ids, homer.method.ranking)
        with torch.no_grad(), homer.decoder.session():
            got = reading.score(context, Scoring.by_heads(heads, range(10)))

        def peaks(ending, head):
            with torch.no_grad():
                weights = model(torch.cat([prefix, context, ending], 1), output_attentions=True).attentions
            return weights[head.layer][:, head.index, P + 40 :, P : P + 40].amax(1)

        expected = torch.zeros(1, 40)
        for head in heads:
            asked, usual = peaks(suffix, head), peaks(neutral, head)
            expected += head.weight * torch.maximum(asked - NEUTRAL_WEIGHT * usual, LEAST_SHARE * asked)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)

    def test_chunks_run_to_the_last_reading_head_and_candidates_to_the_last_of_theirs(self, model):
        config = HomerConfig(**SIZES, profile=profile_of(model, (Head(1, 0),), (Head(3, 1),)))
        passes = Homer(model, None, config).plan(P, 300, S, N).passes
        assert {(run.kind, run.last_layer) for run in passes} == {("chunk", 2), ("rerank", 4), ("read", 10)}
        assert {run.tokens for run in passes if run.kind == "chunk"} == {P + 50 + S + N}

    def test_heads_that_do_not_see_the_whole_chunk_never_score(self):
        family = next(f for f in families.SUPPORTED if f.name == "gemma3")
        model = family.build()
        windows = Decoder(model).shape.windows
        blind = next(i for i, window in enumerate(windows) if window is not None)
        seeing = next(i for i, window in enumerate(windows) if window is None)
        config = HomerConfig(**SIZES, profile=profile_of(model, (Head(blind, 0), Head(seeing, 0))))
        assert Homer(model, None, config).plan(P, 300, S).reading.layers == (seeing,)

    def test_a_profile_at_chance_gives_way_to_the_middle(self, model):
        weak = Profile((Head(1, 0),), (Head(1, 0),), (Head(1, 0),), 0.5, ModelIdentity.of(model))
        plan = Homer(model, None, HomerConfig(**SIZES, profile=weak)).plan(P, 300, S)
        middle = Homer(model, None, HomerConfig(**SIZES, scoring_layers="middle")).plan(P, 300, S)
        assert plan.reading == middle.reading == Scoring((5,))

    def test_rows_of_a_batch_get_what_each_gets_alone(self, model):
        config = HomerConfig(**SIZES, chunk_batch=3, profile=profile_of(model, (Head(2, 1), Head(3, 0))))
        homer, ids = Homer(model, None, config), prompt(context=300, batch=3)
        neutral = prompt(suffix=N, seed=3, batch=3)[2]
        together = homer.compress(*ids, neutral_ids=neutral)
        for row in range(3):
            alone = homer.compress(*(part[row, None] for part in ids), neutral_ids=neutral[row, None])
            assert together.row(row).token_indices.tolist() == alone.token_indices.tolist()

    def test_asked_later_the_neutral_question_counts_as_at_once(self, model):
        settings = SIZES | {"profile": profile_of(model, (Head(2, 1), Head(3, 0)))}
        ids, neutral = prompt(context=300), prompt(suffix=N, seed=3)[2]
        now = Homer(model, None, HomerConfig(**settings)).compress(*ids, neutral_ids=neutral)
        homer = Homer(model, None, HomerConfig(**settings, rerank="later"))
        later = homer.focus(homer.compress(*ids, neutral_ids=neutral), ids[2], neutral)
        assert torch.equal(later.token_indices, now.token_indices)


class TestEarlyDropping:
    READING = (Head(1, 0), Head(3, 1))

    def homer(self, model, share, **settings):
        profile = replace(profile_of(model, self.READING), early=Early((Head(2, 2),), share, 0.0))
        return Homer(model, None, HomerConfig(**SIZES, profile=profile, early_drop="profile", **settings))

    def scores(self, homer, ids):
        plan = homer.plan(*ids.lengths)
        reading = Reading(homer.decoder, plan, ids, homer.method.ranking)
        with homer.decoder.session(), torch.no_grad():
            whole = reading.score(ids.context[:, :40], plan.reading)
            return whole, reading.score_with_fewer(ids.context[:, :40], plan.reading, plan.early)

    @pytest.mark.parametrize("rows", [1, 2])
    def test_where_all_go_on_scores_are_those_without_it(self, model, rows):
        ids = PromptIds(*prompt(context=300, batch=rows), prompt(suffix=N, seed=3, batch=rows)[2])
        whole, fewer = self.scores(self.homer(model, 1.0), ids)
        torch.testing.assert_close(fewer, whole, rtol=1e-4, atol=1e-6)

    def test_what_leaves_early_has_the_scores_of_the_lower_layers_alone(self, model):
        ids = PromptIds(*prompt(context=300), prompt(suffix=N, seed=3)[2])
        _, fewer = self.scores(self.homer(model, 0.3), ids)
        lower = Homer(model, None, HomerConfig(**SIZES, profile=profile_of(model, self.READING[:1])))
        plan = lower.plan(*ids.lengths)
        with lower.decoder.session(), torch.no_grad():
            below = Reading(lower.decoder, plan, ids, lower.method.ranking).score(ids.context[:, :40], plan.reading)
        equal = (fewer - below).abs() < 1e-6
        assert int((~equal).sum()) == 12  # 0.3 of 40

    def test_the_plan_has_fewer_tokens_above_the_early_layer(self, model):
        passes = [run for run in self.homer(model, 0.3).plan(P, 300, S, N).passes if run.kind == "chunk"]
        assert {(run.first_layer, run.last_layer, run.tokens) for run in passes} == {
            (0, 3, P + 50 + S + N),
            (3, 4, P + 15 + S + N),
        }

    def test_it_is_off_unless_asked_for_and_where_no_reading_head_is_above(self, model):
        profile = replace(profile_of(model, self.READING), early=Early((Head(2, 2),), 0.3, 0.0))
        assert Homer(model, None, HomerConfig(**SIZES, profile=profile)).plan(P, 300, S).early is None
        above = replace(profile, early=Early((Head(3, 0),), 0.3, 0.0))
        asked = HomerConfig(**SIZES, profile=above, early_drop="profile")
        assert Homer(model, None, asked).plan(P, 300, S).early is None

    def test_a_profile_tells_of_it_and_comes_back_from_its_file(self, model, tmp_path):
        profile = replace(profile_of(model, self.READING), early=Early((Head(2, 2, 3.0),), 0.3, 0.01))
        profile.save(tmp_path / "p.json")
        assert Profile.load(tmp_path / "p.json").early == profile.early


class TestUnits:
    def test_a_sentence_counts_by_its_sum_over_the_root_of_its_length(self):
        scores, units = torch.tensor([[1.0, 0.0, 0.0, 2.0, 3.0]]), torch.tensor([[0, 0, 0, 0, 1]])
        torch.testing.assert_close(
            unit_significance(scores, units, torch.arange(5)[None]), torch.tensor([[1.5, 1.5, 1.5, 1.5, 3.0]])
        )

    def test_sentences_end_where_text_breaks_and_long_ones_are_cut(self):
        words = tokenizer_of(VOCAB)
        sentences = Sentences(words, VOCAB)
        ids = torch.full((1, 2 * LONGEST_UNIT + 5), 7)
        places = torch.arange(ids.shape[1])[None]
        assert sentences.units(ids, places)[0].unique(return_counts=True)[1].tolist() == [64, 64, 5]
        places[0, 10:] += 1
        assert sentences.units(ids, places)[0].unique(return_counts=True)[1].tolist() == [10, 64, 59]


class TestSettings:
    def test_what_cannot_act_is_refused(self, model):
        with pytest.raises(ConfigError, match=r"sentence_weight is 0\.5, but has no effect"):
            HomerConfig(sentence_weight=0.5)
        with pytest.raises(ConfigError, match=r"link_len is 64, but has no effect"):
            HomerConfig(unit="neighbours", link_len=64)
        with pytest.raises(
            ConfigError, match=r"neighbour_share is 0\.5, but has no effect where neighbours are the unit"
        ):
            HomerConfig(unit="neighbours", neighbour_share=0.5)
        with pytest.raises(ConfigError, match=r"profile has no effect with scoring_layers 'all'"):
            HomerConfig(scoring_layers="all", profile=profile_of(model, (Head(1, 0),)))
        with pytest.raises(ConfigError, match=r"profile .* is a setting of HomerConfig"):
            HomerConfig.paper(profile=profile_of(model, (Head(1, 0),)))

    def test_another_models_profile_is_refused(self, model):
        with pytest.raises(MismatchError, match="run `homer profile`"):
            Homer(model, None, HomerConfig(profile=profile_of(llama(seed=5), (Head(1, 0),))))


class TestFiles:
    def test_a_profile_comes_back_as_it_was(self, model, tmp_path):
        saved = profile_of(model, (Head(2, 1, 2.0),), (Head(3, 0),))
        saved.save(tmp_path / "p.json")
        assert Profile.load(tmp_path / "p.json").to_dict() == saved.to_dict()

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "homerlm profile", "version": 2}'])
    def test_what_is_none_is_refused(self, tmp_path, text):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(CorruptFileError, match="homer profile"):
            Profile.load(tmp_path / "p.json")

    def test_a_missing_file_is_said(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            Profile.load(tmp_path / "none.json")

    def test_a_head_of_words_is_refused(self, model, tmp_path):
        values = profile_of(model, (Head(2, 1),)).to_dict() | {"reading": [["two", 1, 1]]}
        (tmp_path / "p.json").write_text(json.dumps(values))
        with pytest.raises(CorruptFileError, match=r"a head is .*two"):
            Profile.load(tmp_path / "p.json")


class TestFirstUse:
    """A model that nobody measured: measured once, kept, found again; here in a cache of its own."""

    @pytest.fixture
    def fresh(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path))
        monkeypatch.delenv("HOMERLM_AUTO_PROFILE")
        monkeypatch.setattr("homerlm.profiling.measure.COUNT", 6)
        monkeypatch.setattr("homerlm.profiling.measure.measuring.__kwdefaults__", {"count": 6, "seed": 1})
        return tmp_path

    def test_a_long_document_measures_it_and_the_next_one_does_not(self, fresh, words):
        model, events = llama(), []
        with pytest.warns(UserWarning, match="no attention head"):  # random weights find nothing
            Homer(model, words, HomerConfig(**SIZES)).compress(*prompt(context=300), observer=events.append)
        assert [event.note[:9] for event in events[:7]] == ["Measuring"] * 7
        assert len(list(fresh.glob("profiles/*.json"))) == 1
        events.clear()
        with pytest.warns(UserWarning, match="no attention head"):
            homer = Homer(model, words, HomerConfig(**SIZES))
        homer.compress(*prompt(context=300), observer=events.append)
        assert not any(event.note for event in events)

    def test_a_short_one_does_not(self, fresh, words):
        Homer(llama(), words, HomerConfig(**SIZES)).compress(*prompt(context=20))
        assert not list(fresh.iterdir())

    def test_nor_where_it_is_switched_off_or_other_layers_are_named(self, fresh, words, monkeypatch):
        Homer(llama(), words, HomerConfig(**SIZES, scoring_layers="middle")).compress(*prompt(context=300))
        monkeypatch.setenv("HOMERLM_AUTO_PROFILE", "0")
        assert Homer(llama(), words, HomerConfig(**SIZES)).profile() is None
        assert not list(fresh.iterdir())

    def test_cancelled_it_leaves_nothing(self, fresh, words):
        homer = Homer(llama(), words, HomerConfig(**SIZES))
        steps = homer.compressing(*prompt(context=300))
        assert next(steps).note
        steps.close()
        assert not list(fresh.iterdir())
        assert Homer(llama(), words, HomerConfig(**SIZES, scoring_layers="middle")).compress(*prompt(context=300))


class TestMeasuring:
    def test_probes_are_the_same_again_and_hold_their_facts(self):
        made = probes(2000, 42, 3)
        assert made == probes(2000, 42, 3)
        assert {probe.kind for probe in made} == set(kinds())
        assert {probe.source for probe in made} == {*sources(), RECORDS}
        for probe in made:
            told = [probe.text[start:stop] for start, stop in probe.spans]
            assert all(sentence.endswith(".") for sentence in told)
            assert len(told) == (2 if probe.kind == "two_hops" else 1)
            assert all(probe.text.count(sentence) == 1 for sentence in told)

    def test_a_profile_of_a_model_holds_its_own_heads(self, words):
        model = llama()
        profile = measure(model, words, count=8)
        layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
        assert all(head.layer < layers and head.index < heads for head in (*profile.reading, *profile.reranking))
        assert 0 <= profile.share_above <= 1
        profile.check(model)
        assert measure(model, words, count=8).to_dict()["reading"] == profile.to_dict()["reading"]

    def test_it_tells_how_far_it_is(self, words):
        seen = list(measuring(llama(), words, count=5))
        assert len(seen) == 6
        assert seen[0].seconds is None
        assert seen[-1].read == seen[-1].total
        assert seen[-1].seconds == 0


class TestChoice:
    @staticmethod
    def found(good, texts=40, heads=12, units=30):
        """Noise, but for some heads: with a chance of `good[head]` they put the asked unit first."""
        torch.manual_seed(0)
        scores = torch.rand(texts, heads, units)
        asked = torch.zeros(texts, units, dtype=torch.bool)
        for text in range(texts):
            unit = int(torch.randint(units, ()))
            asked[text, unit] = True
            for head, chance in good.items():
                scores[text, head, unit] = 5.0 if torch.rand(()) < chance else 0.0
        return Found(scores, torch.ones(texts, units), asked, torch.arange(heads) // 3)

    def test_the_head_that_finds_the_fact_is_chosen(self):
        reading, reranking = choose(self.found({7: 1.0}), 3)
        assert {(head.layer, head.index) for head in reranking.heads} >= {(2, 1)}
        assert float(reading.shares.mean()) < 0.01

    def test_of_equals_the_shallow_one_reads(self):
        reading, _ = choose(self.found({1: 1.0, 10: 1.0}), 3)
        assert {head.layer for head in reading.heads} == {0}

    def test_a_better_deep_one_is_worth_its_layers(self):
        reading, _ = choose(self.found({1: 0.5, 10: 1.0}), 3)
        assert 3 in {head.layer for head in reading.heads}

    def test_noise_stays_at_chance_on_other_texts(self):
        _, reranking = choose(self.found({}), 3)
        assert reranking.shares.mean() > 0.35

    def test_what_is_lost_costs_more_than_what_comes_second(self):
        first, second, lost = loss(torch.tensor([[0.0, 0.01, 0.5]]))
        assert first < second < lost


class TestCommand:
    def test_profile_measures_and_keeps_and_ask_takes_it(self, run, model_folder, tmp_path, monkeypatch):
        monkeypatch.setenv("HOMERLM_CACHE", str(tmp_path / "cache"))
        code, out, _ = run("profile", model_folder, "--texts", "6")
        assert code == 0
        assert "reading: " in out
        assert "two hops" in out
        (kept,) = (tmp_path / "cache/profiles").glob("*.json")
        file = tmp_path / "p.json"
        code, out, _ = run("profile", model_folder, "--texts", "6", "-o", file, "--json")
        assert code == 0
        assert json.loads(out)["reading"] == json.loads(kept.read_text())["reading"]
        document = tmp_path / "document.txt"
        document.write_text(" ".join(f"w{i % 90}" for i in range(300)))
        given = ["ask", document, "w1 w2", "-m", model_folder, "--profile", file, "--max-new-tokens", "2", "--quiet"]
        assert run(*given)[0] == 0
        assert run(*given, "--preset", "paper")[0] == 2
        assert run("profile", model_folder, "-o", file)[0] == 2  # not over a file that is there
        file.write_text("{}")
        assert "homer profile" in run(*given)[2]
