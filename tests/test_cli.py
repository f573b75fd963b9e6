"""The command line as a user sees it: output, JSON, exit codes, and errors without a traceback."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import homerlm
from command import WORDS, ask, runner
from homerlm import Homer, HomerConfig
from homerlm.cli import main, options
from homerlm.cli.ask import _is_cut_off
from homerlm.cli.options import parse_counts
from homerlm.errors import ConfigError, OutOfMemoryError


@pytest.fixture
def homer(monkeypatch, capsys, model_folder):
    return runner(monkeypatch, capsys, model_folder)


def test_flags_are_the_configs_fields():
    for name in ("ask", "demo", "plan"):
        options = {o for p in get_command(main.app).commands[name].params for o in p.opts}
        for setting in fields(HomerConfig):
            flag = "--" + setting.name.replace("_", "-")
            is_file = setting.name == "profile" or (setting.name == "calibration" and name == "ask")
            assert (flag in options) == ("help" in setting.metadata or is_file)


def test_flags_are_the_settings_of_either_preset():
    seen = []
    app = typer.Typer()
    app.command()(options.with_config(lambda *, settings: seen.append(settings)))
    for given in (["--score", "logit", "--target-len", "70"], ["--preset", "paper", "--retention", "0.25"]):
        assert CliRunner().invoke(app, given).exit_code == 0
    assert seen == [HomerConfig(score="logit", target_len=70), HomerConfig.paper(retention=0.25)]
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "400"}).output
    assert "How tokens are scored. Default peak_softmax. With --preset paper calibrated_logit." in shown
    assert "default all of them. With --preset paper 1." in shown, "not: default all of them. Default 1."
    assert "With --preset paper: share of a full chunk's context that is kept for the merge. Default 0.5." in shown
    error = CliRunner().invoke(app, ["--retention", "0.25"]).exception
    assert isinstance(error, ConfigError)
    assert "retention (--retention) is a setting of HomerConfig.paper()" in str(error)
    assert "--preset paper" in str(error)


def test_presets_and_settings_reach_the_library(homer, document, monkeypatch):
    seen = []
    original = Homer.__init__
    monkeypatch.setattr(Homer, "__init__", lambda self, *args: seen.append(args[2]) or original(self, *args))
    homer(*ask(document, "--score", "logit", "--rerank", "never", "--chunk-batch", "2"))
    assert seen[0] == HomerConfig(
        max_chunk_len=64, target_len=50, pooling=3, score="logit", rerank="never", chunk_batch=2
    )
    code, _, err = homer(*ask(document, "--preset", "paper"))
    assert code == 2
    assert "homer calibrate" in " ".join(err.split())
    assert seen[1] == HomerConfig.paper(max_chunk_len=64, target_len=50, pooling=3)


def test_every_command_has_help_with_examples(homer):
    for name in ("ask", "demo", "plan", "calibrate"):
        code, out, _ = homer(name, "--help")
        assert code == 0
        assert f"homer {name}" in out
        assert "Examples" in out


def test_ask_streams_the_answer_and_says_what_it_took(homer, document):
    code, out, err = homer(*ask(document))
    assert code == 0
    assert out.strip()
    line = " ".join(err.split())
    assert re.search(r" 3\d\d tokens read in [\d.]+ s \([\d,]+/s\), 50 kept; \d+ new in", f" {line}")
    assert "model limit 512" in line
    assert "cut off: --max-new-tokens" in line
    line = " ".join(homer(*ask(document), "--prefilter", "100")[2].split())
    assert re.search(r" 1\d\d of 3\d\d tokens read in", f" {line}")


@pytest.mark.parametrize(
    ("ends", "most", "cut_off"), [(9, 3, False), ([8, 9], 3, False), (None, 4, False), (None, 3, True), (8, 3, True)]
)
def test_an_answer_is_cut_off_where_it_would_go_on(ends, most, cut_off):
    answer = SimpleNamespace(new_tokens=3, token_ids=(1, 2, 9))
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
    assert _is_cut_off(answer, model, most) == cut_off


def test_ask_as_json(homer, document):
    code, out, err = homer(*ask(document, "--json", "--show-kept"))
    record = json.loads(out)
    assert code == 0
    assert err == ""
    assert record["tokens_kept"] == 50
    assert record["tokens_read"] > 300
    assert all(passage["text"] in WORDS for passage in record["kept"])
    assert record["text"] == json.loads(homer(*ask(document, "--json"))[1])["text"]


def test_standard_input_and_several_files(homer, document, tmp_path):
    other = tmp_path / "other.md"
    other.write_text("w5 w6")
    from_file = json.loads(homer(*ask(document, "--json"))[1])
    from_stdin = json.loads(homer(*ask("-", "--json"), stdin=WORDS)[1])
    both = json.loads(homer(*["ask", document, *ask(other, "--json")[1:]])[1])
    assert from_stdin["text"] == from_file["text"]
    assert both["tokens_read"] > from_file["tokens_read"]


def test_saved_documents_are_asked_again(homer, document, tmp_path):
    path = tmp_path / "kept.homer"
    first = json.loads(homer(*ask(document, "--save", path, "--json"))[1])
    again = json.loads(homer(*ask(None, "--context", path, "--json"))[1])
    assert path.exists()
    assert again["text"] == first["text"]


def test_the_summary_of_a_saved_document_claims_no_reading(homer, document, tmp_path):
    path = tmp_path / "kept.homer"
    _, _, saving = homer(*ask(document, "--save", path))
    found = re.search(r"3\d\d tokens read in .*, (\d+) indexed tokens saved, (\d+) kept for", " ".join(saving.split()))
    saved, kept = found.groups()
    assert int(saved) > int(kept)
    _, _, asking = homer(*ask(None, "--context", path))
    line = " ".join(asking.split())
    assert re.search(
        rf"asked of {saved} indexed tokens in [\d.]+ s, \d\d read and {kept} kept for this answer; \d+ new", line
    )
    assert "/s" not in line


def test_html_shades_the_whole_document(homer, document, tmp_path):
    page = tmp_path / "page.html"
    assert homer(*ask(document, "--html", page))[0] == 0
    text = page.read_text()
    body = re.search(r"<main[^>]*>(.*)</main>", text, re.S).group(1)
    assert re.sub(r"<[^>]+>", "", body) == WORDS
    assert 'class="seen l0"' in body
    assert "read for the answer" in text
    assert document.name in text


def test_plan_prints_the_tree_and_the_memory(homer):
    code, out, _ = homer("plan", "MODEL", "2000", "--max-chunk-len", "300", "--target-len", "300")
    assert code == 0
    assert "read in 8 chunks of up to 300 tokens, layers [0, 6) of 10; scored by layers 5" in " ".join(out.split())
    assert "Predicted peak above the weights" in out
    assert "├─ layers" not in out
    assert "├─ layers" in homer("plan", "MODEL", "2000", "--max-chunk-len", "300", "--preset", "paper")[1]
    record = json.loads(homer("plan", "MODEL", "2000", "--max-chunk-len", "300", "--preset", "paper", "--json")[1])
    # 10 layers, 3 key-value heads of 12 numbers, 4 bytes each
    assert record["plain_kv_bytes"] == 2050 * 10 * 2 * 3 * 12 * 4
    assert record["peak_bytes"] > record["cache_bytes"] > 0
    assert {"chunk", "merge", "read"} == {run["kind"] for run in record["passes"]}


def test_token_counts_may_be_in_k_and_M(homer, monkeypatch):
    record = json.loads(homer("plan", "MODEL", "2k", "--json")[1])
    affixes = 20 + 30
    chunks = [run["tokens"] - affixes for run in record["passes"] if run["kind"] == "chunk"]
    assert sum(chunks) == 2048
    assert parse_counts("8k, 16_384 1M", "length") == [8192, 16384, 1 << 20]
    for wrong in ("8g", "0", "-5", "k", "1.5k", "many", "٣"):
        code, _, err = homer("plan", "MODEL", "--", wrong)
        assert code == 2
        assert f"TOKENS is {wrong!r}" in err
    code, _, err = homer("demo", "--tokens", "100")
    assert code == 2
    assert "at least 1,000" in err


def test_plan_follows_the_scaled_limit(homer):
    plain = json.loads(homer("plan", "MODEL", "2000", "--json")[1])
    scaled = json.loads(homer("plan", "MODEL", "2000", "--rope", "yarn:2", "--json")[1])
    assert (plain["model_limit"], scaled["model_limit"]) == (512, 1024)
    assert scaled["cache_tokens"] > plain["cache_tokens"]


def test_calibrate_writes_what_the_paper_preset_reads(homer, document, tmp_path):
    output = tmp_path / "c.calibration"
    code, out, _ = homer("calibrate", "MODEL", output, "--text", document, "--length", "100", "--json")
    assert code == 0
    assert json.loads(out)["segments"] == 3
    other = ("--dtype", "bfloat16", "--device", "cpu")
    given = ("calibrate", "MODEL", tmp_path / "other", "--text", document, "--length", "100")
    assert json.loads(homer(*given, *other, "--json")[1])["dtype"] == "torch.bfloat16"
    code, _, err = homer(*given, "--device", "gpu", "--force")
    assert (code, "--device is 'gpu'; this machine has cpu" in " ".join(err.split())) == (2, True)
    code, out, _ = homer(*ask(document, "--preset", "paper", "--calibration", output, "--json"))
    assert code == 0
    assert json.loads(out)["tokens_kept"] == 50


def test_demo_asks_homer_and_the_plain_model(homer, monkeypatch):
    from homerlm.cli import demo

    text = " ".join(f"w{i % 90}." if i % 9 == 0 else f"w{i % 90}" for i in range(5000))
    monkeypatch.setattr(demo, "python_documentation", lambda: text)
    record = json.loads(homer("demo", "-m", "MODEL", "--tokens", "1500", "--seed", "1", "--json")[1])
    assert [row["who"] for row in record["rows"]] == ["HOMER", "plain, clipped to its limit"]
    assert record["rows"][1]["cache_tokens"] <= 512
    code, out, _ = homer("demo", "-m", "MODEL", "--tokens", "1500", "--seed", "1")
    assert code == 0
    assert "Planted at" in out


def test_errors_are_one_message_and_an_exit_code(homer, document, tmp_path):
    binary = tmp_path / "b.bin"
    binary.write_bytes(bytes(range(256)) * 4)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    broken = tmp_path / "broken.homer"
    broken.write_bytes(b"nonsense")
    cases = [
        (1, ask(tmp_path / "none.txt"), "none.txt"),
        (1, ask(binary), "b.bin"),
        (1, ask(empty), "empty.txt"),
        (1, ask(None, "--context", broken), "broken.homer"),
        (1, ["ask", "w1", "-m", tmp_path / "no", "--context", document], "was not written by homer index"),
        (1, ["select", "w1", "-m", tmp_path / "no", "--context", tmp_path / "c"], "give what homer index"),
        (2, ask(document, "--context", broken), "--context"),
        (2, ask(document, "--rope", "stretch:2"), "stretch"),
        (2, ask(document, "--pooling", "4"), "pooling is 4"),
        (1, ask(document, "--target-len", "3"), "target_len is 3"),
        (1, ["ask", document, "w1", "-m", tmp_path], "not a model folder"),
        (1, ["ask", document, "w1", "-m", "no/such-model"], "no/such-model"),
        (1, ["plan", "MODEL", "100000", "--max-chunk-len", "50"], "raise max_chunk_len"),
        (1, ["calibrate", "MODEL", tmp_path / "c"], "WikiText-103"),
    ]
    for expected, arguments, named in cases:
        code, out, err = homer(*arguments)
        assert (code, out) == (expected, ""), (arguments, err)
        assert err.startswith("Error:"), err
        assert named in err.replace("\n", ""), err
    assert not list(tmp_path.glob(".homerlm*"))


def test_wrong_usage_is_exit_code_2(homer, document):
    for arguments in (["ask"], ["plan", "MODEL"], ask(document, "--score", "best"), ["nonsense"]):
        code, _, err = homer(*arguments)
        assert code == 2
        assert "Error: " in err


def test_no_arguments_show_the_help(homer):
    for arguments in ([], ["eval"]):
        code, out, err = homer(*arguments)
        assert (code, err) == (2, "")
        assert "Commands" in out


def test_the_command_keeps_freed_memory(homer, monkeypatch):
    asked = []
    monkeypatch.setattr("homerlm.model.memory.keep_freed_memory", lambda: asked.append(True))
    homer("--version")
    homer("ask", "--help")
    assert asked == []
    homer("plan", "MODEL", "2000")
    assert asked == [True]


def test_interruption_and_memory_have_their_exit_codes(homer, document, monkeypatch, tmp_path):
    from homerlm.index.building import Builder
    from homerlm.select.method import Select

    def fail_with(error):
        def compress(self, *_ids):
            raise error

        monkeypatch.setattr(Select, "compress", compress)
        monkeypatch.setattr(Builder, "text", compress)

    path = tmp_path / "kept.homer"
    fail_with(KeyboardInterrupt())
    code, _, err = homer(*ask(document, "--save", path))
    assert code == 130
    assert "Stopped" in err
    fail_with(OutOfMemoryError("too much"))
    assert homer(*ask(document, "--save", path))[0] == 3
    assert not path.exists()


def test_the_version_and_help_come_without_torch():
    for arguments in (["--version"], ["-V"], ["--help"], ["ask", "--help"], ["plan", "-h"]):
        code = (
            "import sys; from homerlm.__main__ import main; main();"
            "heavy = {'torch', 'transformers', 'numpy'} & {*sys.modules}; sys.exit(str(heavy) if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), arguments


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "homerlm", "-V"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"homerlm {homerlm.__version__}\n"
    usage = subprocess.run([sys.executable, "-m", "homerlm", "ask", "-h"], capture_output=True, text=True, timeout=60)
    assert "Usage: homer ask" in usage.stdout


def test_device_and_dtype_reach_the_model(homer, document, monkeypatch):
    seen = []
    original = homerlm.load_model
    monkeypatch.setattr("homerlm.model.loading.load_model", lambda *a, **k: seen.append(k) or original(*a, **k))
    assert homer(*ask(document, "--device", "cpu", "--dtype", "bfloat16", "--json"))[0] == 0
    assert homer(*ask(document, "--json"))[0] == 0
    assert seen == [{"rope": None, "dtype": "bfloat16", "device_map": "cpu"}, {"rope": None, "dtype": "auto"}]
    for device in ("cuda:99", "meta", "gpu", "cpu:1", ""):
        code, _, err = homer(*ask(document, "--device", device))
        assert code == 2
        assert f"--device is {device!r}; this machine has cpu" in " ".join(err.split())
    assert homer(*ask(document, "--dtype", "int3"))[0] == 2
    assert len(seen) == 2


def test_template_options_reach_the_library(homer, document, monkeypatch):
    def stop(self, *args, **options):
        raise ConfigError(f"template_options: {options.get('template_options')}")

    monkeypatch.setattr("homerlm.homer.Homer.ask", stop)
    given = ["--template-option", "enable_thinking=true", "--template-option", 'effort="low"']
    assert "{'enable_thinking': True, 'effort': 'low'}" in homer(*ask(document, *given))[2]
    assert "template_options: None" in homer(*ask(document))[2]
    for wrong in ("enable_thinking", "enable_thinking=yes", "=1", "a b=1"):
        code, _, err = homer(*ask(document, "--template-option", wrong))
        assert code == 2
        assert f"--template-option is {wrong!r}" in " ".join(err.split())
    assert "--no-chat" in homer(*ask(document, *given, "--no-chat"))[2]


def test_quiet_prints_the_answer_alone(homer, document):
    _, out, err = homer(*ask(document))
    assert err
    assert homer(*ask(document, "--quiet")) == (0, out, "")


def test_quiet_measurements_print_nothing(homer, document, tmp_path):
    for command in (
        ["calibrate", "MODEL", tmp_path / "c", "--text", document],
        ["profile", "MODEL", "-o", tmp_path / "p", "--texts", "4"],
    ):
        assert homer(*command, "--quiet") == (0, "", "")


def test_what_no_answer_can_be_written_with_is_refused_before_the_model_is_loaded(homer, document, monkeypatch):
    monkeypatch.setattr("homerlm.cli.ask.open_homer", None)
    for option, value in (("--seed", 10**20), ("--temperature", "inf")):
        code, out, err = homer(*ask(document, option, value))
        assert (code, out) == (2, "")
        assert f"{option[2:]} is {value}" in " ".join(err.split())


def planned(model_folder, stdout, *more):
    """Exit code and standard error of a process of its own: the terminal of this one would stay silent afterwards."""
    command = ["plan", str(model_folder), "8k", "--max-chunk-len", "64", "--target-len", "60", *more]
    done = subprocess.run([sys.executable, "-m", "homerlm", *command], stdout=stdout, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no device that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_output_that_cannot_be_written_is_said(model_folder, more):
    with open("/dev/full", "w") as full:
        found = planned(model_folder, full, *more)
    assert found == (1, "Error: standard output cannot be written: No space left on device\n")


def test_a_reader_that_has_left_ends_the_command_in_silence(model_folder):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as left:
        assert planned(model_folder, left) == (1, "")


def test_an_answer_that_breaks_off_ends_its_line(homer, document, monkeypatch):
    def breaks_off(self, *args, on_text, **_):
        on_text("half an :warning: ans")
        raise KeyboardInterrupt

    monkeypatch.setattr("homerlm.homer.Homer.ask", breaks_off)
    assert homer(*ask(document))[:2] == (130, "half an :warning: ans\n")


def test_a_calibration_that_nothing_uses_is_refused(homer, document):
    code, _, err = homer("ask", document, "w1", "--calibration", document)
    assert code == 2
    assert "--preset paper" in err


def test_shell_completion(homer, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))  # a test need not run in one
    code, out, _ = homer("--show-completion")
    assert code == 0
    assert "_HOMER_COMPLETE" in out
    monkeypatch.setenv("_HOMER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "homer ca")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert homer()[1].split() == ["calibrate"]


def test_errors_as_json_are_one_object_and_the_same_exit_code(homer, document, tmp_path):
    cases = [
        (ask(document, "--pooling", "4"), 2, "ConfigError", "pooling is 4"),
        (ask(document, "--score", "best"), 2, "UsageError", "best"),
        (ask(document, "--nonsense"), 2, "UsageError", "--nonsense"),
        (["ask"], 2, "UsageError", "question"),
        (["plan", "MODEL"], 2, "UsageError", "tokens"),
        (ask(tmp_path / "none.txt"), 1, "DocumentError", "none.txt"),
        (["plan", "MODEL", "100000", "--max-chunk-len", "50"], 1, "ScheduleError", "raise max_chunk_len"),
    ]
    for arguments, expected, kind, named in cases:
        code, out, err = homer(*arguments, "--json")
        assert (code, err) == (expected, ""), arguments
        error = json.loads(out)["error"]
        assert error["type"] == kind
        assert named in error["message"], error
        code, out, err = homer(*arguments)
        assert (code, out) == (expected, "")
        assert " ".join(err.split()).startswith("Error: "), err
