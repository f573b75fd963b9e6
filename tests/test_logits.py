"""The logits of a context: through the model's own forward once, then by norm and head where that is all it does."""

from contextlib import contextmanager

import pytest
import torch

import families
from homerlm import Homer, HomerConfig
from homerlm.model.decoder import Decoder, hooked
from homerlm.passes import run_steps
from homerlm.score import sentences
from tiny import VOCAB, llama, prompt
from words import tokenizer_of

TEXT = " ".join(f"w{(3 * i * i) % 90}" for i in range(300))


@contextmanager
def forwards_of(model):
    """Forwards of one token through the last layer."""
    counted = []

    def count(_layer, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        counted.append(hidden.shape[1] == 1)

    with hooked(model.get_decoder().layers[-1].register_forward_pre_hook, count, with_kwargs=True):
        yield lambda: sum(counted)


def states(decoder):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 1, decoder.config.hidden_size, generator=generator)


@torch.no_grad()
def test_they_cost_a_decoding_step_only_the_first_time():
    model = llama()
    decoder, hidden = Decoder(model), states(Decoder(model))
    with forwards_of(model) as forwards:
        first = decoder.logits(hidden)
        assert forwards() == 1
        again, others = decoder.logits(hidden), decoder.logits(2 - hidden)
        assert forwards() == 1
    assert torch.equal(first, again)
    assert not torch.equal(first, others)
    assert torch.equal(others, Decoder(model).logits(2 - hidden))


@pytest.mark.parametrize("name", ["gemma2", "cohere"])
@torch.no_grad()
def test_where_the_model_does_more_it_is_asked_every_time(name):
    """Softcapped and scaled logits."""
    family = next(family for family in families.SUPPORTED if family.name == name)
    model = family.build()
    decoder, hidden = Decoder(model), states(Decoder(model))
    with forwards_of(model) as forwards:
        first = decoder.logits(hidden)
        assert torch.equal(decoder.logits(hidden), first)
        assert forwards() == 2
    assert not torch.equal(first, model.get_output_embeddings()(decoder.norm(hidden)))


def test_of_all_contexts_of_a_model_the_first_costs_one_at_most():
    homer = Homer(llama(), None, HomerConfig(max_chunk_len=48, target_len=40, pooling=3))
    with forwards_of(homer.model) as forwards:
        made = [homer.compress(*prompt(seed=seed)) for seed in (1, 1, 2)]
        assert forwards() <= 1
    assert torch.equal(made[0].logits, made[1].logits)
    other = Homer(homer.model, None, homer.config).compress(*prompt(seed=2))
    assert torch.equal(made[2].logits, other.logits)


def test_a_search_has_what_is_known_of_the_model_already(monkeypatch):
    homer = Homer(llama(), tokenizer_of(VOCAB, chat=True), HomerConfig(max_chunk_len=48, target_len=40))
    index = homer.read(TEXT)
    expected = homer.select(index, "w1 w2", tokens=12)
    monkeypatch.setattr(sentences, "_facts", lambda *_: pytest.fail("the vocabulary was looked at again"))
    with forwards_of(homer.model) as forwards:
        assert run_steps(homer.finding(index, "w1 w2", tokens=12)) == expected
        assert forwards() == 0
