"""On an NVIDIA GPU: what the CPU gives, in its own memory, from any thread. Skipped where there is none."""

import copy
import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import families
from command import WORDS, ask, runner
from homerlm import Calibration, CompactContext, Homer, HomerConfig
from homerlm.model.memory import PeakMemory
from tiny import LAYERS, LIMIT, llama, prompt

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]

DEVICE = "cuda"
MEGABYTES = 1 << 20
SIZES = {"max_chunk_len": 40, "target_len": 30, "pooling": 3}
CONFIGS = {
    "default": HomerConfig(**SIZES),
    "in batches": HomerConfig(**SIZES, chunk_batch=3),
    "surprisal": HomerConfig(**SIZES, chosen_by="both"),
    "paper": HomerConfig.paper(
        max_chunk_len=40,
        target_len=30,
        warmup_layers=2,
        calibration=Calibration(torch.randn(LAYERS, LIMIT, generator=torch.Generator().manual_seed(5)) / 10),
    ),
}


def homers(name, **changes):
    """The same model twice, on the CPU and on the GPU."""
    return [Homer(llama(**changes).to(device), None, CONFIGS[name]) for device in ("cpu", DEVICE)]


def tensors(context):
    return (*context.keys, *context.values, context.logits)


def assert_same(got, expected):
    """The same tokens were kept, and what is known of them is what the CPU makes, up to rounding."""
    assert got.token_indices.tolist() == expected.token_indices.tolist()
    assert got.input_ids.tolist() == expected.input_ids.tolist()
    for mine, theirs in zip(tensors(got), tensors(expected), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_contexts_answers_and_logits_are_the_cpus(name, implementation, batch):
    on_cpu, on_gpu = homers(name, attn_implementation=implementation)
    ids = prompt(batch=batch)
    expected, got = (homer.compress(*ids) for homer in (on_cpu, on_gpu))
    assert {tensor.device.type for tensor in tensors(got)} == {DEVICE}
    assert_same(got, expected)
    logits = on_gpu.score(got, ids[2])
    torch.testing.assert_close(logits.cpu(), on_cpu.score(expected, ids[2]), rtol=1e-3, atol=1e-4)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert on_gpu.generate(got, **settings).tolist() == on_cpu.generate(expected, **settings).tolist()


@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_every_family(family):
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = family.build()
    config = CONFIGS["default"]
    expected, got = (Homer(m, None, config).compress(*prompt()) for m in (model, copy.deepcopy(model).to(DEVICE)))
    assert_same(got, expected)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    homer = Homer(llama().to(DEVICE, dtype), None, CONFIGS[name])
    context = homer.compress(*prompt())
    assert {tensor.dtype for tensor in (*context.keys, *context.values)} == {dtype}
    assert homer.generate(context, max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 3)
    assert homer.score(context, prompt()[2]).isfinite().all()


def test_a_calibration_measured_there_is_the_cpus(words):
    texts = [" ".join(f"w{i * i % 90}" for i in range(400))]
    mine, theirs = (Calibration.measure(llama().to(d), words, texts, length=50, queries=2) for d in ("cpu", DEVICE))
    torch.testing.assert_close(mine.bias, theirs.bias, rtol=1e-3, atol=1e-4)
    assert mine.model == theirs.model


def test_peak_memory_is_seen_and_the_owners_statistics_stay():
    device = torch.device(DEVICE)

    def take(megabytes):
        block = torch.ones(megabytes * MEGABYTES, dtype=torch.uint8, device=device)
        for _ in range(10):  # while readings are made
            block.sum().item()
            time.sleep(0.01)

    take(300)
    before = torch.cuda.max_memory_allocated()
    with PeakMemory(device) as below:
        take(100)
    assert torch.cuda.max_memory_allocated() == before
    with PeakMemory(device) as above:
        take(500)
    assert torch.cuda.max_memory_allocated() >= before
    assert below.bytes > 80 * MEGABYTES
    assert above.bytes > 400 * MEGABYTES


def test_an_answer_tells_its_peak(words):
    homer = Homer(llama().to(DEVICE), words, CONFIGS["default"])
    answer = homer.ask(WORDS, "w1 w2", max_new_tokens=5)
    assert answer.peak_bytes > 0
    assert answer.text == Homer(llama(), words, CONFIGS["default"]).ask(WORDS, "w1 w2", max_new_tokens=5).text


def test_several_threads_get_what_each_would_get_alone():
    homer = Homer(llama().to(DEVICE), None, CONFIGS["default"])
    prompts = [prompt(context=100 + 20 * i, seed=i) for i in range(3)]
    alone = [homer.compress(*ids) for ids in prompts]
    with ThreadPoolExecutor(3) as pool:
        jobs = [(i, pool.submit(homer.compress, *prompts[i])) for _ in range(4) for i in range(3)]
        for i, job in jobs:
            assert_same(job.result(), alone[i])


def test_a_stream_has_a_thread_of_its_own(words):
    homer = Homer(llama().to(DEVICE), words, CONFIGS["default"])
    with homer.ask_stream(WORDS, "w1 w2", max_new_tokens=5) as stream:
        pieces = list(stream)
    assert "".join(pieces).strip() == stream.answer.text


def test_a_document_kept_for_later_is_asked_on_either_device(tmp_path):
    on_cpu, on_gpu = (homer.for_later() for homer in homers("default"))
    ids, other = prompt(context=400), prompt(seed=8, suffix=6)[2]
    on_gpu.compress(*ids).save(tmp_path / "gpu.homer")
    on_cpu.compress(*ids).save(tmp_path / "cpu.homer")
    expected = on_cpu.focus(on_cpu.compress(*ids), other)
    for path in (tmp_path / "gpu.homer", tmp_path / "cpu.homer"):
        for homer, place in ((on_cpu, "cpu"), (on_gpu, DEVICE)):
            loaded = CompactContext.load(path, homer.model)
            assert {tensor.device.type for tensor in tensors(loaded)} == {place}
            assert_same(homer.focus(loaded, other), expected)
            torch.testing.assert_close(
                homer.exchange_suffix(loaded, other).logits.cpu(),
                on_cpu.exchange_suffix(CompactContext.load(path, on_cpu.model), other).logits,
                rtol=1e-3,
                atol=1e-4,
            )


@pytest.mark.parametrize("preset", [[], ["--preset", "paper", "--score", "softmax", "--warmup-layers", "2"]])
def test_the_command(monkeypatch, capsys, model_folder, tmp_path, preset):
    homer = runner(monkeypatch, capsys, model_folder)
    document = tmp_path / "d.txt"
    document.write_text(WORDS)
    texts = []
    for device in ("cpu", DEVICE):
        code, out, err = homer(*ask(document, "--device", device, "--dtype", "float32", "--json", *preset))
        assert (code, err) == (0, "")
        texts.append(json.loads(out)["text"])
    assert texts[0] == texts[1]
    saved = tmp_path / "d.homer"
    if not preset:
        assert homer(*ask(document, "--device", DEVICE, "--save", saved))[0] == 0
        assert homer("ask", "--context", saved, "w3", "-m", "MODEL", "--max-new-tokens", "3")[0] == 0
