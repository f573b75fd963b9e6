"""The quick benchmark's ratios: those of `make bench` here, if it has run, and the committed ones."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {"committed": ROOT / "results/quick/ratios.json", "here": ROOT / "homer-bench/quick/ratios.json"}
SHORT, LONG = 4096, 8192


@pytest.fixture(params=FILES)
def homer(request):
    """HOMER's entries by length."""
    if not (path := FILES[request.param]).exists():
        pytest.skip("make bench has not run here")
    return {e["length"]: e for e in json.loads(path.read_text()) if e["method"].startswith("homer")}


def test_memory_does_not_grow_with_the_prompt(homer):
    assert homer[SHORT]["growth"]["tensors"] <= 1.05


def test_work_and_time_grow_with_the_prompt_and_not_with_its_square(homer):
    assert homer[SHORT]["growth"]["flops"] <= 2.1
    assert homer[SHORT]["growth"]["prefill"] <= 3


def test_reading_costs_less_than_the_plain_models(homer):
    assert homer[LONG]["to_plain"]["flops"] <= 0.75
    assert homer[LONG]["to_plain"]["prefill"] < 0.8
    assert homer[LONG]["to_plain"]["tensors"] <= 0.25


def test_a_new_token_costs_no_more_after_a_longer_prompt(homer):
    assert homer[SHORT]["growth"]["step"] <= 1.3
