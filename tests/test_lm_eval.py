"""HOMER under lm-evaluation-harness: tasks of local files through its own evaluator, the plain model beside it."""

import json
import os
import subprocess
import sys
from itertools import chain

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra `eval`)")

os.environ["HF_DATASETS_OFFLINE"] = "1"

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from homerlm import Homer, HomerConfig
from homerlm.errors import ConfigError, InputError, ScheduleError
from homerlm.evaluation import lm_eval as former
from homerlm.lab.lm_eval import HomerLM, main
from tiny import LIMIT, llama

TARGET = 40
SETTINGS = {"max_chunk_len": 48, "target_len": TARGET, "pooling": 3}
LONG = " ".join(f"w{7 * i % 90}" for i in range(300))
SHORT = "w3 w1 w4 w1 w5"
CHOICES = ["w2", "w6 w7", "w8 w9 w10"]


class Recording(Homer):
    """Keeps the ids of every prompt that it compressed, for later too."""

    def __init__(self, *args):
        super().__init__(*args)
        self.prompts = []

    def for_later(self, **options):
        later = super().for_later(**options)
        later.prompts = self.prompts
        return later

    def compress(self, prefix_ids, context_ids, suffix_ids, **options):
        parts = [ids[0].tolist() for ids in (prefix_ids, context_ids, suffix_ids)]
        self.prompts.append(parts)
        return super().compress(prefix_ids, context_ids, suffix_ids, **options)


@pytest.fixture
def homer(words):
    return Recording(llama(), words, HomerConfig(**SETTINGS))


def write_task(tmp_path, rows, task):
    """A task named `local` in the harness's own format, over rows of a local file."""
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    config = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
    }
    (tmp_path / "local.yaml").write_text(json.dumps(config | task))


def evaluated(tmp_path, lm, rows, *, apply_chat_template=False, **task):
    """The task's samples, as the harness logs them."""
    write_task(tmp_path, rows, task)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    result = simple_evaluate(lm, tasks=["local"], task_manager=tasks, apply_chat_template=apply_chat_template)
    return sorted(result["samples"]["local"], key=lambda sample: sample["doc_id"])


def generation(until=(), tokens=6, **settings):
    return {
        "output_type": "generate_until",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": list(until), "max_gen_toks": tokens, **settings},
        "metric_list": [{"metric": "exact_match"}],
    }


def multiple_choice():
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": CHOICES,
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }


def plain(model, tokenizer, prompt, continuation):
    """Log-likelihood of a continuation and whether it is the greedy one, from one forward of the untouched model."""
    before, after = (tokenizer(text).input_ids for text in (prompt, continuation))
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].double()
    logprobs = logits - logits.logsumexp(-1, keepdim=True)
    total = sum(row[i].item() for row, i in zip(logprobs, after, strict=True))
    return total, logits.argmax(-1).tolist() == after


def instances(*args, kind="loglikelihood"):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(args)]


def test_every_token_of_a_long_prompt_reaches_compress(tmp_path, homer):
    samples = evaluated(tmp_path, HomerLM(homer), [{"prompt": LONG, "target": "w1"}], **generation())
    (parts,) = homer.prompts
    assert [len(part) for part in parts] == [6, 280, 14]  # half of the target of 40, split like 64 to 128
    assert [*chain(*parts)] == homer.tokenizer(LONG).input_ids
    context = homer.compress(*(torch.tensor([part]) for part in parts))
    expected = homer.generate(context, max_new_tokens=6, do_sample=False)
    assert samples[0]["resps"][0][0] == homer.tokenizer.decode(expected[0])


def test_a_given_split_is_kept_or_refused(homer):
    requests = instances((LONG, {"max_gen_toks": 1}), kind="generate_until")
    HomerLM(homer, prefix_tokens=3, suffix_tokens=20).generate_until(requests)
    assert [len(part) for part in homer.prompts[-1]] == [3, 277, 20]
    with pytest.raises(ScheduleError, match="target_len is 40, but prefix"):
        HomerLM(homer, suffix_tokens=41).generate_until(requests)


def test_short_prompts_are_the_plain_models(tmp_path, homer):
    samples = evaluated(tmp_path, HomerLM(homer), [{"prompt": SHORT}], **multiple_choice())
    resps = [tuple(resp[0]) for resp in samples[0]["resps"]]
    for (total, greedy), choice in zip(resps, CHOICES, strict=True):
        expected, expected_greedy = plain(homer.model, homer.tokenizer, SHORT, choice)
        assert float(total) == pytest.approx(expected, abs=1e-4)
        assert str(greedy) == str(expected_greedy)
    ids = torch.tensor([homer.tokenizer(SHORT).input_ids])
    new = homer.model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    text = homer.tokenizer.decode(new)
    (written,) = HomerLM(homer).generate_until(instances((SHORT, {"max_gen_toks": 4}), kind="generate_until"))
    assert written == text
    (scored,) = HomerLM(homer).loglikelihood(instances((SHORT, " " + text)))
    assert scored[1]
    assert homer.prompts == []


def test_a_question_is_compressed_once_for_all_its_choices(tmp_path, homer):
    rows = [{"prompt": LONG}, {"prompt": f"w5 {LONG}"}]
    samples = evaluated(tmp_path, HomerLM(homer), rows, **multiple_choice())
    assert len(homer.prompts) == 2
    for sample, parts in zip(samples, homer.prompts[:2], strict=True):
        context = homer.compress(*(torch.tensor([part]) for part in parts))
        for (resp,), choice in zip(sample["resps"], CHOICES, strict=True):
            ids = torch.tensor([homer.tokenizer(choice).input_ids])
            logits = torch.cat([context.logits[:, None], homer.score(context, ids)], dim=1)[0, :-1]
            expected = logits.log_softmax(-1).gather(1, ids.T).sum().item()
            assert float(resp[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "long"])
def test_until_stops(tmp_path, homer, prompt):
    lm, steps = HomerLM(homer), []
    (whole,) = lm.generate_until(instances((prompt, {"max_gen_toks": 8}), kind="generate_until"))
    stop = whole.split()[3]
    expected = whole[: whole.index(stop)]
    hook = homer.model.register_forward_hook(lambda *_: steps.append(1))
    samples = evaluated(tmp_path, lm, [{"prompt": prompt, "target": "w1"}], **generation([stop], tokens=200))
    hook.remove()
    assert samples[0]["resps"][0][0] == expected
    assert len(steps) <= 4 + 10  # the steps up to the stop, and the compression's; not the 200 asked for


def test_rolling_likelihood_within_the_limit_is_the_plain_models(tmp_path, homer):
    text = " ".join(f"w{11 * i % 90}" for i in range(LIMIT))
    task = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{prompt}}"}
    task |= {"metric_list": [{"metric": "word_perplexity"}]}
    samples = evaluated(tmp_path, HomerLM(homer), [{"prompt": text}], **task)
    expected, _ = plain(homer.model, homer.tokenizer, "<eos>", text)
    assert float(samples[0]["resps"][0][0]) == pytest.approx(expected, rel=1e-5)
    assert homer.prompts == []


def test_rolling_windows_beyond_the_limit_follow_everything_before_them(homer):
    text = " ".join(f"w{11 * i % 90}" for i in range(LIMIT + 300))
    ids = [homer.tokenizer.eos_token_id, *homer.tokenizer(text).input_ids]
    (total,) = HomerLM(homer).loglikelihood_rolling(instances((text,), kind="loglikelihood_rolling"))
    first, second = LIMIT + 1, LIMIT + 1 + LIMIT // 2
    prompts = list(homer.prompts)
    assert [[*chain(*parts)] for parts in prompts] == [ids[:first], ids[:second]]
    expected, _ = plain(homer.model, homer.tokenizer, "<eos>", " ".join(text.split()[:LIMIT]))
    for parts, stop in zip(prompts, (second, len(ids)), strict=True):
        context = homer.for_later(chosen_by="attention").compress(*(torch.tensor([part]) for part in parts))
        window = torch.tensor([ids[sum(map(len, parts)) : stop]])
        logits = torch.cat([context.logits[:, None], homer.score(context, window)], dim=1)[0, :-1]
        expected += logits.log_softmax(-1).gather(1, window.T).sum().item()
    assert total == pytest.approx(expected, rel=1e-5)


def test_the_chat_template_is_the_models(tmp_path, homer):
    rows = [{"prompt": LONG, "target": "w1"}]
    evaluated(tmp_path, HomerLM(homer), rows, apply_chat_template=True, **generation())
    expected = f"<user> {LONG} <end> <assistant> "
    assert [*chain(*homer.prompts[0])] == homer.tokenizer(expected).input_ids


def test_a_continuation_beyond_the_limit_is_refused(homer):
    with pytest.raises(InputError, match="only what comes before a continuation is compressed"):
        HomerLM(homer).loglikelihood(instances((SHORT, " " + " ".join(["w1"] * LIMIT))))


def test_model_args_reach_the_config_and_the_model(model_folder):
    text = f"pretrained={model_folder},preset=paper,score=softmax,rope=yarn:2,device=cpu,dtype=float32,target_len=200"
    args = f"{text},chunk_share=1,prefix_tokens=7,max_gen_toks=9"
    lm = HomerLM.create_from_arg_string(args, {"batch_size": 1, "max_batch_size": None, "device": None})
    expected = HomerConfig.paper(score="softmax", target_len=200, chunk_share=1)
    assert lm.homer.config == expected
    assert (lm.homer.limit, lm.prefix_tokens, lm.suffix_tokens, lm.max_gen_toks) == (2 * LIMIT, 7, 67, 9)
    assert lm._window() == LIMIT // 2  # a quarter of the scaled limit, as the paper does for YaRN
    as_texts = {"pretrained": str(model_folder), "target_len": "200", "min_share": "0.5", "device": "cpu"}
    assert HomerLM.create_from_arg_obj(as_texts).homer.config == HomerConfig(target_len=200, min_share=0.5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("truncate=true,max_length=9", "truncate is not a setting.*the model homer also takes pretrained"),
        ("preset=best", "preset is 'best'; it must be one of default, paper"),
        ("target_len=many", "target_len is 'many'; it must be a"),
        ("target_len=1e3", "target_len is '1000.0'; it must be a"),
        ("preset=paper,chunk_share=none", "chunk_share is 'None'; it must be a number"),
    ],
)
def test_wrong_model_args_are_named(args, message):
    with pytest.raises(ConfigError, match=message):
        HomerLM.create_from_arg_string(f"pretrained=nowhere,{args}")


def test_the_former_command_is_the_present_one():
    assert former.main is main


def test_the_command_finds_the_model_in_a_process_of_its_own(tmp_path, model_folder):
    write_task(tmp_path, [{"prompt": LONG, "target": "w1"}], generation())
    args = f"pretrained={model_folder},max_chunk_len=48,target_len=40"
    options = ["--include_path", str(tmp_path), "--tasks", "local"]
    command = [sys.executable, "-m", "homerlm.lab.lm_eval", "--model", "homer", *options, "--model_args"]
    done = subprocess.run([*command, args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "homer ({'pretrained'" in done.stdout
    assert "|local|" in done.stdout.replace(" ", "")


def test_a_mistake_ends_the_command_in_one_line(monkeypatch):
    def command():
        HomerLM.create_from_arg_string("taget_len=9")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", command)
    with pytest.raises(SystemExit, match="Error: model_args: taget_len is not a setting"):
        main()
