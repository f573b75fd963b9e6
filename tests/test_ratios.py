"""The quick benchmark's ratios, where `make bench` has run here."""

import json
from pathlib import Path

import pytest

MADE = Path(__file__).parent.parent / "homer-bench/quick/ratios.json"
SHORT, LONG = 4096, 8192


@pytest.fixture(scope="module")
def homer():
    """HOMER's entries by length."""
    if not MADE.exists():
        pytest.skip("make bench has not run here")
    return {e["length"]: e for e in json.loads(MADE.read_text()) if e["method"].startswith("homer")}


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
