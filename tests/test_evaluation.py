"""`homer eval`'s inside: methods, samples, readers, perplexity, records, and the run that binds them."""

import json
import math
from dataclasses import replace

import pytest
import torch

from families import SUPPORTED
from homerlm import Calibration, Homer, HomerConfig
from homerlm.errors import ConfigError, InputError, OutOfMemoryError
from homerlm.lab.evaluate import Models, SampleWork, jobs_of
from homerlm.lab.facts import processor
from homerlm.lab.likelihood import Likelihood, Prefill
from homerlm.lab.methods import Method, parse_methods
from homerlm.lab.perplexity import AFFIX, WindowsWork, rotations
from homerlm.lab.questions import Setup, answered, ask_later, ask_now, token_spots
from homerlm.lab.readers import SINKS, HomerReading, IndexReading, reader_for
from homerlm.lab.records import RecordFile, read_records
from homerlm.lab.run import run
from homerlm.lab.samples import GRADINGS, Question, Sample, count_tokens
from homerlm.lab.tasks.needle import KINDS, needle
from homerlm.lab.tasks.passkey import passkey, passkey_perplexity
from homerlm.lab.tasks.prose import hide
from homerlm.lab.tasks.quality import Item, load_quality, quality
from homerlm.model.rope import RopeScaling
from homerlm.prompt import PromptIds
from tiny import LIMIT, VOCAB, llama, prompt

TEXT = " ".join(f"Sentence w{i % 90} stands here." for i in range(3000))
HOMER = "homer:max_chunk_len=120,target_len=90"
PAPER = "homer-paper:max_chunk_len=120,target_len=90,warmup_layers=2"


# Methods


@pytest.mark.parametrize(
    ("text", "base", "settings", "rope"),
    [
        ("plain", "plain", {}, None),
        ("pi:2", "plain", {}, "pi:2"),
        ("plain+ntk:4", "plain", {}, "ntk:4"),
        ("homer-paper+yarn:2", "homer-paper", {}, "yarn:2"),
        ("homer:target_len=2048,pooling=1,score=softmax", "homer", {"target_len": 2048, "pooling": 1}, None),
        ("homer-paper:chunk_share=0.5+pi:8", "homer-paper", {"chunk_share": 0.5}, "pi:8"),
        ("truncate:budget=100+pi:2", "truncate", {"budget": 100}, "pi:2"),
        ("streaming", "streaming", {}, None),
        ("homer:target_len=2k,prefilter=1M", "homer", {"target_len": 2048, "prefilter": 1 << 20}, None),
        ("bm25:budget=1k", "bm25", {"budget": 1024}, None),
    ],
)
def test_a_method_is_read_from_its_name(text, base, settings, rope):
    method = Method.parse(text)
    assert method.base == base
    assert settings.items() <= dict(method.settings).items()
    assert method.rope == (RopeScaling.parse(rope) if rope else None)
    assert Method.parse(str(method)) == method


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("homre", "method is 'homre'"),
        ("homer:nothing=1", "method is 'homer:nothing=1': nothing is not a setting"),
        ("homer:pooling=two", "it must be a number"),
        ("homer:pooling=2", "pooling is 2"),
        ("plain:budget=3", "is not a setting of plain"),
        ("truncate:budget=many", "budget is 'many'; it must be a number"),
        ("bm25:budget=0", "budget=0 is not a setting of bm25; it has budget=TOKENS, passage=TOKENS"),
        ("embed:budget=64", "needs the folder of its model"),
        ("homer+long:2", "RopeScaling.method is 'long'"),
        ("homer+pi:1", "RopeScaling.factor"),
    ],
)
def test_a_wrong_method_is_refused_by_name(text, why):
    with pytest.raises(ConfigError, match=why):
        Method.parse(text)


@pytest.mark.parametrize(
    "given",
    [
        ["plain pi:2 homer:min_share=0.0,pooling=1+yarn:2 homer-paper"],
        ["plain,pi:2,homer:min_share=0.0,pooling=1+yarn:2,homer-paper"],
        ["plain, pi:2", "homer:min_share=0.0,pooling=1+yarn:2", "homer-paper,plain"],
    ],
)
def test_methods_are_listed_by_commas_or_spaces(given):
    names = ["plain", "plain+pi:2", "homer:min_share=0.0,pooling=1+yarn:2", "homer-paper"]
    assert [str(method) for method in parse_methods(given)] == names


def test_the_settings_reach_the_config():
    assert Method.parse("homer-paper:target_len=77").config() == HomerConfig.paper(target_len=77)
    assert Method.parse("homer").config() == HomerConfig()


# Samples


@pytest.mark.parametrize("length", [300, 1000])
@pytest.mark.parametrize(
    "task", [passkey(), *(needle(name, TEXT, "text") for name in KINDS)], ids=lambda task: task.variant or task.name
)
def test_samples_fit_their_length_and_hold_what_is_expected(words, task, length):
    length *= 2 if task.variant in ("keys", "queries", "values", "single-uuid") else 1
    for index in range(4):
        sample = task.sample(words, length, index, seed=3)
        prompts = Setup(llama(), words, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
        tokens = sum(part.shape[1] for part in (prompts.prefix, prompts.context, prompts.suffix))
        assert 0.5 * length < tokens <= length
        for expected in sample.questions[0].expected:
            assert expected in sample.document
            assert expected not in sample.questions[0].text + sample.questions[0].answer_start
        assert sample == task.sample(words, length, index, seed=3)
        assert sample != task.sample(words, length, index, seed=4)


def test_ten_samples_visit_every_tenth_of_the_document(words):
    for task in (passkey(), needle("keys", TEXT, "text")):
        depths = [task.sample(words, 2000, index, seed=0).depth for index in range(10)]
        assert sorted(int(depth * 10 + 0.02) for depth in depths) == pytest.approx(list(range(10)), abs=1)
        assert max(depths) > 0.85
        assert max(depths[:4]) - min(depths[:4]) > 0.7, "four samples are already spread over the document"


def test_the_asked_fact_stands_at_its_depth(words):
    task = needle("keys", TEXT, "text")
    for index in range(10):
        sample = task.sample(words, 2000, index, seed=1)
        at = sample.document.index(sample.questions[0].expected[0]) / len(sample.document)
        assert at == pytest.approx(sample.depth, abs=0.05)


def test_several_questions_ask_for_different_facts(words):
    sample = needle("single", TEXT, "text", ask="later").sample(words, 2000, 0, seed=1)
    assert len({question.expected for question in sample.questions}) == 5
    assert all(question.expected[0] in sample.document for question in sample.questions)


def test_no_room_for_text_is_refused(words):
    with pytest.raises(InputError, match="no room"):
        passkey().sample(words, 60, 0, 0)
    with pytest.raises(InputError, match="no room"):
        needle("keys", TEXT, "text").sample(words, 200, 0, 0)


def test_facts_go_to_sentence_ends():
    assert hide("One. Two. Three.", [(0.0, "A."), (0.5, "B.")]) == "A. One. Two. B. Three."
    assert hide("One. Two.", [(0.5, "B."), (0.5, "A.")]) == "One. B. A. Two."
    assert hide("One. Two. Three. ", [(1.0, "Z.")]).rstrip().endswith("Three. Z.")


@pytest.mark.parametrize(
    ("grade", "answer", "expected", "score"),
    [
        ("first_integer", " 12,345. And 7", ("12345",), 1.0),
        ("first_integer", "7 or 12345", ("12345",), 0.0),
        ("first_integer", "none", ("12345",), 0.0),
        ("share_held", "Oslo: 11, Rome: 22", ("11", "22", "33", "44"), 0.5),
        ("share_held", "KEEN-badger", ("keen-badger",), 1.0),
        ("first_letter", " B. Because A", ("B",), 1.0),
        ("first_letter", "Bad A", ("B",), 0.0),
    ],
)
def test_grades(grade, answer, expected, score):
    assert GRADINGS[grade](answer, expected) == score


# Readers


def _ids(prefix, context, suffix):
    return PromptIds(prefix, context, suffix)


def test_the_plain_reader_is_the_plain_model():
    model, (p, c, s) = llama(), prompt()
    reading = reader_for(Method.parse("plain"), model, None).read(_ids(p, c, s), 8)
    whole = torch.cat([p, c, s], dim=1)
    with torch.no_grad():
        new = model.generate(whole, max_new_tokens=6, do_sample=False)[0, whole.shape[1] :]
        follow = torch.randint(1, VOCAB, (1, 7), generator=torch.Generator().manual_seed(4))
        logits = model(torch.cat([whole, follow], dim=1)).logits[0, whole.shape[1] - 1 : -1]
    assert reading.generate(6) == new.tolist()
    expected = logits.log_softmax(-1).gather(1, follow[0, :, None])[:, 0]
    torch.testing.assert_close(reading.prefill().score(follow).log_probs, expected, atol=1e-4, rtol=1e-4)


def test_truncate_keeps_head_and_tail_and_streaming_its_sinks_and_the_end():
    model, (p, c, s) = llama(), prompt(context=300)
    length = p.shape[1] + 300 + s.shape[1]
    truncated = reader_for(Method.parse("truncate:budget=108"), model, None).read(_ids(p, c, s), 8)
    assert truncated.token_indices.tolist() == [*range(50), *range(length - 50, length)]
    streamed = reader_for(Method.parse("streaming:budget=108"), model, None).read(_ids(p, c, s), 8)
    assert streamed.token_indices.tolist() == [*range(SINKS), *range(length - (100 - SINKS), length)]
    whole = torch.cat([p, c, s], dim=1)
    assert torch.equal(truncated.input_ids[0], whole[0, truncated.token_indices])


def test_what_fits_is_not_truncated():
    model, (p, c, s) = llama(), prompt(context=40)
    reading = reader_for(Method.parse("truncate:budget=60"), model, None).read(_ids(p, c, s), 8)
    assert reading.token_indices.tolist() == list(range(p.shape[1] + 40 + s.shape[1]))


@pytest.mark.parametrize(("rope", "share"), [("pi:2", 1.0), ("ntk:2", 0.75), ("yarn:2", 0.75)])
def test_clipping_leaves_three_quarters_under_ntk_and_yarn(rope, share):
    model, (p, c, s) = llama(), prompt(context=900)
    reading = reader_for(Method.parse(f"truncate+{rope}"), model, None).read(_ids(p, c, s), 12)
    assert len(reading.token_indices) == int(LIMIT * share) - 12


@pytest.mark.parametrize("name", [HOMER, f"{PAPER},score=logit,refinement=none"])
def test_the_homer_reader_is_homer(name):
    model, (p, c, s) = llama(), prompt(context=400)
    method = Method.parse(name)
    reading = reader_for(method, model, None).read(_ids(p, c, s), 8)
    homer = Homer(model, None, method.config())
    context = homer.compress(p, c, s)
    assert reading.token_indices.tolist() == context.token_indices[0].tolist()
    assert reading.generate(5) == homer.generate(context, max_new_tokens=5, do_sample=False)[0].tolist()
    follow = torch.tensor([[5, 9, 14]])
    logits = torch.cat([context.logits[:, None], homer.score(context, follow)[:, :-1]], dim=1)
    expected = logits.log_softmax(-1)[0].gather(1, follow[0, :, None])[:, 0]
    torch.testing.assert_close(reading.prefill().score(follow).log_probs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["plain", "truncate:budget=70", HOMER])
def test_asked_again_a_reading_has_the_new_suffix_in_place_of_the_old(text):
    model, (p, c, s) = llama(), prompt(context=200)
    reader = reader_for(Method.parse(text), model, None)
    new = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    again = reader.read(_ids(p, c, s), 5).ask_again(new)
    assert again.token_indices[-7:].tolist() == list(range(204, 211))
    if text == "plain":
        assert again.generate(5) == reader.read(_ids(p, c, new), 5).generate(5)


# Likelihood and perplexity


@pytest.mark.parametrize("width", [1, 13, 1024])
def test_a_text_is_scored_piece_by_piece_as_if_at_once(width):
    model = llama()
    ids = torch.cat(prompt(context=60), dim=1)
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    read = []
    hook = model.register_forward_pre_hook(
        lambda _model, _args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    read_first = Prefill.of(model, ids[:, :20])
    read_first.width = width
    scored = read_first.score(ids[:, 20:])
    hook.remove()
    torch.testing.assert_close(
        scored.log_probs, logits[19:].log_softmax(-1).gather(1, ids[0, 20:, None])[:, 0], atol=1e-4, rtol=1e-4
    )
    assert scored.greedy.tolist() == (logits[19:].argmax(-1) == ids[0, 20:]).tolist()
    assert sum(read) == ids.shape[1] - 1  # nothing comes after the last one
    assert max(read[1:]) <= width


def test_likeliest_ids_are_greedy():
    model = llama()
    ids = torch.cat(prompt(context=60), dim=1)
    start = Prefill.of(model, ids)
    assert start.score(start.logits.argmax(-1)[None]).greedy.tolist() == [True]
    assert start.score(start.logits.argmin(-1)[None]).greedy.tolist() == [False]


def test_plain_windows_sum_to_the_models_own_likelihood(words):
    model = llama(max_position_embeddings=64)
    document = " ".join(f"w{(7 * i) % 90}" for i in range(150))
    work = WindowsWork(document, 0, 150, 64, "text")
    assert work.ends == [64, 96, 128]
    setup = Setup(model, words, reader_for(Method.parse("plain"), model, words))
    outcomes = [outcome for _, outcome in work.run(setup, ())]
    ids = torch.tensor([words(document).input_ids])[:, :128]
    with torch.no_grad():
        expected = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
    assert [outcome["count"] for outcome in outcomes] == [63, 32, 32]
    assert sum(outcome["nll"] for outcome in outcomes) == pytest.approx(expected, rel=1e-4)


def test_homer_windows_see_all_before_them_compressed(words):
    model = llama(max_position_embeddings=512)
    document = " ".join(f"w{(7 * i * i) % 90}" for i in range(1300))
    work = WindowsWork(document, 0, 1024, 512, "text")
    method = Method.parse("homer:max_chunk_len=320,target_len=250")
    reader = reader_for(method, model, words)
    outcomes = dict(work.run(Setup(model, words, reader), done={0}))
    assert sorted(outcomes) == [1, 2]
    ids = torch.tensor([words(document).input_ids])
    homer = Homer(model, words, method.config()).for_later(chosen_by="attention")
    context = homer.compress(ids[:, :AFFIX], ids[:, AFFIX : 768 - AFFIX], ids[:, 768 - AFFIX : 768])
    window = ids[:, 768:1024]
    with torch.no_grad():
        logits = torch.cat([context.logits[:, None], homer.score(context, window)[:, :-1]], dim=1)
    expected = -logits.log_softmax(-1)[0].gather(1, window[0, :, None]).sum().item()
    assert outcomes[2]["nll"] == pytest.approx(expected, rel=1e-4)
    assert (outcomes[2]["tokens"], outcomes[2]["count"], outcomes[2]["kept"]) == (768, 256, len(context))
    assert len(context) > 250


def test_a_short_document_gives_only_the_windows_it_has(words):
    model = llama(max_position_embeddings=64)
    work = WindowsWork(" ".join(["w1"] * 100), 0, 1000, 64, "text")
    setup = Setup(model, words, reader_for(Method.parse("plain"), model, words))
    assert [place for place, _ in work.run(setup, ())] == [0, 1]


def test_rotations_put_every_part_everywhere():
    turned = rotations("abcdefgh", 4)
    assert [text[:2] for text in turned] == ["ab", "cd", "ef", "gh"]
    assert all(sorted(text.replace("\n", "")) == list("abcdefgh") for text in turned)


# QuALITY


def _released(tmp_path, **changes):
    question = {"question": "Who?", "options": ["a", "b", "c", "d"], "gold_label": 3} | changes
    path = tmp_path / "quality.jsonl"
    path.write_text(json.dumps({"article": "A story.", "questions": [question, question]}) + "\n")
    return path


def test_quality_is_read_as_it_is_released(tmp_path):
    assert load_quality(_released(tmp_path)) == (Item("A story.", "Who?", ("a", "b", "c", "d"), 2),) * 2


@pytest.mark.parametrize("changes", [{"options": ["a", "b"]}, {"gold_label": 5}, {"gold_label": None}])
def test_a_wrong_quality_file_is_refused(tmp_path, changes):
    with pytest.raises(InputError, match="row 1"):
        load_quality(_released(tmp_path, **changes))
    with pytest.raises(InputError, match="none cannot be read"):
        load_quality(tmp_path / "none")


def test_a_quality_question_is_judged_by_letter_and_by_likelihood(words):
    sample = quality((Item("A story.", "Who?", ("a", "b", "c", "d"), 2),), "q").sample(words, 0, 0, 0)
    (question,) = sample.questions
    assert question.text == "Question and Possible Answers:\nWho?\n(a) a\n(b) b\n(c) c\n(d) d\n"
    assert question.expected == ("C",)

    class Likes:
        token_indices = torch.arange(3)

        def generate(self, _):
            return [0]

        def prefill(self):
            return self

        def score(self, ids):
            return Likelihood(torch.tensor([-1.0 if ids.tolist() == [[5]] else -2.0]), torch.tensor([True]))

        def ask_again(self, _):
            return self

    vocabulary = {" A": 2, " B": 3, " C": 5, " D": 7}

    class Letters:
        is_fast = False
        all_special_tokens = ()

        def __len__(self):
            return len(vocabulary)

        def __call__(self, text, **_):
            return type("E", (), {"input_ids": [vocabulary.get(text, 1)]})

        def decode(self, *_, **__):
            return "A."

    outcome = answered(4)(Setup(None, Letters(), None), question, None, Likes())
    assert (outcome["score"], outcome["likelihood_score"]) == (0.0, 1.0)


# Trials and runs


class Recorder:
    """A reader that notes what it was asked to read."""

    def __init__(self, error=None):
        self.read_ids, self.asked, self.error = [], [], error

    def read(self, ids, _room, _use="answer"):
        self.read_ids.append(ids)
        if self.error:
            raise self.error
        return self

    def read_for_later(self, ids, room):
        return self.read(ids, room)

    token_indices = torch.arange(4, 50)

    def generate(self, _):
        return [1]

    def ask_again(self, ids):
        self.asked.append(ids)
        return self


def _sample():
    questions = tuple(Question(f"Where is w{i} ?", "It is", (f"w{i}",), "share_held") for i in (7, 9))
    return Sample("Read .", "w1 w2 w7 w3 w9 w4", questions, 0.5)


def test_asked_now_every_question_is_read_and_later_only_once(words):
    reader = Recorder()
    setup = Setup(llama(), words, reader)
    assert len(list(ask_now(setup, _sample(), 8, answered(4)))) == 2
    assert (len(reader.read_ids), len(reader.asked)) == (2, 0)
    reader = Recorder()
    setup = Setup(llama(), words, reader)
    outcomes = list(ask_later(setup, _sample(), 8, answered(4)))
    assert (len(reader.read_ids), len(reader.asked)) == (1, 2)
    assert "w7" not in words.decode(reader.read_ids[0].suffix[0])
    assert "w9" in words.decode(reader.asked[1][0])
    assert [outcome["expected"] for outcome in outcomes] == [["w7"], ["w9"]]


def test_asked_later_the_default_asks_an_index_and_the_paper_what_it_compressed(words):
    model = llama()
    for name, kind in (
        ("homer:max_chunk_len=60,target_len=40", IndexReading),
        ("homer-paper:score=logit", HomerReading),
    ):
        setup = Setup(model, words, reader_for(Method.parse(name), model, words))
        ids = setup.ids(_sample(), _sample().questions[0])
        kept = setup.reader.read_for_later(ids, 8)
        assert isinstance(kept, kind)
        again = kept.ask_again(ids.suffix)
        assert again.token_indices[-1] == sum(ids.lengths[:3]) - 1


def test_the_share_of_the_answer_that_survived_is_counted(words):
    document = "w1 w2 w77 w3 w9 w77"
    assert token_spots(words, document, ("w77",), 10) == [12, 15]
    assert token_spots(words, document, ("w99",), 10) == []
    setup = Setup(llama(), words, Recorder())
    (first, second) = ask_now(setup, _sample(), 8, answered(4))
    w7 = setup.ids(_sample(), _sample().questions[0]).prefix.shape[1] + 2  # its index in the prompt
    assert (first["needle_kept"], second["needle_kept"]) == (float(w7 in range(4, 50)), 1.0)


def test_a_failure_is_a_record(words):
    setup = Setup(llama(), words, Recorder(OutOfMemoryError("16 GB wanted")))
    outcomes = list(ask_now(setup, _sample(), 8, answered(4)))
    assert all(outcome["error"].startswith("out of memory") for outcome in outcomes)
    setup = Setup(llama(), words, Recorder(InputError("no")))
    assert next(ask_now(setup, _sample(), 8, answered(4)))["error"] == "InputError: no"


def counted(made):
    """A task of passkeys that notes its samples."""

    def make(draw):
        made.append(draw)
        return task.make(draw)

    task = passkey()
    return replace(task, make=make, max_new_tokens=3)


def run_plan(folder, words, plan, load=None):
    """What the run returned, and what it told of its progress."""
    seen = []
    models = Models(load or (lambda _: (llama(), words)))
    failed = run(jobs_of(plan, models), RecordFile(folder), progress=lambda *state: seen.append(state))
    return failed, seen


def _run(folder, words, samples, methods=("plain", "streaming:budget=120"), length=200, made=None):
    works = [SampleWork(counted([] if made is None else made), length, i, 0) for i in range(samples)]
    return run_plan(folder, words, [(Method.parse(name), works) for name in methods])


def test_a_run_goes_on_where_it_was_stopped(tmp_path, words):
    made = []
    _run(tmp_path / "whole", words, 4)
    whole = (tmp_path / "whole" / "records.jsonl").read_text().splitlines()
    assert len(whole) == 8
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "records.jsonl").write_text("\n".join(whole[:3]) + "\n" + whole[3][:40])
    _run(tmp_path / "cut", words, 4, made=made)
    assert len(made) == 5

    def result(folder):
        return {
            (r["method"], r["sample"]): (r["answer"], r["score"], r["kept"]) for r in read_records(tmp_path / folder)[0]
        }

    assert result("cut") == result("whole")


def test_progress_ends_with_everything_done(tmp_path, words):
    _, seen = _run(tmp_path, words, 2)
    assert seen[0][1:] == (0, 4)
    assert seen[-1] == ("done", 4, 4)


def test_a_sample_that_cannot_be_made_is_recorded_and_tried_again(tmp_path, words):
    made = []
    failed, _ = _run(tmp_path, words, 2, length=50)
    assert failed.startswith("InputError: a passkey prompt of 50 tokens")
    records, _ = read_records(tmp_path)
    assert [r["error"][:10] for r in records] == ["InputError"] * 4
    _run(tmp_path, words, 2, length=50, made=made)
    assert len(made) == 4


def test_records_say_what_made_them(tmp_path, words):
    _run(tmp_path, words, 1, methods=["plain"])
    ((record,), _) = read_records(tmp_path)
    assert record["device"].startswith("cpu")
    assert record["processor"] == processor()
    assert record["dtype"] == "float32"
    assert record["limit"] == LIMIT
    assert {"homerlm", "torch", "transformers", "python"} == set(record["versions"])
    assert record["seconds"] > 0
    assert record["peak_bytes"] >= 0
    assert record["tokens"] == record["kept"] <= 200
    assert math.isfinite(record["depth"])
    assert count_tokens(words, " ".join(record["expected"])) == 1


def test_models_are_loaded_once_for_each_scaling(tmp_path, words):
    loads = []

    def load(rope):
        loads.append(rope and str(rope))
        return llama(), words

    plan = [
        (Method.parse(name), [SampleWork(counted([]), 200, 0, 0)]) for name in ("plain", "pi:2", "streaming:budget=120")
    ]
    run_plan(tmp_path, words, plan, load)
    assert loads == [None, "pi:2"]


def test_a_method_that_does_not_fit_the_model_is_recorded_and_the_others_run(tmp_path, words):
    works = [SampleWork(counted([]), 200, i, 0) for i in range(2)]
    failed, _ = run_plan(tmp_path, words, [(Method.parse(name), works) for name in ("homer-paper", "plain")])
    assert failed is None  # not all of it
    records, _ = read_records(tmp_path)
    assert [("needs a calibration" in (r["error"] or ""), r["method"]) for r in records] == [
        (True, "homer-paper"),
        (True, "homer-paper"),
        (False, "plain"),
        (False, "plain"),
    ]


def test_the_calibration_that_is_the_models_own_is_taken(tmp_path, words):
    other, own = llama(seed=1), llama()
    for name, model in (("other", other), ("own", own)):
        text = " ".join(f"w{i * i % 90}" for i in range(400))
        Calibration.measure(model, words, [text], length=200, segments=1).save(tmp_path / name)
    paths = [tmp_path / "other", tmp_path / "own"]
    method = Method.parse("homer-paper:max_chunk_len=120,target_len=90,warmup_layers=2")
    reader = reader_for(method, own, words, paths)
    assert torch.equal(reader.homer.config.calibration.bias, Calibration.load(paths[1], own).bias)
    with pytest.raises(ConfigError, match="needs a calibration"):
        reader_for(method, own, words, paths[:1])


@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.name)
def test_every_supported_family_can_be_evaluated(tmp_path, words, family):
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    wide = json.dumps(family.sizes).replace('"sliding_window": 24', '"sliding_window": 160')
    family = replace(family, sizes=json.loads(wide))  # a chunk is to hold the whole question
    model = family.build()
    works = [
        SampleWork(counted([]), 300, 0, 0),
        SampleWork(passkey_perplexity(), 300, 0, 0),
    ]
    methods = [Method.parse(name) for name in ("plain", "homer:max_chunk_len=160,target_len=120")]
    run_plan(tmp_path, words, [(method, works) for method in methods], lambda _: (model, words))
    records, _ = read_records(tmp_path)
    assert [(r["error"], r["kept"] <= 120 or r["method"] == "plain") for r in records] == [(None, True)] * 4
    assert all(math.isfinite(r["nll"]) for r in records if r["task"] == "passkey-perplexity")


def test_the_processor_is_named_as_the_system_names_it(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD  EPYC: 7R13\n\nmodel name\t: other\n")
    assert processor(cpuinfo) == "AMD EPYC: 7R13"
    monkeypatch.setattr("platform.processor", lambda: "arm")
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50\n")
    assert processor(cpuinfo) == processor(tmp_path / "none") == "arm"
