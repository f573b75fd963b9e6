"""Asking in text: the split of the prompt, the record, streaming, and what is refused."""

import pytest
import torch

from homerlm import Homer, HomerConfig
from homerlm.errors import InputError, NumericalError, OutOfMemoryError
from homerlm.prompt import affixes
from homerlm.trace import LevelTrace, kept_passages, passages
from tiny import llama, prompt
from words import tokenizer_of

DOCUMENT = " ".join(f"w{i % 90}" for i in range(300))


def test_chat_templates_are_split_around_the_document(words):
    before, after = affixes(words, "w1 w2", instruction="w9", answer_start="w7")
    assert before.text == "<user> w9\n\n"
    assert after.text == "\n\nw1 w2 <end> <assistant> w7"


def test_without_a_template_the_prompt_is_plain():
    plain = tokenizer_of(97)
    texts = [part.text for part in affixes(plain, "w1?", instruction="w9")]
    assert texts == ["w9\n\n", "\n\nQuestion: w1?\nAnswer:"]
    assert affixes(plain, "w1?", answer_start="w3")[1].text == "\n\nw1? w3"
    with pytest.raises(InputError, match="no chat template"):
        affixes(plain, "w1", chat=True)


def test_an_answer_is_a_record_of_what_it_took(text_homer):
    answer = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=7)
    before, after = affixes(text_homer.tokenizer, "w1 w2")
    lengths = [
        len(text_homer.tokenizer(t, add_special_tokens=False).input_ids) for t in (before.text, DOCUMENT, after.text)
    ]
    assert answer.tokens_read == sum(lengths)
    assert answer.tokens_kept == len(answer.context) <= 40
    assert answer.source is answer.context
    assert len(answer.token_ids) == answer.new_tokens <= 7
    assert answer.text == text_homer.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
    assert answer.model_limit == 512
    assert answer.compress_seconds > 0 < answer.generate_seconds
    assert "context" not in answer.to_dict()


def test_streaming_gives_the_same_text_in_pieces(text_homer):
    pieces = []
    answer = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=7, on_text=pieces.append)
    stream = text_homer.ask_stream(DOCUMENT, "w1 w2", max_new_tokens=7)
    streamed = []
    while True:
        try:
            streamed.append(next(stream))
        except StopIteration as stop:
            result = stop.value
            break
    assert "".join(pieces).strip() == "".join(streamed).strip() == answer.text == result.text
    assert len(pieces) > 1


def test_a_closed_stream_stops(text_homer):
    stream = text_homer.ask_stream(DOCUMENT, "w1", max_new_tokens=400)
    next(stream)
    stream.close()


def test_an_error_reaches_the_reader_of_a_stream(text_homer):
    with pytest.raises(InputError, match="question is empty"):
        list(text_homer.ask_stream(DOCUMENT, "  "))


def test_an_empty_document_is_answered_without_compression(text_homer):
    answer = text_homer.ask("", "w1 w2", max_new_tokens=3)
    assert answer.tokens_kept == answer.tokens_read


def test_a_context_is_asked_again(text_homer):
    first = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=4)
    again = text_homer.ask(first.context, "w1 w2", max_new_tokens=4)
    other = text_homer.ask(first.context, "w5 w6 w7", max_new_tokens=4)
    assert again.token_ids == first.token_ids
    assert other.context.suffix_len == first.context.suffix_len + 1


def test_a_document_read_once_is_asked_different_things(text_homer):
    context = text_homer.read(DOCUMENT)
    answers = [text_homer.ask(context, question, max_new_tokens=2) for question in ("w1 w2", "w90 w91 w92")]
    assert len(context) > 40 >= max(answer.tokens_kept for answer in answers)
    assert all(answer.source is context for answer in answers)
    kept = [{*answer.context.token_indices[0, : -answer.context.suffix_len].tolist()} for answer in answers]
    assert kept[0] != kept[1]


def test_kept_for_later_a_document_answers_at_once_as_it_does_later(text_homer):
    first = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=4, reuse=True)
    again = text_homer.ask(first.source, "w1 w2", max_new_tokens=4)
    assert len(first.source) > len(first.context)
    assert again.token_ids == first.token_ids


def test_no_tokenizer_no_text():
    with pytest.raises(InputError, match="no tokenizer"):
        Homer(llama(), None).ask("w1", "w2")
    with pytest.raises(InputError, match="no tokenizer"):
        Homer(llama(), None).read("w1")


def test_levels_and_passages(text_homer):
    trace = LevelTrace()
    answer = text_homer.ask(DOCUMENT, "w1 w2", max_new_tokens=1, observer=trace)
    context = answer.context
    kept = sorted(set(context.token_indices[0].tolist()))
    top = int(trace.levels.max())
    assert [i for i, level in enumerate(trace.levels.tolist()) if level == top] == kept
    inside = trace.levels[context.prefix_len : context.prompt_len - context.suffix_len]
    assert "".join(p.text for p in passages(text_homer.tokenizer, DOCUMENT, inside)) == DOCUMENT
    words = " ".join(p.text for p in kept_passages(text_homer.tokenizer, context)).split()
    expected = [DOCUMENT.split()[i - context.prefix_len] for i in kept[context.prefix_len : -context.suffix_len]]
    assert words == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p, c, s: (p[0], c, s), "prefix_ids is"),
        (lambda p, c, s: (p, c.float(), s), "context_ids is"),
        (lambda p, c, s: (p, c.tolist(), s), "context_ids is list"),
        (lambda p, c, s: (p, c + 90, s), "was it made by another tokenizer"),
        (lambda p, c, s: (p, c.repeat(2, 1), s), "batch sizes differ"),
    ],
)
def test_ids_of_the_wrong_kind_are_refused(change, named):
    with pytest.raises(InputError, match=named):
        Homer(llama(), None).compress(*change(*prompt()))


def test_nan_weights_are_refused_at_the_door():
    model = llama()
    model.model.layers[3].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        Homer(model, None)


def test_nan_logits_are_refused():
    model = llama()
    homer = Homer(model, None, HomerConfig(max_chunk_len=40, target_len=40))
    model.model.layers[9].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        homer.compress(*prompt())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2684354560 bytes."
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(error, monkeypatch):
    homer = Homer(llama(), None, HomerConfig(max_chunk_len=40))

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(homer.decoder, "embed", fail)
    with pytest.raises(OutOfMemoryError, match="lower chunk_batch, max_chunk_len or target_len"):
        homer.compress(*prompt())


def test_other_runtime_errors_pass():
    def fail(_event):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Homer(llama(), None, HomerConfig(max_chunk_len=40)).compress(*prompt(), observer=fail)
