"""Conversations that are kept: complete or not at all, and found by what their ids begin with."""

import json

import pytest

from homerlm.conversation.transcript import TITLE_LEN, Attached, Transcript, Transcripts, Turn
from homerlm.errors import CorruptFileError, InputError
from homerlm.selection import Excerpt


@pytest.fixture
def transcripts(tmp_path):
    return Transcripts(tmp_path / "conversations")


def conversation(id, question="w1 ?"):
    kept = (Excerpt(3, 5, "w1", "a.txt"), Excerpt(7, 9, "w2"))
    documents, turns = [Attached("a.txt", "/a.txt", "00")], [Turn(question, "w2", "stop", kept)]
    return Transcript(id, 1.0, documents=documents, turns=turns)


def test_what_was_saved_is_what_is_loaded(transcripts):
    made = conversation("chat-12ab", "what \ud800 is it ?")
    transcripts.save(made)
    assert transcripts.load("chat-12ab") == made
    assert transcripts.load("chat-1") == made
    assert [path.name for path in transcripts.folder.iterdir()] == ["chat-12ab.json"]


def test_the_last_one_is_first_and_one_without_a_question_is_not_kept(transcripts):
    assert transcripts.all() == []
    transcripts.save(Transcript())
    assert not transcripts.folder.exists()
    first, second = conversation("chat-1"), conversation("chat-2")
    for one in (second, first, second):
        transcripts.save(one)
    assert [one.id for one in transcripts.all()] == ["chat-2", "chat-1"]
    transcripts.remove("chat-2")
    assert [one.id for one in transcripts.all()] == ["chat-1"]


def test_what_is_not_one_conversation_is_refused(transcripts):
    for id in ("chat-11", "chat-12", "chat-1"):
        transcripts.save(conversation(id))
    assert transcripts.load("chat-1").id == "chat-1"
    for id, told in (("chat-", "3 conversations"), ("chat-2", "no conversation"), ("", "no conversation")):
        with pytest.raises(InputError, match=told):
            transcripts.load(id)
    for id in ("../chat-1", "*", "chat-1*"):
        with pytest.raises(InputError):
            transcripts.load(id)


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "{}", '"x"', json.dumps(conversation("chat-3").to_dict() | {"version": 2}), "\x00"]
)
def test_a_damaged_one_is_named_and_the_others_stay(transcripts, damaged):
    transcripts.save(conversation("chat-1"))
    (transcripts.folder / "chat-3.json").write_text(damaged)
    assert [one.id for one in transcripts.all()] == ["chat-1"]
    with pytest.raises(CorruptFileError, match="chat-3"):
        transcripts.load("chat-3")


def test_a_title_is_the_first_question_on_one_line():
    assert conversation("chat-1", "w1\n\n w2 ?").title == "w1 w2 ?"
    long = conversation("chat-1", "w1 " * 50).title
    assert len(long) <= TITLE_LEN
    assert long.endswith("…")
    assert Transcript().title == ""
