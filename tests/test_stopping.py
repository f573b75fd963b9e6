"""Ctrl-C and SIGTERM at any moment: one line, the usual exit code, and nothing half written."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from homerlm import __main__

WORDS = " ".join(f"w{i % 90}" for i in range(300))


@pytest.fixture(autouse=True)
def signals_restored():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _start(*args):
    command = [sys.executable, "-X", "importtime", "-m", "homerlm", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _signal_after(process, module, number):
    """Send a signal once a module is imported; (exit code, stderr without the import times)."""
    for line in process.stderr:
        if line.rstrip().endswith(module):
            break
    process.send_signal(number)
    err = "".join(line for line in process.stderr if not line.startswith("import time:"))
    return process.wait(timeout=60), err


@pytest.mark.parametrize(
    ("number", "code", "module"),
    [
        (signal.SIGINT, 130, "typer.core"),
        (signal.SIGINT, 130, "torch._tensor"),
        (signal.SIGINT, 130, "homerlm.trace"),
        (signal.SIGTERM, 143, "torch._tensor"),
    ],
)
def test_a_signal_while_importing_is_one_line(tmp_path, model_folder, number, code, module):
    document = tmp_path / "document.txt"
    document.write_text(WORDS)
    process = _start("ask", document, "w1", "-m", model_folder)
    returned, err = _signal_after(process, module, number)
    assert err == "Stopped. Nothing was left half written.\n"
    assert returned == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_saving_leaves_what_was_there(monkeypatch, tmp_path, capsys, model_folder, number, code):
    path, document = tmp_path / "kept.homer", tmp_path / "document.txt"
    path.write_text("old")
    document.write_text(WORDS)

    def half(tensor):
        if tensor.dtype == torch.uint8:  # the last one that is written
            signal.raise_signal(number)
        return b""

    monkeypatch.setattr("homerlm.mapped._bytes", half)
    arguments = ["ask", document, "w1", "-m", model_folder, "--save", path, "--force", "--max-new-tokens", "2"]
    monkeypatch.setattr(sys, "argv", ["homer", *map(str, arguments)])
    assert __main__.main() == code
    assert capsys.readouterr().err.endswith("Stopped. Nothing was left half written.\n")
    assert path.read_text() == "old"
    assert {*os.listdir(tmp_path)} == {path.name, document.name}


def test_an_interruption_that_an_import_turned_into_its_own_error_is_still_one(monkeypatch, capsys):
    def run():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interruption:
            raise ImportError("initialization failed") from interruption

    monkeypatch.setattr("homerlm.cli.main.run", run)
    assert __main__.main() == 130
    assert capsys.readouterr().err == "Stopped. Nothing was left half written.\n"


def test_a_second_signal_is_not_caught():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    received = __main__.stop_on_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_signal_that_the_parent_ignores_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    __main__.stop_on_signals()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
