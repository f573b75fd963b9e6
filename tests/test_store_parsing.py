"""Uploaded files are read in a child: what hangs, grows or crashes there ends there, with a clear error."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from homerlm.documents import read_document
from homerlm.errors import DocumentError
from homerlm.store.parsing import Limits, Parser, printable

WITH_READER = """
import time, os, homerlm.store.child as child
def read(data, name):
    {}
child.read_bytes = read
child.main()
"""


def _reading(body, **limits):
    """A parser whose child reads every file with this Python instead of ours."""
    return Parser(Limits(**limits), (sys.executable, "-c", WITH_READER.format(body)))


def _text(parser, path, name="report.pdf"):
    return asyncio.run(parser.text(path, name))


def _children():
    """The parsers' own: other tests may have left processes that this one does not know."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "homerlm.store.child" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_text("some text")
    return path


def test_a_file_is_read_as_here_whatever_its_path_is_called(tmp_path):
    stored = tmp_path / "file-1"
    stored.write_bytes("Grüße,\r\n\r\nein Text.\n".encode("latin-1"))
    assert _text(Parser(), stored, "a b.txt") == "Grüße,\n\nein Text.\n"


def test_an_office_file_is_read(tmp_path):
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_paragraph("The lighthouse keeper is Emma.")
    path = tmp_path / "x.docx"
    document.save(path)
    text = _text(Parser(), path, "x.docx")
    assert text == read_document(path)
    assert "Emma" in text


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"%PDF-1.4 and then nothing of the kind")
    with pytest.raises(DocumentError, match=r"^report.pdf: .* is not a PDF"):
        _text(Parser(), path)
    path.write_bytes(b"")
    with pytest.raises(DocumentError, match="is empty"):
        _text(Parser(), path)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_child_that_hangs_is_ended(path, deaf):
    started = time.monotonic()
    parser = Parser(Limits(seconds=1), (sys.executable, "-c", "import time; time.sleep(60)"))
    with pytest.raises(DocumentError, match=r"report.pdf: was not read within 1 seconds"):
        _text(parser if deaf else _reading("time.sleep(60)", seconds=1), path)
    assert time.monotonic() - started < 10
    assert _children() == []


def test_a_child_that_computes_without_end_is_ended_by_the_system(path):
    parser = _reading("import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0]); os._exit(0)", seconds=7)
    assert _text(parser, path).strip() == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory")
def test_a_child_that_eats_memory_is_refused_it(path):
    parser = _reading("return 'x' * len(bytearray(1 << 30))", memory=512 << 20)
    with pytest.raises(DocumentError, match=r"report.pdf: needs more memory to be read than the 512 MB"):
        _text(parser, path)


def test_a_child_that_is_killed_is_an_error_of_its_file_alone(path):
    with pytest.raises(DocumentError, match="needed more"):
        _text(_reading("os.kill(os.getpid(), 9)"), path)
    with pytest.raises(DocumentError, match=r"failed \(exit code 1\)"):
        _text(_reading("raise RuntimeError('a bug')"), path)
    assert _text(_reading("return data.decode()"), path) == "some text"


def test_text_without_end_is_refused(path):
    with pytest.raises(DocumentError, match="holds more than 1 MB of text"):
        _text(_reading("return 'x' * (3 << 20)", text=1 << 20), path)
    assert _children() == []


def test_who_stops_waiting_ends_the_child(path):
    async def stopped():
        task = asyncio.create_task(_reading("time.sleep(60)").text(path, "a.pdf"))
        while not _children():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    assert _children() == []


def test_only_so_many_children_run_at_once(path):
    async def most():
        parser = _reading("time.sleep(0.3); return 'x'", children=2)
        tasks = [asyncio.create_task(parser.text(path, "a.pdf")) for _ in range(5)]
        seen = 0
        while not all(task.done() for task in tasks):
            seen = max(seen, len(_children()))
            await asyncio.sleep(0.02)
        return seen

    assert asyncio.run(most()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_child_does_not_outlive_a_parent_that_is_killed(path):
    program = (
        "import asyncio, pathlib, sys; from homerlm.store.parsing import Parser\n"
        f"parser = Parser(command=(sys.executable, '-c', {WITH_READER.format('time.sleep(60)')!r}))\n"
        f"asyncio.run(parser.text(pathlib.Path({str(path)!r}), 'a.pdf'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 10
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # until its thread listens
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_names_are_printable():
    assert printable("a\nb\0c.pdf") == "a b c.pdf"
    assert printable(" ") == "file"
    assert printable("x" * 300 + ".pdf") == "x" * 251 + ".pdf"
