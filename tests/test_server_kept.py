"""What answers were written from, as it is told afterwards."""

import gc

import pytest

from homerlm.server.kept_answers import KeptAnswer, KeptAnswers
from serving import QUESTION, WORDS, client, openai_client, serving

LONG = f"{WORDS} w3\n\n{QUESTION}"


def ask(api, kind, text):
    """An answer's id and how many tokens it was written from."""
    if kind == "chat":
        made = api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], max_tokens=3)
    elif kind == "completion":
        made = api.completions.create(model="tiny", prompt=text, max_tokens=3)
    else:
        made = api.responses.create(model="tiny", input=text, max_output_tokens=3)
    return made.id, made.usage.homer["kept"]


@pytest.mark.parametrize("kind", ["chat", "completion", "response"])
def test_every_kind_of_answer_is_remembered(api, server, kind):
    id, read = ask(api, kind, LONG)
    with client(server) as http:
        kept = http.get(f"/v1/answers/{id}/kept").raise_for_status().json()
    (document,) = kept["documents"]
    words = [word for one in document["passages"] for word in one["text"].split()]
    assert 0 < len(words) == kept["tokens"] < read
    assert document["text"] == f"{WORDS} w3"
    assert all(document["text"][one["start"] : one["end"]] == one["text"] for one in document["passages"])


@pytest.mark.parametrize("kind", ["chat", "completion", "response"])
def test_streams_are_remembered_too(api, server, kind):
    calls = {
        "chat": lambda: api.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": LONG}], max_tokens=3, stream=True
        ),
        "completion": lambda: api.completions.create(model="tiny", prompt=LONG, max_tokens=3, stream=True),
        "response": lambda: api.responses.create(model="tiny", input=LONG, max_output_tokens=3, stream=True),
    }
    first, *_ = list(calls[kind]())
    id = first.response.id if kind == "response" else first.id
    with client(server) as http:
        assert http.get(f"/v1/answers/{id}/kept?text=false").raise_for_status().json()["tokens"] > 0


def test_what_is_remembered_holds_no_document_open_and_says_when_it_has_gone(api, server):
    id, _ = ask(api, "chat", f"{WORDS} w5\n\n{QUESTION}")
    documents = server.documents
    stored = documents.store.documents("local")[-1]
    gc.collect()
    assert not documents.in_use(stored.id)
    with client(server) as http:
        assert http.get(f"/v1/answers/{id}/kept").status_code == 200
        documents.store.remove_document("local", stored.id)
        for query in ("", "?text=false"):
            gone = http.get(f"/v1/answers/{id}/kept{query}")
            assert gone.status_code == 410
            assert gone.json()["error"]["code"] == "document_gone"
        ask(api, "chat", f"{WORDS} w5\n\n{QUESTION}")
        assert http.get(f"/v1/answers/{id}/kept").status_code == 200, "it was read again"


def test_a_response_that_is_deleted_or_not_stored_is_not_remembered(api, server):
    id, _ = ask(api, "response", LONG)
    api.responses.delete(id)
    unstored = api.responses.create(model="tiny", input=LONG, max_output_tokens=3, store=False)
    with client(server) as http:
        for gone in (id, unstored.id):
            assert http.get(f"/v1/answers/{gone}/kept").status_code == 404


def test_another_owner_sees_nothing(tmp_path):
    with serving(tmp_path, api_key=("one", "two")) as running:
        id, _ = ask(openai_client(running, "one"), "completion", LONG)
        for key, status in (("one", 200), ("two", 404)):
            with client(running, headers={"Authorization": f"Bearer {key}"}) as http:
                assert http.get(f"/v1/answers/{id}/kept").status_code == status


def test_the_oldest_answers_are_forgotten():
    kept = KeptAnswers(most=2)
    for id in "abc":
        kept.put("x", id, KeptAnswer(1, 1, ()))
    assert [kept.get("x", id) is not None for id in "abc"] == [False, True, True]
