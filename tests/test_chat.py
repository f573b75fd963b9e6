"""`homer chat` as a user runs it: lines through a pipe, and a terminal."""

import re
import signal
import stat
import threading
import time
from types import SimpleNamespace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from homerlm.cli.chat import command, talk
from homerlm.cli.chat.terminal import Completer
from homerlm.conversation.session import Session
from homerlm.conversation.transcript import Transcripts
from homerlm.server.keys import LOCAL
from homerlm.store.store import Store
from serving import QUESTION, WORDS

SIZES = ["--max-chunk-len", "64", "--target-len", "60"]
OTHER = " ".join(f"w{(3 * i) % 70}" for i in range(300))


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def chat(run, tmp_path):
    """A function that has a conversation, line by line: (exit code, stdout, stderr)."""

    def talked(*lines, files=(), new=6, more=()):
        options = ["-m", "MODEL", "--store", tmp_path / "store", "--max-new-tokens", str(new), *SIZES, *more]
        return run("chat", *files, *options, stdin="".join(f"{line}\n" for line in lines))

    return talked


@pytest.fixture
def terminal(chat, monkeypatch):
    """The same at a terminal: text as it is typed, some of it slowly."""

    def talked(typed, *slowly, **more):
        monkeypatch.setattr(command, "_at_terminal", lambda: True)
        with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
            keys.send_text(typed)
            typist = threading.Thread(target=lambda: [(time.sleep(0.5), keys.send_text(text)) for text in slowly])
            typist.start()
            try:
                return chat(**more)
            finally:
                typist.join()

    return talked


def saved(tmp_path):
    return Transcripts(tmp_path / "store" / command.FOLDER).all()


def test_questions_come_from_a_pipe_and_answers_go_into_one(chat, book):
    code, text, said = chat(QUESTION, "", " /w3 w4", files=[book])
    assert code == 0
    answers = text.splitlines()
    assert len(answers) == 2
    assert all(len(answer.split()) == 6 for answer in answers)
    assert "book.txt: 400 tokens read" in said
    assert said.count("kept for this answer") == 2
    assert said.count("cut off: --max-new-tokens") == 2
    code, again, said = chat(QUESTION, files=[book], more=["--quiet"])
    assert (code, again, said) == (0, answers[0] + "\n", "")


def test_what_was_kept_is_shown_with_its_place(chat, book, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(OTHER)
    page = tmp_path / "page.html"
    code, text, _ = chat(QUESTION, "/kept", f"/kept --html {page}", files=[book, other])
    assert code == 0
    texts, name, seen = {"book.txt": WORDS, "other.txt": OTHER}, None, set()
    for line in text.splitlines()[1:]:
        found = re.fullmatch(r"  \[([\d,]+), ([\d,]+)\) (.*)", line)
        if found is None:
            name = line
        else:
            start, end = (int(number.replace(",", "")) for number in found.groups()[:2])
            assert texts[name][start:end] == found[3]
            seen.add(name)
    assert "other.txt" in seen, "places are counted from the beginning of their own document"
    html = page.read_text()
    marked = re.findall(r'<mark class="read"[^>]*>([^<]*)</mark>', html)
    assert any(OTHER.find(part.strip()) >= 0 for part in marked if part.strip())
    assert "# other.txt" in html
    code, _, said = chat(QUESTION, f"/kept --html {page}", files=[book])
    assert code == 2
    assert "exists" in said
    assert chat(QUESTION, f"/kept --html {page} --force", files=[book])[0] == 0


def test_without_documents_the_conversation_alone_is_read(chat):
    code, _, said = chat("/kept", QUESTION, "/kept", "/files", "/resume")
    assert code == 0
    assert "Nothing was asked yet" in said
    assert "from the conversation alone" in said
    assert "No documents yet" in said


def test_a_document_is_read_once_also_for_the_server(chat, book, tmp_path):
    chat(QUESTION, files=[book])
    said = chat(f"/add {book}", QUESTION)[2]
    assert "book.txt: 400 tokens, read before" in said
    store = Store(tmp_path / "store", max_bytes=1 << 30, owner_bytes=1 << 30)
    assert [one.name for one in store.documents(LOCAL)] == ["book.txt"]
    store.close()


def test_a_command_is_known_in_capitals_too_and_a_mistyped_one_is_no_question(chat):
    code, text, _ = chat("/HELP", "/new-one", "w1 ?")
    assert "/quit" in text
    assert code == 2


def test_an_earlier_conversation_goes_on(chat, book, tmp_path):
    chat(QUESTION, "/kept", files=[book])
    first = saved(tmp_path)[0]
    kept = "".join(f"  [{one.start:,}, {one.end:,}) {one.text}\n" for one in first.turns[0].kept)
    code, text, said = chat("/resume", "/resume 1", "/kept", "w5 ?", "/files")
    assert code == 0
    assert f"1  {first.id}" in text
    assert f"book.txt\n{kept}" in text
    assert f"> {QUESTION}" in said
    assert "(1 question)" in said
    assert "read in" not in said
    again = saved(tmp_path)
    assert [one.id for one in again] == [first.id]
    assert [turn.question for turn in again[0].turns] == [QUESTION, "w5 ?"]
    assert again[0].turns[0] == first.turns[0]
    for name in ("last", first.id[:9]):
        assert f"> {'w5 ?'}" in chat(more=["--resume", name])[2]


def test_a_resumed_document_is_what_it_was_or_read_again(chat, book, tmp_path):
    chat(QUESTION, files=[book])
    book.write_text(OTHER)
    assert "400" in chat("/files", more=["--resume", "last"])[1], "the store has the text that was asked about"
    store = Store(tmp_path / "store", max_bytes=1 << 30, owner_bytes=1 << 30)
    for one in store.documents(LOCAL):
        store.remove_document(LOCAL, one.id)
    store.close()
    _, text, said = chat("/files", more=["--resume", "last"])
    assert "book.txt: 300 tokens read" in said
    assert "as it is now" in said
    assert "300" in text
    store = Store(tmp_path / "store", max_bytes=1 << 30, owner_bytes=1 << 30)
    for one in store.documents(LOCAL):
        store.remove_document(LOCAL, one.id)
    store.close()
    book.unlink()
    code, text, said = chat("/files", "w5 ?", more=["--resume", "last"])
    assert code == 0
    assert "book.txt is left out" in said
    assert "not here" in text


def test_folders_names_and_conversations_come_and_go(chat, book, tmp_path):
    folder = tmp_path / "a folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "book.txt").write_text(OTHER)
    (folder / "copy.txt").write_text(WORDS)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, text, said = chat(f"/add {folder}", "/files", "/drop book.txt", QUESTION, "/new", "w5 ?", files=[book])
    assert code == 0
    assert "copy.txt has the text of book.txt, which is here already" in said
    assert "picture.png" in said
    assert text.count("book.txt") >= 2
    assert "about the same documents (1)" in said
    second, first = saved(tmp_path)
    assert [(turn.question) for turn in (*first.turns, *second.turns)] == [QUESTION, "w5 ?"]
    assert first.documents == second.documents
    assert [one.path for one in first.documents] == [str(folder / "sub" / "book.txt")]
    assert first.documents[0].name == first.documents[0].path, "two of one name have their folders"
    chat(f"/forget {first.id}", "/forget 1")
    assert saved(tmp_path) == []


def test_an_error_ends_what_comes_from_a_pipe(chat, book, tmp_path):
    for line in ("/add none.txt", "/nonsense", "/drop none", "/resume chat-none", "/resume 9", "/kept x", '/add "'):
        code, text, said = chat(QUESTION, line, QUESTION, files=[book])
        assert code in (1, 2), line
        assert len(text.splitlines()) == 1, line
        assert "Error:" in said, line
    assert chat("/quit", "/nonsense")[0] == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--preset", "paper"], "paper"),
        (["--resume", "last"], "no conversations"),
        (["--resume", "chat-none"], "chat-none"),
        (["none.txt"], "none.txt"),
        (["-"], "standard input"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(run, tmp_path, more, named):
    code, _, said = run("chat", "-m", "no-such-model", "--store", tmp_path / "store", *more, stdin="")
    assert code in (1, 2)
    assert named in said
    assert "no-such-model" not in said


def test_a_missing_package_is_named(run, monkeypatch):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "prompt_toolkit" else find(name)
    )
    code, _, said = run("chat", "-m", "MODEL", stdin="")
    assert code == 2
    assert 'pip install "homerlm[server]"' in said


def test_all_of_it_is_its_owners_alone(terminal, book, tmp_path):
    terminal(f"{QUESTION}\r\x04", files=[book])
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {"history", "store.sqlite"} < {path.name for path in kept}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept} == {path.name: 0o600 for path in kept}


def test_a_terminal_has_lines_history_and_keys_that_explain(terminal, tmp_path):
    code, _, said = terminal("w1\x1b\rw2 ?\r\x03lost\x03/files\r", "", "\x1b[A\x1b[A", "\r", "\x04")
    assert code == 0
    assert said.count("Ctrl-C stops an answer") == 1
    assert [turn.question for turn in saved(tmp_path)[0].turns] == ["w1\nw2 ?"] * 2, "two lines, and they came back"
    assert "/files" in (tmp_path / "store" / command.FOLDER / "history").read_text()
    assert "lost" not in (tmp_path / "store" / command.FOLDER / "history").read_text()


def test_what_can_follow_is_completed(book, tmp_path):
    named = SimpleNamespace(name="book.txt")
    session = SimpleNamespace(transcript=SimpleNamespace(documents=[named]))
    earlier = SimpleNamespace(all=lambda: [SimpleNamespace(id="chat-12")])
    completer = Completer(SimpleNamespace(session=session, transcripts=earlier))
    for text, expected in {
        "/dr": ["/drop"],
        "/drop b": ["book.txt"],
        "/resume ": ["chat-12"],
        "/forget c": ["chat-12"],
        "/kept --": ["--html"],
        f"/add {book.parent}/bo": ["ok.txt"],
        f"/kept --html {book.parent}/bo": ["ok.txt"],
        "dr": [],
        "what /dr": [],
        "/nothing x": [],
    }.items():
        found = [one.text for one in completer.get_completions(Document(text), CompleteEvent())]
        assert found == expected, text


def test_an_error_does_not_end_a_terminal(terminal, tmp_path):
    code, text, said = terminal(f"/nonsense\r/add none.txt\r{QUESTION}\r/quit\rw9 ?\r")
    assert code == 0
    assert said.count("Error:") == 2
    assert len(text.splitlines()) == 1


def interrupting(monkeypatch, number=signal.SIGINT, after=3):
    """Let a signal come while the first answer is written."""
    ask, sent = Session.ask, []

    async def signalled(self, question, on_event=None):
        count = 0
        async for step in ask(self, question, on_event):
            yield step
            count += isinstance(step, talk.Piece)
            if count == after and not sent:
                sent.append(number)
                signal.raise_signal(number)

    monkeypatch.setattr(Session, "ask", signalled)


def test_an_answer_that_is_stopped_stays_and_the_conversation_goes_on(terminal, monkeypatch, book, tmp_path):
    interrupting(monkeypatch)
    code, _, said = terminal(f"{QUESTION}\r{QUESTION}\r\x04", files=[book], new=40)
    assert code == 0
    assert "Stopped." in said
    first, second = saved(tmp_path)[0].turns
    assert first.end == "stopped"
    assert 0 < len(first.answer.split()) < 40
    assert len(second.answer.split()) == 40


def test_a_document_that_is_stopped_is_not_there_and_can_be_read_again(terminal, monkeypatch, book, tmp_path):
    shown, sent = talk.ReadingProgress.__call__, []

    def signalled(self, event):
        shown(self, event)
        if not sent and event.read:
            sent.append(event)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(talk.ReadingProgress, "__call__", signalled)
    code, text, said = terminal(f"/files\r{QUESTION}\r/add {book}\r/files\r\x04", files=[book])
    assert code == 0
    assert "Stopped." in said
    assert "No documents yet" in said
    assert "book.txt: 400 tokens read" in said
    assert "400" in text


def test_a_signal_to_end_ends_a_terminal_and_what_was_written_stays(terminal, monkeypatch, tmp_path):
    interrupting(monkeypatch, signal.SIGTERM)
    code, _, _ = terminal(f"{QUESTION}\r{QUESTION}\r", new=40)
    assert code == 128 + signal.SIGTERM
    (turn,) = saved(tmp_path)[0].turns
    assert turn.end == "stopped"


def test_an_interrupt_ends_what_comes_from_a_pipe(chat, monkeypatch):
    interrupting(monkeypatch)
    code, _, said = chat(QUESTION, QUESTION, new=40)
    assert code == 128 + signal.SIGINT
    assert "Nothing was left half written" in said


def test_history_has_no_end(chat, tmp_path):
    questions = [" ".join([f"w{n}"] * 9) + " ?" for n in range(9)]
    code, text, _ = chat(*questions, "/kept", new=4)
    assert code == 0
    assert "(said in this conversation)" in text
    assert re.search(r"\[\d+, \d+\) User: w\d", text)
    assert len(saved(tmp_path)[0].turns) == 9


def test_what_stands_in_front_is_told_to_the_model(chat):
    plain, told = (chat("w1 w2 ?", more=more)[1] for more in ([], ["--system", "w7 w8 w9 w10 w11"]))
    assert plain != told
