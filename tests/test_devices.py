"""Dtypes, and models spread by accelerate: layers offloaded to disk give what the whole model gives."""

import mmap
import os
import subprocess
import sys
import time

import pytest
import torch
from accelerate import dispatch_model

from homerlm import CompactContext, Homer, HomerConfig
from homerlm.model.memory import FREED_MEMORY_KEPT, PeakMemory, give_freed_memory_back, keep_freed_memory
from tiny import llama, prompt

SIZES = {"max_chunk_len": 30, "target_len": 24, "pooling": 3}


def config_of(readout):
    if readout == "selected":
        return HomerConfig(**SIZES)
    return HomerConfig.paper(**SIZES, warmup_layers=2, score="softmax", readout=readout)


@pytest.mark.parametrize("readout", ["selected", "reencoded", "merged"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_runs_and_keeps_its_dtype(dtype, readout):
    homer = Homer(llama().to(dtype), None, config_of(readout))
    context = homer.compress(*prompt())
    assert {t.dtype for t in (*context.keys, *context.values)} == {dtype}
    assert homer.generate(context, max_new_tokens=3, do_sample=False).shape == (1, 3)


@pytest.mark.parametrize("readout", ["selected", "reencoded", "merged"])
def test_offloaded_layers_give_the_same(readout, tmp_path):
    config = config_of(readout)
    expected = Homer(llama(), None, config).compress(*prompt())
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 3 == 1 else "cpu" for i in range(10)}
    spread = dispatch_model(llama(), places, main_device="cpu", offload_dir=str(tmp_path))
    assert spread.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    homer = Homer(spread, None, config)
    got = homer.compress(*prompt())
    torch.testing.assert_close(got.token_indices, expected.token_indices)
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.keys[-1], expected.keys[-1])
    got.save(tmp_path / "c.homer")
    assert torch.equal(CompactContext.load(tmp_path / "c.homer", spread).keys[1], got.keys[1])


def test_peak_memory_sees_what_a_block_takes():
    with PeakMemory(torch.nn.Linear(1, 1)) as idle:
        pass
    with PeakMemory(torch.nn.Linear(1, 1)) as peak:
        block = mmap.mmap(-1, 200_000_000)  # new pages for sure: malloc may have as much from before
        block.write(bytes(200_000_000))
        time.sleep(0.1)
        block.close()
    assert idle.bytes < 20_000_000
    assert peak.bytes > 180_000_000


FAULTS = """
import ctypes, resource, sys, torch
from homerlm.model.memory import keep_freed_memory
if sys.argv[1] != "environment":
    for name in -1, -3:  # all given back at once, as glibc does by default where the heap happens to end there
        ctypes.CDLL(None).mallopt(name, 1 << 16)
assert sys.argv[1] != "kept" or keep_freed_memory()
def faults():  # of a layer's worth of tensors
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(size, dtype=torch.uint8) for size in (6_000_000, 12_000_000, 6_000_000)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
[faults() for _ in range(5)]
print(sum(faults() for _ in range(20)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator alone is asked to keep memory")
def test_freed_memory_is_kept_for_the_next_tensor():
    def faults(memory, **environment):
        command = [sys.executable, "-c", FAULTS, memory]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    given_back = faults("given back")
    assert faults("kept") < given_back / 20
    assert faults("environment", **FREED_MEMORY_KEPT) < given_back / 20


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_of_the_allocator_holds(name, monkeypatch):
    monkeypatch.setenv(name, "")
    assert not keep_freed_memory()


FREED = """
import psutil, torch
from homerlm.model.memory import give_freed_memory_back, keep_freed_memory
keep_freed_memory()
held = [torch.ones(1_000_000, dtype=torch.uint8) for _ in range(100)]
del held[:-1]  # the heap's end is in use
before = psutil.Process().memory_info().rss
assert give_freed_memory_back()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone gives memory back when it is told to")
def test_memory_that_was_kept_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90_000_000


def test_where_the_c_library_gives_nothing_back_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", None)
    assert not give_freed_memory_back()


HEAPS = """
import sys, threading, torch
from homerlm.model.memory import keep_freed_memory
assert sys.argv[1] == "many" or keep_freed_memory()
def allocate():
    held.append([torch.ones(1000) for _ in range(100)])
    places.append(held[-1][-1].data_ptr())
held, places = [], []
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
heap = next(line.split()[0] for line in open("/proc/self/maps") if "[heap]" in line)
start, stop = (int(place, 16) for place in heap.split("-"))
print(sum(start <= place < stop for place in places))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone makes heaps for threads")
def test_threads_share_one_heap():
    def shared(heaps):
        done = subprocess.run([sys.executable, "-c", HEAPS, heaps], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert (shared("many"), shared("one")) == (0, 4)
