"""Wrong arguments of the public names: our own error, one plain sentence, before any work."""

import asyncio

import pytest
import torch

from homerlm import (
    Calibration,
    CompactContext,
    Endpoint,
    Homer,
    HomerConfig,
    Index,
    Profile,
    RopeScaling,
    compile_model,
    load_model,
    plan,
)
from homerlm.errors import ConfigError, InputError, MismatchError, ModelLoadError, ScheduleError
from tiny import LAYERS, llama

DOCUMENT = " ".join(f"w{i % 90}" for i in range(200))
TREE = {"max_chunk_len": 40, "target_len": 40, "warmup_layers": 2, "layers": LAYERS}


@pytest.fixture(scope="module")
def read(text_homer):
    return text_homer.read(DOCUMENT)


@pytest.fixture(scope="module")
def context(text_homer):
    return text_homer.ask(DOCUMENT, "w1", max_new_tokens=1).context


@pytest.fixture
def no_work(text_homer, monkeypatch):
    """Whatever is compressed is an error of the test."""

    def compress(*_args, **_kwargs):
        raise AssertionError("something was read")

    monkeypatch.setattr(type(text_homer.method), "compress", compress)


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"instruction": 3}, InputError, "instruction is int; it must be text"),
        ({"answer_start": 3}, InputError, "answer_start is int; it must be text"),
        ({"chat": "yes"}, ConfigError, "chat is 'yes'; it must be True, False"),
        ({"template_options": 3}, ConfigError, "template_options is 3; it must be a dict"),
        ({"num_beams": 0}, ConfigError, "num_beams is 0; it must be a whole number of at least 1"),
        ({"num_return_sequences": "2"}, ConfigError, "num_return_sequences is '2'"),
        ({"do_sample": True, "temperature": -1.0}, ConfigError, "temperature is -1.0, which .* refuses"),
        ({"do_sample": True, "temperature": "hot"}, ConfigError, "temperature is 'hot', which .* refuses"),
        ({"do_sample": True, "top_p": 2.0}, ConfigError, "top_p is 2.0, which .* refuses"),
        ({"do_sample": True, "top_k": -2}, ConfigError, "top_k is -2, which .* refuses"),
    ],
)
def test_settings_of_a_question_are_refused_before_the_document_is_read(text_homer, no_work, settings, error, named):
    with pytest.raises(error, match=named):
        text_homer.ask(DOCUMENT, "w1", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 1, "top_k": 0, "top_p": 1.0, "typical_p": 1.0},
        {"do_sample": False, "temperature": 0.0},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
    ],
)
def test_what_generate_takes_is_not_refused(text_homer, settings):
    assert text_homer.ask(DOCUMENT, "w1", max_new_tokens=2, **settings).new_tokens == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a finite number"),
        ({"top_p": "all"}, "top_p is 'all'; it must be above 0"),
        ({"stop": 3}, "stop is 3; it must be a tuple of texts"),
    ],
)
def test_settings_of_an_answer_in_an_event_loop_are_refused(text_homer, settings, named):
    with pytest.raises(ConfigError, match=named):
        asyncio.run(text_homer.aask(DOCUMENT, "w1", **settings))


@pytest.mark.parametrize(
    ("documents", "named"),
    [
        ([("name",)], "a document is tuple; it must be a pair"),
        ([("name", 4)], r"a pair of str, int; it must be \(name, text\)"),
        (["name"], "a document is str; it must be a pair"),
        ("text", "documents is str; it must be pairs"),
        (4, "documents is int; it must be pairs"),
    ],
)
def test_a_collection_is_made_of_names_and_texts(text_homer, documents, named):
    with pytest.raises(InputError, match=named):
        text_homer.read_all(documents)


def test_an_index_grows_from_an_index_with_the_same_instruction(text_homer, read, context):
    for into in ("book.homer", context):
        with pytest.raises(InputError, match=f"into is {type(into).__name__}; it must be an Index"):
            text_homer.read(DOCUMENT, into=into)
    with pytest.raises(MismatchError, match=r"made with another instruction") as refused:
        text_homer.read(DOCUMENT, into=read, instruction="w5 w6")
    assert "(" not in str(refused.value), "ids tell nobody anything"


def test_an_index_is_no_context_yet(text_homer, read, context):
    ids = torch.tensor([[3, 4]])
    for use in (
        lambda: text_homer.generate(read, max_new_tokens=1),
        lambda: text_homer.score(read, ids),
        lambda: text_homer.exchange_suffix(read, ids),
    ):
        with pytest.raises(InputError, match=r"context is an Index.*focus\(index, suffix_ids\)"):
            use()
    with pytest.raises(InputError, match="index is CompactContext; it must be an Index"):
        text_homer.search(context, ids)


def test_rows_that_are_not_there_are_refused(context):
    assert torch.equal(context.row(0).input_ids, context.input_ids)
    for index in (1, -1):
        with pytest.raises(InputError, match=f"index is {index}; the context has rows 0 to 0"):
            context.row(index)
    with pytest.raises(InputError, match="rows is empty"):
        CompactContext.stack([])


@pytest.mark.parametrize(
    "use",
    [
        lambda _words: Index.load("book.homer", None),
        lambda _words: CompactContext.load("book.homer", None),
        lambda _words: Calibration.load("book.calibration", None),
        lambda words: Calibration.measure(None, words, [DOCUMENT]),
        lambda _words: compile_model(None),
        lambda _words: Homer(None),
    ],
)
def test_what_needs_a_model_asks_for_one(words, use):
    with pytest.raises(InputError, match=r"model is NoneType.*load_model"):
        use(words)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"tokenizer": "words"}, InputError, "tokenizer is str; it must be a transformers tokenizer"),
        ({"executor": 4}, InputError, "executor is int; it must have a method map"),
        ({"config": HomerConfig(profile="x.json")}, ConfigError, r"profile is str; .* Profile.load"),
        ({"config": HomerConfig.paper(calibration="x")}, ConfigError, r"calibration is str; .* Calibration.load"),
    ],
)
def test_parts_of_a_homer_are_what_they_should_be(arguments, error, named):
    with pytest.raises(error, match=named):
        Homer(llama(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"name": 4}, ModelLoadError, "name is int; it must be a model folder"),
        ({"name": ""}, ModelLoadError, "name is empty; it must be a model folder"),
        ({"rope": 4}, ConfigError, "rope is 4; it must be text such as 'yarn:2'"),
        ({"dtype": "float12"}, ConfigError, "dtype is 'float12'; it must be auto"),
    ],
)
def test_a_model_is_named_in_text(model_folder, arguments, error, named):
    with pytest.raises(error, match=named):
        load_model(**({"name": model_folder} | arguments))


def test_a_calibration_is_measured_on_texts(words):
    with pytest.raises(InputError, match=r"texts is one text.*\[text\]"):
        Calibration.measure(llama(), words, DOCUMENT, length=8)
    with pytest.raises(ConfigError, match="length is -4; a segment must have"):
        Calibration.measure(llama(), words, [DOCUMENT], length=-4)


def test_a_schedule_is_planned_in_whole_numbers():
    for wrong in ("5", 5.0, True):
        with pytest.raises(ScheduleError, match=f"context_len is {wrong!r}; it must be a whole number"):
            plan(1, wrong, 2, **TREE)


def test_an_endpoint_is_an_address_and_answers_selections():
    with pytest.raises(InputError, match="the endpoint is 4; it must be an address"):
        Endpoint(4)
    with pytest.raises(InputError, match=r"selection is str; it must be what `Homer.select` gives"):
        Endpoint("http://127.0.0.1:9/v1").answer("some text")


def test_an_index_counts_in_plain_words(text_homer, read):
    assert repr(read).startswith("Index(1 document, 200 tokens, ")
    assert repr(text_homer.read_all([])).startswith("Index(0 documents, 0 tokens, 0 chunks")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cancel": True}, "cancel is bool; it must be a threading.Event"),
        ({"observer": 3}, "observer is int; it must be a function"),
        ({"on_text": "print"}, "on_text is str; it must be a function"),
    ],
)
def test_what_is_to_be_called_can_be(text_homer, no_work, context, options, named):
    with pytest.raises(InputError, match=named):
        text_homer.ask(DOCUMENT, "w1", **options)
    with pytest.raises(InputError, match="cancel is int"):
        text_homer.generate(context, max_new_tokens=1, cancel=3)


def test_switches_are_true_or_false(text_homer, no_work):
    with pytest.raises(ConfigError, match="reuse is 'yes'; it must be True or False"):
        text_homer.ask(DOCUMENT, "w1", reuse="yes")
    with pytest.raises(InputError, match="int8 is 'no'; it must be True or False"):
        text_homer.read(DOCUMENT, int8="no")
    with pytest.raises(InputError, match="name is int; it must be text"):
        text_homer.read(DOCUMENT, name=0)


@pytest.mark.parametrize(
    "ids", [torch.ones(1, 5, dtype=torch.long, device="meta"), torch.ones(1, 5, dtype=torch.long).to_sparse()]
)
def test_ids_are_there_and_dense(text_homer, context, ids):
    with pytest.raises(InputError, match=r"input_ids is a .* tensor; it must be a dense one"):
        text_homer.score(context, ids)


@pytest.mark.parametrize("neutral_len", [-1, 5.0, True, "5", float("nan")])
def test_every_length_of_a_plan_is_a_whole_number(text_homer, neutral_len):
    with pytest.raises(InputError, match=r"neutral_len is .*; it must be a whole number of tokens"):
        text_homer.plan(4, 100, 5, neutral_len)


def test_rows_of_a_batch_fit_each_other(text_homer, context):
    ids = torch.ones(2, 30, dtype=torch.long)
    two = text_homer.compress(ids[:, :4], ids, ids[:, :5])
    longer = text_homer.compress(ids[:1, :4], ids[:1], ids[:1, :6])
    for rows, named in (
        ([two], "a context of 2 rows; give them one by one"),
        ([two.row(0), longer], r"rows differ in suffix_len: \[5, 6\]"),
        (context, "rows is CompactContext; it must be a list of contexts"),
        (["row"], "rows is list; it must be a list of contexts"),
    ):
        with pytest.raises(InputError, match=named):
            CompactContext.stack(rows)
    for index in (None, "0", True):
        with pytest.raises(InputError, match=f"index is {index!r}; the context has rows 0 to 0"):
            context.row(index)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (4, "path is int; it must be text or a Path"),
        (b"book", "path is bytes; it must be text or a Path"),
        ("a\ud800.homer", "which no file can be called: surrogates not allowed"),
        ("a\0.homer", "it holds a zero character"),
    ],
)
def test_a_path_is_one(text_homer, no_work, context, read, path, named):
    model = text_homer.model
    for use in (
        lambda: context.save(path),
        lambda: CompactContext.load(path, model),
        lambda: read.save(path),
        lambda: Index.load(path, model),
        lambda: text_homer.read(DOCUMENT, path=path),
        lambda: Profile.load(path),
        lambda: Calibration.load(path, model),
    ):
        with pytest.raises(InputError, match=named):
            use()


def test_a_scaling_and_a_calibration_are_made_of_the_right_things():
    for wrong in (None, 4, ["yarn:2"]):
        with pytest.raises(ConfigError, match=r"RoPE scaling is .*; it must be a method"):
            RopeScaling.parse(wrong)
    with pytest.raises(ConfigError, match=r"method is .*; it must be one of pi, ntk, yarn"):
        RopeScaling(["yarn"], 2)
    with pytest.raises(ConfigError, match="bias is list; it must be a tensor"):
        Calibration([[0.0]])
    with pytest.raises(ConfigError, match=r"unit is .*; it must be one of sentence, neighbours"):
        HomerConfig(unit=["sentence"])


def test_a_model_in_training_mode_is_refused(words):
    model = llama(attention_dropout=0.3)
    homer = Homer(model, words, HomerConfig(max_chunk_len=48, target_len=40))
    context, ids = homer.ask(DOCUMENT, "w1", max_new_tokens=1).context, torch.tensor([[3, 4]])
    model.train()
    for use in (
        lambda: Homer(model),
        lambda: homer.ask(DOCUMENT, "w1"),
        lambda: homer.read(DOCUMENT),
        lambda: list(homer.ranking("w1", ["w2"])),
        lambda: homer.score(context, ids),
        lambda: homer.generate(context, max_new_tokens=1),
        lambda: homer.focus(context, ids),
    ):
        with pytest.raises(InputError, match=r"training mode.*model\.eval\(\)"):
            use()


def test_a_model_in_training_mode_without_dropout_is_read_as_any(words):
    model = llama()
    homer = Homer(model, words, HomerConfig(max_chunk_len=48, target_len=40))
    expected = homer.ask(DOCUMENT, "w1", max_new_tokens=2).text
    model.train()
    assert homer.ask(DOCUMENT, "w1", max_new_tokens=2).text == expected
    model.model.layers[2].gradient_checkpointing = True
    with pytest.raises(InputError, match="training mode"):
        homer.ask(DOCUMENT, "w1", max_new_tokens=2)
