"""Rivals: passages chosen by words, by chance and by the answer, at a budget, read as one short prompt."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from homerlm.errors import ConfigError, HomerError
from homerlm.lab.methods import Method
from homerlm.lab.questions import Setup, answered, ask_later, ask_now
from homerlm.lab.readers import reader_for
from homerlm.lab.rivals.hybrid import _reciprocal
from homerlm.lab.rivals.infini_retri import located
from homerlm.lab.rivals.passages import best_that_fit, passages
from homerlm.lab.samples import Asked, Question, Sample
from homerlm.score.bm25 import passage_scores
from tiny import llama, prompt

# Sentences of nine tokens; the 30th says where w55 is, and w96 stands in no other.
SENTENCES = [f"w{i % 40} w1 w2 w3 w4 w5 w6 w7 w8 ." for i in range(60)]
SENTENCES[30] = "w55 is in the w95 beside w56 and w96 ."
DOCUMENT = " ".join(SENTENCES)


def sample(evidence=()):
    question = Question("Where is w55 ?", "It is", ("w96",), "share_held", evidence=evidence)
    return Sample("Read this .", DOCUMENT, (question,), 0.5)


def kept(method, words, made=None, ask=ask_now):
    setup = Setup(llama(), words, reader_for(Method.parse(method), llama(), words))
    return next(ask(setup, made or sample(), 8, answered(4)))


def test_hybrid_reads_every_chunk_and_keeps_to_its_budget(words):
    outcome = kept("hybrid:budget=80,passage=18", words)
    assert outcome["error"] is None
    assert 60 < outcome["kept"] <= 80


def test_fused_a_passage_needs_a_good_rank_in_one_and_a_fair_one_in_the_other():
    heads, lexical = _reciprocal(np.array([3.0, 2, 1, 0])), _reciprocal(np.array([0.0, 3, 2, 1]))
    assert (heads + lexical).argmax() == 1


# Passages


def test_passages_are_whole_sentences_up_to_their_length():
    numbers = [0] * 4 + [1] * 3 + [2] * 5 + [3] * 2
    assert passages(numbers, 8) == [(0, 7), (7, 14)]
    assert passages(numbers, 4) == [(0, 4), (4, 7), (7, 11), (11, 14)]
    assert passages([], 4) == []


def test_the_best_passages_fill_the_room_in_the_documents_order():
    spans = [(0, 4), (4, 7), (7, 12), (12, 14)]
    assert best_that_fit(spans, np.array([1.0, 3.0, 2.0, 3.0]), 5) == [(4, 7), (12, 14)]
    assert best_that_fit(spans, np.array([1.0, 1.0, 3.0, 1.0]), 9) == [(0, 4), (7, 12)]
    assert best_that_fit(spans, np.array([0.0, 1.0, 0.0, 3.0]), 6) == [(0, 1), (4, 7), (12, 14)]


def test_bm25_ranks_by_rare_words_and_needs_one():
    texts = ["The fish swims.", "A cat, a FISH and a heron.", "The heron stands here, says the cat.", ""]
    scores = passage_scores(texts, "Where is the heron's fish?")
    assert scores.argmax() == 1
    assert scores[3] == 0
    assert passage_scores(texts, "Why?").tolist() == [0, 0, 0, 0]
    assert passage_scores(["", "..."], "fish").tolist() == [0, 0]


# Readers


@pytest.mark.parametrize("name", ["bm25", "random", "oracle"])
def test_a_rival_reads_whole_passages_within_its_budget_between_the_affixes(words, name):
    reader = reader_for(Method.parse(f"{name}:budget=80,passage=20"), llama(), words)
    setup = Setup(llama(), words, reader)
    asked = setup.ids(sample(), sample().questions[0])
    reading = reader.read(asked, 8)
    whole = torch.cat([asked.prefix, asked.context, asked.suffix], dim=1)
    assert torch.equal(reading.input_ids[0], whole[0, reading.token_indices])
    assert len(reading.token_indices) == 80
    start, stop = asked.prefix.shape[1], whole.shape[1] - asked.suffix.shape[1]
    chosen = [t - start for t in reading.token_indices.tolist() if start <= t < stop]
    assert len(chosen) == len(reading.token_indices) - start - asked.suffix.shape[1]
    ragged = {t // 10 for t in chosen if not {t // 10 * 10 + k for k in range(10)} <= set(chosen)}
    assert len(ragged) <= 1  # the one that was cut to fit
    assert reading.token_indices.tolist() == sorted(reading.token_indices.tolist())


def test_bm25_and_the_oracle_keep_the_fact_and_chance_does_not(words):
    made = {name: kept(f"{name}:budget=60,passage=20", words) for name in ("bm25", "oracle", "random")}
    assert [outcome["needle_kept"] for outcome in made.values()] == [1.0, 1.0, 0.0]
    assert all(outcome["kept"] <= 60 for outcome in made.values())


def test_the_oracle_follows_the_evidence_where_the_answer_stands_elsewhere_too(words):
    made = sample(evidence=(SENTENCES[7], SENTENCES[52]))
    assert kept("oracle:budget=60,passage=10", words, made)["needle_kept"] == 1.0
    assert kept("bm25:budget=60,passage=10", words, made)["needle_kept"] < 1.0


def test_asked_later_the_oracle_is_told_of_every_question(words):
    outcome = kept("oracle:budget=60,passage=20", words, ask=ask_later)
    assert (outcome["needle_kept"], outcome["kept"] <= 60) == (1.0, True)


def test_chance_is_the_same_for_the_same_prompt_and_another_for_another(words):
    reader = reader_for(Method.parse("random:budget=60"), llama(), words)
    prompts = [Asked(*prompt(context=400, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = (reader.read(asked, 8).token_indices.tolist() for asked in prompts)
    assert first == again != other


def test_a_document_that_fits_is_read_whole(words):
    asked = Asked(*prompt(context=40))
    reading = reader_for(Method.parse("bm25:budget=60"), llama(), words).read(asked, 8)
    assert torch.equal(reading.input_ids[0], torch.cat([asked.prefix, asked.context, asked.suffix], dim=1)[0])


def test_a_budget_without_room_for_text_is_refused(words):
    assert "budget is 5; instruction and question alone have" in kept("bm25:budget=5", words)["error"]
    with pytest.raises(ConfigError, match=r"bm25:path=x.*it has budget=TOKENS, passage=TOKENS"):
        Method.parse("bm25:path=x")
    with pytest.raises(ConfigError, match="passage=0"):
        Method.parse("random:passage=0")
    with pytest.raises(ConfigError, match="bm25 chooses by the words"):
        reader_for(Method.parse("bm25"), llama(), None)


# Embeddings


@pytest.fixture
def static_model(tmp_path, words):
    """Vectors of three directions: w55 and w91 point the same way, the others elsewhere."""
    model2vec = pytest.importorskip("model2vec")
    vectors = np.zeros((len(words), 3), dtype=np.float32)
    vectors[:, 0] = 1
    for word, vector in {"w55": (0, 1, 0), "w91": (0, 1, 0.1), ".": (0, 0, 0)}.items():
        vectors[words.convert_tokens_to_ids(word)] = vector
    model2vec.StaticModel(vectors=vectors, tokenizer=words.backend_tokenizer).save_pretrained(tmp_path / "static")
    return tmp_path / "static"


def test_embeddings_find_what_means_the_same_in_other_words(words, static_model):
    said = "w91 w91 w91 w91 w96 ."
    sentences = [f"w{i % 40} w1 w2 w3 w4 w5 ." for i in range(60)]
    sentences[41] = said
    question = Question("w55", "w0", ("w96",), "share_held", evidence=(said,))
    made = Sample("Read .", " ".join(sentences), (question,), 0.5)
    assert kept(f"embed:path={static_model},budget=40,passage=10", words, made)["needle_kept"] == 1.0
    assert kept("bm25:budget=40,passage=10", words, made)["needle_kept"] == 0.0


def test_embeddings_without_a_model_are_refused(words, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="embed:path=FOLDER"):
        Method.parse("embed:budget=50")
    method = Method.parse(f"embed:path={tmp_path}/none")
    assert str(Method.parse(str(method))) == str(method)
    with pytest.raises(ConfigError, match="it must be the folder of a static model"):
        reader_for(method, llama(), words)
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(ConfigError, match="pip install model2vec"):
        reader_for(method, llama(), words)


# InfiniRetri


def test_sentences_that_were_put_together_are_located_in_the_document():
    document = "One is here. Two is there.\n\nThree? Two is there. Four."
    found = [document[begin:end] for begin, end in located("Two is there.Three? Five. Four.", document)]
    assert found == ["Two is there.", "Three?", "Four."]
    assert list(located("Two is there. Two is there.", document)) == [(13, 26), (35, 48)]


class Pipeline:
    """The package's class: it leaves two sentences, in the document's order, of a model with eager attention."""

    def __init__(self, model, tokenizer, config):  # noqa: ARG002
        assert model.config._attn_implementation == "eager"
        assert config == {"topk": 9, "chunk_size": 1024}
        self.model = model

    def generate2(self, data, *_, max_new_tokens):  # noqa: ARG002
        assert self.model.config._attn_implementation == "eager"
        print("noise")
        data["context"] = f"{SENTENCES[3]}{SENTENCES[30]}" if data["question"] == "Where is w55 ?" else data["nothing"]


def test_the_sentences_that_infini_retri_leaves_are_read(words, monkeypatch, capsys):
    package, inner = ModuleType("infini_retri"), ModuleType("infini_retri.pipline")
    inner.Pipline = Pipeline
    monkeypatch.setitem(sys.modules, "infini_retri", package)
    monkeypatch.setitem(sys.modules, "infini_retri.pipline", inner)
    model = llama()
    before = model.config._attn_implementation
    reader = reader_for(Method.parse("infini-retri:topk=9,budget=60"), model, words)
    asked = Setup(model, words, reader).ids(sample(), sample().questions[0])
    reading = reader.read(asked, 8)
    start = asked.prefix.shape[1]
    inside = [t - start for t in reading.token_indices.tolist() if start <= t < start + asked.context.shape[1]]
    assert inside == [*range(30, 40), *range(300, 310)]
    assert model.config._attn_implementation == before != "eager"
    assert capsys.readouterr().out == ""
    cut = reader_for(Method.parse("infini-retri:topk=9,budget=25"), model, words).read(asked, 8)
    assert len(cut.token_indices) == 25
    with pytest.raises(HomerError, match="infini-retri failed: KeyError"):
        reader.read(replace(asked, question="Why?"), 8)
    assert model.config._attn_implementation == before


def test_infini_retri_without_its_package_is_refused(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "infini_retri.pipline", None)
    monkeypatch.setitem(sys.modules, "infini_retri", ModuleType("infini_retri"))
    with pytest.raises(ConfigError, match="pip install infini-retri tiktoken"):
        reader_for(Method.parse("infini-retri"), llama(), words)
