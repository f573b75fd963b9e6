"""`homer plan --cluster`: what a cluster takes, in numbers that can be computed by hand."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from homerlm.errors import ConfigError, CorruptFileError, InputError
from homerlm.formatting import rounded
from homerlm.index.keys import KeyLayout
from homerlm.model.decoder import Decoder
from homerlm.model.shape import DecoderShape
from homerlm.scale.cluster import CANDIDATE_BYTES, ClusterPlan, Machines
from homerlm.scale.rates import ACCELERATORS, ID_BYTES, SPAN_BYTES, TEXT_BYTES, Rates, assumed, index_bytes
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Head, Scoring
from tiny import HIDDEN, llama

RATES = Rates(
    worker="a test",
    model="bundled",
    index_bytes=800.0,
    text_bytes=4.0,
    tokenise=1e5,
    read=1000.0,
    scan=1e6,
    search=1e7,
    question_s=0.5,
    rerank_s=1.0,
    new_token_s=0.1,
    task_s=0.001,
    merge=1e8,
    start_s=2.0,
)
FOUR = Machines(4, 3, memory=1e10, disk=1e11, disk_rate=1e9, network=1e8)


def plan(tokens=24_000_000, machines=FOUR, rates=RATES, **more):
    return ClusterPlan(machines, rates, tokens, **more)


def limit(planned, name):
    return next(one for one in planned.limits if one.name == name)


def test_shards_are_whole_and_the_fullest_worker_decides():
    planned = plan(25_000_000)
    assert planned.shards == 25
    assert planned.worker_tokens == 3_000_000  # 25 shards on 12 workers: one has three
    assert planned.machine_tokens == 7_000_000  # and its machine seven
    assert planned.indexing["reading"] == 3000
    assert planned.indexing_s == 3002
    assert plan(1_500).worker_tokens == plan(1_500).machine_tokens == 1_500


def test_the_index_its_bytes_and_what_is_moved():
    planned = plan()
    assert planned.index_bytes == 24e6 * 800
    assert planned.machine_bytes == 6e6 * 800
    assert planned.indexing == {"tokenising": 20, "reading": 2000, "disk": 4.8, "network": 0.24, "driver": 0.024}
    assert planned.moved_bytes["index"] == 96e6
    assert planned.gathered_bytes == 12 * 1024 * CANDIDATE_BYTES


def test_a_question_is_the_sum_of_its_parts():
    planned = plan(new_tokens=10)
    assert planned.in_memory
    assert planned.asking["keys"] == 2.0
    assert planned.asking["search"] == 0.2
    assert planned.asking["tasks"] == pytest.approx(2 * 12 * 0.001)
    assert planned.asking["gather"] == pytest.approx(12 * 1024 * 16 / 1e8 + 12 * 1024 / 1e8)
    assert planned.asking_s == pytest.approx(sum(planned.asking.values()))
    assert planned.asking_s == pytest.approx(0.024 + 0.5 + 2 + 0.2 + 1 + 1.0, abs=0.01)


def test_what_does_not_fit_the_memory_comes_from_the_disk_each_time():
    small = replace(FOUR, memory=1e9)
    planned = plan(machines=small)
    assert not planned.in_memory
    assert planned.asking["keys"] == 4.8  # 4.8 GB of a machine at 1 GB/s, slower than 2 s of scoring
    assert planned.limits[0].name == "memory"
    assert planned.limits[0].growth == pytest.approx(0.8e9 / 4.8e9)


def test_the_first_limit_is_the_one_that_is_met_when_the_collection_grows():
    planned = plan()
    for one in planned.limits:
        if one.grows == "tokens" and one.name in ("memory", "time"):
            before, after = (replace(planned, tokens=int(planned.tokens * one.growth * by)) for by in (0.9, 1.2))
            if one.name == "memory":
                assert (before.in_memory, after.in_memory) == (True, False)
            else:
                assert before.asking_s < planned.within < after.asking_s
    assert [one.growth for one in planned.limits] == sorted(one.growth for one in planned.limits)
    assert limit(planned, "disk").growth == pytest.approx(1e11 / 4.8e9)


def test_the_time_limit_sees_the_end_of_the_memory():
    """Scoring alone would allow 150 million tokens a worker; the disk does not."""
    planned = plan(rates=replace(RATES, scan=1e8, search=1e9), machines=replace(FOUR, disk_rate=1e8), new_tokens=0)
    slow, full = limit(planned, "time"), limit(planned, "memory")
    assert slow.growth == pytest.approx(full.growth, rel=0.25)
    assert slow.growth < 5


def test_more_machines_meet_the_driver_and_the_gather():
    planned = plan()
    assert limit(planned, "driver").growth == pytest.approx(1_000_000 / (12 * 1000 * 0.001))
    twice = plan(machines=replace(FOUR, count=8))
    assert limit(twice, "gather").growth == pytest.approx(limit(planned, "gather").growth / 2)
    assert limit(twice, "network").growth == limit(planned, "network").growth == 1e8 / (3 * 1000 * 4)


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"shard": 0}, {"rates": replace(RATES, scan=0.0)}])
def test_a_plan_of_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) if "rates" not in wrong else "scan"):
        plan(**wrong)


@pytest.mark.parametrize("field", ["count", "workers", "memory", "disk", "disk_rate", "network"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_machines_without_a_number_for_something_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"^{field} of the machines is {value}; it must be above 0"):
        Machines(**({"count": 1, "workers": 1} | {field: value}))


def test_the_bytes_of_a_token_are_those_of_the_index_itself():
    model = llama()
    shape = DecoderShape.of(model.config, model.dtype)
    for scoring in (Scoring.of([Head(1, 0), Head(1, 1), Head(3, 4)]), Scoring((2, 3))):
        decoder = Decoder(model)
        with decoder.session():
            layout = KeyLayout.of(decoder, scoring)
        others = ID_BYTES + SPAN_BYTES + 0.4 + TEXT_BYTES
        assert index_bytes(scoring, shape) == pytest.approx(layout.width * model.dtype.itemsize + others)
        about = index_bytes(scoring, shape, embedding=Embedding(2, 0, (0.0,) * HIDDEN))
        assert about - index_bytes(scoring, shape) == pytest.approx(2 * HIDDEN / 20)


def test_an_accelerator_is_assumed_out_of_its_data_sheet():
    shape = DecoderShape(8192, (None,) * 30, 576, 1536, 9, 3, 64, 49152, 2)
    found = [
        assumed(RATES, "a model", ACCELERATORS["h100"], share, shape, Scoring((9,)), Scoring((15,)), None, 1024, 1024)
        for share in (0.2, 0.4)
    ]
    assert "assumed" in found[0].worker
    assert found[1].read == pytest.approx(2 * found[0].read)
    assert found[1].scan == pytest.approx(2 * found[0].scan)
    assert found[0].task_s == RATES.task_s
    weights = 2 * (576 * (24 * 64) + 3 * 576 * 1536)  # operations of a token in a layer
    attention = 4 * 1024 * 9 * 64
    assert found[0].read == pytest.approx(989e12 * 0.2 / (9.5 * (weights + attention)), rel=0.04)


@pytest.fixture
def rates(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"rates": {**vars(RATES)}}))
    return path


def test_the_command_prints_the_plan(run, rates):
    given = ["plan", "default", "24000000", "--cluster", "4x3", "--rates", rates, "--memory-gb", "10"]
    code, out, _ = run(*given)
    assert code == 0, out
    text = " ".join(out.split())
    assert "24,000,000 tokens on 4 machines of 3 workers, 24 shards" in text
    assert "4.8 GB on a machine, where it stays in memory" in text
    assert "assum" not in text
    record = json.loads(run(*given, "--json")[1])
    assert record["indexing"]["reading"] == 2000
    assert record["machine_bytes"] == 4.8e9
    assert record["limits"][0]["growth"] <= record["limits"][1]["growth"]
    changed = json.loads(run(*given, "--json", "--read-rate", "2000", "--index-bytes", "400")[1])
    assert (changed["indexing"]["reading"], changed["machine_bytes"]) == (1000, 2.4e9)


def test_an_accelerator_that_is_not_there_is_called_an_assumption(run, rates):
    given = ["plan", "default", "1000000000", "--cluster", "64x8", "--rates", rates, "--accelerator", "h100"]
    code, out, _ = run(*given)
    assert code == 0
    assert "h100 at 30% (assumed)" in out
    assert "nothing was measured on it" in out
    assert json.loads(run(*given, "--json")[1])["rates"]["index_bytes"] == pytest.approx(842.3, abs=1)
    assert "e+" not in out, "numbers are written out"


def test_numbers_for_people_are_written_out():
    assert [rounded(number) for number in (0.00826, 3.0712, 319.4, 4344.0, 3.2561e11)] == [
        *("0.00826", "3.07", "319", "4,340", "326,000,000,000")
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rates", "RATES"], "--rates has no effect without --cluster"),
        (["--cluster", "4x3"], "--cluster needs --rates"),
        (["--cluster", "4", "--rates", "RATES"], "machines x workers"),
        (["--cluster", "4x3", "--rates", "RATES", "--utilisation", "0.5"], "without --accelerator"),
        (["--cluster", "4x3", "--rates", "RATES", "--accelerator", "h1"], "must be one of a100"),
        (["--cluster", "4x3", "--rates", "RATES", "--preset", "paper"], "paper"),
        (["--cluster", "4x3", "--rates", "RATES", "--memory-gb", "0"], "--memory-gb is 0; it must be above 0"),
        (["--cluster", "4x3", "--rates", "RATES", "--disk-gb-s", "nan"], "--disk-gb-s is nan"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, rates, more, message):
    code, _, err = run("plan", "default", "1M", *[rates if one == "RATES" else one for one in more])
    assert code == 2
    assert message in " ".join(err.split())


def test_rates_of_another_model_are_refused(run, rates):
    code, _, err = run("plan", "MODEL", "1M", "--cluster", "1x1", "--rates", rates)
    assert code == 2
    assert "measured with bundled" in " ".join(err.split())


def test_a_file_without_rates_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Rates.load(tmp_path / "none.json")
    path = tmp_path / "rates.json"
    for text in ("{}", '{"rates": {"worker": "x"}}', json.dumps({"rates": {**vars(RATES), "read": "nan"}}), "["):
        path.write_text(text)
        with pytest.raises(CorruptFileError, match="rates"):
            Rates.load(path)


def test_planning_a_cluster_does_not_import_ray():

    code = "import sys, homerlm, homerlm.cli.cluster, homerlm.scale.cluster; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
