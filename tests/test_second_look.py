"""The second look: the tree's candidates judged again as one chunk."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.errors import ConfigError, ScheduleError
from homerlm.score.scores import SCORES, Attention, pool
from homerlm.trace import LevelTrace
from tiny import LAYERS, llama, prompt

SIZES = {"max_chunk_len": 60, "target_len": 40, "warmup_layers": 2, "pooling": 3, "recap_len": 0}


@pytest.fixture(scope="module")
def model():
    return llama()


def _candidates(model, ids):
    """What the tree alone hands on: as many tokens as a merged chunk holds (59: its context is halved evenly)."""
    config = HomerConfig(**(SIZES | {"target_len": 60, "second_look": "never", "pooling": 7}))  # twice as generous
    return Homer(model, None, config).compress(*ids)


def test_the_candidates_are_judged_as_one_prompt(model):
    ids = prompt(context=300)
    candidates = _candidates(model, ids)
    scores = 0

    def watch(layer, queries, keys, scaling):
        nonlocal scores
        if layer in range(LAYERS // 2, round(0.6 * LAYERS)):
            scores = scores + SCORES["mean_square"](Attention(queries[:, :, -5:], keys, positions, scaling))

    homer = Homer(model, None, HomerConfig(**SIZES, floor=0.0))
    positions = torch.arange(len(candidates))[None]
    with torch.no_grad(), homer.decoder.session():
        homer.decoder.run(homer.decoder.embed(candidates.input_ids), positions, 0, LAYERS, watch=watch)
    best = pool(scores[:, 4:-5], 3)[0].argsort(descending=True, stable=True)[: 40 - 9] + 4
    expected = [0, 1, 2, 3, *best.sort().values.tolist(), *range(len(candidates) - 5, len(candidates))]
    context = homer.compress(*ids)
    assert context.token_indices[0].tolist() == candidates.token_indices[0, expected].tolist()
    assert len(context) == 40


def test_what_is_far_below_the_best_goes_even_where_there_is_room(model):
    ids = prompt(context=300)
    lengths = [len(Homer(model, None, HomerConfig(**SIZES, floor=f)).compress(*ids)) for f in (0.0, 0.5, 0.9, 1.0)]
    assert lengths[0] == 40
    assert lengths == sorted(lengths, reverse=True)
    assert 9 < lengths[-1] < lengths[0]


def test_of_scores_below_zero_the_best_stay(model, monkeypatch):
    monkeypatch.setitem(SCORES, "mean_square", lambda attention: attention.logits().amax(1).mean(1) - 100)
    contexts = [Homer(model, None, HomerConfig(**SIZES, floor=f)).compress(*prompt(context=300)) for f in (0.1, 1.0)]
    assert [len(context) for context in contexts] == [40, 9 + 3]  # no more of it all, the best one and its neighbours


@pytest.mark.parametrize("changes", [{"target_len": 60}, {"target_len": 90}, {"retention": 0.25}], ids=str)
def test_candidates_that_fit_the_target_are_judged_too(model, changes):
    """Where the tree leaves no more than the target has room for, what only distracts goes all the same."""
    config = HomerConfig(**(SIZES | changes), floor=1.0)
    homer = Homer(model, None, config)
    candidates = homer.plan(4, 300, 5).root.target
    assert candidates <= homer.lengths.target_len
    assert len(homer.compress(*prompt(context=300))) < candidates - 9


def test_rows_of_a_batch_keep_as_many_as_the_one_that_needs_most(model):
    config = HomerConfig(**SIZES, floor=0.8)
    ids = prompt(context=300, batch=3)
    together = Homer(model, None, config).compress(*ids)
    alone = [Homer(model, None, config).compress(*(part[i : i + 1] for part in ids)) for i in range(3)]
    assert len(together) == max(len(context) for context in alone)
    for row, context in enumerate(alone):
        assert set(context.token_indices[0].tolist()) <= set(together.token_indices[row].tolist())


@pytest.mark.parametrize("length", [20, 31])
def test_what_fits_the_target_is_read_as_it_is(model, length):
    ids = prompt(context=length)
    context = Homer(model, None, HomerConfig(**SIZES)).compress(*ids)
    assert context.token_indices[0].tolist() == list(range(length + 9))
    with torch.no_grad():
        plain = model(torch.cat(ids, dim=1)).logits[:, -1]
    torch.testing.assert_close(context.logits, plain, atol=1e-4, rtol=1e-4)


def test_a_prompt_of_one_chunk_is_judged_once(model):
    """The tree is a single chunk whose every token is a candidate: only the second look and the reading run."""
    homer = Homer(model, None, HomerConfig(**SIZES))
    runs = []
    run = homer.decoder.run
    homer.decoder.run = lambda *args, **kwargs: runs.append(args[2:4]) or run(*args, **kwargs)
    context = homer.compress(*prompt(context=45))
    assert len(context) <= 40
    assert runs == [(0, 6), (0, LAYERS)]


@pytest.mark.parametrize("changes", [{"second_look": "never"}, {"readout": "merged"}, {"readout": "reencoded"}])
def test_without_a_second_look_the_tree_decides(model, changes):
    config = HomerConfig(**(SIZES | changes))
    homer = Homer(model, None, config)
    assert homer.plan(4, 300, 5).root.target == 40
    assert len(homer.compress(*prompt(context=300))) == 40


def test_the_observer_hears_of_both(model):
    events = []
    trace = LevelTrace()

    def observer(event):
        events.append((event.node.height, event.look, event.kept.shape[1]))
        trace(event)

    context = Homer(model, None, HomerConfig(**SIZES)).compress(*prompt(context=300), observer=observer)
    height = events[-1][0]
    assert events[-2:] == [(height, 1, 59), (height, 2, len(context))]
    top = int(trace.levels.max())
    assert top == height + 2
    assert [i for i, level in enumerate(trace.levels) if level == top] == context.token_indices[0].tolist()


def test_a_target_below_the_affixes_is_refused(model):
    with pytest.raises(ScheduleError, match="target_len is 8"):
        Homer(model, None, HomerConfig(**(SIZES | {"target_len": 8}))).compress(*prompt(context=300))


@pytest.mark.parametrize(("field", "value"), [("second_look", "often"), ("floor", 1.5), ("floor", -0.1)])
def test_wrong_values_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        HomerConfig(**{field: value})
