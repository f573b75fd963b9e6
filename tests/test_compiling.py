"""A compiled model gives what it gives uncompiled, and is compiled once."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from homerlm import Homer, HomerConfig, compile_model
from tiny import LAYERS, llama, prompt

SIZES = {"max_chunk_len": 30, "target_len": 24, "pooling": 3}


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(model, readout):
    """Of three documents of different lengths."""
    paper = HomerConfig.paper(**SIZES, warmup_layers=2, score="softmax")
    homer = Homer(model, None, HomerConfig(**SIZES) if readout == "selected" else paper)
    prefix, document, suffix = prompt()
    found = []
    for seed in range(3):
        context = homer.compress(prefix, document[:, seed * 5 :].roll(seed, dims=1), suffix)
        found += [context.logits, *context.keys, homer.generate(context, max_new_tokens=5, do_sample=False)]
    return found


@pytest.mark.parametrize("readout", ["selected", "merged"])
def test_a_compiled_model_gives_the_same(readout):
    model, whole = llama(), llama()
    compiled = results(compile_model(model, backend="eager"), readout)
    for got, expected in zip(compiled, results(whole, readout), strict=True):
        torch.testing.assert_close(got, expected)


def test_layers_of_all_lengths_are_compiled_together():
    model, counter = llama(), CompileCounterWithBackend("eager")
    homer = Homer(compile_model(model, backend=counter), None, HomerConfig(**SIZES))
    prefix, document, suffix = prompt()
    assert counter.frame_count == 0  # the model's check is no reason to wait for the compiler
    compiled = []
    for start in range(0, 40, 5):
        homer.compress(prefix, document[:, start:], suffix)
        compiled.append(counter.frame_count)
    assert 0 < compiled[0] < LAYERS
    assert compiled[-1] == compiled[1]
