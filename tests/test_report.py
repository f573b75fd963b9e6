"""Reports of an evaluation: numbers by hand, nothing dropped, one page by itself."""

import gzip
import importlib.util
import io
import json
import math
import re

import pytest
from rich.console import Console

from homerlm.errors import ConfigError, InputError
from homerlm.lab.records import read_records
from homerlm.lab.report import sections, terminal_tables, write_report
from homerlm.lab.summary import frame_of, summarise, wilson

plotting = pytest.mark.skipif(not importlib.util.find_spec("seaborn"), reason="seaborn is not installed")


def record(task="passkey", method="plain", length=4096, sample=0, score=1.0, **more):
    made = {"task": task, "variant": "", "ask": "now", "method": method, "length": length, "sample": sample, "seed": 0}
    return made | {"score": score, "error": None, "model": "tiny", "limit": 8192} | more


def failed(message="out of memory: 5 GB", **more):
    return record(score=None, error=message, **more)


def window(document, end, nll, count=10, **more):
    return record("perplexity", "homer", end, document, None, nll=nll, count=count, **more)


@pytest.fixture
def folder(tmp_path):
    """Writes records as a run would; the folder."""

    def write(records, tail=""):
        lines = "".join(json.dumps(r) + "\n" for r in records)
        (tmp_path / "records.jsonl").write_text(lines + tail)
        return tmp_path

    return write


def shown(path, width=200):
    console = Console(file=io.StringIO(), width=width)
    for table in terminal_tables(path):
        console.print(table)
    return console.file.getvalue()


def rows(table):
    return {label: entries for label, *entries in table.rows}


def test_the_processor_is_told_and_records_without_it_are_read(folder):
    old, new = record(device="cpu x86_64"), record(sample=1, device="cpu x86_64", processor="AMD EPYC")
    text = write_report(folder([old, new]), plots=False).with_suffix(".md").read_text()
    assert "- Device: `cpu x86_64`\n- Processor: `AMD EPYC`\n" in text
    assert "Processor" not in write_report(folder([old]), plots=False).with_suffix(".md").read_text()


def summary(records):
    return list(summarise(frame_of(records)).itertuples())


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_is_the_published_one(right, n, low, high):
    assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


def test_a_narrow_terminal_still_tells_methods_apart(folder):
    methods = ("homer-paper:readout=recomputed", "homer-paper:readout=reencoded")
    records = [record(method=method, length=1024 << k) for method in methods for k in range(6)]
    folded = shown(folder(records), width=70)
    first_column = "".join(line.split("│")[1].strip() for line in folded.splitlines() if line.startswith("│"))
    for method in methods:
        assert method in first_column


def test_perplexity_accumulates_over_the_documents_that_reach_a_length():
    records = [window(0, 100, 20.0), window(0, 150, 30.0), window(0, 200, 60.0, 20), window(1, 100, 10.0)]
    first, second, third = summary(records)
    assert (first.n, first.perplexity) == (2, pytest.approx(math.exp(30 / 20)))
    assert (second.n, second.perplexity) == (1, pytest.approx(math.exp(50 / 20)))
    assert (third.n, third.perplexity) == (1, pytest.approx(math.exp(110 / 40)))


def test_a_document_whose_last_window_ends_elsewhere_still_reaches_shorter_lengths():
    cells = summary([window(0, 100, 10.0), window(0, 300, 30.0), window(1, 100, 10.0), window(1, 200, 20.0)])
    assert cells[1].length == 200
    assert (cells[1].n, cells[1].perplexity) == (2, pytest.approx(math.exp(40 / 30)))


def test_a_failed_window_takes_its_document_out_and_is_counted_from_there_on():
    records = [window(0, 100, 10.0), window(1, 100, 10.0), window(0, 200, 30.0), window(0, 300, 30.0)]
    records += [window(1, 200, None, error="out of memory: x"), window(1, 300, 5.0)]
    cells = summary(records)
    assert [(cell.n, cell.failed) for cell in cells] == [(2, ""), (1, "oom 1/2"), (1, "oom 1/2")]
    assert cells[2].perplexity == pytest.approx(math.exp(70 / 30))


def test_passkey_perplexity_weighs_by_tokens():
    records = [record("passkey-perplexity", sample=k, score=None, nll=n, count=c) for k, n, c in ((0, 2, 4), (1, 4, 2))]
    assert summary(records)[0].perplexity == pytest.approx(math.e)


def test_failures_are_counted_beside_what_was_scored():
    records = [record(sample=k, score=k % 2, kept=k, seconds=k, peak_bytes=k) for k in range(4)]
    records += [failed(sample=4), failed(sample=5), failed("InputError: no", sample=6)]
    (cell,) = summary(records)
    assert (cell.n, cell.score, cell.errors) == (4, 0.5, 3)
    assert cell.failed == "oom 2/7, error 1/7"
    assert cell.first_error == "out of memory: 5 GB"
    assert (cell.kept, cell.seconds, cell.peak_bytes) == (1.5, 1.5, 3)


def test_a_cell_of_failures_alone_is_shown(folder):
    text = shown(folder([record(), *(failed(length=8192, sample=k) for k in range(50))]))
    assert "oom 50/50" in text
    assert "plain at 8,192" in text


def test_of_records_with_one_key_the_last_counts(folder):
    written = folder([failed(), record(score=0.0), record(sample=1), record(score=1.0)])
    (cell,) = summary(read_records(written)[0])
    assert (cell.n, cell.errors, cell.score) == (2, 0, 1.0)


def test_records_from_a_packed_and_a_running_file_are_one(folder):
    path = folder([record(score=0.0), record(sample=1, score=0.0)])
    with gzip.open(path / "records.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(record(sample=k)) + "\n" for k in (0, 2)))
    records, notes = read_records(path)
    assert [(r["sample"], r["score"]) for r in records] == [(0, 0.0), (2, 1.0), (1, 0.0)]
    assert "1 records were written again" in notes[0]


def test_a_cut_gzip_stream_keeps_its_whole_lines(tmp_path):
    lines = "".join(json.dumps(record(sample=k, answer=str(k**9))) + "\n" for k in range(500))
    packed = gzip.compress(lines.encode())
    (tmp_path / "records.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    records, notes = read_records(tmp_path)
    assert 0 < len(records) < 500
    assert any("cut off" in note for note in notes)


def test_a_half_written_line_is_skipped_and_said(folder):
    path = folder([record(), record(sample=1)], tail='{"task": "pass')
    write_report(path, plots=False)
    for name in ("report.md", "report.html"):
        assert "Line 3 of records.jsonl is incomplete" in (path / name).read_text()


@pytest.mark.parametrize("content", [None, "", '{"task": "pa'])
def test_nothing_to_report_is_an_input_error(tmp_path, content):
    if content is not None:
        (tmp_path / "records.jsonl").write_text(content)
    with pytest.raises(InputError, match="records"):
        write_report(tmp_path)


def test_missing_and_unknown_fields_do_not_break_a_report(folder):
    bare = {"task": "something new", "length": 7}
    odd = record("needle", score=float("nan"), depth=None, kept="many", whatever=[1], versions=None, ask=None)
    path = folder([bare, odd, {"task": "qa", "length": 0}, {"no": "task"}])
    write_report(path, plots=False)
    text = (path / "report.md").read_text()
    assert "something new" in text
    assert "Line 4 of records.jsonl has no task" in text
    assert not re.search(r"\bnan\b", text)


def test_every_method_and_length_appears_with_the_papers_rows(folder):
    methods, lengths = ("plain", "homer", "pi:2"), (512, 4096, 10000)
    path = folder([record(method=m, length=n, sample=k) for m in methods for n in lengths for k in range(3)])
    write_report(path, plots=False)
    for name in ("report.md", "report.html"):
        text = (path / name).read_text()
        for expected in (*methods, "512", "4,096", "10,000", "paper, Llama-2-7b-chat, table 1", "0.924"):
            assert expected in text
    text = shown(path)
    assert all(m in text for m in methods)
    assert "0.924" not in text


def test_papers_numbers_stand_at_their_length_and_gaps_are_dashes():
    (table, *_) = sections([record(length=8192)])[0].tables
    assert [column.partition(" ")[0] for column in table.columns[1:]] == ["4,096", "8,192", "16,384", "32,768"]
    assert rows(table)["paper: plain"] == ["1.000", "0.000", "–", "–"]
    assert rows(table)["plain"] == ["", "1.00 [0.21, 1.00]", "", ""]


def test_an_ablation_has_the_papers_order_and_column():
    labels = ["ours", "refinement: none", "score: attention", "score: random"]
    records = [record("ablation", f"homer:{k}", 16384, variant=label) for k, label in enumerate(labels)]
    (table, *_) = sections(records)[0].tables
    assert list(rows(table)) == ["score: random", "score: attention", "refinement: none", "ours"]
    assert [entries[-2:] for entries in rows(table).values()] == [
        ["0.006", "homer:3"],
        ["0.056", "homer:2"],
        ["0.002", "homer:1"],
        ["", "homer:0"],
    ]


def test_a_sweep_is_one_table_sorted_by_value():
    records = [
        record("sensitivity", f"homer:pooling=1,target_len={n}+yarn:2", variant=f"target_len={n}", kept=n, seconds=2)
        for n in (1024, 256, 2048)
    ]
    (table,) = sections(records)[0].tables
    assert list(rows(table)) == ["256", "1024", "2048"]
    assert "homer:pooling=1+yarn:2, 4,096 tokens" in table.title
    assert rows(table)["256"][1] == "256"


def test_answers_to_questions_are_told_by_both_measures_beside_table_2():
    records = [record("qa", "homer", 0, k, k % 2, likelihood_score=1.0, tokens=100 + k) for k in range(40)]
    section = sections(records)[0]
    found = rows(section.tables[0])
    assert found["homer"] == ["0.50 [0.35, 0.65] (40)", "1.000"]
    assert found["paper: plain+homer"][0] == "0.358"
    assert set(section.records["length"]) == {128, 256}
    assert "rounded" in section.note


def test_machines_and_models_are_not_mixed():
    records = [record(model=f"org/{name}", score=score) for name, score in (("one", 1.0), ("two", 0.0))]
    found = rows(sections(records)[0].tables[0])
    assert found["plain (one)"][0].startswith("1.00")
    assert found["plain (two)"][0].startswith("0.00")


def test_ways_of_asking_are_told_apart():
    (table, *_) = sections([record(ask="now"), record(ask="later", score=0.0)])[0].tables
    assert [row[0] for row in table.rows[:4]] == [
        "question known while reading",
        "plain",
        "read first, asked later",
        "plain",
    ]


def test_text_from_records_is_escaped(folder):
    path = folder([record(method="<script>alert(1)</script>", model="<b>"), failed("out of memory: <i>", sample=1)])
    write_report(path, plots=False)
    page = (path / "report.html").read_text()
    assert not re.search(r"<(script|b|i)>", page)


@plotting
def test_the_page_needs_nothing_else(folder):
    records = [
        record(task, m, n, k, k % 2, depth=k / 4, peak_bytes=10**8 * n, seconds=n / 1e3, variant=v)
        for task, v in (("passkey", ""), ("needle", "single"))
        for m in ("plain", "homer")
        for n in (4096, 8192)
        for k in range(4)
    ]
    records += [window(0, end, 20.0) for end in (4096, 8192)]
    (folder(records) / "command.txt").write_text("homer eval passkey --samples 4")
    path = write_report(folder(records))
    page = path.read_text()
    assert not re.search(r"""(src|href)\s*=(?!\s*["'](data:|#))""", page)
    assert not re.search(r"@import|url\(|https?://", page)
    names = {drawn.name for drawn in path.parent.glob("*.png")}
    assert names >= {"passkey-accuracy.png", "passkey-depth.png", "passkey-cost.png", "perplexity.png"}
    assert page.count("data:image/png;base64,") == len(names)
    assert "homer eval passkey --samples 4" in page


@plotting
def test_what_the_records_do_not_hold_is_not_drawn(folder):
    path = folder([record(), failed(length=8192), record("ablation", variant="score: random")])
    write_report(path)
    assert not list(path.glob("*.png"))


def test_without_seaborn_the_message_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "seaborn", None)
    path = folder([record()])
    with pytest.raises(ConfigError, match=re.escape("pip install 'homerlm[eval]'")):
        write_report(path)
    assert not (path / "report.md").exists()
    assert write_report(path, plots=False)


def test_what_was_kept_stands_beside_what_was_right(folder):
    made = [
        record("stories", method, length, sample, score, variant=variant, needle_kept=kept)
        for variant in ("one fact", "counting")
        for method, length, scores in (
            ("bm25", 4096, (1.0, 0.0)),
            ("homer", 4096, (0.0, 0.0)),
            ("homer", 8192, (1.0, 1.0)),
        )
        for sample, (score, kept) in enumerate(zip(scores, (1.0, 0.5), strict=True))
    ]
    (section,) = sections(read_records(folder(made))[0])
    table = next(table for table in section.tables if table.columns[1].endswith("kept"))
    assert table.columns == [
        "method",
        *("4,096 (0.5× limit): kept", "4,096 (0.5× limit): right"),
        *("8,192 (1× limit): kept", "8,192 (1× limit): right"),
    ]
    of_one = [["bm25", "75%", "0.50", "", ""], ["homer", "75%", "0.00", "75%", "1.00"]]
    assert table.rows == [["one fact"], *of_one, ["counting"], *of_one]


@pytest.mark.parametrize(("more", "title"), [({}, "of a request"), ({"prefill_s": 1.5}, "(of which reading)")])
def test_the_time_of_reading_is_announced_where_it_is_told(folder, more, title):
    (section,) = sections(read_records(folder([record("stories", "homer", 4096, 0, 1.0, seconds=2.0, **more)]))[0])
    table = next(table for table in section.tables if "median seconds" in table.title)
    assert table.title.endswith(title)
    assert ("(1.5)" in table.rows[0][1]) == bool(more)


def test_records_that_do_not_say_what_was_kept_have_no_such_table(folder):
    (section,) = sections(read_records(folder([record()]))[0])
    assert not [table for table in section.tables if table.columns[1].endswith("kept")]
