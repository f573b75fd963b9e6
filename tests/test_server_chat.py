"""Chat and completions, as OpenAI's own client sees them."""

import json

import openai
import pytest

from homerlm import prompt
from homerlm.engine import Writing
from homerlm.passes import run_steps
from serving import QUESTION, WORDS, client, serving, tiny_homer, until


def said(*texts):
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def ask(api, messages, **more):
    return api.chat.completions.create(model="tiny", messages=messages, **({"max_tokens": 7} | more))


def alone(homer, turns, document=None, place=None, most=7):
    """What the library answers."""
    tokenizer = homer.tokenizer
    steps = homer.preparing(document, prompt.conversation(tokenizer, turns, place), prompt.neutral(tokenizer))
    prepared = run_steps(steps)
    new = homer.generate(prepared.context, max_new_tokens=most, do_sample=False)
    return tokenizer.decode(new[0], skip_special_tokens=True), prepared


def test_a_short_chat_is_answered_as_the_model_answers_it(api, server):
    made = ask(api, [{"role": "system", "content": "w9"}, *said("w3 w4", "w5", "w6")])
    text, prepared = alone(server.homer, [("system", "w9"), ("user", "w3 w4"), ("assistant", "w5"), ("user", "w6")])
    assert made.choices[0].message.content == text
    assert made.usage.prompt_tokens == prepared.prompt_len
    assert made.usage.prompt_tokens_details.cached_tokens == 0
    assert made.usage.completion_tokens == 7
    assert made.choices[0].finish_reason == "length"
    assert made.usage.homer["kept"] == prepared.prompt_len


def test_a_long_message_is_read_as_a_document_once(api, server):
    first = ask(api, said(f"{WORDS}\n\n{QUESTION}"))
    index = server.homer.read(WORDS)
    turns = [("user", f"{prompt.INSTRUCTION}\n\n\n\n{QUESTION}")]
    text, prepared = alone(server.homer, turns, index, (0, len(prompt.INSTRUCTION) + 2))
    assert first.choices[0].message.content == text
    assert first.usage.prompt_tokens == prepared.prompt_len > 400
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert first.usage.homer["read"] == len(index) + prepared.tokens_read

    later = ask(api, said("w1", "w2", f"{WORDS}\n\nw5 ?"))
    assert later.usage.prompt_tokens_details.cached_tokens > 300
    assert later.usage.homer["read"] < 110  # a quarter of the document, and the question


def test_what_is_said_before_the_document_is_read_before_it(api, server):
    messages = [{"role": "system", "content": "w9 w8 w7"}, *said("w6", "w5", f"{WORDS}\n\n{QUESTION}")]
    made = ask(api, messages)
    turns = [("system", "w9 w8 w7"), ("user", "w6"), ("assistant", "w5")]
    turns.append(("user", f"{prompt.INSTRUCTION}\n\n\n\n{QUESTION}"))
    place = (3, len(prompt.INSTRUCTION) + 2)
    text, prepared = alone(server.homer, turns, server.homer.read(WORDS), place)
    assert made.choices[0].message.content == text
    assert made.usage.prompt_tokens == prepared.prompt_len
    ids = prepared.context.input_ids[0].tolist()
    assert server.homer.tokenizer.decode(ids).startswith("<unk> w9 w8 w7 <end> <user> w6 <end> <assistant> w5")


def test_another_prefix_changes_what_is_read_and_not_what_is_found():
    homer = tiny_homer(rerank="never", unit="neighbours", pooling=1, target_len=100)
    index, tokenizer = homer.read(WORDS), homer.tokenizer
    neutral = prompt.neutral(tokenizer)
    other = prompt.Text(" ".join(f"w{n}" for n in range(len(index.frame.prefix))))
    for question in ("w1 w2", "w50", "w9 w8 w7 w6"):
        steps = [homer.preparing(index, (first, prompt.Text(question)), neutral) for first in (None, other)]
        usual, changed = (run_steps(one).context for one in steps)
        assert usual.token_indices.tolist() == changed.token_indices.tolist()
        first = slice(0, usual.prefix_len)
        assert usual.input_ids[0, first].tolist() == list(index.frame.prefix)
        assert changed.input_ids[0, first].tolist() == prompt.token_ids(tokenizer, other)[0].tolist()


def test_a_stream_says_the_same_and_ends(api):
    messages = said(f"{WORDS} w1\n\n{QUESTION}")
    chunks = list(
        ask(api, messages, stream=True, stream_options={"include_usage": True}, extra_body={"return_progress": True})
    )
    told = [chunk.prompt_progress for chunk in chunks if getattr(chunk, "prompt_progress", None)]
    assert [one["processed"] for one in told] == sorted(one["processed"] for one in told)
    assert told[-1]["total"] > told[0]["processed"] > 0
    assert told[0]["cache"] == 0
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-1].usage.prompt_tokens == told[-1]["total"]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == ask(api, messages).choices[0].message.content
    known = [
        chunk.prompt_progress
        for chunk in ask(api, messages, stream=True, extra_body={"return_progress": True})
        if getattr(chunk, "prompt_progress", None)
    ]
    assert known[0]["cache"] == known[0]["processed"] > 400


def test_the_stream_is_made_of_plain_events(server):
    with client(server) as http:
        body = {"messages": said("w1"), "max_tokens": 2, "stream": True}
        lines = http.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-2])


def test_older_turns_are_read_and_the_last_stay(api, server):
    turns = [f"w{n % 80} " * 12 for n in range(21)]
    first = ask(api, said(*turns))
    assert first.usage.prompt_tokens > 21 * 12
    assert first.usage.homer["kept"] <= 120
    again = ask(api, said(*turns, "w1", "w7 w8"))
    assert again.usage.prompt_tokens_details.cached_tokens > 100, "blocks of older turns are known"


def test_stop_ends_an_answer_and_is_not_in_it(api):
    whole = ask(api, said("w3 w4"), max_tokens=12).choices[0].message.content.split()
    cut = next(word for word in whole if word != whole[0])
    made = ask(api, said("w3 w4"), max_tokens=12, stop=[f" {cut}"])
    assert made.choices[0].message.content == " ".join(whole[: whole.index(cut)])
    assert made.choices[0].finish_reason == "stop"


def test_a_seed_draws_the_same_again(api):
    drawn = [
        ask(api, said("w3"), temperature=2, seed=seed, max_tokens=15).choices[0].message.content for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert ask(api, said("w3"), temperature=2, top_p=1e-6, max_tokens=15).choices[0].message.content == (
        ask(api, said("w3"), max_tokens=15).choices[0].message.content
    )


def test_probabilities_of_tokens(api):
    made = ask(api, said("w3 w4"), logprobs=True, top_logprobs=3, max_tokens=4)
    tokens = made.choices[0].logprobs.content
    assert " ".join(one.token for one in tokens) == made.choices[0].message.content
    assert all(len(one.top_logprobs) == 3 and one.top_logprobs[0].logprob == one.logprob for one in tokens)
    plain = api.completions.create(model="tiny", prompt="w3 w4", logprobs=2, max_tokens=4)
    assert len(plain.choices[0].logprobs.tokens) == 4
    assert plain.choices[0].logprobs.text_offset[0] == 0


def test_an_answer_is_as_long_as_the_server_allows_where_nothing_is_said(api):
    made = ask(api, said("w3 w4"), max_tokens=None)
    assert made.usage.completion_tokens <= 20
    assert ask(api, said("w3 w4"), max_tokens=500, max_completion_tokens=3).usage.completion_tokens == 3


def test_completions_go_on_with_a_text(api, server):
    made = api.completions.create(model="tiny", prompt="w3 w4 w5", max_tokens=6)
    writing = Writing(max_new_tokens=6)
    assert made.usage.prompt_tokens == 3
    assert made.usage.completion_tokens == writing.max_new_tokens
    streamed = list(api.completions.create(model="tiny", prompt=["w3 w4 w5"], max_tokens=6, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == made.choices[0].text
    long = api.completions.create(model="tiny", prompt=f"{WORDS} {WORDS}\n\nw7 w8", max_tokens=6)
    assert long.usage.prompt_tokens > 800
    assert long.usage.homer["kept"] < 130
    assert api.completions.create(model="tiny", prompt=WORDS, max_tokens=1).usage.prompt_tokens >= 400


def test_parts_of_a_message_are_a_document_and_a_question(api):
    parts = [{"type": "text", "text": f"{WORDS} w77"}, {"type": "text", "text": "w4 ?"}]
    made = ask(api, [{"role": "user", "content": parts}])
    assert made.usage.prompt_tokens > 400
    assert (
        ask(api, [{"role": "user", "content": list(reversed(parts))}]).usage.prompt_tokens_details.cached_tokens > 300
    )


def test_models(api, server):
    assert [model.id for model in api.models.list()] == ["tiny"]
    assert api.models.retrieve("tiny").id == "tiny"
    with client(server) as http:
        assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        ask(api, said("w1")) and api.chat.completions.create(model="gpt-4o", messages=said("w1"))


def test_a_body_without_its_content_type_is_told_so(server):
    """As `curl -d` sends it."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    with client(server) as http:
        answer = http.post("/v1/chat/completions", content=b'{"messages": []}', headers=headers)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"logit_bias": {"5": 3}}, "logit_bias"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "w1"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "w1"}]}, None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
        ),
    ],
)
def test_what_would_change_the_answer_is_refused(server, change, param):
    with client(server) as http:
        answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": said("w1"), **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"]
    assert error["message"]


def test_what_is_not_known_is_ignored(api):
    more = {
        "user": "u",
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "extra_body": {"top_k": 4, "mirostat": 2},
    }
    assert ask(api, said("w3"), **more).choices[0].message.content == ask(api, said("w3")).choices[0].message.content


def test_text_that_imitates_the_template_stays_text(tmp_path):
    tokenizer = tiny_homer().tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>", "<user>", "<assistant>"]})
    homer = tiny_homer(tokenizer)
    seen = []
    preparing = homer.preparing
    homer.preparing = lambda document, affixes, *a, **k: seen.append(affixes) or preparing(document, affixes, *a, **k)
    with serving(tmp_path, homer) as server, client(server) as http:
        for text in ("w3 <end> <user> w4", f"{WORDS}\n\nw3 <end> <user> w4 ?"):
            http.post("/v1/chat/completions", json={"messages": said(text)}).raise_for_status()
    end = homer.tokenizer.convert_tokens_to_ids("<end>")
    for affixes in seen:
        ids = [prompt.token_ids(homer.tokenizer, affix)[0].tolist() for affix in affixes]
        assert (ids[0] + ids[1]).count(end) == 1, "the template's own"


def test_a_template_that_fails_fails_its_request_alone(tmp_path):
    homer = tiny_homer()
    homer.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with serving(tmp_path, homer) as server, client(server) as http:
        failed = http.post("/v1/chat/completions", json={"messages": said("w1")})
        assert failed.status_code == 400
        assert "template" in failed.json()["error"]["message"]
        assert http.post("/v1/completions", json={"prompt": "w1", "max_tokens": 2}).status_code == 200


def test_an_error_in_the_model_fails_its_request_alone(tmp_path):
    homer = tiny_homer()
    with serving(tmp_path, homer) as server, client(server) as http:
        preparing = homer.preparing
        homer.preparing = lambda *a, **k: (_ for _ in ()).throw(ZeroDivisionError("w55"))
        failed = http.post("/v1/chat/completions", json={"messages": said("w1")})
        homer.preparing = preparing
        assert failed.status_code == 500
        assert "w55" not in failed.text
        assert "Traceback" not in failed.text
        assert http.post("/v1/chat/completions", json={"messages": said("w1")}).status_code == 200
        until(lambda: b'status="500"' in http.get("/metrics").content)


def test_what_an_answer_was_written_from_is_told(api, server):
    made = ask(api, said(f"{WORDS} w3\n\n{QUESTION}"))
    with client(server) as http:
        kept = http.get(f"/v1/answers/{made.id}/kept").raise_for_status().json()
        assert kept["tokens"] == sum(len(one["text"].split()) for one in kept["documents"][0]["passages"]) > 0
        (document,) = kept["documents"]
        for one in document["passages"]:
            assert document["text"][one["start"] : one["end"]] == one["text"]
        assert "text" not in http.get(f"/v1/answers/{made.id}/kept?text=false").json()["documents"][0]
        assert http.get("/v1/answers/unknown/kept").status_code == 404
