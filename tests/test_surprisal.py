"""What a document is kept for when its questions are not known yet."""

import pytest
import torch

import families
from homerlm import Homer, HomerConfig
from homerlm.errors import ConfigError
from homerlm.score.scores import SCORES, Attention, pool
from homerlm.score.surprisal import LEAD, NEIGHBOURS, Surprisal
from tiny import LAYERS, llama, prompt

SIZES = {"max_chunk_len": 300, "target_len": 40, "warmup_layers": 2, "pooling": 3}
CONFIG = HomerConfig(**SIZES, chosen_by="surprisal", second_look="never")


@pytest.fixture(scope="module")
def model():
    return llama(max_position_embeddings=1024)


def _expected(model, ids, leaf):
    """By the model's own forward over the chunk's prefix, what came right before the chunk, and the chunk."""
    prefix, context, _ = ids
    start = max(leaf.context_start - LEAD, 0)
    text = torch.cat([prefix, context[:, start : leaf.context_stop]], dim=1)
    with torch.no_grad():
        log_probs = model(text).logits[:, :-1].log_softmax(-1)
    nats = -log_probs.gather(2, text[:, 1:, None])[..., 0][:, prefix.shape[1] + leaf.context_start - start - 1 :]
    half, n = NEIGHBOURS // 2, nats.shape[1]
    return torch.stack([nats[:, max(i - half, 0) : i + half + 1].mean(1) for i in range(n)], dim=1)


@pytest.mark.parametrize("batch", [1, 2])
def test_each_leaf_is_scored_by_the_models_own_surprise(model, batch):
    ids = prompt(context=900, batch=batch)
    homer = Homer(model, None, CONFIG)
    surprisal = Surprisal(homer.decoder, *ids)
    leaves = homer.plan(4, 900, 5).leaves
    assert len(leaves) == 4
    with torch.no_grad(), homer.decoder.session():
        for leaf in leaves:
            scores = surprisal(leaf)
            assert scores.shape == (batch, leaf.length)
            assert not scores[:, :4].any()
            assert not scores[:, -5:].any()
            torch.testing.assert_close(scores[:, 4:-5], _expected(model, ids, leaf), atol=1e-4, rtol=1e-4)


def test_both_count_a_token_by_the_mean_of_its_places(model):
    ids = prompt(context=250)
    config = HomerConfig(**SIZES, chosen_by="both", second_look="never")
    homer = Homer(model, None, config)
    (leaf,) = homer.plan(4, 250, 5).leaves
    watched = []
    positions = torch.arange(259)[None]

    def watch(layer, queries, keys, scaling):
        if layer in range(LAYERS // 2, round(0.6 * LAYERS)):
            watched.append(SCORES["mean_square"](Attention(queries[:, :, -5:], keys, positions, scaling)))

    with torch.no_grad(), homer.decoder.session():
        homer.decoder.run(homer.decoder.embed(torch.cat(ids, dim=1)), positions, 0, LAYERS, watch=watch)
        scores = Surprisal(homer.decoder, *ids, homer._selection(5))(leaf)[:, 4:-5]
    asked = pool(sum(watched)[:, 4:-5], 3)
    places = [t.argsort(stable=True).argsort() / 250 for t in (_expected(model, ids, leaf), asked)]
    assert (places[0] - places[1]).abs().mean() > 0.2
    torch.testing.assert_close(scores, (places[0] + places[1]) / 2, atol=0.02, rtol=0)
    kept = [homer.compress(*ids[:2], prompt(seed=seed)[2]).token_indices[0, :-5].tolist() for seed in (1, 9)]
    assert kept[0] != kept[1]


def test_the_most_surprising_tokens_are_kept_whatever_the_suffix_says(model):
    ids = prompt(context=900)
    homer = Homer(model, None, CONFIG)
    kept = homer.compress(*ids).token_indices[0, 4:-5] - 4
    assert len(kept) == 40 - 9
    scores = torch.cat([_expected(model, ids, leaf)[0] for leaf in homer.plan(4, 900, 5).leaves])
    assert scores[kept].min() >= scores.topk(150).values[-1]  # each merge rounds: not just the best 31
    assert scores[kept].mean() > scores.topk(60).values.mean()
    other = homer.compress(*ids[:2], prompt(seed=9)[2])
    assert torch.equal(other.token_indices, homer.compress(*ids).token_indices)


@pytest.mark.parametrize("leaf_batch", [1, 3])
def test_leaves_in_batches_choose_the_same(model, leaf_batch):
    ids = prompt(context=900, batch=2)
    contexts = [
        Homer(model, None, HomerConfig(**SIZES, chosen_by="surprisal", leaf_batch=n)).compress(*ids)
        for n in (1, leaf_batch)
    ]
    assert torch.equal(contexts[0].token_indices, contexts[1].token_indices)


def test_a_second_look_asks_what_was_chosen_by_surprisal(model):
    ids = prompt(context=900)
    now = Homer(model, None, HomerConfig(**SIZES, chosen_by="surprisal")).compress(*ids)
    homer = Homer(model, None, HomerConfig(**SIZES, chosen_by="surprisal", second_look="later"))
    broad = homer.compress(*ids)
    assert len(broad) > 250
    assert torch.equal(homer.focus(broad, ids[2]).token_indices, now.token_indices)


def test_what_fits_is_read_as_it_is(model):
    homer, ids = Homer(model, None, CONFIG), prompt(context=31)
    runs = []
    run = homer.decoder.run
    homer.decoder.run = lambda *args, **kwargs: runs.append(args[2:4]) or run(*args, **kwargs)
    assert homer.compress(*ids).token_indices[0].tolist() == list(range(40))
    assert runs == [(0, LAYERS)]


def test_where_questions_come_later_both_choose(model):
    homer = Homer(model, None, HomerConfig(**SIZES))
    assert homer.for_later().config.chosen_by == "both"
    assert homer.for_later(chosen_by="attention").config.chosen_by == "attention"
    assert homer.config.chosen_by == "attention"


@pytest.mark.parametrize("readout", ["merged", "reencoded"])
def test_it_carries_no_keys_and_values(readout):
    with pytest.raises(ConfigError, match="chosen_by is 'surprisal' with readout"):
        HomerConfig(chosen_by="surprisal", readout=readout)


@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_every_familys_logits_are_its_own(family):
    """Capped and scaled heads too: their surprisal is that of the model's own forward."""
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    model, ids = family.build(), prompt(context=150)
    homer = Homer(model, None, HomerConfig(**(SIZES | {"max_chunk_len": 100}), chosen_by="surprisal"))
    (leaf, *_) = homer.plan(4, 150, 5).leaves
    with torch.no_grad(), homer.decoder.session():
        scores = Surprisal(homer.decoder, *ids)(leaf)
    torch.testing.assert_close(scores[:, 4:-5], _expected(model, ids, leaf), atol=1e-3, rtol=1e-3)
