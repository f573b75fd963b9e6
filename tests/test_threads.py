"""One model, several callers at once: each gets what it would get alone, and the model's owner notices nothing."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from homerlm import Calibration, Homer, HomerConfig
from homerlm.errors import Cancelled
from tiny import LAYERS, LIMIT, llama, prompt

ROUNDS, NEW = 6, 5
CONFIGS = {
    "default": HomerConfig(max_chunk_len=40, target_len=30, pooling=3),
    "paper": HomerConfig.paper(
        max_chunk_len=40, target_len=30, warmup_layers=2, calibration=Calibration(torch.randn(LAYERS, LIMIT) / 10)
    ),
}


@pytest.fixture(autouse=True)
def switch_often():
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(before)
    torch.set_num_threads(threads)


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    return llama(attn_implementation=request.param)


def tensors(context):
    return (*context.keys, *context.values, context.logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_compressing_generating_and_plain_forwards_at_once_equal_one_at_a_time(model, name):
    homer = Homer(model, None, CONFIGS[name])
    prompts = [prompt(context=100 + 20 * i, seed=i) for i in range(3)]

    def plain(ids):
        with torch.no_grad():
            return model(ids[1]).logits

    def answer(ids):
        context = homer.compress(*ids)
        new = homer.generate(context, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        return context, new, homer.score(context, ids[2])

    alone, forwards = [answer(ids) for ids in prompts], [plain(ids) for ids in prompts]
    attention = model.config._attn_implementation
    with ThreadPoolExecutor(6) as pool:
        asked = [(i, pool.submit(answer, prompts[i])) for _ in range(ROUNDS) for i in range(3)]
        owned = [(i, pool.submit(plain, prompts[i])) for _ in range(ROUNDS) for i in range(3)]
        for i, job in asked:
            context, new, scores = job.result()
            assert torch.equal(new, alone[i][1])
            assert torch.equal(scores, alone[i][2])
            assert all(torch.equal(a, b) for a, b in zip(tensors(context), tensors(alone[i][0]), strict=True))
        assert all(torch.equal(job.result(), forwards[i]) for i, job in owned)
    assert model.config._attn_implementation == attention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_asking_again_and_compressing_at_once(model):
    homer = Homer(model, None, CONFIGS["default"])
    ids = prompt()
    later, other = homer.for_later().compress(*ids), prompt(seed=8, suffix=6)[2]
    focused, compressed = homer.focus(later, other), homer.compress(*ids)
    with ThreadPoolExecutor(4) as pool:
        focuses = [pool.submit(homer.focus, later, other) for _ in range(ROUNDS)]
        compresses = [pool.submit(homer.compress, *ids) for _ in range(ROUNDS)]
        for jobs, expected in ((focuses, focused), (compresses, compressed)):
            for job in jobs:
                assert all(torch.equal(a, b) for a, b in zip(tensors(job.result()), tensors(expected), strict=True))


def test_between_two_steps_the_caller_may_use_the_model(model):
    homer, ids = Homer(model, None, CONFIGS["paper"]), prompt()
    with torch.no_grad():
        before = model(ids[1]).logits
    seen, results = [], []

    def using_it_in_between():
        results.append((yield from homer.compressing(*ids)))

    for _event in using_it_in_between():
        with torch.no_grad():
            seen.append(torch.equal(model(ids[1]).logits, before))
    assert len(seen) > 3
    assert all(seen)
    assert torch.equal(results[0].logits, homer.compress(*ids).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_cancelling_stops_after_the_chunk_at_hand(model, name):
    homer, cancel, events = Homer(model, None, CONFIGS[name]), threading.Event(), []

    def observe(event):
        events.append(event)
        if len(events) == 2:
            cancel.set()

    with pytest.raises(Cancelled, match="reading"):
        homer.compress(*prompt(context=300), observer=observe, cancel=cancel)
    assert len(events) == 2
    assert events[-1].read < 300
    assert model.config._attn_implementation != "homerlm"


def test_cancelling_stops_after_the_token_at_hand(model):
    homer, cancel, made = Homer(model, None, CONFIGS["default"]), threading.Event(), []

    class Streamer:
        def put(self, ids):
            made.append(ids)
            if len(made) == 3:  # the prompt and two tokens
                cancel.set()

        def end(self):
            pass

    context = homer.compress(*prompt())
    with pytest.raises(Cancelled, match="writing"):
        homer.generate(
            context, max_new_tokens=50, do_sample=False, eos_token_id=None, streamer=Streamer(), cancel=cancel
        )
    assert len(made) <= 4
