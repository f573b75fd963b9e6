"""Executors: work mapped over items elsewhere, with the values, the order and the errors of doing it here."""

import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.errors import Cancelled, ConfigError, InputError, MismatchError
from homerlm.executor import IN_PROCESS, LoadedModel
from homerlm.index.index import Index
from homerlm.index.joined import join
from homerlm.scale import mapping
from homerlm.scale.devices import Devices
from homerlm.scale.mapping import in_order
from homerlm.scale.packing import pack, unpack
from homerlm.select.reading import ChunkScores
from tiny import llama, prompt

SIZES = {"max_chunk_len": 60, "target_len": 40, "pooling": 3, "recap_len": 0}


class Thread:
    """A worker of its own pace, which says what it did."""

    def __init__(self, seconds=0.0, stuck=None):
        self.seconds, self.did, self.cancelled = seconds, [], []
        self._stuck = stuck or threading.Event()
        self._last = None

    def submit(self, work, item):
        future = Future()
        before = self._last

        def run():
            if before is not None:
                before.join()
            if self._stuck.is_set() or not future.set_running_or_notify_cancel():
                return
            time.sleep(self.seconds)
            self.did.append(item)
            try:
                future.set_result(work(None, item))
            except Exception as error:
                future.set_exception(error)

        self._last = threading.Thread(target=run, daemon=True)
        self._last.start()
        return future

    def value(self, future):
        return future.result()

    def cancel(self, future):
        self.cancelled.append(future.cancel())


def square(_model, item):
    return item * item


def values_of(mapped):
    return [value for value in mapped if value is not None]


class TestMapping:
    def test_values_come_in_the_items_order_whoever_is_faster(self):
        slow, fast = Thread(0.03), Thread(0.001)
        assert values_of(in_order([slow, fast], square, range(60))) == [n * n for n in range(60)]
        assert sorted(slow.did + fast.did) == list(range(60))
        assert len(fast.did) > 2 * len(slow.did)

    def test_few_items_are_begun_before_their_values_are_asked_for(self):
        taken = []
        workers = [Thread(), Thread()]
        with closing(in_order(workers, square, (taken.append(n) or n for n in range(10_000)))) as mapped:
            assert next(value for value in mapped if value is not None) == 0
            time.sleep(0.1)
            assert len(taken) <= 2 * mapping.AHEAD + 1

    def test_closing_it_begins_nothing_more(self):
        worker = Thread(0.05)
        mapped = in_order([worker], square, range(100))
        assert next(value for value in mapped if value is not None) == 0
        mapped.close()
        done = len(worker.did)
        time.sleep(0.2)
        assert len(worker.did) <= done + 1
        assert worker.cancelled

    def test_nobody_waits_long_for_others_to_get_their_turn(self):
        begun, pauses = time.perf_counter(), 0
        for value in in_order([Thread(0.3)], square, [3]):
            pauses += value is None
        assert time.perf_counter() - begun < 0.6
        assert 3 <= pauses <= 7

    def test_an_error_is_raised_at_its_place(self):
        def work(_model, item):
            if item == 5:
                raise InputError("no")
            return item

        found = []

        def take_all():
            for value in in_order([Thread(), Thread()], work, range(1, 9)):
                found.extend([] if value is None else [value])

        with pytest.raises(InputError, match="no"):
            take_all()
        assert found == [1, 2, 3, 4]

    def test_what_a_stuck_worker_has_is_done_by_another_and_counted_once(self, monkeypatch):
        monkeypatch.setattr(mapping, "LATE_S", 0.1)
        stuck = threading.Event()
        stuck.set()
        dead, alive = Thread(stuck=stuck), Thread(0.002)
        assert values_of(in_order([dead, alive], square, range(50))) == [n * n for n in range(50)]
        assert sorted(alive.did) == list(range(50))
        assert dead.cancelled

    def test_items_of_one_home_are_done_by_one_worker(self):
        workers = [Thread(0.001), Thread(0.01)]
        homes = [0, 0, 1, 3, 4, 0] * 5
        assert values_of(in_order(workers, square, range(30), homes)) == [n * n for n in range(30)]
        assert sorted(workers[0].did) == [n for n in range(30) if homes[n] % 2 == 0]

    def test_a_home_that_is_stuck_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(mapping, "LATE_S", 0.1)
        stuck = threading.Event()
        stuck.set()
        dead, alive = Thread(stuck=stuck), Thread(0.002)
        assert values_of(in_order([dead, alive], square, range(40), [0, 1] * 20)) == [n * n for n in range(40)]

    def test_long_items_are_given_one_at_a_time_and_never_twice(self, monkeypatch):
        monkeypatch.setattr(mapping, "LATE_S", 0.0)
        slow, fast = Thread(0.5), Thread(0.001)
        assert values_of(in_order([slow, fast], square, range(20), long=True)) == [n * n for n in range(20)]
        assert len(slow.did) == 1
        assert sorted(slow.did + fast.did) == list(range(20))


def test_what_is_packed_comes_back_in_few_bytes():
    ids = torch.randint(0, 49_000, (1, 1000))
    tensors = [
        ids,
        torch.randn(2, 3).bfloat16(),
        torch.tensor([2**40, -1]),
        torch.randn(4, 6).T,
        torch.empty(0, 7, dtype=torch.float16),
        torch.tensor([[-3]], dtype=torch.int8),
    ]
    for tensor, back in zip(tensors, unpack(pack(tensors)), strict=True):
        assert torch.equal(tensor, back)
        assert tensor.dtype == back.dtype
    assert len(pack(ids)) < 4200


@pytest.fixture(scope="module")
def model():
    model = llama(attn_implementation="eager")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 60
    return model


def devices(count=2):
    made = []
    for _ in range(count):
        copy = llama(attn_implementation="eager")
        for layer in copy.model.layers:
            layer.self_attn.q_proj.weight.data *= 60
        made.append(LoadedModel.of(copy, None))
    return Devices(made)


@pytest.mark.parametrize(
    "changes",
    [{}, {"chunk_batch": 3}, {"chosen_by": "both", "rerank": "later"}, {"contrast": "none"}],
)
def test_several_devices_choose_what_one_process_does(model, changes):
    prefix, document, suffix = prompt(4, 301, 5, batch=2)
    neutral = torch.randint(1, 90, (2, 3))
    alone = Homer(model, None, HomerConfig(**(SIZES | changes)))
    executor = devices()
    spread = Homer(model, None, alone.config, executor)
    seen, expected = [], []
    context = spread.compress(prefix, document, suffix, neutral_ids=neutral, observer=seen.append)
    wanted = alone.compress(prefix, document, suffix, neutral_ids=neutral, observer=expected.append)
    assert torch.equal(context.logits, wanted.logits)
    assert torch.equal(context.token_indices, wanted.token_indices)
    counted = [event.read for event in seen]
    assert counted == sorted(counted)
    assert set(counted) >= {event.read for event in expected}
    executor.close()


@pytest.mark.parametrize("int8", [False, True])
def test_an_index_is_made_of_the_same_rows(text_homer, words, int8, tmp_path):
    text = " ".join(f"w{i % 90}" for i in range(700))
    executor = Devices([LoadedModel.of(llama(), words), LoadedModel.of(llama(), words)])
    spread = Homer(text_homer.model, words, text_homer.config, executor)
    index, expected = (homer.read(text, int8=int8) for homer in (spread, text_homer))
    for name, tensor in expected.tensors().items():
        assert torch.equal(tensor, index.tensors()[name]), name
    in_file = spread.read(text, int8=int8, path=tmp_path / "x")
    assert torch.equal(in_file.keys, expected.keys)
    answers = [homer.ask(text, "w1 w2", max_new_tokens=3).token_ids for homer in (spread, text_homer)]
    assert answers[0] == answers[1]
    chosen = [homer.select(text, "w1 w2", tokens=30) for homer in (spread, text_homer)]
    assert chosen[0] == chosen[1]
    executor.close()


def test_a_cancelled_reading_stops_within_a_chunk(model):
    executor = devices(1)
    cancel, done = threading.Event(), []
    prefix, document, suffix = prompt(4, 3000, 5)

    @dataclass(frozen=True)
    class Counting:
        def map(self, here, work, items, homes=None):
            def counted(chosen, item):
                done.append(item)
                return work(chosen, item)

            return executor.map(here, counted, items, homes)

    homer = Homer(model, None, HomerConfig(**SIZES), Counting())
    with pytest.raises(Cancelled):
        homer.compress(prefix, document, suffix, observer=lambda _event: cancel.set(), cancel=cancel)
    executor.close()
    assert 1 <= len(done) <= mapping.EACH + 2


@dataclass(frozen=True)
class Own:
    """An executor that a user writes in one line. change: what it gives of its values."""

    change: object = iter

    def map(self, here, work, items, _homes=None):
        return self.change([here.run(work, item) for item in items])


def test_an_executor_of_ones_own_is_any_class_with_map(text_homer, words):
    text = " ".join(f"w{i % 90}" for i in range(700))
    for change in (iter, list, lambda values: (each for value in values for each in (None, value))):
        homer = Homer(text_homer.model, words, text_homer.config, Own(change))
        assert homer.select(text, "w1 w2", tokens=30) == text_homer.select(text, "w1 w2", tokens=30)
        assert torch.equal(homer.read(text).keys, text_homer.read(text).keys)
    for change, number in ((lambda values: values[1:], "0"), (lambda values: values * 2, "more than 1")):
        homer = Homer(text_homer.model, words, text_homer.config, Own(change))
        with pytest.raises(InputError, match=f"executor Own gave {number} values for 1 items"):
            homer.read("w1 w2")
        with pytest.raises(InputError, match="executor Own gave"):
            homer.select(text, "w1 w2", tokens=30)


def test_an_index_of_files_refuses_an_executor_that_leaves_some_out(text_homer, words, tmp_path):
    for number in range(2):
        text_homer.read(" ".join(f"w{i % 90}" for i in range(300)), path=tmp_path / f"{number}")
    index = join([Index.load(tmp_path / f"{number}", text_homer.model, words) for number in range(2)])
    homer = Homer(text_homer.model, words, text_homer.config, Own(lambda values: values[:-1]))
    with pytest.raises(InputError, match="executor Own gave 1 values for 2 items"):
        homer.select(index, "w1 w2", tokens=30)


def test_workers_with_another_model_are_refused(model):
    other = Devices([LoadedModel.of(llama(seed=3), None)])
    prefix, document, suffix = prompt(4, 301, 5)
    with pytest.raises(MismatchError, match="weights"):
        Homer(model, None, HomerConfig(**SIZES), other).compress(prefix, document, suffix)
    with pytest.raises(InputError, match="models is empty"):
        Devices([])
    other.close()


def test_the_papers_tree_stays_here(model):
    with pytest.raises(ConfigError, match="paper's preset"):
        Homer(model, None, HomerConfig.paper(score="softmax"), devices(1))
    Homer(model, None, HomerConfig.paper(score="softmax"), IN_PROCESS)


def test_work_for_a_long_document_is_as_small_as_for_a_short_one(model):
    from homerlm.prompt import PromptIds
    from homerlm.select.reading import Reading

    sizes = []
    for length in (301, 30_001):
        homer = Homer(model, None, HomerConfig(**SIZES))
        ids = PromptIds(*prompt(4, length, 5))
        reading = Reading(homer.decoder, homer.method.plan(*ids.lengths), ids, homer.method.ranking)
        sizes.append(len(pack(ChunkScores.of(reading))))
    assert sizes[1] < sizes[0] + 20 < 3000


def test_importing_the_library_imports_no_ray():
    modules = "homerlm.homer, homerlm.cli.main, homerlm.scale.devices, homerlm.scale.ray_workers"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
