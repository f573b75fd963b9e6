"""`homer eval` and `homer bench` on Ray workers: the records of one process, once each, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch

from homerlm.errors import HomerError, InputError
from homerlm.lab.case import Case
from homerlm.lab.isolated import run_isolated
from homerlm.lab.records import RecordFile
from homerlm.lab.run import run as run_jobs
from ray_nodes import PATHS, two_machines

ray = pytest.importorskip("ray")
from homerlm.lab.on_ray import RETRIES, OnRay  # noqa: E402
from homerlm.scale.ray_actors import RaySettings  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
HOMER = "homer:max_chunk_len=160,target_len=150"
MEASURED = ("seconds", "peak_bytes")
EVAL = ["eval", "passkey", "-m", "MODEL", "--methods", f"plain pi:2 {HOMER}", "--lengths", "300,400", "--samples", 4]
ON_RAY = ["--workers", "ray", "--num-workers", "2"]


@pytest.fixture(scope="module")
def cluster():
    with two_machines() as made:
        yield made


@pytest.fixture
def on_ray(cluster):
    return OnRay(RaySettings(workers=2, cpus=0.5, threads=torch.get_num_threads()))


def lines(folder):
    path = folder / "records.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def records(folder):
    return [json.loads(line) for line in lines(folder)]


def unmeasured(folder, *more):
    return [{name: value for name, value in one.items() if name not in (*MEASURED, *more)} for one in records(folder)]


def test_the_records_are_those_of_one_process_and_none_is_made_twice(cluster, run, tmp_path):
    assert run(*EVAL, "-o", tmp_path / "here")[0] == 0
    assert run(*EVAL, "-o", tmp_path / "ray", *ON_RAY)[0] == 0
    assert len(records(tmp_path / "ray")) == 3 * 2 * 4
    assert unmeasured(tmp_path / "ray", "threads") == unmeasured(tmp_path / "here", "threads")
    before = lines(tmp_path / "ray")
    assert run(*EVAL, "-o", tmp_path / "ray", *ON_RAY)[0] == 0
    assert lines(tmp_path / "ray") == before
    (tmp_path / "ray" / "records.jsonl").write_text("\n".join([*before[:5], before[6], before[7][:40]]))
    assert run(*EVAL, "-o", tmp_path / "ray", *ON_RAY)[0] == 0
    assert lines(tmp_path / "ray")[:6] == [*before[:5], before[6]]
    assert len(lines(tmp_path / "ray")) == len(before) + 1  # with the half line

    def key(record):
        return record["method"], record["length"], record["sample"]

    again = [json.loads(line) for i, line in enumerate(lines(tmp_path / "ray")) if i != 6]
    assert sorted(map(key, again)) == sorted(map(key, map(json.loads, before)))


@dataclass
class Seen:
    """Something that jobs share. loads: a file with a line for each worker that made it."""

    folder: Path
    _made: bool = field(default=False, init=False)

    def load(self):
        if not self._made:
            self._made = True
            with (self.folder / "loads").open("a") as file:
                file.write(f"{os.getpid()}\n")


@dataclass
class Job:
    """Two records of a number, which say who made them. dies: times that its worker does not survive it."""

    number: int
    shared: Seen
    seconds: float = 0.01
    dies: int = 0
    error: str | None = None

    label = "counted"

    def records(self, known):
        keys = [{"task": "counted", "method": "any", "length": self.number, "sample": k} for k in range(2)]
        found = [known.get(key) for key in keys]
        yield from filter(None, found)
        if all(found):
            return
        self.shared.load()
        tries = self.shared.folder / f"tries-{self.number}"
        with tries.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        if len(tries.read_text().split()) <= self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error == "raised":
            raise InputError("no such job")
        yield from (key | {"error": self.error, "process": os.getpid()} for key in keys)

    def failed(self, error):
        yield {"task": "counted", "method": "any", "length": self.number, "sample": 0, "error": error}


def tried(folder, number):
    return len((folder / f"tries-{number}").read_text().split())


def go(jobs, folder, doing):
    return run_jobs(jobs, RecordFile(folder), progress=lambda *_: None, doing=doing)


def test_workers_share_the_jobs_and_keep_what_they_loaded(on_ray, tmp_path):
    shared = Seen(tmp_path)
    assert go([Job(n, shared, 0.3) for n in range(8)], tmp_path, on_ray) is None
    found = records(tmp_path)
    assert [(one["length"], one["sample"]) for one in found] == [(n, k) for n in range(8) for k in range(2)]
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == 2
    assert {str(one["process"]) for one in found} == set(loads)
    assert all(tried(tmp_path, n) == 1 for n in range(8))


def test_a_job_whose_worker_is_killed_is_done_again_and_recorded_once(on_ray, tmp_path):
    jobs = [Job(n, Seen(tmp_path), dies=n == 3) for n in range(8)]
    assert go(jobs, tmp_path, on_ray) is None
    assert [(one["length"], one["sample"]) for one in records(tmp_path)] == [(n, k) for n in range(8) for k in range(2)]
    assert [tried(tmp_path, n) for n in range(8)] == [1, 1, 1, 2, 1, 1, 1, 1]


def test_a_job_that_ends_every_worker_is_a_record_and_the_others_are_done(on_ray, tmp_path):
    jobs = [Job(n, Seen(tmp_path), dies=100 if n == 2 else 0) for n in range(5)]
    assert go(jobs, tmp_path, on_ray) is None
    found = records(tmp_path)
    assert [one["length"] for one in found] == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert found[4]["error"].startswith(f"crash: its worker died {RETRIES + 1} times")
    assert tried(tmp_path, 2) == RETRIES + 1


def test_an_error_of_a_job_ends_the_run_after_those_before_it(on_ray, tmp_path):
    jobs = [Job(n, Seen(tmp_path), error="raised" if n == 2 else None) for n in range(5)]
    with pytest.raises(HomerError, match="no such job"):
        go(jobs, tmp_path, on_ray)
    assert [one["length"] for one in records(tmp_path)] == [0, 0, 1, 1]


def started(*arguments):
    command = [sys.executable, "-m", "homerlm", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until(done, seconds=120):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_command_that_was_killed_or_stopped_goes_on_where_it_was(cluster, run, model_folder, tmp_path, number, code):
    given = [str(model_folder) if one == "MODEL" else one for one in EVAL] + ["-o", tmp_path / "ray"]
    process = started(*given, "--workers", f"ray:{cluster.address}", "--num-workers", "2", "--cpus-per-worker", "0.5")
    until(lambda: len(lines(tmp_path / "ray")) > 2)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "raylet" not in said
    before = lines(tmp_path / "ray")
    assert 2 < len(before) < 24
    until(lambda: not [one for one in psutil.process_iter(["cmdline"]) if "JobActor" in str(one.info["cmdline"])], 30)
    assert run(*EVAL, "-o", tmp_path / "ray", *ON_RAY)[0] == 0
    assert lines(tmp_path / "ray")[: len(before)] == before
    assert run(*EVAL, "-o", tmp_path / "here")[0] == 0
    assert unmeasured(tmp_path / "ray", "threads") == unmeasured(tmp_path / "here", "threads")


BENCH = ["bench", "speed", "-m", "MODEL", "--methods", HOMER, "--lengths", "150,200,300", "--new-tokens", 2]
BENCH += ["--repeats", 1, "--device", "cpu", "--threads", 1]


def test_benchmarks_on_workers_that_disturb_each_other_say_so(cluster, run, tmp_path):
    code, _, said = run(*BENCH, "-o", tmp_path, *ON_RAY)
    assert code == 0
    assert "disturb each other's times" in said
    assert [(one["length"], one["error"], one["threads"]) for one in records(tmp_path)] == [
        (length, None, 1) for length in (150, 200, 300)
    ]
    before = lines(tmp_path)
    code, _, said = run(*BENCH, "-o", tmp_path, "--workers", "ray")
    assert "disturb" not in said
    assert lines(tmp_path) == before
    assert run(*BENCH, "-o", tmp_path)[0] == 0  # a case is the same one in a process of this machine
    assert lines(tmp_path) == before


def asleep(case):
    Path(case.model).write_text(str(os.getpid()))
    time.sleep(60)


def test_a_case_ends_with_the_process_that_measures_it(tmp_path):
    """Of a worker that is killed, or a command."""
    file = tmp_path / "process"
    parent = os.fork()
    if not parent:
        run_isolated(Case(method="plain", length=300, model=str(file)), None, asleep)
        os._exit(0)
    until(lambda: file.exists() and file.read_text())
    child = psutil.Process(int(file.read_text()))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["eval", "passkey", "--num-workers", "2"], "--num-workers is 2, but has no effect without --workers"),
        (["eval", "passkey", "--workers", "dask"], "it must be ray"),
        (["eval", "passkey", *ON_RAY, "--device", "cuda"], "--gpus-per-worker"),
        (["eval", "passkey", "--device", "gpu"], "--device is 'gpu'; this machine has cpu"),
        (["bench", "speed", *ON_RAY, "--device", "cuda"], "--gpus-per-worker"),
        (["bench", "speed", *ON_RAY, "--gpus-per-worker", "1", "--device", "cpu"], "leave --device out"),
    ],
)
def test_mistakes_are_refused_by_name(run, given, named, tmp_path):
    code, _, said = run(*given, "-m", "MODEL", "-o", tmp_path)
    assert code == 2
    assert named in " ".join(said.split())
    assert not lines(tmp_path)
