"""`homer bench`: operations against torch's counter, cells in processes of their own, time by parts, reports."""

import importlib.util
import io
import json
import re

import pytest
import torch
from homerlm.lab.bench_report import terminal_tables, write_report
from homerlm.lab.bench_sections import sections
from homerlm.lab.prefill import AFFIX_LEN, greedy_steps, random_prompt, subject_for
from homerlm.lab.tensors import peak_of_tensors
from homerlm.lab.worker import record_of
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from homerlm import Homer, HomerConfig
from homerlm.cli import bench as bench_command
from homerlm.cli.main import app
from homerlm.errors import ConfigError, HomerError, ScheduleError, UnsupportedModelError
from homerlm.lab import bench_run as bench_run
from homerlm.lab import measure as measuring
from homerlm.lab import rates as machine
from homerlm.lab.case import PROFILE, Cell, Source
from homerlm.lab.flops import Compression, Shape, plain_flops
from homerlm.lab.isolated import run_isolated
from homerlm.lab.measure import measure, run_once
from homerlm.lab.methods import Method
from homerlm.lab.profile import PARTS, REST, HostClock, Ledger, parts_of_modules, watched
from homerlm.lab.random_weights import SHAPES, random_model, shape_config
from homerlm.lab.rates import Rates
from homerlm.lab.ratios import ratios
from homerlm.lab.records import RecordFile, read_records
from homerlm.merge import tree as merging
from homerlm.merge.chunk import Chunk
from homerlm.model import decoder as adapter
from homerlm.score.calibration import Calibration
from homerlm.score.sentences import Sentences
from tiny import HEAD_DIM, KV_HEADS, LAYERS, VOCAB, llama, prompt
from words import tokenizer_of

plotting = pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is not installed")
SIZES = {"max_chunk_len": 48, "target_len": 30, "warmup_layers": 2, "pooling": 3}
HOMER = "homer:max_chunk_len=160,target_len=100,warmup_layers=2"


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture
def here(monkeypatch, model):
    """Cells load the tiny model, in this process: what a worker does, without its start."""
    monkeypatch.setattr(Source, "load", lambda self, rope=None: (model, None))
    monkeypatch.setattr(bench_run, "run_isolated", lambda cell, timeout_s: record_of(cell))
    monkeypatch.setattr(machine, "SECONDS", 0)
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 1 << 20})


def counted_by_torch(work):
    """Matrices alone: torch knows no formula for the CPU's fused attention, and counts its parts instead."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_operations_of_the_plain_model_are_what_torch_counts(model):
    ids = torch.cat(prompt(10, 300, 7), dim=1)
    counted = plain_flops(Shape.of(model), ids.shape[1]).total
    assert counted_by_torch(lambda: model(ids, logits_to_keep=1)) == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize(
    ("context", "changes"),
    [
        (171, {}),
        (37, {}),
        (110, {"second_look": "never"}),
        (110, {"second_look": "later"}),
        (250, {"second_look": "later", "chosen_by": "surprisal"}),
        (250, {"chosen_by": "both"}),
        (20, {"chosen_by": "surprisal"}),
        (171, {"retention": 0.9}),
        (171, {"retention": 0.25}),
        (150, {"readout": "reencoded"}),
        (150, {"readout": "merged", "voters": "last_layer", "scoring_queries": 1}),
        (150, {"readout": "merged", "voters": "last_layer", "refinement": "per_layer_top_k"}),
        (110, {"voters": "last_layer"}),
        (171, {"voters": "upper_half", "warmup_layers": 1}),
        (110, {"target_len": 300, "max_chunk_len": 300, "voters": "all_layers"}),
    ],
    ids=str,
)
def test_operations_of_a_compression_are_what_torch_counts(model, context, changes):
    homer = Homer(model, config=HomerConfig(**(SIZES | changes)))
    parts = prompt(4, context, 5)
    made = []
    seen = counted_by_torch(lambda: made.append(homer.compress(*parts)))
    work = Compression(Shape.of(model), homer.config, homer.lengths, homer.plan(4, context, 5), len(made[0]))
    assert seen == pytest.approx(work.flops().total, rel=1e-3)


def test_bytes_of_keys_and_values_are_those_of_the_cache(model):
    per_token = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
    ids = random_prompt(VOCAB, 300, batch=2)
    for method, tokens in (("plain", 300), (HOMER, 100)):
        subject = subject_for(Method.parse(method), model)
        read = subject.prefill(ids)
        assert read.kv_bytes == 2 * tokens * per_token
        assert subject.counted(Shape.of(model), ids, read.kept).kv_bytes == tokens * per_token
    carried = subject_for(Method.parse("homer-paper:max_chunk_len=160,target_len=100,warmup_layers=2"), model)
    peak = carried.homer.plan(30, 240, 30).peak_kv_tokens * per_token // LAYERS
    assert carried.counted(Shape.of(model), ids, 100).kv_bytes == peak


def test_the_peak_of_tensors_is_what_lives_at_once():
    def work():
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        torch.empty(600, dtype=torch.uint8), torch.empty(700, dtype=torch.uint8)

    assert peak_of_tensors(work) == 1300
    assert peak_of_tensors(lambda: None) == 0


def test_the_tensors_of_a_compression_hardly_grow_with_the_prompt(model):
    homer = Homer(model, config=HomerConfig(max_chunk_len=160, target_len=100, warmup_layers=2))
    prompts = [prompt(30, n, 30) for n in (500, 4_000)]
    short, long = (peak_of_tensors(lambda ids=ids: homer.compress(*ids)) for ids in prompts)
    assert long < 1.1 * short


def test_a_mixture_of_experts_is_not_counted():
    experts = MixtralForCausalLM(
        MixtralConfig(vocab_size=VOCAB, hidden_size=64, intermediate_size=30, num_hidden_layers=1)
    )
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        Shape.of(experts)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3-8b", 8_030_261_248),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_built_in_shapes_have_the_published_parameters(name, parameters):
    assert set(SHAPES) >= {name}
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(shape_config(name))
    assert sum(p.numel() for p in built.parameters()) == parameters
    one_token = plain_flops(Shape.of(built), 1)
    matrices = sum(p.numel() for n, p in built.named_parameters() if p.dim() == 2 and "embed" not in n)
    assert one_token.matmul == 2 * matrices


def test_random_weights_make_a_working_model(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    made = random_model(shape_config(str(tmp_path), layers=3), "cpu", torch.bfloat16, seed=4)
    assert made.dtype == torch.bfloat16
    assert len(made.model.layers) == 3
    assert torch.equal(made.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert (made.model.norm.weight == 1).all()
    assert 0.01 < made.model.layers[2].mlp.up_proj.weight.float().std() < 0.03
    assert torch.isfinite(made(torch.cat(prompt(), dim=1)).logits).all()
    assert not made.training
    source = Source(random=str(tmp_path), layers=2, dtype="float32")
    assert "2 layers" in source.load()[0].config._name_or_path


@pytest.mark.parametrize(
    ("name", "layers", "named"), [("lama-2-7b", None, "llama-2-7b"), ("llama-2-7b", 33, "32"), ("./no", None, "./no")]
)
def test_shapes_that_do_not_exist_are_refused(name, layers, named):
    with pytest.raises(ConfigError, match=named):
        shape_config(name, layers)


def test_sources_that_contradict_themselves_are_refused():
    with pytest.raises(ConfigError, match="only one"):
        Source(model="a/b", random="llama-2-7b")
    with pytest.raises(ConfigError, match="layers is 2"):
        Source(model="a/b", layers=2)
    with pytest.raises(ConfigError, match="int8"):
        Source(dtype="int8")


def test_a_cell_survives_json():
    cell = Cell(method=HOMER, length=300, batch=4, new_tokens=(2, 5), source=Source(random="llama-2-7b", layers=2))
    assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell


def test_prompts_are_seeded_and_their_rows_differ():
    first, again = (random_prompt(VOCAB, 300, 2) for _ in range(2))
    assert [part.shape for part in (first.prefix, first.context, first.suffix)] == [(2, 30), (2, 240), (2, 30)]
    assert torch.equal(first.context, again.context)
    assert not torch.equal(first.context[0], first.context[1])
    with pytest.raises(ConfigError, match="at least 90"):
        random_prompt(VOCAB, 3 * AFFIX_LEN - 1, 1)


def test_the_measured_decoding_is_the_librarys_own(model):
    ids = random_prompt(VOCAB, 300, 1)
    subject = subject_for(Method.parse(HOMER), model)
    context = subject.homer.compress(ids.prefix, ids.context, ids.suffix)
    read, positions = subject.prefill(ids), []

    def note(_module, _args, given):
        positions.append(given["position_ids"].item())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    tokens = greedy_steps(model, read, 6, lambda: None)
    hook.remove()
    assert positions == list(range(context.next_position, context.next_position + 5))
    new = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert tokens.tolist() == subject.homer.generate(context, **new).tolist()
    plain = greedy_steps(model, subject_for(Method.parse("plain"), model).prefill(ids), 6, lambda: None)
    whole = torch.cat([ids.prefix, ids.context, ids.suffix], dim=1)
    mask = torch.ones_like(whole)
    assert plain.tolist() == model.generate(whole, attention_mask=mask, **new)[:, 300:].tolist()


def test_times_of_one_run_follow_each_other(model):
    subject = subject_for(Method.parse("plain"), model)
    run = run_once(subject, random_prompt(VOCAB, 200, 2), 5)
    assert len(run.token_s) == 5
    assert 0 < run.prefill_s <= run.token_s[0]
    assert list(run.token_s) == sorted(run.token_s)


@pytest.mark.parametrize("method", ["plain", HOMER, "homer-paper:max_chunk_len=160,target_len=100,warmup_layers=2"])
def test_a_cells_record_is_complete_and_adds_up(here, model, method):
    cell = Cell(method=method, length=300, batch=2, new_tokens=(2, 4), repeats=2)
    record = json.loads(json.dumps(record_of(cell)))
    assert record["error"] is None
    assert record["kept"] == (300 if method == "plain" else 100)
    assert record["weights_bytes"] == sum(t.numel() * 4 for t in (*model.parameters(), *model.buffers()))
    total = record["weights_bytes"] + record["constant_bytes"] + record["peak_bytes"]
    assert record["total_bytes"] == total
    assert set(record["seconds"]) == {"2", "4"}
    assert record["prefill_s"] <= record["first_token_s"] < record["seconds"]["2"] < record["seconds"]["4"]
    assert record["n"] == len(record["prefills_s"]) == 2
    assert record["floor_share"] == pytest.approx(record["floor_s"] / record["prefill_s"])
    assert record["flops"]["total"] == sum(v for k, v in record["flops"].items() if k != "total")


def test_rates_are_measured_after_each_repeat(here, model, monkeypatch):
    work, run, rates = [], measuring.run_once, iter((Rates(1, 50, 7), Rates(3, 10, 7), Rates(2, 30, 7)))
    monkeypatch.setattr(measuring, "run_once", lambda *args: work.append("run") or run(*args))
    monkeypatch.setattr(measuring, "measure_rates", lambda *_: work.append("rates") or next(rates))
    record = measure(Cell(method="plain", length=100, new_tokens=(2,), repeats=3))
    assert work == ["run"] + 3 * ["run", "rates"]  # the first is the warm-up
    assert record["rates"] == {"matmul": 2, "attention": 30, "copy": 7}


def test_a_cell_keeps_sentences_whole_where_its_model_has_a_tokenizer(here, model, monkeypatch):
    asked, number = [], Sentences.number
    monkeypatch.setattr(Sentences, "number", lambda *args: asked.append(args) or number(*args))
    cell = Cell(method=HOMER, length=300, new_tokens=(2,), repeats=1)
    measure(cell)
    assert not asked
    monkeypatch.setattr(Source, "load", lambda self, rope=None: (model, tokenizer_of(VOCAB)))
    measure(cell)
    assert asked


def test_methods_and_trees_that_do_not_fit_are_refused(here, model):
    with pytest.raises(ConfigError, match="truncate"):
        subject_for(Method.parse("truncate"), model)
    with pytest.raises(ScheduleError, match="levels"):
        measure(Cell(method="homer:max_chunk_len=70,target_len=70", length=20_000))
    error = record_of(Cell(method="homer:max_chunk_len=70,target_len=70", length=20_000))["error"]
    assert error.startswith("ScheduleError")


CODES = {
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out of memory: the process was killed"),
    "crashed": ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "crash: the process died of SIGABRT"),
    "failed": ("raise ValueError('no such thing')", "crash: the process ended with code 1 .*no such thing"),
    "silent": ("print('hello')", "crash: the process ended with code 0"),
    "slow": ("import time; time.sleep(60)", "timeout: stopped after 1 s"),
}


@pytest.mark.parametrize("name", CODES)
def test_a_worker_that_dies_leaves_a_row(name):
    code, said = CODES[name]
    cell = Cell(method="plain", length=300)
    record = run_isolated(cell, 1 if name == "slow" else 60, worker=("-c", code))
    assert {key: record[key] for key in cell.key} == cell.key
    assert record["error"] is not None
    assert re.match(said, record["error"], re.S), record["error"]


def test_a_cell_in_a_process_of_its_own(model_folder):
    source = Source(model=str(model_folder), threads=1, dtype="float32")
    record = run_isolated(Cell(method=HOMER, length=300, new_tokens=(2,), repeats=1, source=source), 300)
    assert record["error"] is None, record
    assert (record["threads"], record["dtype"], record["kept"], record["limit"]) == (1, "float32", 100, 512)


def test_runs_go_on_where_they_stopped_and_failed_cells_are_tried_again(monkeypatch, tmp_path):
    ran = []

    def isolate(cell, timeout_s):
        ran.append(cell.length)
        error = "out of memory: killed" if cell.length == 200 and len(ran) < 3 else None
        return json.loads(json.dumps(cell.key | {"error": error, "model": "tiny", "chat": False}))

    monkeypatch.setattr(bench_run, "run_isolated", isolate)
    cells = [Cell(method="plain", length=n) for n in (100, 200, 300)]
    for _ in range(2):
        bench_run.run(cells, RecordFile(tmp_path), progress=lambda *_: None)
    assert ran == [100, 200, 300, 200]
    assert [(r["length"], r["error"]) for r in read_records(tmp_path)[0]] == [(100, None), (200, None), (300, None)]
    other = [Cell(method="plain", length=100, batch=2), Cell(method="plain", length=100, source=Source(threads=2))]
    bench_run.run(other, RecordFile(tmp_path), progress=lambda *_: None)
    assert ran[4:] == [100, 100]


class Ticks:
    """A clock that moves on by one at every mark."""

    def __init__(self):
        self.marks = 0

    def mark(self):
        self.marks += 1

    def seconds(self):
        return [1.0] * (self.marks - 1)


def test_every_moment_belongs_to_the_innermost_part():
    ledger = Ledger(Ticks())
    ledger.begin("attention")
    ledger.begin("MLP")
    ledger.end()
    ledger.end()
    totals = ledger.totals()
    assert {part: seconds for part, seconds in totals.items() if seconds} == {"attention": 2.0, "MLP": 1.0, REST: 2.0}


@pytest.mark.parametrize("method", ["plain", HOMER])
def test_parts_of_the_time_sum_to_the_whole(model, method):
    subject, clock = subject_for(Method.parse(method), model), HostClock()
    ledger = Ledger(clock)
    with watched(model, ledger), adapter.Decoder(model).session():
        subject.prefill(random_prompt(VOCAB, 300, 1))
    totals = ledger.totals()
    assert sum(totals.values()) == pytest.approx(clock._marks[-1] - clock._marks[0])
    idle = {"scoring", "merging copies"} if method == "plain" else set()
    assert {part for part in PARTS if totals[part] == 0} == idle


def test_profiling_leaves_no_trace_even_when_it_fails(model):
    before = (adapter._recording_attention, merging.keep_most_significant, merging.Selection.judge, Chunk.select)
    with watched(model, Ledger(Ticks())):
        assert Chunk.select is not before[3]
    with pytest.raises(IndexError), watched(model, Ledger(Ticks())):
        model(torch.tensor([[VOCAB]]))
    after = (adapter._recording_attention, merging.keep_most_significant, merging.Selection.judge, Chunk.select)
    assert after == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_modules_are_told_apart(model):
    named = {id(module): name for name, module in model.named_modules()}
    parts = {named[id(module)].replace("model.layers.0.", ""): part for module, part in parts_of_modules(model)}
    assert parts["self_attn.q_proj"] == parts["self_attn.o_proj"] == "projections"
    assert parts["mlp"] == "MLP"
    assert parts["self_attn"] == parts["input_layernorm"] == parts["model.norm"] == "norms and rotary"
    assert parts["lm_head"] == parts["model.embed_tokens"] == "embedding and head"


def measured(method="plain", length=4096, batch=1, source=None, **more):
    cell = Cell(method=method, length=length, batch=batch, new_tokens=(20, 50), source=source or Source())
    facts = {"model": "tiny", "limit": 4096, "device": "cpu x86_64", "dtype": "float32", "threads": 2, "batch": batch}
    seconds = length / 1000
    numbers = {
        "weights_bytes": 500_000_000,
        "constant_bytes": 100_000_000,
        "peak_bytes": length * 100_000,
        "kv_bytes": length * 60_000,
        "kept": 300,
        "transient_bytes": length * 40_000,
        "total_bytes": 600_000_000 + length * 100_000,
        "prefill_s": seconds,
        "first_token_s": seconds,
        "step_s": 0.05,
        "seconds": {"20": seconds + 1, "50": seconds + 2.5},
        "flops": {"total": length * 10**9},
        "counted_kv_bytes": length * 60_000,
        "rates": {"matmul": 2e12, "attention": 1e12, "copy": 1e10},
        "floor_s": seconds / 2,
        "floor_share": 0.5,
        "step_floor_s": 0.02,
    }
    return cell.key | facts | numbers | {"n": 3, "error": None} | more


def failed(error, **what):
    return Cell(**what, new_tokens=(20, 50)).key | {"error": error}


@pytest.fixture
def folder(tmp_path):
    records = [
        measured(),
        measured(length=8192),
        measured("homer", peak_bytes=10**8, prefill_s=2.048, seconds={"20": 2.5, "50": 4}),
        measured("homer", length=8192, peak_bytes=15 * 10**7),
        failed("out of memory: the process was killed", method="plain", length=65536),
        failed("ScheduleError: the tree has 9 levels", method="homer", length=65536),
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def grids(folder):
    return {grid.title: grid for section in sections(read_records(folder)[0]) for grid in section.grids}


def rows(grid):
    return {row.label: [str(entry) for entry in row.entries] for row in grid.rows if row.kind != "group"}


def find(found, start):
    return next(grid for title, grid in found.items() if title.startswith(start))


def test_tables_stand_beside_the_papers(folder):
    found = grids(folder)
    memory = find(found, "Peak memory")
    lengths = [heading for heading, _ in memory.columns]
    assert lengths == ["4,096", "8,192", "16,384", "32,768", "65,536"]
    assert rows(memory)["plain"] == ["1.0 GB (500 MB, 100 MB)", "1.4 GB (500 MB, 100 MB)", "", "", "oom"]
    assert rows(memory)["homer"][-1] == "error"
    assert rows(find(found, "Operations"))["homer"][0] == "4.10 TFLOP 246 MB, 300"
    assert rows(memory)["paper: homer"] == ["16.3 GB", "16.5 GB", "16.7 GB", "17.6 GB", "21.3 GB"]
    assert "the process was killed" in memory.note
    assert "9 levels" in memory.note
    seconds = find(found, "Seconds")
    labels = [row.label for row in seconds.rows]
    assert labels[:5] == ["20 new tokens", "plain", "homer", "paper, Llama-2-7b, A100, table 8", "paper: baselines"]
    twenty, fifty = (row for row in seconds.rows if row.label == "homer")
    assert str(twenty.entries[0]) == "2.50 s 2.0×"
    assert str(fifty.entries[0]) == "4.00 s 1.6×"
    paper = next(row for row in seconds.rows if row.label == "paper: homer")
    at_8k = [heading for heading, _ in seconds.columns].index("8,192")
    assert str(paper.entries[at_8k]) == "1.67 s 1.1×"
    assert rows(find(found, "Time to first"))["plain"][0] == "4.10 s 1,000/s, 50%"
    assert rows(find(found, "Milliseconds"))["plain"][0] == "50.0 ms 40%"
    assert "2,000 GFLOP/s" in find(found, "Operations").note


def test_batches_are_groups_and_setups_are_told_apart(tmp_path):
    records = [
        measured(),
        measured(batch=4),
        measured(dtype="bfloat16", batch=4, cell={"batch": 4, "device": "cpu", "dtype": "bfloat16"}),
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    memory = find(grids(tmp_path), "Memory above")
    labels = [row.label for row in memory.rows]
    assert labels == ["batch 1", "plain (float32)", "batch 4", "plain (bfloat16)", "plain (float32)"]


@plotting
def test_the_report_is_one_page_with_plots_and_ratios(folder):
    page = write_report(folder)
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("data:image/png;base64,") == len(list(folder.glob("*.png"))) == 2
    assert "paper: homer+baselines" in (folder / "report.md").read_text()
    compared = json.loads((folder / "ratios.json").read_text())
    (short,) = [entry for entry in compared if entry["method"] == "homer" and entry["length"] == 4096]
    assert short["to_plain"] == {"prefill": 0.5, "step": 1.0, "memory": 0.2441, "tensors": None, "flops": 1.0}
    assert short["growth"] == {"prefill": 4.0, "step": 1.0, "memory": 1.5, "tensors": None, "flops": 2.0}


def test_ratios_leave_out_what_was_not_measured():
    alone = ratios([measured("homer"), failed("timeout: 5 s", method="plain", length=4096)])
    assert alone == [{"method": "homer", "length": 4096, "batch": 1}]
    assert ratios([measured("homer", peak_bytes=0), measured(peak_bytes=0)])[0]["to_plain"]["memory"] is None


@pytest.fixture
def bench(monkeypatch):
    def call(*arguments):
        printed = Console(file=io.StringIO(), width=200)
        monkeypatch.setattr(bench_command, "out", printed)
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return printed.file.getvalue() + result.output

    return call


@plotting
def test_the_commands_measure_print_and_report(bench, here, tmp_path):
    settings = ("--methods", f"plain {HOMER}", "--device", "cpu", "-o", tmp_path / "m")
    out = bench("speed", "--lengths", "150", "--batch", "1,2", "--new-tokens", "3,2", "--repeats", 1, *settings)
    records = read_records(tmp_path / "m")[0]
    assert {(r["method"], r["length"], r["batch"]) for r in records} == {
        (method, 150, batch) for method in ("plain", HOMER) for batch in (1, 2)
    }
    for title in ("table 5", "table 8", "Time to first token", "Operations"):
        assert title in out
    assert (tmp_path / "m" / "command.txt").exists()
    page = (tmp_path / "m" / "report.html").read_text()
    (tmp_path / "m" / "report.html").unlink()
    bench("report", tmp_path / "m")
    assert (tmp_path / "m" / "report.html").read_text() == page
    bench("memory", "--lengths", "150,300", "--plain-up-to", 150, *settings[:-1], tmp_path / "p")
    found = read_records(tmp_path / "p")[0]
    assert [(r["method"], r["length"]) for r in found] == [("plain", 150), (HOMER, 150), (HOMER, 300)]


@plotting
def test_the_profile_command(bench, here, tmp_path):
    out = bench("profile", "--lengths", 300, "--methods", f"plain {HOMER}", "--device", "cpu", "-o", tmp_path)
    assert "norms and rotary" in out
    assert (tmp_path / "profile.png").exists()
    (plain, _) = read_records(tmp_path)[0]
    assert set(plain["parts"]) == set(PARTS)
    assert plain["cell"]["job"] == PROFILE


def test_help_names_the_tables(bench):
    assert "tables 5 and 8" in " ".join(bench("--help").split())
    for name in ("memory", "speed", "profile", "report"):
        bench(name, "--help")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["speed", "--methods", "homre"], "homre"),
        (["memory", "--lengths", "8q"], "8q"),
        (["speed", "--batch", "0"], "batch is '0'"),
        (["speed", "--new-tokens", "many"], "many"),
        (["speed", "--device", "gpux"], "gpux"),
        (["speed", "--random", "llama-9"], "llama-9"),
        (["profile", "--random", "llama-2-7b", "--layers", "40"], "layers is 40"),
        (["report", "no-such-folder"], "holds no records"),
    ],
)
def test_mistakes_are_refused_by_name(bench, arguments, named, tmp_path):
    with pytest.raises(HomerError, match=named):
        bench(*arguments, *(["-o", tmp_path] if arguments[0] != "report" else []))


def test_without_records_of_success_there_is_still_a_table(tmp_path):
    record = failed("out of memory: killed", method="plain", length=4096)
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    console = Console(file=io.StringIO(), width=200)
    for table in terminal_tables(tmp_path):
        console.print(table)
    assert "oom" in console.file.getvalue()


def test_calibrated_scores_get_zeros_of_the_right_size(model):
    subject = subject_for(Method.parse("homer-paper"), model)
    assert isinstance(subject.homer.config.calibration, Calibration)
    assert subject.homer.config.calibration.bias.shape == (LAYERS, 256)


def test_a_failed_cell_of_another_model_is_not_counted_to_the_one_that_ran(tmp_path):
    other = failed("out of memory: killed", method="plain", length=4096, source=Source(random="llama-2-7b"))
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (measured(), other)))
    found = rows(find(grids(tmp_path), "Memory above"))
    assert found == {"plain (llama-2-7b (random weights))": ["oom"], "plain (tiny)": ["410 MB (246 MB, 164 MB)"]}
