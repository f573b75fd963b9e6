"""The plan in integers: every valid input is cut so that nothing is lost or run twice, or is refused."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homerlm.errors import ScheduleError
from homerlm.merge import schedule as schedules
from homerlm.merge.schedule import plan

LENGTHS = {"max_chunk_len": 16, "target_len": 16, "warmup_layers": 2, "layers": 12}


def ancestors(node, above=()):
    """Every leaf with the nodes above it, from the root down."""
    if not node.children:
        yield (*above, node)
    for child in node.children:
        yield from ancestors(child, (*above, node))


@settings(max_examples=500, deadline=None)
@given(
    prefix=st.integers(0, 9),
    context=st.integers(0, 3000),
    suffix=st.integers(0, 9),
    chunk=st.integers(1, 120),
    target=st.integers(1, 150),
    warmup=st.integers(0, 12),
    initial=st.none() | st.integers(1, 120),
    layers=st.integers(1, 40),
)
def test_every_valid_input_is_cut_completely_or_refused(
    prefix, context, suffix, chunk, target, warmup, initial, layers
):
    try:
        schedule = plan(
            prefix,
            context,
            suffix,
            max_chunk_len=chunk,
            target_len=target,
            warmup_layers=warmup,
            layers=layers,
            max_initial_chunk_len=initial,
        )
    except ScheduleError:
        return
    covered = [token for leaf in schedule.leaves for token in range(leaf.context_start, leaf.context_stop)]
    assert covered == list(range(context))  # each exactly once, in order
    assert all(leaf.context_stop > leaf.context_start for leaf in schedule.leaves) or context == 0
    for path in ancestors(schedule.root):
        ranges = [(node.first_layer, node.last_layer) for node in reversed(path)]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == layers
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
        assert all(start < stop for start, stop in ranges)
    for node in schedule.root.walk():
        assert prefix + suffix <= node.target <= node.length <= chunk
        if node.height == 0 and initial is not None:
            assert node.length <= initial
        if node.children:
            assert node.length == sum(child.target for child in node.children) - prefix - suffix
    assert schedule.root.target == min(target, schedule.root.length)


@settings(max_examples=300, deadline=None)
@given(context=st.integers(1, 4000), chunk=st.integers(12, 64), warmup=st.integers(0, 10))
def test_sensible_inputs_are_accepted(context, chunk, warmup):
    """A refusal has to be about something: with layers to spare and room in the chunks there is none."""
    schedule = plan(2, context, 3, max_chunk_len=chunk, target_len=chunk, warmup_layers=warmup, layers=40)
    assert 2**schedule.height >= context / (chunk - 5) > 2 ** (schedule.height - 1) or schedule.height == 0


def test_the_papers_numbers():
    """Four leaves on 12 layers, 2 of them warm-up: per level 3, one left over for the leaves."""
    schedule = plan(2, 40, 4, **LENGTHS)
    assert (schedule.height, schedule.leaf_context_len) == (2, 10)
    assert [(n.first_layer, n.last_layer) for n in schedule.root.walk() if n.index == 0] == [(0, 6), (6, 9), (9, 12)]
    assert schedule.leaves[0].length == 16
    assert schedule.leaves[0].target == 2 + 10 // 2 + 4
    assert schedule.suffix_start == 12
    assert schedule.next_position == 16


def test_a_short_last_leaf_leaves_its_room_to_its_neighbour():
    schedule = plan(2, 13, 4, **LENGTHS)  # leaves of 7 and 6: neither is shorter than half a chunk
    assert [leaf.target for leaf in schedule.leaves] == [11, 11]
    schedule = plan(2, 11 * 2 + 1, 4, **{**LENGTHS, "max_chunk_len": 40}, max_initial_chunk_len=18)
    left, right = schedule.leaves  # 12 and 11 tokens, half a chunk would be 17
    assert right.target == right.length == 2 + 11 + 4
    assert left.target == left.length


def test_no_context_is_one_chunk_of_the_affixes():
    schedule = plan(3, 0, 4, **LENGTHS)
    assert (schedule.height, schedule.root.length, schedule.root.target) == (0, 7, 7)


def test_leaves_that_would_be_empty_are_made_even():
    schedule = plan(0, 10, 1, max_chunk_len=3, target_len=3, warmup_layers=0, layers=8)  # 2 a chunk: 8 leaves of 2
    assert [leaf.context_stop - leaf.context_start for leaf in schedule.leaves] == [2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("lengths", "changes", "named"),
    [
        ((8, 5, 8), {}, "max_chunk_len is 16"),
        ((3, 50, 0), {}, "suffix is empty"),
        ((3, 50, 4), {"target_len": 6}, "target_len is 6"),
        ((3, 5000, 4), {}, "raise max_chunk_len"),
        ((3, 50, 4), {"warmup_layers": 12}, "warmup_layers is 12"),
        ((3, 50, 4), {"max_initial_chunk_len": 7}, "max_initial_chunk_len is 7"),
        ((3, 50, 4), {"max_initial_chunk_len": 17}, "max_initial_chunk_len is 17"),
        ((0, 5, 1), {"max_chunk_len": 2}, "5 context tokens cannot fill the 8 chunks"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(lengths, changes, named):
    with pytest.raises(ScheduleError, match=named):
        plan(*lengths, **(LENGTHS | changes))


def test_prints_as_a_tree_with_layers_and_lengths():
    text = str(plan(2, 40, 4, **LENGTHS))
    assert text.splitlines() == [
        "46 tokens (prefix 2, context 40, suffix 4) in 4 chunks of up to 10 context tokens, height 2",
        "layers [9, 12): 16 tokens",
        "├─ layers [6, 9): 16 tokens -> 11",
        "│  ├─ layers [0, 6): 16 tokens -> 11, context [0, 10)",
        "│  └─ layers [0, 6): 16 tokens -> 11, context [10, 20)",
        "└─ layers [6, 9): 16 tokens -> 11",
        "   ├─ layers [0, 6): 16 tokens -> 11, context [20, 30)",
        "   └─ layers [0, 6): 16 tokens -> 11, context [30, 40)",
    ]


@pytest.mark.parametrize("leaves", [1, 2, 4, 8, 16, 64, 256])
def test_peak_stays_under_appendix_a(leaves):
    """(h/2 + 1) * L * C_max, for the paper's 32 layers, while the plain model's grows with the leaves."""
    schedule = plan(100, leaves * 1848, 100, max_chunk_len=2048, target_len=2048, warmup_layers=12, layers=32)
    assert len(schedule.leaves) == leaves
    assert schedule.peak_kv_tokens <= schedule.kv_bound_tokens() * 1.2  # merging holds both children for a moment
    assert leaves < 16 or schedule.peak_kv_tokens < schedule.prompt_len * 32 / 4


def test_the_peak_of_a_tree_is_found_by_one_walk(monkeypatch):
    """It is asked for once for each of a plan's passes."""
    schedule = plan(100, 64 * 1848, 100, max_chunk_len=2048, target_len=2048, warmup_layers=12, layers=32)
    walked, peak_kv = [], schedules._peak_kv
    monkeypatch.setattr(schedules, "_peak_kv", lambda node, *more: walked.append(node) or peak_kv(node, *more))
    assert len({schedule.peak_kv_tokens for _ in range(5)}) == 1
    assert walked.count(schedule.root) == 1


def test_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from homerlm import plan; print(plan(1, 9, 1, max_chunk_len=6, " \
           "target_len=6, warmup_layers=1, layers=9).height)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


@pytest.mark.parametrize("retention", [0.5, 0.25, 1.0])
def test_retention_is_the_share_that_a_child_keeps(retention):
    """Sixteen full chunks of 31 context tokens: every merged one holds 2 * retention * 31, odd tokens left over."""
    schedule = plan(4, 16 * 31, 5, max_chunk_len=40, target_len=20, warmup_layers=2, layers=12, retention=retention)
    merged = {node.length for node in schedule.root.walk() if node.children}
    assert merged == {9 + int(2 * retention * 31) // 2 * 2}
