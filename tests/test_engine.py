"""One model thread for many callers: interleaved work equals work alone, and nobody's end or error is another's."""

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest
import torch

from homerlm import Calibration, Homer, HomerConfig, compressor, work
from homerlm import prompt as prompts
from homerlm.engine import Engine, Writing, shared
from homerlm.errors import Busy, ConfigError, InputError, Stopped
from homerlm.passes import Event, run_steps
from tiny import LAYERS, LIMIT, VOCAB, llama, prompt
from words import tokenizer_of

DOCUMENT = " ".join(f"w{i % 90}" for i in range(300))
OTHER = " ".join(f"w{(7 * i) % 83}" for i in range(260))
SELECT = HomerConfig(max_chunk_len=48, target_len=40, pooling=3)
PAPER = HomerConfig.paper(
    max_chunk_len=40, target_len=30, warmup_layers=2, calibration=Calibration(torch.randn(LAYERS, LIMIT) / 10)
)
LONG = Writing(max_new_tokens=10_000)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def homer(request):
    model = llama(attn_implementation=request.param)
    model.generation_config.eos_token_id = None
    return Homer(model, tokenizer_of(VOCAB, chat=True), SELECT)


@pytest.fixture(autouse=True)
def every_step_is_a_turn(monkeypatch):
    monkeypatch.setattr(work, "TURN_S", 0.0)


@pytest.fixture(scope="module")
def context(homer):
    return homer.compress(*prompt())


def on_engine(homer, work, **sizes):
    """The result of `work(engine)` in an event loop of its own, no longer than 30 seconds."""

    async def main():
        engine = Engine(homer, **sizes)
        try:
            return await asyncio.wait_for(work(engine), 30)
        finally:
            await engine.close(0)

    return asyncio.run(main())


def counted(log, name, steps, delay=0.0):
    """Steps that note their name and thread, and their end."""
    try:
        for number in range(steps):
            time.sleep(delay)
            log.append(name)
            yield Event(number + 1, steps)
    finally:
        log.append((name, "closed", threading.current_thread().name))
    return name


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def tokens_of(engine, context, writing):
    return [token async for piece in engine.write(context, writing) for token in piece.ids]


def tensors(context):
    return (*context.keys, *context.values, context.logits)


def same(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_steps_give_their_value_and_their_events_come_to_the_loop(homer):
    log, events, threads = [], [], []

    def on_event(event):
        events.append(event.read)
        threads.append(threading.current_thread())

    assert on_engine(homer, lambda engine: engine.run(counted(log, "a", 4), on_event)) == "a"
    assert events == [1, 2, 3, 4]
    assert set(threads) == {threading.main_thread()}
    assert log[-1] == ("a", "closed", "homerlm-model")


def test_readers_take_turns(homer):
    log = []

    async def work(engine):
        return await asyncio.gather(*(engine.run(counted(log, name, 12, 0.002)) for name in "abc"))

    assert on_engine(homer, work) == ["a", "b", "c"]
    turns = [entry for entry in log if isinstance(entry, str)]
    assert set(turns[12:15]) == {"a", "b", "c"}
    assert turns[12:24] == turns[12:15] * 4


def test_steps_that_take_no_time_are_one_turn(homer, monkeypatch):
    monkeypatch.setattr(work, "TURN_S", 0.05)
    log = []

    async def both(engine):
        return await asyncio.gather(engine.run(counted(log, "a", 40)), engine.run(counted(log, "b", 5, 0.06)))

    on_engine(homer, both)
    turns = [entry for entry in log if isinstance(entry, str)]
    assert turns == ["a"] * 40 + ["b"] * 5


def test_who_is_new_waits_for_one_step_however_many_are_being_read(homer):
    log = []

    async def some(engine):
        long = [asyncio.create_task(engine.run(counted(log, name, 60, 0.005))) for name in "abcdef"]
        await until(lambda: len(log) > 12)
        before = len(log)
        short = [engine.run(counted(log, number, 1)) for number in range(5)]
        await asyncio.gather(*short)
        for task in long:
            task.cancel()
        return [entry for entry in log[before:] if not isinstance(entry, tuple)]

    turns = on_engine(homer, some)
    places = [turns.index(number) for number in range(5)]
    assert places[0] <= 2
    between = [later - earlier for earlier, later in itertools.pairwise(places)]
    assert between == [2] * 4  # a step of one of the long ones


def test_the_first_token_of_who_has_read_comes_before_another_step(homer, context):
    """Between the end of the steps and the first token, the event loop has had its turn."""
    log = []

    async def ask(engine):
        long = asyncio.create_task(engine.run(counted(log, "long", 1000, 0.02)))
        await until(lambda: len(log) > 2)
        steps = []
        for _ in range(5):
            await engine.run(counted([], "short", 1))
            before = len(log)
            stream = engine.write(context, LONG)
            await anext(stream)
            steps.append(len(log) - before)
            await stream.aclose()
        long.cancel()
        return steps

    assert sum(on_engine(homer, ask)) <= 1  # where the machine is busy, the loop may be late


def test_the_first_token_of_an_answer_does_not_wait_for_the_next_of_the_others(homer, context, monkeypatch):
    log, give = [], work.Stream.give
    monkeypatch.setattr(work.Stream, "give", lambda stream, piece: (log.append(stream), give(stream, piece)))

    async def two(engine):
        decoding = engine._work._decoding
        forward, add = decoding._forward, decoding.add
        monkeypatch.setattr(decoding, "_forward", lambda rows: (log.append(len(rows)), forward(rows))[1])
        monkeypatch.setattr(decoding, "add", lambda *given: (log.append("added"), add(*given))[1])
        running = engine.write(context, LONG)
        await anext(running)
        new = engine.write(context, LONG)
        await anext(new)
        for stream in (running, new):
            await stream.aclose()

    on_engine(homer, two)
    first, second = (number for number, entry in enumerate(log) if entry == "added")
    assert isinstance(log[second + 1], work.Stream), "a forward came before it"
    assert log[second + 1] is not log[first + 1]
    assert log[second + 2] == 2  # and its second comes with the next of the other


def test_every_answer_gets_a_token_between_two_steps_of_reading(homer, context, monkeypatch):
    log = []

    async def work(engine):
        step = engine._work._decoding.step
        monkeypatch.setattr(engine._work._decoding, "step", lambda: (log.append("write"), step())[1])
        stream = engine.write(context, LONG)
        await anext(stream)
        await asyncio.gather(*(engine.run(counted(log, name, 6)) for name in "ab"))
        await stream.aclose()

    on_engine(homer, work)
    turns = [entry for entry in log if isinstance(entry, str)]
    first = min(turns.index(name) for name in "ab")
    reading = turns[first : first + 20]
    assert all(reading[at + 1] == "write" for at, entry in enumerate(reading[:-1]) if entry in "ab")


@pytest.mark.parametrize("config", [SELECT, PAPER], ids=["default", "paper"])
def test_documents_compressed_in_turns_while_answers_are_written_equal_one_at_a_time(homer, context, config):
    reader = Homer(homer.model, homer.tokenizer, config)
    prompts = [prompt(context=90 + 31 * number, seed=number) for number in range(4)]
    alone = [reader.compress(*ids) for ids in prompts]
    expected = homer.generate(context, max_new_tokens=40, do_sample=False)[0].tolist()

    async def work(engine):
        answers = [asyncio.create_task(tokens_of(engine, context, Writing(max_new_tokens=40))) for _ in range(3)]
        made = await asyncio.gather(*(engine.run(reader.compressing(*ids)) for ids in prompts))
        return made, await asyncio.gather(*answers)

    made, answers = on_engine(homer, work)
    assert all(same(tensors(got), tensors(want)) for got, want in zip(made, alone, strict=True))
    assert answers == [expected] * 3
    assert homer.model.config._attn_implementation != "homerlm"


def test_documents_read_in_turns_equal_one_at_a_time(homer, context, tmp_path):
    alone = [homer.read(DOCUMENT), homer.read(OTHER)]
    question = "w1 w2"
    selected = [homer.select(index, question, tokens=12) for index in alone]

    async def work(engine):
        answer = asyncio.create_task(tokens_of(engine, context, Writing(max_new_tokens=60)))
        steps = [
            homer.reading([("document", text)], path=path) for text, path in ((DOCUMENT, None), (OTHER, tmp_path / "b"))
        ]
        indexes = await asyncio.gather(*map(engine.run, steps))
        found = await asyncio.gather(*(engine.run(homer.finding(index, question, tokens=12)) for index in indexes))
        await answer
        return indexes, found

    indexes, found = on_engine(homer, work)
    for index, expected in zip(indexes, alone, strict=True):
        pairs = ((index.tensors()[name], tensor) for name, tensor in expected.tensors().items())
        assert all(torch.equal(a, b) for a, b in pairs)
    assert found == selected


class TestAside:
    """What is done without the model, on a thread of its own."""

    @pytest.fixture
    def held(self, monkeypatch):
        """Cutting a document into tokens does not come to its end before this is set. `threads`: that began to."""
        held, cut = threading.Event(), prompts._pieces
        held.threads = []

        def pieces(text, names):
            if text.text.startswith((DOCUMENT, OTHER)):
                held.threads.append(threading.current_thread().name)
                assert held.wait(20)
            return cut(text, names)

        monkeypatch.setattr(prompts, "_pieces", pieces)
        monkeypatch.setattr("homerlm.passes.LONG", 500)
        yield held
        held.set()

    @pytest.mark.parametrize("kind", ["reading", "preparing", "finding", "ranking"])
    def test_answers_and_readers_go_on_while_a_long_text_is_cut_into_tokens(self, homer, context, held, kind):
        parts, neutral = prompts.affixes(homer.tokenizer, "w1 w2"), prompts.neutral(homer.tokenizer)
        begin = {
            "reading": lambda: homer.reading([("document", DOCUMENT)]),
            "preparing": lambda: homer.preparing(DOCUMENT, parts, neutral),
            "finding": lambda: homer.finding(DOCUMENT, "w1 w2", tokens=12),
            "ranking": lambda: homer.ranking("w1 w2", [DOCUMENT, OTHER]),
        }[kind]

        async def work(engine):
            long = asyncio.create_task(engine.run(begin()))
            await until(lambda: held.threads)
            answer = await tokens_of(engine, context, Writing(max_new_tokens=5))
            other = await engine.run(counted([], "other", 3))
            await until(lambda: engine._work.waiting == 1)
            held.set()
            return answer, other, await long

        answer, other, got = on_engine(homer, work)
        assert (len(answer), other) == (5, "other")
        assert all(name.startswith("homerlm-aside") for name in held.threads)
        expected = run_steps(begin())
        if kind == "reading":
            assert same(got.tensors().values(), expected.tensors().values())
        elif kind == "preparing":
            assert same(tensors(got.context), tensors(expected.context))
        else:
            assert got == expected

    def test_who_leaves_meanwhile_is_out_at_once(self, homer, held):
        closed = []

        def reading():
            try:
                yield from homer.reading([("document", DOCUMENT)])
            finally:
                closed.append(threading.current_thread().name)

        async def work(engine):
            task = asyncio.create_task(engine.run(reading()))
            await until(lambda: held.threads)
            task.cancel()
            await until(lambda: closed and not engine._work.waiting)
            held.set()
            return await engine.run(counted([], "later", 1))

        assert on_engine(homer, work) == "later"
        assert closed == ["homerlm-model"]

    @pytest.mark.parametrize("seconds", [0, 20])
    def test_an_engine_that_is_closed_waits_for_it_as_for_other_work(self, homer, held, seconds):
        async def work(engine):
            task = asyncio.create_task(engine.run(homer.reading([("document", DOCUMENT)])))
            await until(lambda: held.threads)
            closing = asyncio.create_task(engine.close(seconds))
            if seconds:
                await until(lambda: engine._work._closing)
                held.set()
            (done,) = await asyncio.gather(task, return_exceptions=True)
            await closing
            return done

        done = on_engine(homer, work)
        assert len(done) == 300 if seconds else isinstance(done, Stopped)

    @pytest.mark.parametrize("closing", [False, True])
    def test_the_model_thread_sleeps_while_there_is_nothing_else(self, homer, held, monkeypatch, closing):
        turns, step = [], work.Work._step_reader
        monkeypatch.setattr(work.Work, "_step_reader", lambda own: (turns.append(own), step(own)))

        async def wait(engine):
            task = asyncio.create_task(engine.run(homer.reading([("document", DOCUMENT)])))
            await until(lambda: held.threads)
            ending = asyncio.create_task(engine.close(20)) if closing else None
            await asyncio.sleep(0.1)
            before = len(turns)
            await asyncio.sleep(0.2)
            spun = len(turns) - before
            held.set()
            await task
            if ending is not None:
                await ending
            return spun

        assert on_engine(homer, wait) == 0

    def test_its_errors_are_those_of_the_steps(self, homer, monkeypatch):
        def fail(*_args):
            raise InputError("no text")

        monkeypatch.setattr(prompts, "ids_and_spans", fail)
        monkeypatch.setattr("homerlm.passes.LONG", 500)

        async def work(engine):
            with pytest.raises(InputError, match="no text"):
                await engine.run(homer.reading([("document", DOCUMENT)]))
            await until(lambda: not engine._work.waiting)
            return "ended"

        assert on_engine(homer, work) == "ended"


def test_answers_get_a_token_between_two_blocks_of_an_index_that_is_written(homer, context, tmp_path, monkeypatch):
    monkeypatch.setattr("homerlm.mapped.BLOCK_BYTES", 1 << 12)
    log = []

    def reading(name):
        for event in homer.reading([("document", DOCUMENT)], path=tmp_path / name):
            log.append("block" if event.read == event.total else "chunk")
            yield event

    async def work(engine):
        step = engine._work._decoding.step
        monkeypatch.setattr(engine._work._decoding, "step", lambda: (log.append("write"), step())[1])
        stream = engine.write(context, LONG)
        await anext(stream)
        await engine.run(reading("a"))
        await stream.aclose()

    threads, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (threads.append(threading.current_thread().name), fsync(file))[1])
    on_engine(homer, work)
    assert threads[0].startswith("homerlm-aside")  # where it all reaches the disk; then there is nothing left to write
    assert log.count("block") > 10
    assert all(after == "write" for before, after in itertools.pairwise(log) if before == "block")
    assert (tmp_path / "a").exists()


def test_each_has_context_variables_of_its_own(homer):
    variable = ContextVar("variable", default="nobody")
    seen = {}

    def setting(name):
        token = variable.set(name)
        for _ in range(3):
            yield Event(0, 1)
            seen.setdefault(name, set()).add(variable.get())
        variable.reset(token)

    async def work(engine):
        await asyncio.gather(*(engine.run(setting(name)) for name in "ab"))
        return variable.get()

    assert on_engine(homer, work) == "nobody"
    assert seen == {"a": {"a"}, "b": {"b"}}


def test_an_error_ends_its_own_work_alone(homer, context):
    def failing():
        yield Event(0, 1)
        raise MemoryError("no room")

    async def work(engine):
        answer = asyncio.create_task(tokens_of(engine, context, Writing(max_new_tokens=20)))
        results = await asyncio.gather(engine.run(failing()), engine.run(counted([], "a", 5)), return_exceptions=True)
        return results, await answer, await engine.run(counted([], "later", 1))

    results, answer, later = on_engine(homer, work)
    assert isinstance(results[0], MemoryError)
    assert results[1] == "a"
    assert len(answer) == 20
    assert later == "later"


def test_a_fault_of_the_engine_ends_what_runs_and_nothing_after_it(homer, context, monkeypatch):
    async def run(engine):
        decoding, faulty = engine._work._decoding, asyncio.Event()
        step = decoding.step
        monkeypatch.setattr(decoding, "step", lambda: 1 / 0 if faulty.is_set() else step())
        tasks = [
            asyncio.create_task(engine.run(counted([], "a", 10_000, 0.001))),
            *(asyncio.create_task(tokens_of(engine, context, LONG)) for _ in range(3)),
        ]
        await until(lambda: decoding.rows and engine._work.waiting == 3)
        faulty.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        faulty.clear()
        left = len(decoding.rows) + engine._work.waiting
        return errors, left, await tokens_of(engine, context, Writing(max_new_tokens=5))

    errors, left, after = on_engine(homer, run, streams=1)
    assert [type(error) for error in errors] == [ZeroDivisionError] * 4
    assert left == 0
    assert len(after) == 5


def test_an_answer_that_cannot_begin_is_refused_by_itself(homer, context):
    async def work(engine):
        pair = type(context).stack([context, context])
        with pytest.raises(InputError, match="2 rows"):
            await tokens_of(engine, pair, LONG)
        return await tokens_of(engine, context, Writing(max_new_tokens=3))

    assert len(on_engine(homer, work)) == 3


def test_a_reader_that_leaves_is_stopped_before_its_next_step(homer):
    log = []

    async def work(engine):
        task = asyncio.create_task(engine.run(counted(log, "a", 10_000, 0.005)))
        await until(lambda: len(log) > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps = len(log)
        await until(lambda: isinstance(log[-1], tuple))
        return len(log) - steps

    assert on_engine(homer, work) <= 2  # the step at hand, and the end
    assert log[-1] == ("a", "closed", "homerlm-model")


@pytest.mark.parametrize("how", ["aclose", "cancel", "break"])
def test_a_listener_that_leaves_takes_its_answer_out(homer, context, how):
    async def work(engine):
        stream = engine.write(context, LONG)

        async def listen():
            async for _ in stream:
                pass

        if how == "cancel":
            task = asyncio.create_task(listen())
            await until(lambda: engine._work._decoding.rows)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif how == "aclose":
            await anext(stream)
            await stream.aclose()
        else:
            async for _ in stream:
                break
            del stream
            gc.collect()
        await until(lambda: not engine._work._decoding.rows and not engine._work._streams)

    on_engine(homer, work)


def test_no_more_answers_are_written_at_once_than_allowed(homer, context):
    most = []

    async def work(engine):
        async def watched():
            async for _ in engine.write(context, Writing(max_new_tokens=12)):
                most.append(len(engine._work._decoding.rows))

        await asyncio.gather(*(watched() for _ in range(7)))

    on_engine(homer, work, streams=2)
    assert max(most) == 2
    assert len(most) == 7 * 12


def test_too_much_work_is_refused_at_once(homer, context):
    async def work(engine):
        running = engine.write(context, LONG)
        await anext(running)
        tasks = [asyncio.create_task(engine.run(counted([], "a", 10_000, 0.001))) for _ in range(2)]
        waiting = asyncio.create_task(anext(engine.write(context, LONG)))
        await until(lambda: engine._work.waiting == 3)
        with pytest.raises(Busy, match="3 pieces of work"):
            engine.write(context, LONG)
        with pytest.raises(Busy):
            await engine.run(counted([], "b", 1))
        tasks[0].cancel()
        await until(lambda: engine._work.waiting == 2)
        result = await engine.run(counted([], "b", 1))
        for task in (tasks[1], waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
        await running.aclose()
        return result

    assert on_engine(homer, work, waiting=3, streams=1) == "b"


def test_closing_lets_what_runs_come_to_its_end(homer, context):
    async def work(engine):
        reading = asyncio.create_task(engine.run(counted([], "a", 20, 0.002)))
        writing = asyncio.create_task(tokens_of(engine, context, Writing(max_new_tokens=30)))
        await until(lambda: engine._work._decoding.rows)
        closing = asyncio.create_task(engine.close(20))
        await asyncio.sleep(0)
        with pytest.raises(Stopped):
            engine.write(context, LONG)
        with pytest.raises(Stopped):
            await engine.run(counted([], "b", 1))
        await closing
        return await reading, len(await writing), engine._thread.is_alive()

    assert on_engine(homer, work) == ("a", 30, False)


def test_closing_ends_what_takes_too_long(homer, context):
    log = []

    async def work(engine):
        reading = asyncio.create_task(engine.run(counted(log, "a", 10_000, 0.002)))
        writing = asyncio.create_task(tokens_of(engine, context, LONG))
        await until(lambda: engine._work._decoding.rows)
        waiting = [asyncio.create_task(tokens_of(engine, context, LONG)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await engine.close(0.05)
        return await asyncio.gather(reading, writing, *waiting, return_exceptions=True), engine._thread.is_alive()

    results, alive = on_engine(homer, work, streams=2)
    assert [type(result) for result in results] == [Stopped] * 5
    assert not alive
    assert log[-1] == ("a", "closed", "homerlm-model")


def test_the_models_thread_has_its_own_number_of_threads(homer):
    own, seen = torch.get_num_threads(), []

    def noting():
        yield Event(0, 1)
        (torch.ones(1 << 20) + 1).sum()
        seen.append(torch.get_num_threads())

    async def both(engine):
        await asyncio.to_thread(lambda: seen.append(torch.get_num_threads()))
        await engine.run(noting())

    on_engine(homer, both, threads=own + 1)
    on_engine(homer, both)
    assert seen == [own, own + 1, own, own]
    assert torch.get_num_threads() == own


def test_an_idle_engine_does_nothing(homer, monkeypatch):
    async def work(engine):
        await engine.run(counted([], "a", 2))
        taken = []
        monkeypatch.setattr(engine._work, "_begin_streams", lambda: taken.append(1))
        await asyncio.sleep(0.05)
        return len(taken)

    assert on_engine(homer, work) <= 1  # the end of the round that is under way


def test_an_idle_engine_gives_freed_memory_back_once(homer, context, monkeypatch):
    given, own = [], set()  # threads; those of other engines, not closed yet, may be idle at any time
    monkeypatch.setattr(work, "IDLE_S", 0.1)
    monkeypatch.setattr(
        work, "give_freed_memory_back", lambda: given.append(threading.current_thread()) or time.sleep(0.01)
    )

    def reading():
        own.add(threading.current_thread())
        yield from counted([], "a", 20, 0.01)  # longer than an engine needs to be idle

    async def work_and_wait(engine):
        counts = []
        for _ in range(2):
            given.clear()
            await engine.run(reading())
            await tokens_of(engine, context, Writing(max_new_tokens=4))
            counts.append(sum(thread in own for thread in given))
            await asyncio.sleep(0.4)
            counts.append(sum(thread in own for thread in given))
        return counts

    assert on_engine(homer, work_and_wait) == [0, 1, 0, 1]
    assert {thread.name for thread in own} == {"homerlm-model"}


def test_a_loop_that_is_gone_does_not_harm_the_next(homer, context):
    engine = Engine(homer)

    async def leave():
        asyncio.get_running_loop().create_task(engine.run(counted([], "a", 50, 0.002)))
        await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert len(asyncio.run(tokens_of(engine, context, Writing(max_new_tokens=4)))) == 4
    asyncio.run(engine.close(0))


def test_an_engine_that_nobody_holds_ends_its_thread(homer):
    engine = Engine(homer)
    thread = engine._thread
    del engine
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_program_that_ends_while_the_model_works_ends_in_order():
    program = f"""
import asyncio, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from homerlm import Homer, HomerConfig
from tiny import VOCAB, llama, prompt
from words import tokenizer_of

homer = Homer(llama(), tokenizer_of(VOCAB), HomerConfig(max_chunk_len=48, target_len=40, pooling=3))

async def main():
    asyncio.create_task(homer.aask("w1 " * 9000, "w2"))
    asyncio.create_task(homer.aask("", "w2", max_new_tokens=10**6))
    await asyncio.sleep(0.2)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_homers_of_one_model_share_an_engine():
    model, words = llama(), tokenizer_of(VOCAB)
    first, second = Homer(model, words), Homer(model, words, PAPER)
    engine = shared(first)
    assert shared(second) is engine
    assert shared(Homer(llama(), words)) is not engine


def test_two_readers_of_a_model_that_must_be_measured_first_do_not_block_each_other(homer, monkeypatch):
    measured, expected = [], homer.read(DOCUMENT)

    def profiled(model, tokenizer):
        for number in range(3):
            yield Event(number, 3, note="measuring")
        measured.append(model)

    known = HomerConfig(max_chunk_len=48, target_len=40, pooling=3)
    monkeypatch.setattr(compressor, "can_profile", lambda config, tokenizer: not measured)
    monkeypatch.setattr(compressor, "profiled", profiled)
    monkeypatch.setattr(compressor, "PROFILING_WAIT_S", 0.001)
    reader = Homer(homer.model, homer.tokenizer, known)

    async def work(engine):
        return await asyncio.gather(*(engine.run(reader.reading([("document", DOCUMENT)])) for _ in range(2)))

    for index in on_engine(homer, work):
        assert torch.equal(index.keys, expected.keys)
    assert measured
    assert not compressor._profiling.locked()


class TestAsking:
    """`aask` and `astream`."""

    @pytest.mark.parametrize("kind", ["text", "path", "nothing", "index", "context", "reused"])
    def test_an_answer_is_the_one_of_ask(self, homer, tmp_path, kind):
        path = tmp_path / "document.txt"
        path.write_text(DOCUMENT)
        asked = {
            "text": lambda: DOCUMENT,
            "path": lambda: path,
            "nothing": lambda: "",
            "index": lambda: homer.read(DOCUMENT),
            "context": lambda: homer.ask(DOCUMENT, "w3", max_new_tokens=1).context,
            "reused": lambda: DOCUMENT,
        }[kind]()
        settings = {"max_new_tokens": 9, "reuse": kind == "reused"}
        events, seen = [], []
        expected = homer.ask(asked, "w1 w2", **settings, observer=events.append)
        answer = asyncio.run(homer.aask(asked, "w1 w2", **settings, observer=seen.append))
        assert len(seen) == len(events)
        assert same(tensors(answer.context), tensors(expected.context))
        assert type(answer.source) is type(expected.source)
        unlike = {"compress_seconds", "generate_seconds", "peak_bytes"}
        assert {k: v for k, v in answer.to_dict().items() if k not in unlike} == {
            k: v for k, v in expected.to_dict().items() if k not in unlike
        }
        assert answer.token_ids == expected.token_ids

    def test_questions_asked_at_once_get_their_own_answers(self, homer):
        index, questions = homer.read(DOCUMENT), [f"w{number} w{number + 40}" for number in range(6)]
        expected = [homer.ask(index, question, max_new_tokens=12).token_ids for question in questions]

        async def work():
            return await asyncio.gather(*(homer.aask(index, question, max_new_tokens=12) for question in questions))

        assert [answer.token_ids for answer in asyncio.run(work())] == expected

    def test_a_stream_gives_pieces_and_then_the_record(self, homer):
        async def work():
            pieces = []
            async with homer.astream(DOCUMENT, "w1 w2", max_new_tokens=9) as stream:
                async for piece in stream:
                    assert stream.answer is None
                    pieces.append(piece)
            return pieces, stream.answer

        pieces, answer = asyncio.run(work())
        assert len(pieces) > 1
        assert "".join(pieces).strip() == answer.text == homer.ask(DOCUMENT, "w1 w2", max_new_tokens=9).text

    def test_a_stream_that_is_left_stops(self, homer):
        async def work():
            async with homer.astream(DOCUMENT, "w1", max_new_tokens=10_000) as stream:
                await anext(stream)
            await until(lambda: not homer._engine._work._decoding.rows)
            return stream.answer

        assert asyncio.run(work()) is None

    def test_a_task_that_is_cancelled_while_reading_stops(self, homer):
        long = " ".join([DOCUMENT] * 40)

        async def work():
            events = []
            task = asyncio.create_task(homer.aask(long, "w1", observer=events.append))
            await until(lambda: events)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not homer._engine._work.waiting)
            return events[-1].read, events[-1].total

        read, total = asyncio.run(work())
        assert read < total

    def test_what_cannot_be_asked_is_refused_before_any_work(self, homer):
        with pytest.raises(InputError, match="question is empty"):
            homer.astream(DOCUMENT, " ")
        with pytest.raises(ConfigError, match="beams is no setting"):
            homer.astream(DOCUMENT, "w1", beams=2)
        with pytest.raises(InputError, match="no tokenizer"):
            Engine(Homer(llama(), None))

    def test_a_stop_text_is_no_part_of_the_answer(self, homer):
        whole = homer.ask(DOCUMENT, "w1 w2", max_new_tokens=12).text
        stop = whole.split()[-1]
        answer = asyncio.run(homer.aask(DOCUMENT, "w1 w2", max_new_tokens=12, stop=(stop,)))
        assert answer.text == whole[: whole.index(stop)].strip()


def test_preparing_and_finding_are_what_ask_and_select_do(homer):
    from homerlm.prompt import affixes, neutral

    parts, usual = affixes(homer.tokenizer, "w1 w2"), neutral(homer.tokenizer)
    prepared = run_steps(homer.preparing(DOCUMENT, parts, usual))
    expected = homer.ask(DOCUMENT, "w1 w2", max_new_tokens=1)
    assert same(tensors(prepared.context), tensors(expected.context))
    assert (prepared.tokens_read, prepared.prompt_len) == (expected.tokens_read, expected.prompt_len)
    nothing = run_steps(homer.preparing(None, parts, usual))
    assert len(nothing.context) == nothing.prompt_len == nothing.tokens_read
    found = run_steps(homer.finding(DOCUMENT, "w1 w2", tokens=12))
    assert found == homer.select(DOCUMENT, "w1 w2", tokens=12)
    assert sum(len(passage.text.split()) for passage in found.passages) == found.tokens <= 12
