"""A corpus indexed into a folder: every document once, from where it was stopped, and asked as one index."""

import json

import pytest

from homerlm import Homer, HomerConfig
from homerlm.documents import expand_inputs
from homerlm.errors import CorruptFileError, InputError, MismatchError
from homerlm.index.manifest import NAME, Manifest, load_collection
from homerlm.passes import run_steps
from homerlm.scale.corpus import indexing
from homerlm.scale.listing import Fields, files_of, list_file, skipped_of, text_of
from homerlm.scale.shard import planned
from samples import encrypted_pdf
from test_shards import texts_of
from tiny import llama

TOKENS = 60


@pytest.fixture
def folder(tmp_path):
    """Forty documents: files, lines and rows, of which two are alike and two cannot be read."""
    texts, made = texts_of(), tmp_path / "texts"
    made.mkdir()
    for name, text in texts[:20]:
        (made / f"{name}.txt").write_text(text)
    (made / "d3 again.txt").write_text(texts[3][1])
    lines = [json.dumps({"text": text, "name": name}) for name, text in texts[20:]]
    (made / "lines.jsonl").write_text("\n".join([*lines[:4], "{broken", '{"text": 7}', "", *lines[4:]]) + "\n")
    return made


def run(homer, folder, into, **options):
    files = files_of(expand_inputs([folder]))
    return run_steps(indexing(homer, files, into, **({"shard_tokens": TOKENS} | options)))


def texts_in(index):
    return dict(zip(index.names, (index.text_of(part) for part in index.parts), strict=True))


def test_a_folder_is_indexed_once_and_asked_as_one_index(text_homer, folder, tmp_path):
    into = tmp_path / "all"
    done = run(text_homer, folder, into)
    index = load_collection(into, text_homer.model, text_homer.tokenizer)
    assert sorted(texts_in(index).values()) == sorted(text for _, text in texts_of())
    files = sorted(path.name for path in folder.glob("*.txt") if path.name != "d3.txt")
    assert list(index.names) == [*files, *(name for name, _ in texts_of()[20:])]
    assert len(done.manifest.files) > 5
    assert done.tokens_read == len(index)
    assert [member.reason for member in done.duplicates] == ["has the content of d3 again.txt"]
    assert {member.name for member in done.failed} == {"lines.jsonl:5", "lines.jsonl:6"}
    whole = text_homer.read_all(texts_in(index).items())
    answers = [text_homer.ask(one, "w1 w2", max_new_tokens=3) for one in (index, whole)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].context.token_indices.tolist() == answers[1].context.token_indices.tolist()


def test_what_is_there_is_not_read_again_and_what_is_new_is_added(text_homer, folder, tmp_path):
    into = tmp_path / "all"
    before = run(text_homer, folder, into)
    assert run(text_homer, folder, into).tokens_read == 0
    (folder / "new.txt").write_text("w1 w2 w3")
    again = run(text_homer, folder, into)
    assert again.tokens_read == 3
    index = load_collection(into, text_homer.model, text_homer.tokenizer)
    assert len(index) == before.tokens_read + 3
    assert [member.name for member in again.failed] == [member.name for member in before.failed]
    assert len(again.manifest.failed) == 2


@pytest.mark.parametrize("after", [1, 4, 40])
def test_a_stopped_run_goes_on_and_comes_to_the_same(text_homer, folder, tmp_path, after):
    """Stopped after some events; what it wrote and did not count is taken as it is or removed."""
    expected = run(text_homer, folder, tmp_path / "whole").manifest
    into = tmp_path / "all"
    steps = indexing(text_homer, files_of(expand_inputs([folder])), into, shard_tokens=TOKENS)
    for _ in range(after):
        next(steps)
    steps.close()
    assert not [path for path in into.iterdir() if path.suffix == ".tmp"]
    stale = into / "shard-000000000000000000000000.homer"
    stale.write_bytes(b"half")
    manifest = run(text_homer, folder, into).manifest
    assert manifest.files == expected.files
    assert manifest.held == expected.held
    assert {path.name for path in into.glob("*.homer")} == set(expected.files)
    for name in expected.files:
        assert (into / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_was_written_but_not_counted_is_taken(text_homer, folder, tmp_path, monkeypatch):
    into = tmp_path / "all"
    run(text_homer, folder, into)
    lines = (into / NAME).read_bytes().splitlines(keepends=True)
    (into / NAME).write_bytes(b"".join(lines[:3]) + lines[3][:-20])  # the fourth line was cut off
    read = []
    reading = Homer.reading

    def watched(self, *args, **options):
        read.append(options.get("path"))
        return reading(self, *args, **options)

    monkeypatch.setattr(Homer, "reading", watched)
    manifest = run(text_homer, folder, into).manifest
    assert len([path for path in read if path is not None]) <= 1  # the one with documents that cannot be read
    assert sorted(manifest.held.values()) == sorted({d.name for s in manifest.shards for d in s.documents})
    assert (into / NAME).read_bytes().count(b"\n") == len(lines)
    assert Manifest.read(into).held == manifest.held


def test_documents_are_listed_and_read_from_files_lines_and_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"body": ["w1 w2", None, "w3"], "id": ["a", "b", None]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    (tmp_path / "x.jsonl").write_text('{"body": "é w1", "id": "e"}\n[]\n{"id": 1}\n')
    (tmp_path / "p.txt").write_text("w7")
    fields = Fields("body", "id")
    found = expand_inputs([tmp_path])
    assert [name for name, _ in files_of(found)] == ["p.txt", "x.jsonl", "t.parquet"]
    assert skipped_of(found) == []
    listed = [one for name, path in files_of(found) for one in list_file(name, path, fields)]
    good = {one.name: text_of(one, fields) for one in listed if one.reason is None}
    assert good == {"p.txt": "w7", "e": "é w1", "a": "w1 w2", "t.parquet:3": "w3"}
    assert {one.name: one.reason for one in listed if one.reason} == {
        "x.jsonl:2": "line 2 is no record: it is no JSON object",
        "1": "its 'body' is no text (--text-field)",
        "b": "its 'body' is no text (--text-field)",
    }
    (reason,) = [one.reason for one in list_file("t", str(tmp_path / "t.parquet"), Fields())]
    assert "no column 'text', only body, id" in reason


def test_records_that_cannot_be_read_are_named_and_leave_the_others(text_homer, tmp_path):
    """A number of characters too many, half a character, a row group that is damaged, text in another character set."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    latin = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer("café".encode("latin-1"))]
    )
    parquet.write_table(pa.table({"text": latin}), tmp_path / "latin.parquet")
    rows = pa.table({"text": ["w1 " * 500, "w2 " * 500, "w3"]})
    parquet.write_table(rows, tmp_path / "t.parquet", row_group_size=2, use_dictionary=False)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[4:40] = bytes(36)  # the first group's page header
    (tmp_path / "t.parquet").write_bytes(content)
    deep = "[" * 200_000
    (tmp_path / "x.jsonl").write_text(
        f'{deep}\n{{"text": "w4 \\ud800", "name": "\\udfff"}}\n{{"text": "w5 \\ud83d\\ude00"}}\n'
    )
    done = run(text_homer, tmp_path, tmp_path / "all")
    index = load_collection(tmp_path / "all", text_homer.model, text_homer.tokenizer)
    assert texts_in(index) == {"\ufffd": "w4 \ufffd", "x.jsonl:3": "w5 \N{GRINNING FACE}", "t.parquet:3": "w3"}
    reasons = {one.name: one.reason for one in done.failed}
    assert set(reasons) == {"x.jsonl:1", "t.parquet, row group 1", "latin.parquet, row group 1"}
    assert "recursion" in reasons["x.jsonl:1"]
    assert "row group 1 cannot be read" in reasons["t.parquet, row group 1"]
    assert "utf-8" in reasons["latin.parquet, row group 1"]


def test_a_document_that_changed_after_it_was_listed_is_left_out(text_homer, tmp_path, monkeypatch):
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "w1 w2"}\n{"text": "w3 w4"}\n')
    reading = Homer.reading

    def changing(self, *args, **options):
        if options.get("path"):
            source.write_text('{"text": "w1 w9"}\n{"text": "w3 w4"}\n')
        return reading(self, *args, **options)

    monkeypatch.setattr(Homer, "reading", changing)
    done = run_steps(indexing(text_homer, [("x", str(source))], tmp_path / "all"))
    assert [(one.name, "changed" in one.reason) for one in done.failed] == [("x:1", True)]
    assert done.tokens_read == 2


def test_neighbours_are_grouped_and_a_long_document_has_a_file_of_its_own(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(f'{{"text": "{"w" * n}"}}\n' for n in (500, 10, 20, 31, 5, 5)))
    listed = list(enumerate(list_file("x", str(tmp_path / "x.jsonl"), Fields())))
    groups = [[document.bytes for document in shard.documents] for shard in planned(listed, 15)]
    assert groups == [[500], [10, 20], [31, 5, 5]]


def test_others_are_refused(text_homer, folder, tmp_path):
    into = tmp_path / "all"
    run(text_homer, folder, into)
    with pytest.raises(MismatchError, match="int8"):
        run(text_homer, folder, into, int8=True)
    with pytest.raises(MismatchError, match="another model"):
        run(Homer(llama(seed=4), text_homer.tokenizer, HomerConfig(max_chunk_len=48, target_len=40)), folder, into)
    with pytest.raises(MismatchError, match="chunk_len"):
        run(Homer(text_homer.model, text_homer.tokenizer, HomerConfig(max_chunk_len=60)), folder, into)
    steps = indexing(text_homer, [("a", str(folder / "d1.txt"))], tmp_path / "other")
    next(steps)
    with pytest.raises(InputError, match="another homer index"):
        run(text_homer, folder, tmp_path / "other")
    steps.close()
    with pytest.raises(InputError, match="holds no collection"):
        Manifest.read(tmp_path)
    (into / NAME).write_text("{}\nno\n")
    with pytest.raises(CorruptFileError, match="damaged"):
        run(text_homer, folder, into)


def test_a_corpus_of_which_nothing_can_be_read_leaves_no_file(text_homer, tmp_path):
    (tmp_path / "x.jsonl").write_text("no\n")
    done = run_steps(indexing(text_homer, [("x", str(tmp_path / "x.jsonl"))], tmp_path / "all"))
    assert done.manifest.files == []
    assert len(done.failed) == 1
    assert not list((tmp_path / "all").glob("*.homer"))
    with pytest.raises(InputError, match="no document yet"):
        load_collection(tmp_path / "all", text_homer.model)


class TestCommand:
    INDEX = ("-m", "MODEL", "--max-chunk-len", "64", "--shard-tokens", "60")

    def test_a_damaged_file_is_named_once_and_with_its_own_reason(self, run, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.txt").write_text("w1 w2 w3")
        (tmp_path / "in/b.pdf").write_bytes(b"%PDF-1.4 cut off")
        code, out, _ = run("index", tmp_path / "in", "-o", tmp_path / "all", "--json", *self.INDEX)
        (failed,) = json.loads(out)["failed"]
        assert code == 0
        assert failed.startswith(f"{tmp_path}/in/b.pdf: is damaged or is not a PDF")

    def test_a_password_is_for_pdfs_alone(self, run, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.txt").write_text("w1 w2 w3")
        given = ["index", tmp_path / "in", "-o", tmp_path / "all", "--json", "--password", "secret", *self.INDEX]
        code, out, _ = run(*given)
        assert (code, "only PDFs take one" in json.loads(out)["error"]["message"]) == (2, True)
        (tmp_path / "in/b.pdf").write_bytes(encrypted_pdf("secret"))
        code, out, _ = run(*given)
        record = json.loads(out)
        assert (code, record["failed"], record["documents"]) == (0, [], 2)

    def test_a_folder_is_made_added_to_and_asked(self, run, folder, tmp_path):
        into = tmp_path / "all"
        code, out, err = run("index", folder, "-o", into, "--json", *self.INDEX)
        record = json.loads(out)
        assert (code, err) == (0, "")
        assert (record["documents"], record["tokens"]) == (40, record["tokens_read"])
        assert len(record["failed"]) == 2
        assert len(record["duplicates"]) == 1
        code, _, err = run("index", folder, "-o", into, *self.INDEX)
        line = " ".join(err.split())
        assert code == 0
        assert "0 tokens read" in line
        assert "lines.jsonl:5: line 5 is no record" in line
        assert f"holds 40 documents, {record['tokens']:,} tokens in {record['shards']} files" in line
        code, out, _ = run("ask", "--context", into, "w1 w2", "-m", "MODEL", "--max-new-tokens", "4", "--json")
        assert code == 0
        assert json.loads(out)["prompt_len"] > record["tokens"]
        code, out, _ = run("select", "--context", into, "w1 w2", "-m", "MODEL", "--tokens", "30", "--json")
        assert code == 0
        assert {one["document"] for one in json.loads(out)["passages"]}

    def test_what_cannot_act_is_refused(self, run, folder, tmp_path):
        (tmp_path / "file").write_text("")
        for given, named in (
            (("-o", tmp_path / "a", "--append"), "--append"),
            (("-o", tmp_path / "a", "--force"), "--force"),
            (("-o", tmp_path / "file"), "a file"),
            (("-o", tmp_path / "a", "--num-workers", "2"), "--workers"),
            (("-o", tmp_path / "a", "--workers", "slurm"), "ray:ADDRESS"),
        ):
            code, _, err = run("index", folder, *given, *self.INDEX)
            assert code == 2
            assert named in " ".join(err.split())
        code, _, err = run("index", folder, "-o", tmp_path / "b", "-m", "MODEL", "--text-field", "body")
        assert (code, "--shard-tokens" in err) == (2, True)
        code, _, err = run("ask", folder / "d1.txt", "w1", "-m", "MODEL", "--workers", "ray", "--preset", "paper")
        assert (code, "paper" in err) == (2, True)
        assert not (tmp_path / "a").exists()
