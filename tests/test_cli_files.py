"""Which files a command reads and writes: what is a question, what may be written, all checked before the work."""

import json
import os

import pytest

from command import WORDS, ask, runner
from homerlm import documents
from homerlm.cli import inputs
from homerlm.documents import Inputs, Skipped

QUESTION = ["-m", "MODEL", "--max-new-tokens", "2"]


@pytest.fixture
def homer(monkeypatch, capsys, model_folder):
    return runner(monkeypatch, capsys, model_folder)


@pytest.fixture
def no_model(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("the model is loaded before the paths are checked")

    monkeypatch.setattr("homerlm.model.loading.load_model", fail)


class TestOutputs:
    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize("option", ["--save", "--html"])
    def test_what_cannot_be_written_is_refused_before_the_model_is_loaded(self, homer, document, tmp_path, option):
        (tmp_path / "taken").write_text("old")
        linked = tmp_path / "link.txt"
        linked.symlink_to(document)
        cases = [
            (tmp_path / "no" / "file", "the folder"),
            (document / "file", "the folder"),
            (tmp_path, "is a folder"),
            (tmp_path / "taken", "--force"),
            ("/dev/null", "not a regular file"),
            ("/proc/new-file", "cannot be written"),
        ]
        for path, named in cases:
            code, out, err = homer(*ask(document, option, path))
            assert (code, out) == (2, ""), (path, err)
            assert option in err
            assert named in " ".join(err.split()), err
        for same in (document, linked):
            code, _, err = homer(*ask(document, option, same, "--force"))
            assert code == 2
            assert "is an input" in " ".join(err.split())
        assert document.read_text() == WORDS

    def test_an_existing_file_is_replaced_with_force(self, homer, document, tmp_path):
        page = tmp_path / "page.html"
        page.write_text("old")
        assert homer(*ask(document, "--html", page, "--force"))[0] == 0
        assert page.read_text() != "old"

    @pytest.mark.usefixtures("no_model")
    def test_one_file_for_two_outputs_is_refused(self, homer, document, tmp_path):
        code, _, err = homer(*ask(document, "--html", tmp_path / "x", "--save", tmp_path / "." / "x"))
        assert code == 2
        assert "the same file" in " ".join(err.split())

    @pytest.mark.usefixtures("no_model")
    def test_the_saved_context_and_the_calibration_are_inputs_too(self, homer, document, tmp_path):
        saved = tmp_path / "kept.homer"
        saved.write_text("x")
        for more in (["--calibration", saved, "--preset", "paper", "--html", saved], ["-m", saved, "--html", saved]):
            code, _, err = homer(*ask(document, *more, "--force"))
            assert code == 2
            assert "is an input" in " ".join(err.split()), err

    @pytest.mark.usefixtures("no_model")
    def test_saving_a_saved_document_again_is_refused(self, homer, tmp_path):
        code, _, err = homer(*ask(None, "--context", tmp_path / "a", "--save", tmp_path / "b"))
        assert code == 2
        assert "--save" in err

    @pytest.mark.usefixtures("no_model")
    def test_calibrate_checks_its_output_first(self, homer, document, tmp_path):
        (tmp_path / "taken").write_text("old")
        cases = [
            (tmp_path / "no" / "c", "does not exist"),
            (tmp_path, "is a folder"),
            (tmp_path / "taken", "--force"),
            (document, "is an input"),
        ]
        for path, named in cases:
            code, _, err = homer("calibrate", "MODEL", path, "--text", document)
            assert code == 2
            assert named in " ".join(err.split()), err

    def test_calibrate_replaces_with_force(self, homer, document, tmp_path):
        path = tmp_path / "c"
        path.write_text("old")
        code, *_ = homer("calibrate", "MODEL", path, "--text", document, "--length", "100", "--force")
        assert code == 0
        assert path.read_bytes() != b"old"


class TestQuestion:
    @pytest.mark.usefixtures("no_model")
    def test_a_file_in_its_place_is_refused(self, homer, document, tmp_path):
        other = tmp_path / "other.txt"
        other.write_text("w5")
        cases = [
            [document, other],
            [document, tmp_path],
            [document],
            [tmp_path / "no.pdf", "none-either.pdf"],
            ["*.md", "docs/*.txt"],
            [document, "-"],
        ]
        for given in cases:
            code, _, err = homer("ask", *given, "-m", "MODEL")
            assert code == 2, given
            assert "question last, or with -q" in " ".join(err.split()), (given, err)

    def test_words_are_no_file(self):
        for question in ("Who signed?", "w1 w2", "When", "What does a.b do in main.py?", "Who is Dr. Jekyll"):
            assert inputs.split(["a.pdf", question], None, has_context=False) == (["a.pdf"], question)

    def test_one_without_quotes_is_refused(self, homer, document):
        for words in (["Who", "signed", "it?"], [document, "Who", "signed", "it?"]):
            code, _, err = homer("ask", *words)
            assert code == 2
            assert "put a question of several words in quotes" in " ".join(err.split())

    def test_it_can_be_given_by_name(self, homer, document):
        plain = json.loads(homer(*ask(document, "--json"))[1])
        named = homer("ask", document, "--json", "-q", "w1 w2", *ask(document)[3:])[1]
        assert json.loads(named)["text"] == plain["text"]
        assert inputs.split(["a.pdf", "b.pdf"], "Which?", has_context=False) == (["a.pdf", "b.pdf"], "Which?")

    @pytest.mark.usefixtures("no_model")
    def test_none_or_an_empty_one_is_refused(self, homer, document, tmp_path):
        for given, named in [
            ([document, ""], "question is empty"),
            ([document, "-q", "  "], "question is empty"),
            (["--context", tmp_path / "c"], "no question"),
            (["-q", "Who?"], "no document"),
            (["Who wrote this?"], "no document"),
            (["--context", tmp_path / "c", document, "Who?"], "--context takes no documents"),
            (["--context", tmp_path / "c", document, "-q", "Who?"], "--context takes no documents"),
            (["--context", tmp_path / "c", "Who?", "--html", tmp_path / "h"], "--html needs the document"),
        ]:
            code, _, err = homer("ask", *given, "-m", "MODEL")
            assert code == 2, given
            assert named in " ".join(err.split()), (given, err)


class TestInputs:
    def test_what_is_skipped_is_said(self, homer, document, tmp_path, monkeypatch):
        skipped = tuple(Skipped(tmp_path / f"{i}.bin", "binary") for i in range(12))
        monkeypatch.setattr(documents, "expand_inputs", lambda paths: Inputs((document,), skipped))
        code, out, err = homer(*ask(tmp_path, "--json"))
        assert code == 0
        assert f"skipped {tmp_path / '9.bin'}: binary\nskipped 2 more (all of them with --json)\n" in err
        assert json.loads(out)["skipped"] == [f"{item.path}: binary" for item in skipped]
        assert homer(*ask(tmp_path, "--quiet"))[2] == ""

    @pytest.mark.usefixtures("document")
    def test_a_damaged_file_in_a_folder_is_skipped_and_one_that_is_named_is_refused(self, homer, tmp_path):
        damaged, page = tmp_path / "damaged.pdf", tmp_path / "page.html"
        damaged.write_bytes(b"%PDF-1.7 and no more")
        code, out, err = homer(*ask(tmp_path, "--json", "--html", page))
        assert code == 0
        assert f"skipped {damaged}: is damaged" in err
        assert json.loads(out)["skipped"][0].startswith(f"{damaged}: is damaged")
        assert "damaged.pdf" not in page.read_text()
        code, _, err = homer("ask", tmp_path, damaged, "w1 w2", *QUESTION)
        assert code == 1
        assert "damaged.pdf: is damaged" in " ".join(err.split())

    def test_a_password_is_for_the_documents(self, homer, document, monkeypatch):
        seen = []
        monkeypatch.setattr(documents, "read_inputs", lambda found, **more: seen.append(more) or (WORDS, found))
        assert homer(*ask(document, "--password", "secret", "--json"))[0] == 0
        assert homer(*ask(document, "--json"))[0] == 0
        assert seen == [{"password": "secret"}, {"password": None}]

    @pytest.mark.usefixtures("no_model")
    def test_an_output_must_not_be_one_of_an_expanded_folder(self, homer, document, tmp_path):
        code, _, err = homer(*ask(tmp_path, "--save", document, "--force"))
        assert code == 2
        assert "is an input" in " ".join(err.split())

    def test_documents_are_named(self):
        assert inputs.names(["a/b.txt", "-"]) == ["b.txt", "standard input"]
        assert inputs.names(["a/b.txt", "c/b.txt"]) == ["a/b.txt", "c/b.txt"]


def test_the_current_folder_is_a_folder_too(homer, document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert homer(*ask(document, "--html", "page.html"))[0] == 0
    assert os.path.exists("page.html")
