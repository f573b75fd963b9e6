"""Folders and patterns as files: which are read, in which order, and what is said about the others."""

import os
from pathlib import Path

import pytest

from homerlm.documents import Inputs, expand_inputs, read_documents, read_inputs
from homerlm.errors import DocumentError
from samples import docx_bytes, encrypted_pdf, pdf_bytes, zip_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Readable and other files, in two levels."""
    files: dict[str, bytes] = {
        "b.txt": b"bee",
        "a.md": b"ay",
        "Makefile": b"all:",
        "z/report": pdf_bytes(["A page."]),
        "z/letter.docx": docx_bytes(lambda document: document.add_paragraph("Words")),
        "c/wide.txt": "wide".encode("utf-16"),
        ".git/config": b"hidden",
        ".env": b"hidden",
        "old.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100),
        "empty.txt": b"",
        "c/photo.png": b"\x89PNG\r\n\x1a\n\0\0",
        "c/data": b"\0\1\2",
        "c/bundle": zip_bytes({"a.txt": "x"}),
    }
    for name, content in files.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "docs"


def names(inputs: Inputs, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in inputs.files]


def reasons(inputs: Inputs, folder: Path) -> dict[str, str]:
    return {item.path.relative_to(folder).as_posix(): item.reason for item in inputs.skipped}


def test_folder_gives_its_readable_files_sorted(folder: Path):
    inputs = expand_inputs([folder])
    assert names(inputs, folder) == ["Makefile", "a.md", "b.txt", "c/wide.txt", "z/letter.docx", "z/report"]
    assert "# report\n\nA page." in read_documents(inputs.files)
    assert expand_inputs([str(folder)]) == inputs


def test_what_a_folder_holds_besides_is_told_with_its_reason(folder: Path):
    assert reasons(expand_inputs([folder]), folder) == {
        ".git": "hidden",
        ".env": "hidden",
        "old.doc": "an old Word file; save it as .docx",
        "empty.txt": "empty",
        "c/photo.png": "an image; run OCR on it first",
        "c/data": "binary data",
        "c/bundle": "an archive; unpack it, and name the folder or the files in it",
    }


def test_links_pipes_and_files_without_permission_are_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "gone.txt").symlink_to(folder / "none")
    os.mkfifo(folder / "pipe.txt")
    real_open = Path.open

    def deny(path: Path, *args: str) -> object:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args)

    monkeypatch.setattr(Path, "open", deny)
    found = reasons(expand_inputs([folder]), folder)
    assert found["loop"] == "a link to a folder; name it to read it"
    assert found["gone.txt"] == "a broken link"
    assert found["pipe.txt"] == "not a regular file"
    assert found["b.txt"] == "cannot be opened (Permission denied)"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["b.txt"]),
        ("**/*.txt", ["b.txt", "c/wide.txt"]),
        ("[ab].*", ["a.md", "b.txt"]),
        ("[cz]", ["c/wide.txt", "z/letter.docx", "z/report"]),
        ("**", ["Makefile", "a.md", "b.txt", "c/wide.txt", "z/letter.docx", "z/report"]),
        (".en*", [".env"]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]):
    inputs = expand_inputs([folder / pattern])
    assert names(inputs, folder) == expected
    assert "named before" not in reasons(inputs, folder).values()


def test_file_whose_name_is_a_pattern_is_that_file(folder: Path):
    (folder / "[ab].txt").write_text("literal")
    assert names(expand_inputs([folder / "[ab].txt"]), folder) == ["[ab].txt"]


def test_files_named_one_by_one_and_standard_input_are_kept_in_order(folder: Path):
    paths = [folder / "c/photo.png", "-", folder / ".env", folder / "b.txt"]
    assert expand_inputs(paths) == Inputs(tuple(map(Path, paths)), ())


def test_no_file_is_read_twice(folder: Path):
    (folder / "link.md").symlink_to(folder / "a.md")
    inputs = expand_inputs([folder / "b.txt", folder / "*.md", folder / "b.txt", "-", "-"])
    assert inputs.files == (folder / "b.txt", folder / "a.md", Path("-"))
    assert {item.path: item.reason for item in inputs.skipped} == dict.fromkeys(
        [folder / "link.md", folder / "b.txt", Path("-")], "named before"
    )


def test_an_empty_name_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DocumentError, match="an empty name is given"):
        expand_inputs([""])
    assert expand_inputs(["."]).files


def test_inputs_that_stand_for_nothing_are_refused(folder: Path):
    (folder / "nothing").mkdir()
    for path, reason in {
        "none.txt": "does not exist; ",
        "*.xyz": "matches no file; ",
        "nothing": "it is empty",
        "*.doc": r"old\.doc: an old Word file; ",
    }.items():
        with pytest.raises(DocumentError, match=reason) as caught:
            expand_inputs([folder / "b.txt", folder / path])
        assert path in str(caught.value)


class TestUnreadable:
    """What seems readable by its head and is not: damaged, encrypted, without text."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        content = {"a.txt": b"ay", "broken.pdf": b"%PDF-1.7 and no more", "locked.pdf": encrypted_pdf("user")}
        (tmp_path / "docs").mkdir()
        for name, data in {**content, "blank.txt": b" \n", "z.txt": b"zed"}.items():
            (tmp_path / "docs" / name).write_bytes(data)
        return tmp_path / "docs"

    @pytest.mark.parametrize("pattern", ["", "*", "**/*"])
    def test_one_among_others_is_skipped_and_told(self, folder: Path, pattern: str):
        text, read = read_inputs(expand_inputs([folder / pattern]))
        assert text == "# a.txt\n\nay\n\n# z.txt\n\nzed"
        assert names(read, folder) == ["a.txt", "z.txt"]
        found = reasons(read, folder)
        assert list(found) == ["blank.txt", "broken.pdf", "locked.pdf"]
        assert found["broken.pdf"].startswith("is damaged or is not a PDF")
        assert found["locked.pdf"] == "is encrypted; give its password with --password"

    def test_a_password_opens_what_takes_one(self, folder: Path):
        text, read = read_inputs(expand_inputs([folder]), password="user")
        assert "The secret is 42." in text
        assert list(reasons(read, folder)) == ["blank.txt", "broken.pdf"]

    def test_the_only_readable_one_has_no_heading(self, folder: Path):
        (folder / "z.txt").unlink()
        assert read_inputs(expand_inputs([folder]))[0] == "ay"

    @pytest.mark.parametrize("before", [True, False])
    def test_a_file_that_was_named_is_refused(self, folder: Path, before: bool):
        given = [folder / "broken.pdf", folder]
        with pytest.raises(DocumentError, match=r"broken\.pdf: is damaged"):
            read_inputs(expand_inputs(given if before else given[::-1]))

    def test_nothing_but_unreadable_files_is_refused_with_the_reasons(self, folder: Path):
        for name in ("a.txt", "z.txt"):
            (folder / name).unlink()
        with pytest.raises(DocumentError) as caught:
            read_inputs(expand_inputs([folder]))
        for part in ("broken.pdf: is damaged", "locked.pdf: is encrypted", "blank.txt: holds no text"):
            assert part in str(caught.value)
