"""Conversations that are stored and stood for by one item, as OpenAI's own client sees them."""

import time

import openai
import pytest

from serving import WORDS, client, openai_client, serving

TURNS = [
    {"role": "user", "content": "w3 w4"},
    {"role": "assistant", "content": "w5 w6"},
    {"role": "user", "content": "w7"},
    {"role": "assistant", "content": "w8"},
]
NEW = {"role": "user", "content": "w9"}


def respond(api, given, **more):
    return api.responses.create(model="tiny", input=given, max_output_tokens=6, **more)


def compact(api, **given):
    return api.responses.compact(model="tiny", **given)


def test_its_output_is_the_users_messages_and_one_item(api):
    made = compact(api, input=TURNS, instructions="w1")
    assert made.object == "response.compaction"
    assert abs(made.created_at - time.time()) < 60
    *asked, item = made.output
    assert [(one.role, one.content[0].text) for one in asked] == [("user", "w3 w4"), ("user", "w7")]
    assert item.type == "compaction"
    assert item.encrypted_content
    assert not any(word in item.encrypted_content for word in ("w5", "w6", "w8"))
    assert made.usage.input_tokens == 6
    assert made.usage.output_tokens == 0


def test_the_output_goes_on_as_the_conversation_itself_would(api):
    made = compact(api, input=TURNS)
    plain = respond(api, [*TURNS, NEW])
    again = respond(api, [*made.output, NEW])
    assert again.output_text == plain.output_text
    assert again.usage.input_tokens == plain.usage.input_tokens
    as_json = [item.to_dict() for item in made.output]
    assert respond(api, [*as_json, NEW]).usage.input_tokens == plain.usage.input_tokens
    alone = respond(api, [as_json[-1], NEW])
    assert alone.usage.input_tokens == plain.usage.input_tokens, "the item stands for the whole conversation"


def test_what_it_does_not_hold_stays(api):
    made = compact(api, input=TURNS)
    before = {"role": "system", "content": "w20 w21 w22"}
    with_it = respond(api, [before, *made.output, NEW])
    assert with_it.usage.input_tokens == respond(api, [before, *TURNS, NEW]).usage.input_tokens


def test_earlier_responses_and_compactions_are_compacted_too(api):
    first = respond(api, "w3 w4")
    second = respond(api, "w7", previous_response_id=first.id)
    made = compact(api, previous_response_id=second.id)
    assert [one.content[0].text for one in made.output[:-1]] == ["w3 w4", "w7"]
    plain = respond(api, "w9", previous_response_id=second.id)
    assert respond(api, [*made.output, NEW]).output_text == plain.output_text
    twice = compact(api, input=[*made.output, NEW, {"role": "assistant", "content": "w11"}])
    assert [one.content[0].text for one in twice.output[:-1]] == ["w3 w4", "w7", "w9"]
    later = respond(api, [*twice.output, {"role": "user", "content": "w12"}])
    assert later.usage.input_tokens > plain.usage.input_tokens


def test_nothing_of_a_long_conversation_is_lost(api):
    made = compact(api, input=[{"role": "user", "content": f"{WORDS}\n\nw1 ?"}, {"role": "assistant", "content": "w2"}])
    later = respond(api, [*made.output, {"role": "user", "content": "w5 ?"}])
    assert made.usage.input_tokens > 400
    assert later.usage.input_tokens > 400
    assert respond(api, [*made.output, NEW]).usage.input_tokens_details.cached_tokens > 300


def test_it_is_found_and_deleted_as_a_response_is(api, server):
    made = compact(api, input=TURNS)
    with client(server) as http:
        assert http.get(f"/v1/responses/{made.id}").json()["object"] == "response.compaction"
    assert [one.content[0].text for one in api.responses.input_items.list(made.id).data] == [
        turn["content"] for turn in reversed(TURNS)
    ]
    assert respond(api, "w9", previous_response_id=made.id).output_text == respond(api, [*TURNS, NEW]).output_text
    api.responses.delete(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        respond(api, [*made.output, NEW])
    assert refused.value.code == "compaction_not_found"
    assert refused.value.param == "input"


def test_it_belongs_to_its_key_and_has_a_lifetime(tmp_path):
    with serving(tmp_path, api_key=("one", "two"), response_seconds=1.5) as running:
        one, two = (openai_client(running, key) for key in ("one", "two"))
        made = compact(one, input=TURNS)
        with pytest.raises(openai.BadRequestError, match="not found"):
            respond(two, [*made.output, NEW])
        assert respond(one, [*made.output, NEW]).output_text
        time.sleep(1.5)
        with pytest.raises(openai.BadRequestError, match="not found"):
            respond(one, [*made.output, NEW])


def test_what_cannot_be_kept_or_read_is_refused(api, tmp_path):
    for given in ({}, {"input": []}, {"previous_response_id": "resp_none"}):
        with pytest.raises(openai.BadRequestError):
            compact(api, **given)
    with pytest.raises(openai.NotFoundError):
        api.responses.compact(model="gpt-none", input="w1")
    with serving(tmp_path, response_bytes=3000) as small:
        compact(openai_client(small), input="w1")
        with pytest.raises(openai.APIStatusError, match="too large") as refused:
            compact(openai_client(small), input=WORDS)
        assert refused.value.status_code == 413
