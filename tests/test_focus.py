"""A document compressed for questions to come, and what each of them takes from it."""

import pytest
import torch

import families
from homerlm import Homer, HomerConfig
from homerlm.errors import InputError
from tiny import llama, prompt

SIZES = {"max_chunk_len": 60, "target_len": 40, "warmup_layers": 2, "pooling": 3, "recap_len": 8}


@pytest.fixture(scope="module")
def model():
    return llama()


def _homer(model, **changes):
    return Homer(model, None, HomerConfig(**(SIZES | changes)))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"floor": 0.0}, {"voters": "last_layer"}, {"scoring_queries": 2}])
def test_the_question_asked_at_once_or_later_gets_the_same(model, batch, changes):
    """The candidates' keys hold what a chunk of candidates and question would compute: causal attention."""
    ids = prompt(context=300, batch=batch)
    now = _homer(model, **changes).compress(*ids)
    homer = _homer(model, **changes, second_look="later")
    broad = homer.compress(*ids)
    later = homer.focus(broad, ids[2])
    assert len(broad) == 59 > len(later)
    assert torch.equal(later.token_indices, now.token_indices)
    assert torch.equal(later.input_ids, now.input_ids)
    torch.testing.assert_close(later.logits, now.logits, rtol=1e-4, atol=1e-5)
    for got, expected in zip((*later.keys, *later.values), (*now.keys, *now.values), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (later.next_position, later.prompt_len) == (now.next_position, now.prompt_len)


def test_each_question_takes_its_own_and_leaves_the_rest(model):
    homer = _homer(model, second_look="later", floor=0.5)
    prefix, document, suffix = prompt(context=300)
    broad = homer.compress(prefix, document, suffix)
    before = [t.clone() for t in (*broad.keys, broad.token_indices)]
    questions = [prompt(seed=seed, suffix=7)[2] for seed in range(4)]
    found = [homer.focus(broad, question) for question in questions]
    for question, context in zip(questions, found, strict=True):
        assert torch.equal(context.input_ids[:, -7:], question)
        assert context.token_indices[0, -7:].tolist() == list(range(304, 311))
        assert set(context.token_indices[0, :-7].tolist()) <= set(broad.token_indices[0, :-5].tolist())
        assert torch.equal(
            context.input_ids[0, :-7], torch.cat([prefix, document], 1)[0, context.token_indices[0, :-7]]
        )
    assert len({tuple(context.token_indices[0].tolist()) for context in found}) > 1
    assert all(torch.equal(a, b) for a, b in zip(before, (*broad.keys, broad.token_indices), strict=True))


def test_a_target_above_the_chunk_keeps_as_much(model):
    broad = _homer(model, second_look="later", target_len=100, max_chunk_len=100).compress(*prompt(context=300))
    assert len(broad) == 99


def test_a_compressor_for_later_keeps_half_the_limit_unless_told(model):
    wide, told = Homer(model).for_later(), _homer(model).for_later()
    assert (wide.lengths.max_chunk_len, wide.lengths.target_len) == (256, 256)
    assert (told.lengths.max_chunk_len, told.lengths.target_len) == (60, 40)
    assert {wide.lengths.second_look, told.lengths.second_look} == {"later"}
    paper = _homer(model, readout="merged")
    assert paper.for_later() is paper


@pytest.mark.parametrize("changes", [{"second_look": "never"}, {"readout": "merged"}, {"readout": "reencoded"}])
def test_without_a_second_look_the_suffix_is_exchanged(model, changes):
    homer = _homer(model, **changes)
    broad, other = homer.compress(*prompt(context=300)), prompt(seed=3, suffix=7)[2]
    got, expected = homer.focus(broad, other), homer.exchange_suffix(broad, other)
    assert torch.equal(got.token_indices, expected.token_indices)
    assert torch.equal(got.logits, expected.logits)


def test_a_context_without_a_document_is_only_asked(model):
    homer = _homer(model, second_look="later")
    broad, other = homer.compress(*prompt(context=0)), prompt(seed=3, suffix=7)[2]
    focused = homer.focus(broad, other)
    assert focused.token_indices[0].tolist() == list(range(4 + 7))


@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_every_family_sees_its_cache_as_it_sees_a_prompt(family):
    """Sliding windows, query norms and soft caps: the question must meet the same keys through the model's masks."""
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    model, ids = family.build(), prompt(context=150)
    now = _homer(model, warmup_layers=1).compress(*ids)
    homer = _homer(model, warmup_layers=1, second_look="later")
    later = homer.focus(homer.compress(*ids), ids[2])
    assert torch.equal(later.token_indices, now.token_indices)
    torch.testing.assert_close(later.logits, now.logits, rtol=1e-3, atol=1e-4)


def test_another_number_of_rows_is_refused(model):
    homer = _homer(model, second_look="later")
    with pytest.raises(InputError, match="suffix_ids is"):
        homer.focus(homer.compress(*prompt(context=300)), prompt(batch=2)[2])


def test_the_model_is_left_as_it_was(model):
    before = model.config._attn_implementation
    homer = _homer(model, second_look="later")
    homer.focus(homer.compress(*prompt(context=300)), prompt(seed=3)[2])
    assert model.config._attn_implementation == before
