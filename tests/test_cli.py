"""The command line as a user sees it: output, JSON, exit codes, and errors without a traceback."""

import json
import re
import sys
from dataclasses import fields

import pytest
from typer.main import get_command

from homerlm import HomerConfig
from homerlm.cli import main
from homerlm.errors import OutOfMemoryError

SIZES = ["--max-chunk-len", "64", "--target-len", "50", "--warmup-layers", "2", "--pooling", "3"]
WORDS = " ".join(f"w{i % 90}" for i in range(300))


@pytest.fixture
def homer(monkeypatch, capsys, model_folder):
    """Run a command; (exit code, stdout, stderr). `MODEL` stands for a tiny model's folder."""

    def run(*args, stdin=None):
        given = [str(model_folder) if arg == "MODEL" else str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", ["homer", *given])
        if stdin is not None:
            import io

            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = 0
        try:
            main.run()
        except SystemExit as stop:
            code = stop.code or 0
        seen = capsys.readouterr()
        assert "Traceback" not in seen.out + seen.err
        return code, seen.out, seen.err

    return run


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.txt"
    path.write_text(WORDS)
    return path


def ask(document, *more):
    return ["ask", *([document] if document else []), "w1 w2", "-m", "MODEL", "--max-new-tokens", "5", *SIZES, *more]


def test_flags_are_the_configs_fields():
    for name in ("ask", "demo", "plan"):
        options = {o for p in get_command(main.app).commands[name].params for o in p.opts}
        for field in fields(HomerConfig):
            flag = "--" + field.name.replace("_", "-")
            assert (flag in options) == ("help" in field.metadata or (field.name == "calibration" and name == "ask"))


def test_presets_and_settings_reach_the_library(homer, document, monkeypatch):
    seen = []
    original = HomerConfig.resolve
    monkeypatch.setattr(HomerConfig, "resolve", lambda self, *args: seen.append(self) or original(self, *args))
    homer(*ask(document, "--score", "logit", "--readout", "merged", "--leaf-batch", "2"))
    assert seen[0] == HomerConfig(
        max_chunk_len=64, target_len=50, warmup_layers=2, pooling=3, score="logit", readout="merged", leaf_batch=2
    )
    code, _, err = homer(*ask(document, "--preset", "paper"))
    assert code == 1
    assert "homer calibrate" in " ".join(err.split())
    assert seen[1] == HomerConfig.paper(max_chunk_len=64, target_len=50, warmup_layers=2, pooling=3)


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
    assert re.search(r"3\d\d tokens read in [\d.]+ s \([\d,]+/s\), 50 kept; \d+ new in", line)
    assert "model limit 512" in line


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
    code, _, err = homer(*ask(document, "--context", path))
    assert code == 1
    assert "--context takes no documents" in err


def test_html_shades_the_whole_document(homer, document, tmp_path):
    page = tmp_path / "page.html"
    assert homer(*ask(document, "--html", page))[0] == 0
    text = page.read_text()
    body = re.search(r"<main>(.*)</main>", text, re.S).group(1)
    assert re.sub(r"<[^>]+>", "", body) == WORDS
    assert 'class="l0"' in body
    assert "kept to the end" in text


def test_plan_prints_the_tree_and_the_memory(homer):
    code, out, _ = homer("plan", "MODEL", "2000", "--max-chunk-len", "300", "--target-len", "300")
    assert code == 0
    assert "├─ layers" in out
    assert "appendix A's bound" in out
    assert "first chunks run through layers [0, 6), where all vote" in " ".join(out.split())
    paper = homer("plan", "MODEL", "2000", "--max-chunk-len", "300", "--preset", "paper")[1]
    assert "where all vote" not in paper
    record = json.loads(homer("plan", "MODEL", "2000", "--max-chunk-len", "300", "--preset", "paper", "--json")[1])
    # 10 layers, 3 key-value heads of 12 numbers, 4 bytes each
    assert record["plain_kv_bytes"] == 2050 * 10 * 2 * 3 * 12 * 4
    assert 0 < record["peak_kv_bytes"] <= record["kv_bound_bytes"] * 1.2
    assert record["schedule"]["context_len"] == 2000


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


def test_errors_are_one_message_and_exit_code_1(homer, document, tmp_path):
    binary = tmp_path / "b.bin"
    binary.write_bytes(bytes(range(256)) * 4)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    broken = tmp_path / "broken.homer"
    broken.write_bytes(b"nonsense")
    cases = [
        (ask(tmp_path / "none.txt"), "none.txt"),
        (ask(binary), "b.bin"),
        (ask(empty), "empty.txt"),
        (ask(None, "--context", broken), "broken.homer"),
        (ask(document, "--context", broken), "--context"),
        (ask(document, "--save", tmp_path / "no" / "folder"), "folder"),
        (ask(document, "--rope", "stretch:2"), "stretch"),
        (ask(document, "--pooling", "4"), "pooling is 4"),
        (ask(document, "--target-len", "3"), "target_len is 3"),
        (["ask", "only a question", "-m", "MODEL"], "no document"),
        (["ask", document, "w1", "-m", tmp_path], "not a model folder"),
        (["ask", document, "w1", "-m", "no/such-model"], "no/such-model"),
        (["plan", "MODEL", "100000", "--max-chunk-len", "60"], "raise max_chunk_len"),
        (["calibrate", "MODEL", tmp_path / "no" / "c", "--text", document], "does not exist"),
        (["calibrate", "MODEL", tmp_path / "c"], "WikiText-103"),
    ]  # fmt: skip
    for arguments, named in cases:
        code, out, err = homer(*arguments)
        assert code == 1, (arguments, out, err)
        assert err.startswith("Error:"), err
        assert named in err.replace("\n", ""), err
    assert not list(tmp_path.glob(".homerlm*"))


def test_wrong_usage_is_exit_code_2(homer, document):
    for arguments in (["ask"], ["plan", "MODEL"], ask(document, "--score", "best"), ["nonsense"]):
        assert homer(*arguments)[0] == 2


def test_the_command_keeps_freed_memory(homer, monkeypatch):
    asked = []
    monkeypatch.setattr(main, "keep_freed_memory", lambda: asked.append(True))
    homer("--version")
    assert asked == [True]


def test_interruption_and_memory_have_their_exit_codes(homer, document, monkeypatch, tmp_path):
    from homerlm.merge.tree import Tree

    def fail_with(error):
        def run(self):
            raise error

        monkeypatch.setattr(Tree, "run", run)

    path = tmp_path / "kept.homer"
    fail_with(KeyboardInterrupt())
    code, _, err = homer(*ask(document, "--save", path))
    assert code == 130
    assert "Stopped" in err
    fail_with(OutOfMemoryError("too much"))
    assert homer(*ask(document, "--save", path))[0] == 3
    assert not path.exists()
