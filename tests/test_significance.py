"""Scores against loops over tokens and heads, and the choice of what stays."""

import math

import pytest
import torch

from homerlm.score.attention import Attention
from homerlm.score.neighbours import keep_most_significant, pool, pool_within, unit_significance
from homerlm.score.scores import SCORES

B, H, K, Q, S, D = 2, 6, 3, 4, 11, 5


@pytest.fixture
def attention():
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 9, 10, 11, 12], [0, 1, 4, 5, 5, 6, 7, 9, 10, 11, 12]])
    return Attention(torch.randn(B, H, Q, D), torch.randn(B, K, S, D), positions, 0.37, bias=torch.randn(13))


def loops(attention):
    """logits[b][h][q][s] and distances[b][q][s], one number at a time."""
    group = H // K
    logits = torch.empty(B, H, Q, S)
    distances = torch.empty(B, Q, S, dtype=torch.long)
    for b in range(B):
        for q in range(Q):
            for s in range(S):
                distances[b, q, s] = max(attention.position_ids[b, S - Q + q] - attention.position_ids[b, s], 0)
                for h in range(H):
                    product = sum(
                        a * c for a, c in zip(attention.queries[b, h, q], attention.keys[b, h // group, s], strict=True)
                    )
                    logits[b, h, q, s] = product * attention.scaling
    return logits, distances


def probabilities(logits):
    result = torch.zeros_like(logits)
    for q in range(Q):
        seen = S - Q + q + 1
        result[:, :, q, :seen] = logits[:, :, q, :seen].softmax(-1)
    return result


EXPECTED = {
    "logit": lambda logits, _distances, _bias: logits.amax(1).mean(1),
    "calibrated_logit": lambda logits, distances, bias: (logits.amax(1) - bias[distances]).mean(1),
    "softmax": lambda logits, _distances, _bias: probabilities(logits).mean(2).amax(1),
    "peak_softmax": lambda logits, _distances, _bias: probabilities(logits).amax(2).amax(1),
    "mean_square": lambda logits, _distances, _bias: (probabilities(logits).amax(1) ** 2).mean(1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_equal_loops(attention, name):
    logits, distances = loops(attention)
    torch.testing.assert_close(SCORES[name](attention), EXPECTED[name](logits, distances, attention.bias))


def test_random_scores_differ_by_draw_but_not_by_seed(attention):
    torch.manual_seed(3)
    first, second = SCORES["random"](attention), SCORES["random"](attention)
    torch.manual_seed(3)
    assert torch.equal(SCORES["random"](attention), first)
    assert not torch.equal(first, second)


def test_pooling_is_the_maximum_over_neighbours():
    scores = torch.tensor([[0.0, 5, 1, 0, 0, 0, 7, 2]])
    assert pool(scores, 3).tolist() == [[5, 5, 5, 1, 0, 7, 7, 7]]
    assert pool(scores, 1) is scores
    assert pool(scores[:, :0], 3).shape == (1, 0)


def test_affixes_stay_and_ties_go_to_the_earlier():
    worth = torch.tensor([[1.0, 3, 3, 0, 3]])
    assert keep_most_significant(worth, 2, 1, 5).tolist() == [[0, 1, 3, 4, 7]]
    assert keep_most_significant(worth, 2, 1, 3).tolist() == [[0, 1, 7]]


def test_pooling_within_groups_in_blocks_is_the_same(monkeypatch):
    scores, groups = torch.rand(2, 50), torch.randint(0, 2, (2, 50)).cumsum(1)
    expected = torch.stack(
        [
            torch.stack(
                [max(row[j] for j in range(max(i - 4, 0), min(i + 5, 50)) if group[j] == group[i]) for i in range(50)]
            )
            for row, group in zip(scores, groups, strict=True)
        ]
    )
    for block in (7, 1 << 14):
        monkeypatch.setattr("homerlm.score.neighbours._BLOCK", block)
        assert torch.equal(pool_within(scores, groups, 4), expected)


def test_rows_choose_for_themselves():
    worth = torch.tensor([[1.0, 2, 3], [3, 2, 1]])
    assert keep_most_significant(worth, 1, 1, 4).tolist() == [[0, 2, 3, 4], [0, 1, 2, 4]]


def test_a_span_survives_whole():
    """What pooling is for: one strong token keeps its neighbours, though each of them scores nothing."""
    scores = torch.rand(1, 100) / 10
    scores[0, 50] = math.inf
    kept = keep_most_significant(pool(scores, 7), 0, 0, 7)
    assert kept.tolist() == [list(range(47, 54))]


def test_a_unit_gains_from_the_better_of_those_right_beside_it():
    scores = torch.tensor([[4.0, 4.0, 1.0, 9.0, -2.0, 6.0], [1.0, 2.0, 3.0, 4.0, 4.0, 0.0]])
    units = torch.tensor([[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3]])
    places = torch.tensor([[0, 1, 2, 3, 4, 9], [5, 6, 7, 8, 9, 10]])  # in the first row the last unit is elsewhere
    own = torch.tensor([[8 / 2**0.5] * 2 + [1, 9, -2, 6], [1, 2, 3] + [8 / 3**0.5] * 3])
    torch.testing.assert_close(unit_significance(scores, units, places), own)
    gained = torch.tensor([[1.0, 1, 9, 1, 9, 0], [2, 3, 8 / 3**0.5, 3, 3, 3]])
    torch.testing.assert_close(unit_significance(scores, units, places, 0.5), own + gained / 2)
