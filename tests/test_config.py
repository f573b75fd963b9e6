"""Settings are checked when they are made, derived from the model where they are None, and never edited."""

import dataclasses

import pytest

from homerlm import HomerConfig
from homerlm.config import READOUTS, REFINEMENT_NAMES, SCORE_NAMES, Lengths
from homerlm.errors import ConfigError
from homerlm.merge.readout import READOUT_FUNCTIONS
from homerlm.merge.refinement import REFINEMENTS
from homerlm.score.scores import CALIBRATED_SCORES, SCORES


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_chunk_len": 1}, "max_chunk_len is 1"),
        ({"max_chunk_len": 2.5}, "max_chunk_len is 2.5"),
        ({"max_chunk_len": True}, "max_chunk_len is True"),
        ({"target_len": 0}, "target_len is 0"),
        ({"warmup_layers": -1}, "warmup_layers is -1"),
        ({"scoring_queries": 0}, "scoring_queries is 0"),
        ({"pooling": 6}, "use 7"),
        ({"leaf_batch": 0}, "leaf_batch is 0"),
        ({"chunk_share": 0}, "chunk_share is 0"),
        ({"target_share": 1.5}, "target_share is 1.5"),
        ({"score": "best"}, "peak_softmax"),
        ({"voters": "some"}, "all_layers"),
        ({"readout": "read"}, "recomputed"),
        ({"refinement": "some"}, "propagative"),
        ({"refinement": "none"}, "readout='merged'"),
        ({"refinement": "random", "readout": "reencoded"}, "readout 'reencoded'; it needs 'merged'"),
        ({"refinement": "per_layer_top_k", "readout": "merged"}, "voters='last_layer'"),
        ({"max_chunk_len": 20, "max_initial_chunk_len": 30}, "max_initial_chunk_len is 30"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=named):
        HomerConfig(**settings)


def test_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HomerConfig().pooling = 3


def test_lengths_follow_the_model():
    assert HomerConfig.paper().resolve(limit=4096, layers=32) == Lengths(2048, 2048, 12, None)
    assert HomerConfig().resolve(limit=8192, layers=30) == Lengths(2048, 1024, 11, None, second_look="now")
    given = HomerConfig(max_chunk_len=100, target_len=90, warmup_layers=0, max_initial_chunk_len=50)
    assert given.resolve(limit=4096, layers=32) == Lengths(100, 90, 0, 50, second_look="now")


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
        HomerConfig(**settings).resolve(limit=512, layers=8)


def test_the_paper_preset_is_the_paper():
    paper = HomerConfig.paper(target_len=7)
    assert (paper.score, paper.voters, paper.scoring_queries, paper.pooling, paper.readout, paper.target_len) == (
        "calibrated_logit",
        "last_layer",
        1,
        1,
        "merged",
        7,
    )


def test_names_of_choices_are_the_functions():
    assert set(SCORE_NAMES) == set(SCORES)
    assert set(SCORES) >= CALIBRATED_SCORES
    assert set(READOUTS) == set(READOUT_FUNCTIONS)
    assert set(REFINEMENT_NAMES) == set(REFINEMENTS)


def test_to_dict_holds_every_setting_but_the_calibration():
    names = {field.name for field in dataclasses.fields(HomerConfig)} - {"calibration"}
    assert set(HomerConfig().to_dict()) == names
