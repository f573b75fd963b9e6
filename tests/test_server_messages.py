"""Which part of a conversation is a document, which is the question, and that none is lost."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homerlm import prompt
from homerlm.conversation.messages import HISTORY, Message, Reader
from homerlm.conversation.splitting import split
from homerlm.errors import InputError
from tiny import VOCAB
from words import tokenizer_of

ROOM = 60
TOKENIZER = tokenizer_of(VOCAB, chat=True)
READER = Reader.of(TOKENIZER, ROOM)
BOOK = "\n\n".join(["w1 w2", *(" ".join(f"w{(7 * n + k) % 80}" for k in range(25)) for n in range(6)), "w3 w4 ."])


def words(text):
    return len(text.split())


def user(*parts):
    return Message("user", parts)


def parts_of(text):
    found = split(text, words, 600)
    return found.head, found.document, found.tail, found.asked


def test_what_fits_is_an_ordinary_chat():
    given = [Message("system", ("w1",)), user("w2"), Message("assistant", ("w3",)), user("w4", "w5")]
    read = READER.read(given)
    assert read.turns == (("system", "w1"), ("user", "w2"), ("assistant", "w3"), ("user", "w4\n\nw5"))
    assert read.documents == ()
    assert read.place is None


def test_a_question_at_the_end_at_the_start_and_at_both():
    assert parts_of(f"{BOOK}\n\nw5 w6 ?") == ("w1 w2", BOOK.removeprefix("w1 w2").strip(), "w5 w6 ?", "w5 w6 ?")
    assert parts_of(f"w5 w6 ?\n\n{BOOK}") == ("w5 w6 ?", BOOK, "", "w5 w6 ?")
    head, document, tail, asked = parts_of(f"w5 w6 :\n\n{BOOK}\n\nw7 :\n\nw8 w9 ?")
    assert (head, tail, asked) == ("w5 w6 :", "w7 :\n\nw8 w9 ?", "w7 :\n\nw8 w9 ?")
    assert document == BOOK
    *_, asked = parts_of(f"w5 w6 .\n\n{BOOK}")
    assert asked == "w3 w4 .\n\nw5 w6 .", "either may be what is asked"


def test_a_question_in_the_last_line_or_sentence():
    lines = "\n".join(f"w{n % 80} w1 w2" for n in range(99))
    assert parts_of(f"{lines}\nw5 w6 ?")[1:3] == (lines, "w5 w6 ?")
    sentences = "w1 w2 w3. " * 99
    assert parts_of(f"{sentences}w5 w6?")[1:3] == (sentences.strip(), "w5 w6?")
    assert parts_of("w1 " * 500)[1:] == (("w1 " * 500).strip(), "", "")


@pytest.mark.parametrize(("before", "after"), [("<context>\n", "\n</context>"), ("```\n", "\n```"), ('"""\n', '\n"""')])
def test_what_stands_between_marks_is_the_document(before, after):
    document = f"{before}{BOOK}\n\nw9 ?{after}"
    head = "\n\n".join(["w1 w2", "w3 ?", "w4 w5"])
    assert parts_of(f"{head}\n\n{document}\n\nw6 w7")[:3] == (head, document, "w6 w7")


def test_the_document_stands_before_the_question():
    read = READER.read([Message("system", ("w9",)), user(f"{BOOK}\n\nw5 w6 ?")])
    ((name, text),) = read.documents
    assert text == BOOK.removeprefix("w1 w2").strip()
    assert name.startswith("text-")
    before, after = read.affixes(TOKENIZER)
    assert before.text == "<system> w9 <end> <user> w1 w2\n\n"
    assert after.text == "\n\nw5 w6 ? <end> <assistant> "


def test_a_document_is_the_same_in_every_later_turn():
    asked = [user(f"{BOOK}\n\nw5 w6 ?")]
    first = READER.read(asked)
    later = READER.read([*asked, Message("assistant", ("w7",)), user("w8 ?")])
    assert later.documents == first.documents
    assert later.turns[-1] == ("user", f"{prompt.INSTRUCTION}\n\n\n\nw8 ?")
    assert later.turns[0] == ("user", "w1 w2\n\nw5 w6 ?")
    twice = READER.read([user(BOOK, "w5 ?"), Message("assistant", ("w7",)), user(BOOK, "w6 ?")])
    assert [text for _, text in twice.documents] == [BOOK], "sent twice, read once"


def test_a_part_beside_a_question_is_a_whole_document():
    for parts in ((BOOK, "w5 w6 ?"), ("w5 w6 ?", BOOK)):
        read = READER.read([user(*parts)])
        assert [text for _, text in read.documents] == [BOOK]
        assert read.turns == (("user", f"{prompt.INSTRUCTION}\n\n\n\nw5 w6 ?"),)


def long_conversation(turns):
    every = []
    for n in range(turns):
        every += [user(" ".join([f"w{n}"] * 9)), Message("assistant", (" ".join([f"w{n + 1}"] * 9),))]
    return [Message("system", ("w77",)), *every, user("w5 w6 ?")]


def test_older_turns_are_documents_that_stay_what_they_are():
    shorter, longer = READER.read(long_conversation(12)), READER.read(long_conversation(14))
    assert shorter.turns[0] == ("system", "w77")
    assert shorter.turns[-1] == ("user", f"{HISTORY}\n\n\n\nw5 w6 ?")
    assert shorter.turns[-2] == ("assistant", " ".join(["w12"] * 9)), "the last turns are verbatim"
    assert longer.documents[: len(shorter.documents)] == shorter.documents
    assert shorter.documents[0][1].startswith("User: w0 w0")
    assert "Assistant: w1 w1" in shorter.documents[0][1]
    assert all(words(text) <= ROOM for _, text in shorter.documents)


def test_many_middling_parts_do_not_stay_verbatim():
    read = READER.read([user(*(" ".join([f"w{n}"] * 40) for n in range(20)), "w5 ?")])
    before, after = read.affixes(TOKENIZER)
    assert words(before.text + after.text) < ROOM
    assert len(read.documents) == 20


def test_what_is_asked_of_files_alone_has_their_place():
    read = READER.read([user("w5 ?")], has_documents=True)
    assert read.place == (0, len(prompt.INSTRUCTION) + 2)
    files = READER.read([Message("user", ("w5 ?",), (("a.txt", "w1"),))])
    assert files.documents == (("a.txt", "w1"),)


def test_nothing_to_answer_is_refused():
    for messages in ([], [Message("assistant", ("w1",))]):
        with pytest.raises(InputError, match="nothing to answer"):
            READER.read(messages)


PART = st.integers(1, 130).map(lambda n: " ".join(f"w{k % 80}" for k in range(n)))
TEXT = st.lists(PART, min_size=1, max_size=4).map("\n\n".join)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(TEXT, max_size=3).map(tuple)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_no_word_is_lost(messages):
    if not any(message.role != "assistant" for message in messages):
        return
    read = READER.read(messages)
    everything = " ".join([text for _, text in read.turns] + [text for _, text in read.documents])
    for message in messages:
        for part in message.parts:
            for paragraph in re.split("\n\n", part):
                assert paragraph in everything
    before, after = read.affixes(TOKENIZER)
    assert after.text
    assert (before.text == "") == (read.place is None)


@pytest.mark.parametrize(
    "text", ["<a>\n" * 200_000, "\n \n" * 200_000, "```\n" * 100_000, "w1?\n" * 100_000, "a" * 400_000]
)
def test_no_text_takes_long_to_split(text):
    started = time.perf_counter()
    split(text, words, 600)
    assert time.perf_counter() - started < 5


TURNS = [("system", "w1"), ("user", "w2"), ("assistant", "w3"), ("user", "w4 w5")]


def test_a_template_without_a_system_role_gets_its_text_in_the_turn_after():
    tokenizer = tokenizer_of(VOCAB, chat=True)
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + (
        tokenizer.chat_template
    )
    before, after = prompt.conversation(tokenizer, TURNS, (3, 2))
    assert before.text == "<user> w1\n\nw2 <end> <assistant> w3 <end> <user> w4"
    assert after.text == " w5 <end> <assistant> "
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(InputError, match="template"):
        prompt.conversation(tokenizer, TURNS)


def test_a_model_without_a_template_gets_the_roles_names():
    before, after = prompt.conversation(tokenizer_of(VOCAB), TURNS, (3, 2))
    assert before.text + after.text == "w1\n\nUser: w2\n\nAssistant: w3\n\nUser: w4 w5\n\nAssistant:"
    assert after.text.startswith(" w5")


def test_a_last_turn_of_the_assistant_is_what_the_answer_begins_with():
    _, whole = prompt.conversation(TOKENIZER, TURNS[:3])
    assert whole.text == "<system> w1 <end> <user> w2 <end> <assistant> w3"
    assert READER.read([user("w2"), Message("assistant", ("w3",))]).turns[-1] == ("assistant", "w3")


def test_a_place_that_is_nowhere_is_refused():
    for place in ((4, 0), (3, 99), (-1, 0)):
        with pytest.raises(InputError, match="place"):
            prompt.conversation(TOKENIZER, TURNS, place)
