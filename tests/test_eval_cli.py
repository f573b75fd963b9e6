"""`homer eval` as a user runs it, on a tiny model folder: what it writes, prints and refuses."""

import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from homerlm.cli import measuring
from homerlm.cli.main import app
from homerlm.errors import HomerError, InputError
from homerlm.lab import suites
from homerlm.lab.methods import Method
from homerlm.lab.records import read_records

METHODS = "plain homer:max_chunk_len=160,target_len=150"
HOMER = METHODS.split()[1]


@pytest.fixture
def homer(monkeypatch, model_folder):
    """Run a command; gives what it printed, raises what it raised."""

    def run(*arguments):
        printed = Console(file=open_file(), width=200)
        monkeypatch.setattr(measuring, "out", printed)
        result = CliRunner().invoke(app, ["eval", *map(str, arguments), *(["-m", str(model_folder)])])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return printed.file.getvalue()

    return run


def open_file():
    from io import StringIO

    return StringIO()


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_passkey_writes_records_reports_and_its_command(homer, tmp_path):
    out = homer("passkey", "--methods", METHODS, "--lengths", "300,400", "--samples", 3, "-o", tmp_path)
    found = records(tmp_path)
    assert len(found) == 2 * 2 * 3
    assert {(r["task"], r["length"]) for r in found} == {("passkey", 300), ("passkey", 400)}
    assert {r["method"] for r in found} == set(METHODS.split())
    assert all(r["kept"] <= 150 for r in found if r["method"] == HOMER)
    assert all(r["error"] is None for r in found)
    assert "400" in out
    assert HOMER in out
    for name in ("report.md", "report.html", "command.txt"):
        assert (tmp_path / name).stat().st_size
    assert list(tmp_path.glob("*.png"))
    assert "paper, Llama-2-7b-chat" in (tmp_path / "report.md").read_text()


def test_a_stopped_run_is_resumed_by_the_same_command(homer, tmp_path):
    command = ("passkey", "--methods", METHODS, "--lengths", "300", "--samples", 3, "-o", tmp_path)
    whole = homer(*command)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])
    again = homer(*command)
    assert [r["sample"] for r in read_records(tmp_path)[0]] == [0, 1, 2, 0, 1, 2]
    score = whole[: whole.index("Peak memory")]
    assert again.startswith(score)


@pytest.mark.parametrize(
    ("given", "there", "where"),
    [([], False, {}), ([], True, "cuda"), (["--device", "cpu"], True, {}), (["--device", "auto"], True, "auto")],
)
def test_the_model_runs_where_it_is_asked_to_or_on_the_gpu_that_is_there(monkeypatch, given, there, where):
    """`load_model` is asked for that place; of a machine with a GPU this one only says so."""
    import torch

    from homerlm.cli.eval import EvalOptions

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    options = EvalOptions(device=given[1] if given else None)
    assert options.placed == ({"device_map": where} if where else {})


def test_needle_kinds_and_asking_later(homer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 90} w{i % 7}. " for i in range(2000)))
    kinds = [x for kind in ("single", "keys", "values", "queries") for x in ("--kind", kind)]
    command = ("needle", *kinds, "--methods", "plain", "--lengths", 400, "--samples", 1, "-o", tmp_path, "--text", text)
    homer(*command)
    homer(*command)
    assert len(records(tmp_path)) == 4  # once each
    assert {r["variant"] for r in records(tmp_path)} == {"single", "keys", "values", "queries"}
    assert {r["text"] for r in records(tmp_path)} == {"text.txt"}
    later = tmp_path / "later"
    homer(
        *("needle", "--kind", "single", "--ask", "later", "--methods", HOMER, "--lengths", 500, "--samples", 2),
        *("-o", later, "--text", text),
    )
    assert [r["sample"] for r in records(later)] == list(range(10))
    assert "10 samples in every cell." in (later / "report.md").read_text()
    assert "1 sample in every cell." in (tmp_path / "report.md").read_text()
    assert {r["ask"] for r in records(later)} == {"later"}
    assert len({tuple(r["expected"]) for r in records(later)[:5]}) == 5


@pytest.mark.parametrize(
    ("task", "options", "variant"),
    [
        ("associations", (), "one of 4 facts"),
        ("relations", ("--facts", 1), "one fact"),
        ("paraphrases", (), "one of 4 facts"),
        ("stories", ("--kind", "two facts"), "two facts"),
        ("variables", ("--hops", 2, "--chains", 2), "2 hops, 2 chains"),
        ("common-words", (), ""),
        ("frequent-words", (), ""),
        ("headings", (), ""),
    ],
)
def test_tasks_beside_rivals_of_the_same_budget(homer, tmp_path, task, options, variant):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 90} word{i % 400}. " for i in range(2000)))
    rivals = "random:budget=150 bm25:budget=150 oracle:budget=150"
    source = () if task in ("headings", "frequent-words") else ("--text", text)
    homer(task, *options, *source, "--methods", f"{rivals} {HOMER}", "--lengths", 1000, "--samples", 2, "-o", tmp_path)
    found = records(tmp_path)
    assert {(r["task"], r["variant"], r["error"]) for r in found} == {(task, variant, None)}
    assert len(found) == 4 * 2
    assert all(r["kept"] <= 150 for r in found)
    kept = {name: [r["needle_kept"] for r in found if r["method"].startswith(name)] for name in ("oracle", "random")}
    everywhere = task.endswith("-words")  # every passage answers
    assert (sum(kept["oracle"]) > sum(kept["random"])) != everywhere


@pytest.mark.parametrize("task", ["associations", "stories", "variables", "common-words", "headings"])
def test_every_task_is_asked_later_too(homer, tmp_path, task):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 90} word{i % 400}. " for i in range(2000)))
    source = () if task == "headings" else ("--text", text)
    given = (*source, "--methods", f"oracle:budget=150 {HOMER}", "--lengths", 1000, "--samples", 1, "-o", tmp_path)
    homer(task, *given, "--ask", "later")
    homer(task, *given)
    later, now = ([r for r in records(tmp_path) if r["ask"] == ask] for ask in ("later", "now"))
    assert len(later) == len(now) >= 2
    assert {r["error"] for r in later} == {None}
    told = [
        [(r["needle_kept"], r.get("answer")) for r in found if r["method"].startswith("oracle")]
        for found in (now, later)
    ]
    assert told[0] == told[1]  # it keeps the text


def test_questions_of_ones_own(homer, tmp_path):
    text, data = tmp_path / "text.txt", tmp_path / "questions.jsonl"
    text.write_text(" ".join(f"w{i % 90} stands by v{i}. " for i in range(900)))
    rows = [{"question": f"What is by v{i}?", "evidence": f"stands by v{i}."} for i in (5, 450, 880)]
    data.write_text("\n".join(map(json.dumps, rows)))
    for ask in ("now", "later"):
        methods = f"random:budget=150 oracle:budget=150 {HOMER}" if ask == "now" else HOMER
        asked = "--data", data, "--text", text, "--ask", ask
        homer("questions", *asked, "--methods", methods, "--lengths", 1000, "-o", tmp_path)
    found = records(tmp_path)
    assert [r["ask"] for r in found] == ["now"] * 3 * 3 + ["later"] * 3  # each once, whatever --samples is
    assert {(r["task"], r["text"], r["error"]) for r in found} == {("questions", "text.txt", None)}
    assert [r["needle_kept"] for r in found if r["method"].startswith("oracle")] == [1.0] * 3


def test_qa_from_a_file(homer, tmp_path):
    data = tmp_path / "quality.jsonl"
    question = {"question": "Who?", "options": ["w1", "w2", "w3", "w4"], "gold_label": 2}
    story = " ".join(f"w{i % 90}" for i in range(300))
    data.write_text(json.dumps({"article": story, "questions": [question] * 3}) + "\n")
    homer("qa", "--data", data, "--methods", f"truncate {HOMER}", "--samples", 50, "-o", tmp_path)
    found = records(tmp_path)
    assert len(found) == 2 * 3
    assert all(r["likelihood_score"] in (0.0, 1.0) and r["score"] in (0.0, 1.0) for r in found)
    assert all(r["expected"] == ["B"] for r in found)


def test_perplexity_of_one_text_begun_at_several_places(homer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i * i % 90}" for i in range(1500)))
    method = "homer:max_chunk_len=320,target_len=240"
    homer(
        *("perplexity", "--text", text, "--documents", 2, "--length", 1024),
        "--methods",
        f"plain {method}",
        "-o",
        tmp_path,
    )
    found = records(tmp_path)
    assert [(r["sample"], r["length"]) for r in found if r["method"] == method] == [
        (document, length) for document in (0, 1) for length in (512, 768, 1024)
    ]
    plain = {(r["sample"], r["length"]): r["nll"] for r in found if r["method"] == "plain"}
    merged = {(r["sample"], r["length"]): r["nll"] for r in found if r["method"] == method}
    assert plain[0, 512] == pytest.approx(merged[0, 512], rel=1e-4)
    assert plain[0, 768] != merged[0, 768]


def test_passkey_perplexity(homer, tmp_path):
    homer("passkey-perplexity", "--methods", HOMER, "--lengths", 400, "--samples", 2, "-o", tmp_path)
    assert all(r["nll"] > 0 and r["count"] > 0 for r in records(tmp_path))


def test_ablation_and_sensitivity_have_a_row_for_each_setting(homer, tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "ABLATION", {"default preset": HOMER, "default, no recap": f"{HOMER},recap_len=0"})
    out = homer("ablation", "--lengths", 400, "--samples", 1, "-o", tmp_path / "a")
    assert {r["variant"] for r in records(tmp_path / "a")} == {"default preset", "default, no recap"}
    assert "default, no recap" in out
    homer("ablation", "--row", "default, no", "--lengths", 400, "--samples", 1, "-o", tmp_path / "r")
    assert {r["variant"] for r in records(tmp_path / "r")} == {"default, no recap"}
    homer(
        *("ablation", "--task", "needle", "--kind", "keys", "--row", "default, no"),
        *("--lengths", 500, "--samples", 1, "-o", tmp_path / "k"),
    )
    (four,) = records(tmp_path / "k")
    assert (four["variant"], len(four["others"])) == ("needle keys, default, no recap", 3)
    homer(
        *("sensitivity", "--method", "homer:max_chunk_len=160,target_len=150"),
        *("--lengths", 400, "--samples", 1, "-o", tmp_path / "s"),
    )
    swept = {r["variant"].partition("=")[0] for r in records(tmp_path / "s")}
    assert swept == {"max_chunk_len", "target_len"}


def test_every_ablation_and_sweep_row_is_a_method():
    for text in [*suites.ABLATION.values(), *suites.sweep("homer", 8192, 30).values()]:
        Method.parse(text).config()


def test_help_names_every_method():
    from homerlm.lab.rivals.choosers import RIVALS

    shown = " ".join(CliRunner().invoke(app, ["eval", "--help"], env={"COLUMNS": "300"}).output.split())
    listed = shown[shown.index("Methods: ") :].partition("each with")[0]
    assert set(re.findall(r"[a-z0-9-]+(?=,)", listed)) == {
        "plain",
        "truncate",
        "streaming",
        *RIVALS,
        "homer",
        "homer-paper",
    }


@pytest.mark.parametrize(
    ("command", "methods", "output"),
    [
        (["eval", "passkey"], "plain homer-paper homer", "homer-eval/passkey"),
        (["eval", "stories"], "random bm25 oracle homer", "homer-eval/stories"),
        (["bench", "speed"], "plain homer-paper homer homer+yarn:2", "homer-bench/speed"),
    ],
)
def test_help_shows_what_runs_by_default(command, methods, output):
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300"}).output
    assert f"[default: {methods}]" in shown
    assert f"[default: {output}]" in shown


def test_report_prints_the_tables_of_a_folder_again(homer, monkeypatch, tmp_path):
    first = homer("passkey", "--methods", "plain", "--lengths", "300", "--samples", 2, "-o", tmp_path)
    (tmp_path / "report.md").unlink()
    printed = Console(file=open_file(), width=200)
    monkeypatch.setattr(measuring, "out", printed)
    assert CliRunner().invoke(app, ["eval", "report", str(tmp_path)]).exit_code == 0
    assert printed.file.getvalue() == first
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["passkey", "--methods", "homre"], "homre"),
        (["passkey", "--lengths", "8q"], "8q"),
        (["needle", "--text", "no-such-file"], "no-such-file"),
        (["ablation", "--row", "scores"], "scores"),
        (["qa", "--data", "no-such-file"], "no-such-file"),
    ],
)
def test_mistakes_are_refused_by_name(homer, tmp_path, arguments, named):
    with pytest.raises(HomerError, match=named):
        homer(*arguments, "-o", tmp_path)


def test_a_folder_without_records_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["eval", "report", str(tmp_path)])
    assert "holds no records" in str(result.exception)


@pytest.mark.parametrize("taken", ["file", "file/folder", "folder/records.jsonl", "folder/report.md"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(homer, tmp_path, taken):
    output = tmp_path / taken.partition("/records")[0].partition("/report")[0]
    if taken.startswith("file"):
        (tmp_path / "file").touch()
    else:
        (tmp_path / taken).mkdir(parents=True)
    with pytest.raises(InputError, match="output is"):
        homer("perplexity", "--text", "no-such-text", "-m", "no-such-model", "-o", output)


def test_where_every_sample_failed_the_command_fails_with_the_first_error(homer, tmp_path):
    command = ("passkey", "--methods", "plain", "--samples", 2, "-o", tmp_path)
    with pytest.raises(HomerError, match=r"everything failed.*no room for filler"):
        homer(*command, "--lengths", "50")
    assert "error 2/2" in (tmp_path / "report.md").read_text()
    homer(*command, "--lengths", "50,300")
    homer(*command, "--lengths", "300")


def test_without_seaborn_there_are_tables_and_a_hint(homer, tmp_path, monkeypatch):
    hints, find_spec = Console(file=open_file(), width=200), measuring.importlib.util.find_spec
    monkeypatch.setattr(measuring, "err", hints)
    monkeypatch.setattr(
        measuring.importlib.util, "find_spec", lambda name: None if name == "seaborn" else find_spec(name)
    )
    homer("passkey", "--methods", "plain", "--lengths", "300", "--samples", 1, "-o", tmp_path)
    assert (tmp_path / "report.html").exists()
    assert not list(tmp_path.glob("*.png"))
    assert 'pip install "homerlm[eval]"' in hints.file.getvalue()
