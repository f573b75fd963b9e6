"""Turns of the model's thread: no step of a long reading or search does work that grows with the document.

Counted, not timed: rows of tensors that operations take or give, and lines of Python, between two steps.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from homerlm import Homer, HomerConfig, prompt
from tiny import llama
from words import tokenizer_of

BLOCK = 200
TIMES = 9, 36
TEXT = " ".join(f"w{(7 * i * i) % 90}" for i in range(400))
BY_PLACE = ("searchsorted", "index", "embedding")  # of their first tensor they touch as much as the others ask for
AT_ONCE = ("aminmax", "diff", "le", "any")  # checks of a file's numbers: less than a millisecond for a million tokens


class Rows(TorchDispatchMode):
    """The most rows of a tensor in any operation but views."""

    most, operation = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith("empty") and name not in AT_ONCE:
            given = tree_leaves(args)[1:] if name in BY_PLACE else tree_leaves(args)
            for tensor in (*given, *tree_leaves(found)):
                if isinstance(tensor, torch.Tensor) and tensor.dim() and max(tensor.shape) > self.most:
                    self.most, self.operation = max(tensor.shape), name
        return found


class Lines:
    """Lines of Python that run inside the block."""

    def __enter__(self):
        self.count = 0
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_error):
        sys.settrace(None)

    def _trace(self, _frame, event, _arg):
        self.count += event == "line"
        return self._trace


def turns_of(steps, tokenised):
    """Rows and lines of the longest turn, and the value; what can be made aside is."""
    rows, lines = Rows(), 0
    with ThreadPoolExecutor(1) as pool:
        while True:
            tokenised.append("turn")
            try:
                with rows, Lines() as counted:
                    event = next(steps)
            except StopIteration as done:
                return rows, max(lines, counted.count), done.value
            finally:
                tokenised.append("between")
            lines = max(lines, counted.count)
            if event.aside is not None:
                event.aside.begin(pool).result()


@pytest.fixture
def tokenised(monkeypatch):
    """Characters of each text that is cut into tokens, and when."""
    log, cut = [], prompt._pieces
    monkeypatch.setattr(prompt, "_pieces", lambda text, names: (log.append(len(text.text)), cut(text, names))[1])
    return log


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in (
        ("passes.LONG", 500),
        ("index.building.BLOCK", BLOCK),
        ("score.sentences.BLOCK", BLOCK),
        ("select.document.BLOCK", BLOCK),
        ("index.scoring.GROUP_TOKENS", BLOCK),
        ("mapped.BLOCK_BYTES", 1 << 12),
    ):
        monkeypatch.setattr(f"homerlm.{name}", value)


def in_turns(log):
    """Characters that were cut in turns."""
    turn, found = False, [0]
    for entry in log:
        if isinstance(entry, str):
            turn = entry == "turn"
        elif turn:
            found.append(entry)
    return found


@pytest.fixture(scope="module")
def homer():
    return Homer(llama(), tokenizer_of(97, chat=True), HomerConfig(max_chunk_len=64, target_len=60, link_len=20))


@pytest.mark.usefixtures("small_blocks")
def test_no_turn_grows_with_the_document(homer, tmp_path, tokenised):
    lines = {"reading": [], "searching": []}
    for times in TIMES:
        text, path = f"{TEXT} " * times, tmp_path / "x"
        tokens = 400 * times
        rows, most, index = turns_of(homer.reading([("x", text)], path=path), tokenised)
        lines["reading"].append(most)
        assert rows.most < 1200 < tokens, rows.operation
        assert len(index) == tokens
        rows, most, found = turns_of(homer.finding(index, "w1 w2", tokens=30), tokenised)
        lines["searching"].append(most)
        assert rows.most < 1200 < tokens, rows.operation
        assert found == homer.select(index, "w1 w2", tokens=30)
    for short, long in lines.values():
        assert long < 1.5 * short
    assert max(in_turns(tokenised)) < 2000  # the question and what it runs behind
    assert max(entry for entry in tokenised if not isinstance(entry, str)) > 10_000
