"""Chat and completions, as OpenAI's own client sees them."""

import openai
import pytest

from serving import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def said(*texts, roles=("user", "assistant")):
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def test_a_chat_is_answered_as_the_model_answers_it(api, server):
    made = api.chat.completions.create(model="tiny", messages=said("w3 w4"), max_tokens=7)
    print(made)
