"""Forwards of one token on a CPU in half precision: faster, and the same numbers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.model import one_token
from homerlm.model.decoder import Decoder
from homerlm.model.one_token import one_token_forwards
from tiny import llama, prompt

NEW = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN's switch may be turned, as in a process of ours; what it is turned to during attention."""
    monkeypatch.setattr(one_token, "_may_switch", True)
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        seen.append(torch.backends.mkldnn.enabled)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return seen


def homer(dtype=torch.bfloat16, **settings):
    return Homer(llama(**settings).to(dtype), None, HomerConfig(max_chunk_len=40, target_len=30, pooling=3))


@pytest.mark.parametrize("key_value_heads", [1, 2, 6])
def test_tokens_are_those_of_the_models_own_attention(key_value_heads, monkeypatch):
    one = homer(num_key_value_heads=key_value_heads)
    context = one.compress(*prompt())
    got = one.generate(context, **NEW)
    monkeypatch.setattr("homerlm.generation.one_token_forwards", lambda *_: one_token.nullcontext())
    assert torch.equal(got, one.generate(context, **NEW))


def test_a_token_of_several_heads_is_several_queries_of_one_key_value_head(monkeypatch):
    one = homer()
    context, shapes = one.compress(*prompt()), []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, **kwargs):
        shapes.append(query.shape[2])
        return kernel(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    one.generate(context, **NEW)
    groups = one.model.config.num_attention_heads // one.model.config.num_key_value_heads
    assert groups > 1
    assert set(shapes) == {groups}


def test_single_rows_go_around_onednn_where_the_process_allows_it(onednn):
    one = homer()
    context = one.compress(*prompt())
    assert set(onednn) == {True}
    onednn.clear()
    one.generate(context, **NEW)
    assert set(onednn) == {False}
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_several_rows_keep_onednn(onednn, settings):
    one = homer()
    context = one.compress(*prompt())
    one.generate(context, **(NEW | settings))
    assert set(onednn) == {True}


def test_guesses_of_several_tokens_keep_onednn(onednn):
    one = homer()
    context = one.compress(*prompt())
    one.generate(context, **NEW, prompt_lookup_num_tokens=3)
    assert set(onednn) == {True}


def test_importing_and_float32_leave_the_switch_alone(onednn, monkeypatch):
    one = homer(torch.float32)
    one.generate(one.compress(*prompt()), **NEW)
    monkeypatch.setattr(one_token, "_may_switch", False)
    one = homer()
    one.generate(one.compress(*prompt()), **NEW)
    assert set(onednn) == {True}


def test_the_switch_is_as_it_was_after_an_error_and_after_several_threads(onednn):
    decoder = Decoder(llama().to(torch.bfloat16))
    together = threading.Barrier(4)

    def block(fails):
        try:
            with one_token_forwards(decoder, 1):
                together.wait()
                assert not torch.backends.mkldnn.enabled
                if fails:
                    raise KeyError
        except KeyError:
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(block, [True, False, True, False]))
    assert torch.backends.mkldnn.enabled
