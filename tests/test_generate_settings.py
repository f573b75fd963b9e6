"""What transformers' `generate` is asked for beside a compact context: done, or refused before any work."""

import asyncio

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.errors import ConfigError
from tiny import LAYERS, llama, prompt

DOCUMENT = " ".join(f"w{i % 90}" for i in range(200))
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def context():
    return Homer(llama(), None, HomerConfig(max_chunk_len=48, target_len=40, pooling=3)).compress(*prompt())


@pytest.fixture
def homer(words):
    return Homer(llama(), words, HomerConfig(max_chunk_len=48, target_len=40, pooling=3))


@pytest.fixture(scope="module")
def greedy(context):
    return Homer(llama()).generate(context, **GREEDY)


def test_the_model_may_be_its_own_assistant(homer, context, greedy):
    assert torch.equal(homer.generate(context, assistant_model=homer.model, **GREEDY), greedy)


def test_an_early_exit_is_refused_and_leaves_the_model_whole(homer, context, greedy):
    with pytest.raises(ConfigError, match="assistant_early_exit makes the model shorter"):
        homer.generate(context, assistant_early_exit=3, **GREEDY)
    assert homer.model.config.num_hidden_layers == LAYERS
    homer.model.generation_config.assistant_early_exit = 3
    with pytest.raises(ConfigError, match="assistant_early_exit makes the model shorter"):
        homer.ask(DOCUMENT, "w1")


@pytest.mark.parametrize("own", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_the_compact_cache_is_read_whatever_the_generation_config_says(homer, context, greedy, own):
    homer.model.generation_config.update(**own)
    assert torch.equal(homer.generate(context, **GREEDY), greedy)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_cache": False}, "use_cache is set by homerlm"),
        ({"cache_implementation": "static"}, "cache_implementation is set by homerlm"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, but an answer is one text"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is True, but an answer is one text"),
        ({"streamer": object()}, "refuses these settings: .* no attribute"),
        ({"stopping_criteria": lambda *_, **__: True}, "refuses these settings"),
        ({"num_beams": None}, "refuses these settings"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search, which is no part of transformers"),
        ({"early_stopping": "soon", "num_beams": 2}, "refuses these settings: .*early_stopping"),
    ],
)
def test_what_generate_would_refuse_is_refused_before_the_document_is_read(homer, monkeypatch, settings, named):
    monkeypatch.setattr(type(homer.method), "compress", None)
    with pytest.raises(ConfigError, match=named):
        homer.ask(DOCUMENT, "w1", **settings)


def test_a_stream_of_beams_is_refused_before_the_document_is_read(homer, monkeypatch):
    monkeypatch.setattr(type(homer.method), "compress", None)
    with pytest.raises(ConfigError, match="while beams compete for it: leave out num_beams"):
        list(homer.ask_stream(DOCUMENT, "w1", num_beams=2))
    with pytest.raises(ConfigError, match="streamer has no effect where the answer's pieces are asked for"):
        list(homer.ask_stream(DOCUMENT, "w1", streamer=object()))


@pytest.mark.parametrize("settings", [{"num_beams": 2, "num_return_sequences": 3}, {"num_return_sequences": 2}])
def test_what_generate_refuses_is_our_error(homer, context, settings):
    with pytest.raises(ConfigError, match=r"refuses these settings: .*num_return_sequences"):
        homer.generate(context, max_new_tokens=2, do_sample=False, **settings)


def test_an_error_while_writing_is_the_callers_own(homer, context):
    def fail(_row, _ids):
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match=r"^of the caller$"):
        homer.generate(context, prefix_allowed_tokens_fn=fail, **GREEDY)


def test_an_answer_is_one_text_whatever_the_generation_config_says(homer):
    expected = homer.ask(DOCUMENT, "w1", max_new_tokens=3)
    homer.model.generation_config.update(return_dict_in_generate=True)
    homer.model.generation_config.update(do_sample=True, num_return_sequences=2)
    assert homer.ask(DOCUMENT, "w1", max_new_tokens=3).token_ids == expected.token_ids
    assert asyncio.run(homer.aask(DOCUMENT, "w1", max_new_tokens=3)).token_ids == expected.token_ids


def test_a_generation_config_that_contradicts_itself_is_our_error(homer):
    homer.model.generation_config.num_return_sequences = 2
    for answer in (lambda: homer.ask(DOCUMENT, "w1"), lambda: asyncio.run(homer.aask(DOCUMENT, "w1"))):
        with pytest.raises(ConfigError, match=r"refuses these settings: .*num_return_sequences"):
            answer()
