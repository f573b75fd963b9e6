"""Ray workers: the answers of one process, also after workers and machines were lost."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from homerlm import Homer, HomerConfig, load_model
from homerlm.documents import expand_inputs
from homerlm.errors import ConfigError, MismatchError, ModelLoadError
from homerlm.executor import LoadedModel
from homerlm.index.manifest import NAME, Manifest, load_collection
from homerlm.passes import run_steps
from homerlm.scale import mapping
from homerlm.scale.corpus import indexing
from homerlm.scale.listing import files_of
from homerlm.scale.ray_corpus import RayEngine
from homerlm.scale.ray_workers import RayExecutor, RaySettings
from homerlm.scale.source import ModelSource
from ray_nodes import PATHS, two_machines
from test_shards import texts_of
from tiny import llama, prompt

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
SIZES = {"max_chunk_len": 60, "target_len": 40, "pooling": 3, "recap_len": 0}


@pytest.fixture(scope="module")
def cluster():
    with two_machines() as made:
        yield made


@pytest.fixture(scope="module")
def executor(cluster, model_folder):
    with workers(model_folder) as made:
        yield made


def workers(model_folder, count=2, **settings):
    settings = {"threads": torch.get_num_threads(), "cpus": 0.5} | settings
    return RayExecutor(ModelSource(str(model_folder)), RaySettings(workers=count, **settings))


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model(str(model_folder))


def asked(loaded, executor=None, length=2001, observer=None, **changes):
    homer = Homer(*loaded, HomerConfig(**(SIZES | changes)), executor)
    prefix, document, suffix = prompt(4, length, 5)
    return homer.compress(prefix, document, suffix, observer=observer)


def same(context, other):
    return torch.equal(context.logits, other.logits) and torch.equal(context.token_indices, other.token_indices)


@pytest.mark.parametrize("changes", [{}, {"chunk_batch": 3}, {"chosen_by": "both", "rerank": "later"}])
def test_they_choose_what_this_process_does(loaded, executor, changes):
    assert same(asked(loaded, executor, **changes), asked(loaded, **changes))
    assert executor.bytes_moved > 8 * 2001


@dataclass(frozen=True)
class Recorded:
    """Work that says where it was done, each time."""

    folder: str
    seconds: float
    dies: int | None = None

    def __call__(self, model, item):
        tries = Path(self.folder) / str(item)
        with tries.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if item == self.dies and len(tries.read_text().split()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return torch.tensor([item, model.decoder.shape.layers])


def mapped(executor, loaded, work, items):
    values = executor.map(LoadedModel.of(*loaded), work, items)
    return [int(value[0]) for value in values if value is not None]


@pytest.mark.parametrize("late_s", [2.0, 1e9])
def test_an_item_whose_worker_is_killed_is_done_again_and_counted_once(loaded, executor, tmp_path, monkeypatch, late_s):
    """By another worker that waits for nothing, or else by the one that Ray starts again."""
    monkeypatch.setattr(mapping, "LATE_S", late_s)
    assert mapped(executor, loaded, Recorded(str(tmp_path), 0.01, 5), range(20)) == list(range(20))
    assert len((tmp_path / "5").read_text().split()) == 2
    processes = {process for file in tmp_path.iterdir() for process in file.read_text().split()}
    assert len(processes) == (3 if late_s > 2 else len(processes))


def test_a_document_is_read_though_a_worker_is_killed_inside_a_chunk(loaded, executor):
    killed = []

    def kill(event):
        if event.read and not killed:
            killed.append(process_of(executor, 0))
            os.kill(killed[0], signal.SIGKILL)

    assert same(asked(loaded, executor, observer=kill, length=6001), asked(loaded, length=6001))
    assert killed
    assert process_of(executor, 0) != killed[0]


def process_of(executor, number):
    return ray.get(executor.actors.handles[number].__ray_call__.remote(lambda _actor: os.getpid()))


def test_a_cancelled_map_begins_no_other_item(loaded, executor, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "EACH", 6)
    values = executor.map(LoadedModel.of(*loaded), Recorded(str(tmp_path), 0.1), range(200))
    assert int(next(value for value in values if value is not None)[0]) == 0
    begun = len(list(tmp_path.iterdir()))
    values.close()
    time.sleep(1.0)
    assert len(list(tmp_path.iterdir())) <= begun + 2


def test_a_model_that_is_not_ours_or_cannot_be_loaded_is_refused(cluster, loaded, executor, tmp_path):
    with pytest.raises(MismatchError, match="weights"):
        asked((llama(seed=5), loaded[1]), executor)
    with workers(tmp_path / "none", 1) as missing, pytest.raises(ModelLoadError, match="does not exist"):
        asked(loaded, missing)


@dataclass(frozen=True)
class Large:
    """Work whose values fill the object store."""

    def __call__(self, _model, item):
        return torch.full((3_000_000,), item, dtype=torch.int16)


def test_values_that_do_not_fit_the_object_store_are_spilled(loaded, executor, monkeypatch):
    """240 MB wait for the first one, in stores of 100 MB."""
    monkeypatch.setattr(mapping, "EACH", 20)
    values = [value for value in executor.map(LoadedModel.of(*loaded), Large(), range(80)) if value is not None]
    assert all(bool((value == number).all()) for number, value in enumerate(values))
    assert len(values) == 80


def test_a_machine_that_is_lost_while_a_document_is_read(cluster, loaded, model_folder):
    lost = cluster.add_node(num_cpus=2, resources={"lost": 1}, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    with workers(model_folder, 3, cpus=1.0) as executor:
        executor.wait_until_loaded()
        seen = []

        def lose(event):
            if event.read and not seen:
                seen.append(event)
                cluster.remove_node(lost)

        assert same(asked(loaded, executor, observer=lose, length=6001), asked(loaded, length=6001))
        assert seen


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 0}, "num-workers"),
        ({"gpus": 1.5}, "gpus-per-worker"),
        *(({"gpus": gpus}, "gpus-per-worker") for gpus in (-1, float("nan"), float("inf"), 1e-5)),
        *(({"cpus": cpus}, "cpus is") for cpus in (float("nan"), float("inf"), 1e-5)),
        ({"threads": 0}, "threads"),
        ({"cpus": -1}, "cpus"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        RaySettings(**settings)


def test_gpus_that_are_not_there_are_refused_instead_of_waited_for(cluster, model_folder):
    with pytest.raises(ConfigError, match="need 2 GPUs, but Ray has 0"):
        workers(model_folder, 2, gpus=1)


@pytest.fixture
def corpus_folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in texts_of(count=24):
        (folder / f"{name}.txt").write_text(text * 4)
    (folder / "bad.jsonl").write_text('no\n{"text": "w1 w2 w3"}\n')
    return folder


def index_into(homer, folder, into, engine=None, between=lambda _event: None):
    steps = indexing(homer, files_of(expand_inputs([folder])), into, engine=engine, shard_tokens=300)
    return run_steps(steps, between)


def engine_of(model_folder, **settings):
    settings = {"workers": 2, "cpus": 1.0, "threads": torch.get_num_threads()} | settings
    return RayEngine(ModelSource(str(model_folder)), RaySettings(**settings))


def homer_of(loaded):
    return Homer(*loaded, HomerConfig(max_chunk_len=64, target_len=50, pooling=3))


def same_files(manifest, expected):
    assert manifest.files == expected.files
    assert manifest.held == expected.held
    assert [one.name for one in manifest.failed] == [one.name for one in expected.failed]
    for name in expected.files:
        assert (manifest.folder / name).read_bytes() == (expected.folder / name).read_bytes()
    assert not [path for path in manifest.folder.iterdir() if path.suffix == ".tmp"]


def test_a_corpus_is_indexed_and_asked_by_workers_as_by_one_process(
    loaded, executor, corpus_folder, model_folder, tmp_path
):
    homer = homer_of(loaded)
    done = index_into(homer, corpus_folder, tmp_path / "ray", engine_of(model_folder))
    expected = index_into(homer, corpus_folder, tmp_path / "here")
    same_files(done.manifest, expected.manifest)
    assert len(expected.manifest.files) > 4
    assert [one.name for one in done.failed] == ["bad.jsonl:1"]
    assert index_into(homer, corpus_folder, tmp_path / "ray", engine_of(model_folder)).tokens_read == 0
    spread = Homer(*loaded, homer.config, executor)
    for question in ("w1 w2", "w40"):
        index, whole = (load_collection(tmp_path / name, *loaded) for name in ("ray", "here"))
        answers = [spread.ask(index, question, max_new_tokens=4), homer.ask(whole, question, max_new_tokens=4)]
        assert answers[0].token_ids == answers[1].token_ids
        assert same(answers[0].context, answers[1].context)


def writers():
    """Processes of Ray that write index files."""
    return [one for one in psutil.process_iter(["cmdline"]) if "Writer" in "".join(one.info["cmdline"] or [])]


def test_a_corpus_is_indexed_though_a_writer_is_killed(loaded, cluster, corpus_folder, model_folder, tmp_path):
    killed = []

    def kill(_event):
        if not killed and (found := writers()):
            killed.append(found[0].pid)
            found[0].kill()

    homer = homer_of(loaded)
    done = index_into(homer, corpus_folder, tmp_path / "ray", engine_of(model_folder), kill)
    assert killed
    same_files(done.manifest, index_into(homer, corpus_folder, tmp_path / "here").manifest)


def test_a_corpus_is_indexed_though_a_machine_is_lost(loaded, cluster, corpus_folder, model_folder, tmp_path):
    lost = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    gone = []

    def lose(_event):
        if not gone:
            gone.append(lost)
            cluster.remove_node(lost)

    homer = homer_of(loaded)
    done = index_into(homer, corpus_folder, tmp_path / "ray", engine_of(model_folder, workers=3), lose)
    assert gone
    same_files(done.manifest, index_into(homer, corpus_folder, tmp_path / "here").manifest)


def test_a_command_that_was_killed_goes_on_where_it_was(
    loaded, cluster, corpus_folder, model_folder, tmp_path, run, monkeypatch
):
    into = tmp_path / "ray"
    given = [corpus_folder, "-o", into, "-m", model_folder, "--max-chunk-len", "64", "--shard-tokens", "300"]
    given += ["--workers", f"ray:{cluster.address}", "--num-workers", "2"]
    command = [sys.executable, "-m", "homerlm", "index", *map(str, given)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PATHS}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while (not (into / NAME).exists() or len((into / NAME).read_bytes().splitlines()) < 3) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    counted = len(Manifest.read(into).files)
    assert counted >= 2
    code, out, _ = run("index", *given, "--json")
    assert code == 0
    record = json.loads(out)
    assert 0 < record["tokens_read"] <= record["tokens"]
    homer = Homer(*loaded, HomerConfig(max_chunk_len=64))
    same_files(Manifest.read(into), index_into(homer, corpus_folder, tmp_path / "here").manifest)


def test_the_command_asks_on_ray(cluster, run, corpus_folder):
    given = ["ask", corpus_folder / "d1.txt", "w1 w2", "-m", "MODEL", "--max-new-tokens", "4", "--max-chunk-len", "64"]
    given += ["--target-len", "50", "--pooling", "3", "--json"]
    answers = []
    for workers_given in ([], ["--workers", "ray", "--num-workers", "2"]):
        code, out, _ = run(*given, *workers_given)
        assert code == 0
        answers.append({name: json.loads(out)[name] for name in ("text", "tokens_read", "tokens_kept")})
    assert answers[0] == answers[1]
