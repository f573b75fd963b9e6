"""`homer bench`: operations against torch's counter, cases in processes of their own, time by parts, reports."""

import importlib.util
import io
import json
import os
import pkgutil
import signal
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from homerlm import Homer, HomerConfig
from homerlm.cli import measuring
from homerlm.cli.main import app
from homerlm.errors import ConfigError, HomerError, InputError, OutOfMemoryError, ScheduleError, UnsupportedModelError
from homerlm.lab import rates
from homerlm.lab.case import AFFIX_LEN, PROFILE, Case, bench_reader, cases, random_prompt
from homerlm.lab.costs import cost_of, plain_pass, with_kept
from homerlm.lab.isolated import record_of, run_isolated
from homerlm.lab.measure import measure, peak_of_tensors, run_once
from homerlm.lab.methods import Method, parse_methods
from homerlm.lab.profile import (
    FUNCTIONS,
    PARTS,
    lines_left_out,
    own_seconds,
    parts_of_modules,
    parts_recorded,
    profile_once,
    quiet_profile,
)
from homerlm.lab.random_weights import SHAPES, random_model, shape_config
from homerlm.lab.rates import Rates
from homerlm.lab.ratios import ratios
from homerlm.lab.records import RecordFile, read_records
from homerlm.lab.report import sections, terminal_tables, write_report
from homerlm.lab.run import raise_failure, run
from homerlm.model.flops import Shape, flops_of
from homerlm.score.calibration import Calibration
from tiny import HEAD_DIM, KV_HEADS, LAYERS, VOCAB, llama, prompt

plotting = pytest.mark.skipif(not importlib.util.find_spec("seaborn"), reason="seaborn is not installed")
SIZES = {"max_chunk_len": 48, "target_len": 30, "pooling": 3}
HOMER = "homer:max_chunk_len=160,target_len=100"


@pytest.fixture(scope="module")
def model():
    """One that has been tried: the first `Homer` on a model finds out what makes its logits before it is asked."""
    made = llama()
    Homer(made)
    return made


@pytest.fixture
def quick(monkeypatch):
    """Rates measured in no time, roughly."""
    monkeypatch.setattr(rates, "SECONDS", 0.001)
    monkeypatch.setattr(rates, "_COPIED_BYTES", {"cpu": 1 << 20})


@pytest.fixture
def source(model_folder):
    return {"model": str(model_folder), "dtype": "float32", "new_tokens": (2,), "repeats": 1}


def counted_by_torch(work):
    """Matrices alone: torch knows no formula for the CPU's fused attention, and counts its parts instead."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_operations_of_the_plain_model_are_what_torch_counts(model):
    ids = torch.cat(prompt(10, 300, 7), dim=1)
    shape = Shape.of(model)
    counted = flops_of(shape, [plain_pass(shape, ids.shape[1])]).total
    assert counted_by_torch(lambda: model(ids, logits_to_keep=1)) == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize(
    ("context", "changes"),
    [
        (171, {}),
        (37, {}),
        (110, {"rerank": "never"}),
        (110, {"rerank": "later"}),
        (250, {"rerank": "later", "chosen_by": "surprisal"}),
        (250, {"chosen_by": "both"}),
        (20, {"chosen_by": "surprisal"}),
        (110, {"scoring_layers": "upper_half"}),
        (171, {"chunk_batch": 3}),
        (110, {"target_len": 300, "max_chunk_len": 300, "scoring_layers": "all"}),
        (150, {"preset": "paper"}),
        (150, {"preset": "paper", "readout": "reencoded", "scoring_queries": 5}),
        (150, {"preset": "paper", "refinement": "per_layer_top_k"}),
        (171, {"preset": "paper", "retention": 0.25, "chunk_batch": 3}),
    ],
    ids=str,
)
def test_operations_of_a_compression_are_what_torch_counts(model, context, changes):
    changes = dict(changes)
    if changes.pop("preset", "default") == "paper":
        config = HomerConfig.paper(max_chunk_len=48, target_len=30, warmup_layers=2, score="logit", **changes)
    else:
        config = HomerConfig(**(SIZES | changes))
    homer = Homer(model, config=config)
    parts = prompt(4, context, 5)
    made = []
    seen = counted_by_torch(lambda: made.append(homer.compress(*parts)))
    plan = homer.plan(4, context, 5)
    passes = with_kept(plan.passes, plan.cache_len, len(made[0]))
    assert seen == pytest.approx(flops_of(Shape.of(model), passes).total, rel=1e-3)


def test_bytes_of_keys_and_values_are_those_of_the_cache(model):
    per_token = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
    ids = random_prompt(model, 300, batch=2)
    for method, tokens in (("plain", 300), (HOMER, 100)):
        reader = bench_reader(Method.parse(method), model)
        reading = reader.read(ids, 0)
        assert reading.prefill().kv_bytes == 2 * tokens * per_token
        assert cost_of(reader, Shape.of(model), ids, len(reading.token_indices)).kv_bytes == tokens * per_token
    carried = bench_reader(Method.parse("homer-paper:max_chunk_len=160,target_len=100,warmup_layers=2"), model)
    peak = carried.homer.plan(30, 240, 30).schedule.peak_kv_tokens * per_token // LAYERS
    assert cost_of(carried, Shape.of(model), ids, 100).kv_bytes == peak


def test_the_peak_of_tensors_is_what_lives_at_once():
    def work():
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        torch.empty(600, dtype=torch.uint8), torch.empty(700, dtype=torch.uint8)

    assert peak_of_tensors(work) == 1300
    assert peak_of_tensors(lambda: None) == 0


def test_the_tensors_of_a_compression_hardly_grow_with_the_prompt(model):
    homer = Homer(model, config=HomerConfig(max_chunk_len=160, target_len=100))
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
    shape = Shape.of(built)
    one_token = flops_of(shape, [plain_pass(shape, 1)])
    matrices = sum(p.numel() for n, p in built.named_parameters() if p.dim() == 2 and "embed" not in n)
    assert one_token.matrices == 2 * matrices


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
    case = Case(random=str(tmp_path), layers=2, dtype="float32")
    assert "2 layers" in case.load()[0].config._name_or_path


@pytest.mark.parametrize(
    ("name", "layers", "named"), [("lama-2-7b", None, "llama-2-7b"), ("llama-2-7b", 33, "32"), ("./no", None, "./no")]
)
def test_shapes_that_do_not_exist_are_refused(name, layers, named):
    with pytest.raises(ConfigError, match=named):
        shape_config(name, layers)


def test_cases_that_contradict_themselves_are_refused():
    with pytest.raises(ConfigError, match="only one"):
        Case(model="a/b", random="llama-2-7b")
    with pytest.raises(ConfigError, match="layers is 2"):
        Case(model="a/b", layers=2)
    with pytest.raises(ConfigError, match="int8"):
        Case(dtype="int8")


def test_prompts_are_seeded_and_their_rows_differ(model):
    first, again = (random_prompt(model, 300, 2) for _ in range(2))
    assert [part.shape for part in (first.prefix, first.context, first.suffix)] == [(2, 30), (2, 240), (2, 30)]
    assert torch.equal(first.context, again.context)
    assert not torch.equal(first.context[0], first.context[1])
    with pytest.raises(ConfigError, match="at least 90"):
        random_prompt(model, 3 * AFFIX_LEN - 1, 1)


def test_the_measured_decoding_is_the_librarys_own(model):
    ids = random_prompt(model, 300, 1)
    reader = bench_reader(Method.parse(HOMER), model)
    context = reader.homer.compress(ids.prefix, ids.context, ids.suffix)
    start, positions = reader.read(ids, 0).prefill(), []

    def note(_module, _args, given):
        positions.append(given["position_ids"].item())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    tokens = start.likeliest(6, lambda: None)
    hook.remove()
    assert positions == list(range(context.next_position, context.next_position + 5))
    new = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert tokens.tolist() == reader.homer.generate(context, **new).tolist()
    plain = bench_reader(Method.parse("plain"), model).read(ids, 0).prefill().likeliest(6, lambda: None)
    whole = torch.cat([ids.prefix, ids.context, ids.suffix], dim=1)
    mask = torch.ones_like(whole)
    assert plain.tolist() == model.generate(whole, attention_mask=mask, **new)[:, 300:].tolist()


def test_times_of_one_run_follow_each_other(model):
    once = run_once(bench_reader(Method.parse("plain"), model), random_prompt(model, 200, 2), 5)
    assert len(once.token_s) == 5
    assert 0 < once.prefill_s <= once.token_s[0]
    assert list(once.token_s) == sorted(once.token_s)


@pytest.mark.parametrize("method", ["plain", HOMER, "homer-paper:max_chunk_len=160,target_len=100,warmup_layers=2"])
def test_a_cases_record_is_complete_and_adds_up(quick, model, source, method):
    case = Case(**source | {"method": method, "length": 300, "batch": 2, "new_tokens": (2, 4), "repeats": 2})
    record = json.loads(json.dumps(record_of(case)))
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
    assert min(record["rates"].values()) > 0


def test_rates_are_medians_of_the_repeats():
    assert Rates.typical([Rates(1, 50, 7), Rates(3, 10, 7), Rates(2, 30, 7)]) == Rates(2, 30, 7)


def test_a_key_is_what_old_records_have():
    old = {"model": None, "random": None, "layers": None, "device": "cpu", "dtype": "auto", "threads": None}
    work = {"batch": 1, "new_tokens": [20, 50, 100], "job": "measure"}
    key = {"task": "bench", "method": "plain", "length": 8192}
    assert repr(Case(method="plain", length=8192).key) == repr(key | {"cell": old | work})
    compiled = Case(method="plain", length=8192, compiled=True, tensors=True).key
    assert repr(compiled) == repr(key | {"cell": old | {"compiled": True} | work | {"tensors": True}})


def test_methods_and_trees_that_do_not_fit_are_refused(model, source):
    with pytest.raises(ConfigError, match="truncate"):
        bench_reader(Method.parse("truncate"), model)
    case = Case(**source, method="homer-paper:max_chunk_len=70,target_len=70", length=20_000)
    with pytest.raises(ScheduleError, match="levels"):
        measure(case)
    assert record_of(case)["error"].startswith("ScheduleError")


def test_the_plain_model_goes_only_so_far():
    made = cases(parse_methods(["plain homer"]), [100, 200], [1, 4], 100, Case(repeats=2))
    assert [(case.method, case.length, case.batch) for case in made] == [
        *((method, 100, batch) for batch in (1, 4) for method in ("plain", "homer")),
        *(("homer", 200, batch) for batch in (1, 4)),
    ]
    assert all(case.repeats == 2 for case in made)


def killed(case):
    os.kill(os.getpid(), signal.SIGKILL)


def crashed(case):
    os.kill(os.getpid(), signal.SIGABRT)


def failing(case):
    raise ValueError("no such thing")


def silent(case):
    sys.exit(0)


def slow(case):
    time.sleep(60)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (killed, "out of memory: the process was killed"),
        (crashed, "crash: the process died of SIGABRT"),
        (failing, "crash: ValueError: no such thing"),
        (silent, "crash: the process ended with code 0"),
        (slow, "timeout: stopped after 3 s"),
    ],
)
def test_a_process_that_dies_leaves_a_row(work, said):
    case = Case(method="plain", length=300)
    record = run_isolated(case, 3 if work is slow else 60, work)
    assert record == case.key | {"error": record["error"]}
    assert record["error"].startswith(said)


def test_a_case_in_a_process_of_its_own(source):
    record = run_isolated(Case(**source, method=HOMER, length=300, threads=1), 300)
    assert record["error"] is None, record
    assert (record["threads"], record["dtype"], record["kept"], record["limit"]) == (1, "float32", 100, 512)


@dataclass
class Scripted:
    """A job whose records have these errors in turn."""

    case: Case
    errors: list
    ran: int = 0

    label = "scripted"

    def records(self, known):
        if found := known.get(self.case.key):
            yield found
            return
        self.ran += 1
        yield json.loads(json.dumps(self.case.key | {"error": self.errors.pop(0), "model": "tiny", "chat": False}))


def test_runs_go_on_where_they_stopped_and_failed_jobs_are_run_again(tmp_path):
    jobs = [Scripted(Case(method="plain", length=n), [None]) for n in (100, 200, 300)]
    jobs[1].errors = ["out of memory: killed", None]
    for _ in range(2):
        assert run(jobs, RecordFile(tmp_path), progress=lambda *_: None) is None
    assert [job.ran for job in jobs] == [1, 2, 1]
    assert [(r["length"], r["error"]) for r in read_records(tmp_path)[0]] == [(100, None), (200, None), (300, None)]
    other = [Scripted(Case(method="plain", length=100, **work), [None]) for work in ({"batch": 2}, {"threads": 2})]
    run(other, RecordFile(tmp_path), progress=lambda *_: None)
    assert [job.ran for job in other] == [1, 1]


def test_a_run_in_which_everything_failed_gives_its_first_error(tmp_path):
    jobs = [Scripted(Case(method="plain", length=n), [f"out of memory: {n}"]) for n in (100, 200)]
    error = run(jobs, RecordFile(tmp_path), progress=lambda *_: None)
    with pytest.raises(OutOfMemoryError, match="out of memory: 100"):
        raise_failure(error)


def event(name, seconds, *children):
    made = SimpleNamespace(name=name, cpu_time_total=seconds * 1e6, cpu_children=children, device_type=DeviceType.CPU)
    made.device_time_total = made.cpu_time_total / 2
    return made


def test_every_moment_belongs_to_the_innermost_part():
    mlp = event("MLP", 1)
    attention = event("attention", 3, event("aten::linear", 2, mlp))
    whole = event("rest (Python)", 5, event("aten::add", 4, attention))
    seconds = own_seconds([whole, attention, mlp])
    assert {part: s for part, s in seconds.items() if s} == {"attention": 2.0, "MLP": 1.0, "rest (Python)": 2.0}
    on_device = own_seconds([whole, attention, mlp], on_device=True)
    assert {part: s for part, s in on_device.items() if s} == {"attention": 1.0, "MLP": 0.5, "rest (Python)": 3.5}


@pytest.mark.parametrize("method", ["plain", HOMER])
def test_a_profile_has_every_part_that_runs(model, method):
    seconds = profile_once(bench_reader(Method.parse(method), model), random_prompt(model, 300, 1))
    idle = {"scoring", "merging copies"} if method == "plain" else {"merging copies"}
    assert {part for part in PARTS if seconds[part] == 0} == idle
    assert min(seconds.values()) >= 0


def test_profiling_leaves_no_trace_even_when_it_fails(model):
    def state():
        functions = [pkgutil.resolve_name(name) for name in FUNCTIONS]
        return functions, [module.__dict__.get("forward") for module in model.modules()]

    before = state()
    with parts_recorded(model):
        assert state() != before
    with pytest.raises(IndexError), parts_recorded(model):
        model(torch.tensor([[VOCAB]]))
    assert state() == before


def test_modules_are_told_apart(model):
    named = {id(module): name for name, module in model.named_modules()}
    parts = {named[id(module)].replace("model.layers.0.", ""): part for module, part in parts_of_modules(model)}
    assert parts["self_attn.q_proj"] == parts["self_attn.o_proj"] == "projections"
    assert parts["mlp"] == "MLP"
    assert parts["self_attn"] == parts["input_layernorm"] == parts["model.norm"] == "norms and rotary"
    assert parts["lm_head"] == parts["model.embed_tokens"] == "embedding and head"


def measured(method="plain", length=4096, batch=1, **more):
    case = Case(method=method, length=length, batch=batch, new_tokens=(20, 50))
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
    return case.key | facts | numbers | {"n": 3, "error": None} | more


def failed(error, **what):
    return Case(**what, new_tokens=(20, 50)).key | {"error": error}


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


def tables(folder):
    return {table.title: table for section in sections(read_records(folder)[0]) for table in section.tables}


def rows(table):
    return {label: entries for label, *entries in table.rows if entries}


def find(found, start):
    return next(grid for title, grid in found.items() if title.startswith(start))


def test_tables_stand_beside_the_papers(folder):
    found = tables(folder)
    memory = find(found, "Peak memory")
    lengths = [column.partition(" ")[0] for column in memory.columns[1:]]
    assert lengths == ["4,096", "8,192", "16,384", "32,768", "65,536"]
    assert rows(memory)["plain"] == ["1.0 GB (500 MB, 100 MB)", "1.4 GB (500 MB, 100 MB)", "", "", "oom"]
    assert rows(memory)["homer"][-1] == "error"
    assert rows(find(found, "Operations"))["homer"][0] == "4.10 TFLOP 246 MB, 300"
    assert rows(memory)["paper: homer"] == ["16.3 GB", "16.5 GB", "16.7 GB", "17.6 GB", "21.3 GB"]
    assert "the process was killed" in memory.note
    assert "9 levels" in memory.note
    seconds = find(found, "Seconds")
    labels = [row[0] for row in seconds.rows]
    assert labels[:5] == ["20 new tokens", "plain", "homer", "paper, Llama-2-7b, A100, table 8", "paper: baselines"]
    twenty, fifty = (row for row in seconds.rows if row[0] == "homer")
    assert twenty[1] == "2.50 s 2.0×"
    assert fifty[1] == "4.00 s 1.6×"
    paper = next(row for row in seconds.rows if row[0] == "paper: homer")
    at_8k = next(k for k, column in enumerate(seconds.columns) if column.startswith("8,192"))
    assert paper[at_8k] == "1.67 s 1.1×"
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
    memory = find(tables(tmp_path), "Memory above")
    labels = [row[0] for row in memory.rows]
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
        monkeypatch.setattr(measuring, "out", printed)
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return printed.file.getvalue() + result.output

    return call


@plotting
def test_the_commands_measure_print_and_report(bench, model_folder, tmp_path):
    command = ("speed", "--lengths", "150", "--batch", "1,2", "--new-tokens", "3,2", "--repeats", 1)
    command += ("--methods", HOMER, "--device", "cpu", "-m", model_folder, "-o", tmp_path)
    out = bench(*command)
    records = read_records(tmp_path)[0]
    assert [(r["method"], r["length"], r["batch"], r["error"]) for r in records] == [
        (HOMER, 150, batch, None) for batch in (1, 2)
    ]
    for title in ("table 5", "table 8", "Time to first token", "Operations"):
        assert title in out
    assert (tmp_path / "command.txt").exists()
    page, written = (tmp_path / "report.html").read_text(), (tmp_path / "records.jsonl").read_text()
    (tmp_path / "report.html").unlink()
    bench("report", tmp_path)
    assert (tmp_path / "report.html").read_text() == page
    bench(*command)
    assert (tmp_path / "records.jsonl").read_text() == written  # nothing was measured again


@plotting
def test_the_profile_command(bench, model_folder, tmp_path):
    arguments = ("--lengths", 300, "--methods", HOMER, "--device", "cpu", "-m", model_folder, "-o", tmp_path)
    assert "norms and rotary" in bench("profile", *arguments)
    assert (tmp_path / "profile.png").exists()
    (record,) = read_records(tmp_path)[0]
    assert set(record["parts"]) == set(PARTS)
    assert record["cell"]["job"] == PROFILE


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


def test_an_output_that_cannot_be_written_is_refused_before_a_process_starts(bench, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output is"):
        bench("speed", "-m", "no-such-model", "-o", tmp_path / "file")


def test_without_records_of_success_there_is_still_a_table(tmp_path):
    record = failed("out of memory: killed", method="plain", length=4096)
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    console = Console(file=io.StringIO(), width=200)
    for table in terminal_tables(tmp_path):
        console.print(table)
    assert "oom" in console.file.getvalue()


def test_calibrated_scores_get_zeros_of_the_right_size(model):
    config = bench_reader(Method.parse("homer-paper"), model).homer.config
    assert isinstance(config.calibration, Calibration)
    assert config.calibration.bias.shape == (LAYERS, 256)


def test_a_failed_cell_of_another_model_is_not_counted_to_the_one_that_ran(tmp_path):
    other = failed("out of memory: killed", method="plain", length=4096, random="llama-2-7b")
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (measured(), other)))
    found = rows(find(tables(tmp_path), "Memory above"))
    assert found == {"plain (llama-2-7b (random weights))": ["oom"], "plain (tiny)": ["410 MB (246 MB, 164 MB)"]}


class TestProfiler:
    def test_its_own_notes_do_not_reach_the_terminal_and_others_do(self, capfd):
        with quiet_profile(activities=[ProfilerActivity.CPU]) as recorded:
            torch.ones(3).add(1)
            os.write(2, b"a library's warning\n")
        assert any(event.key == "aten::add" for event in recorded.key_averages())
        assert capfd.readouterr() == ("", "a library's warning\n")

    def test_what_a_library_says_while_it_starts_is_kept(self, capfd):
        with lines_left_out(b"USDT:"):
            os.write(2, b"USDT:1 start\nError: no counters\nUSDT:2")
        os.write(2, b"after\n")
        assert capfd.readouterr().err == "Error: no counters\nafter\n"

    def test_it_stops_where_the_work_fails(self):
        with pytest.raises(KeyError), quiet_profile(activities=[ProfilerActivity.CPU]):
            raise KeyError
        with quiet_profile(activities=[ProfilerActivity.CPU]) as recorded:
            torch.ones(3)
        assert recorded.key_averages()
