"""Settings are checked when they are made, belong to one method, and are never edited."""

import copy
import dataclasses
import pickle

import pytest

from homerlm import HomerConfig
from homerlm.config import RENAMED, SCORE_NAMES, MergeConfig, parse_settings, public_fields
from homerlm.errors import ConfigError
from homerlm.merge.plan import MergeLengths
from homerlm.merge.readout import READOUTS
from homerlm.merge.refinement import REFINEMENTS
from homerlm.model.shape import DecoderShape
from homerlm.score.scores import SCORES


def shape(limit, layers):
    return DecoderShape(limit, (None,) * layers, 64, 128, 4, 2, 16, 97, 2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_chunk_len": 1}, "max_chunk_len is 1"),
        ({"max_chunk_len": 2.5}, "max_chunk_len is 2.5"),
        ({"max_chunk_len": True}, "max_chunk_len is True"),
        ({"max_chunk_len": "60"}, "max_chunk_len is '60'"),
        ({"target_len": 0}, "target_len is 0"),
        ({"scoring_queries": 0}, "scoring_queries is 0"),
        ({"pooling": 6}, "use 7"),
        ({"pooling": None}, "pooling is None"),
        ({"chunk_batch": 0}, "chunk_batch is 0"),
        ({"min_share": 1.5}, "min_share is 1.5"),
        ({"min_share": float("nan")}, "min_share is nan"),
        ({"sentence_weight": "0.5"}, "sentence_weight is '0.5'"),
        ({"score": "best"}, "peak_softmax"),
        ({"score": "calibrated_logit"}, "score is 'calibrated_logit'"),
        ({"scoring_layers": "some"}, "upper_half"),
        ({"rerank": "often"}, "rerank is 'often'"),
        ({"rerank": "never", "min_share": 0.3}, "min_share is 0.3, but has no effect"),
        ({"rerank": "never", "recap_len": 32}, "recap_len is 32, but has no effect"),
        ({"rerank": "never", "chosen_by": "surprisal", "pooling": 7}, "pooling is 7, but has no effect"),
        ({"warmup_layers": 3}, r"warmup_layers \(--warmup-layers\) is a setting of HomerConfig.paper\(\)"),
        ({"readout": "merged"}, r"readout .* is a setting of HomerConfig.paper\(\) .* \(--preset paper\)"),
        ({"nonsense": 3}, "nonsense is not a setting of HomerConfig; it has max_chunk_len"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=named):
        HomerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup_layers": -1}, "warmup_layers is -1"),
        ({"chunk_share": 0}, "chunk_share is 0"),
        ({"target_share": 1.5}, "target_share is 1.5"),
        ({"retention": "0.5"}, "retention is '0.5'"),
        ({"readout": "recomputed"}, "readout is 'recomputed'; it must be one of merged, reencoded"),
        ({"refinement": "some"}, "propagative"),
        ({"refinement": "random", "readout": "reencoded"}, "readout 'reencoded'; it needs 'merged'"),
        ({"max_chunk_len": 20, "max_initial_chunk_len": 30}, "max_initial_chunk_len is 30"),
        ({"max_chunk_len": 20, "chunk_share": 0.25}, "chunk_share has no effect beside max_chunk_len"),
        ({"min_share": 0.3}, r"min_share .* is a setting of HomerConfig\(\)"),
        ({"leaf_batch": 3}, "leaf_batch is called chunk_batch now"),
    ],
)
def test_so_are_the_papers(settings, named):
    with pytest.raises(ConfigError, match=named):
        HomerConfig.paper(**settings)


@pytest.mark.parametrize("name", RENAMED)
def test_former_names_tell_the_new_ones(name):
    with pytest.raises(ConfigError, match=f"{name} is called {RENAMED[name]} now"):
        HomerConfig(**{name: 1})


def test_cannot_be_edited_but_copied():
    config = HomerConfig(pooling=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.pooling = 5
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == dataclasses.replace(config) == config


def test_the_papers_lengths_follow_the_model():
    assert MergeLengths.of(HomerConfig.paper(), shape(4096, 32)) == MergeLengths(2048, 2048, 12)
    given = HomerConfig.paper(max_chunk_len=100, target_len=90, warmup_layers=0)
    assert MergeLengths.of(given, shape(4096, 32)) == MergeLengths(100, 90, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_chunk_len": 513}, "max_chunk_len is 513"),
        ({"target_len": 513}, "target_len is 513"),
        ({"warmup_layers": 8}, "warmup_layers is 8"),
    ],
)
def test_what_the_model_cannot_do_is_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        MergeLengths.of(HomerConfig.paper(**settings), shape(512, 8))


def test_the_paper_preset_is_the_paper():
    paper = HomerConfig.paper(target_len=7)
    assert isinstance(paper, MergeConfig)
    assert (paper.score, paper.scoring_queries, paper.pooling, paper.readout) == ("calibrated_logit", 1, 1, "merged")


def test_names_of_choices_are_the_functions():
    choices = {field.name: field.metadata.get("choices") for field in public_fields(MergeConfig)}
    assert set(SCORE_NAMES) == set(SCORES)
    assert set(choices["readout"]) == set(READOUTS)
    assert set(choices["refinement"]) == set(REFINEMENTS)


def test_settings_are_read_from_text():
    expected = HomerConfig(pooling=7, min_share=0.5, rerank="later")
    assert parse_settings("default", {"pooling": "7", "min_share": "0.5", "rerank": "later"}) == expected
    assert parse_settings("paper", {"readout": "reencoded"}) == HomerConfig.paper(readout="reencoded")
    for preset, texts, named in [
        ("default", {"pooling": "many"}, "pooling is 'many'"),
        ("default", {"floor": "0.3"}, "min_share"),
        ("best", {}, "preset is 'best'"),
    ]:
        with pytest.raises(ConfigError, match=named):
            parse_settings(preset, texts)


def test_to_dict_holds_every_setting_but_what_was_measured():
    for config in (HomerConfig(), HomerConfig.paper()):
        names = {field.name for field in dataclasses.fields(config)} - {"calibration", "profile"}
        assert set(config.to_dict()) == names | {"preset"}
