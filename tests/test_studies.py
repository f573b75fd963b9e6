"""The commands of the studies run: on a tiny model, to their records. What they find on it means nothing."""

import importlib
import json
import shlex
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from homerlm import load_model
from homerlm.model.identity import ModelIdentity
from homerlm.score.embedding import Embedding
from homerlm.score.heads import Head
from homerlm.score.profile import Profile
from tiny import HIDDEN, llama

pytestmark = pytest.mark.slow
SIZE = 400  # of the vocabulary
BOOK = "Ferris is a crab. Cargo builds what you write. The borrow checker reads every line."
QUESTIONS = [("What is Ferris?", "Ferris is a crab", "crab"), ("What builds?", "Cargo builds what you write", "Cargo")]
STUDIES = {
    "both_ranks": "--text TEXT --documents 1 --tokens 700",
    "cut": "--text TEXT --questions QUESTIONS --book BOOK --documents 1 --length 700",
    "embeddings": "--text TEXT --documents 1 --tokens 700",
    "index_candidates": "--text TEXT --task associations --samples 1 --length 1000",
    "likelihood": "--text TEXT --questions QUESTIONS --book BOOK --documents 1 --length 1000",
    "neighbours": "--text BOOK --questions QUESTIONS --length 1000",
    "recap": "--text TEXT --documents 4 --length 700 --kinds keys values --ways '96 tokens, the present one'",
    "stand_in": "--texts 6",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A model of real text with a profile, a text, and questions about another."""
    folder = tmp_path_factory.mktemp("studies")
    core = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(list(topics.values())[:20], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    model = llama(vocab_size=SIZE, max_position_embeddings=2048)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    heads, about = (Head(2, 1), Head(4, 0)), Embedding(4, 1, (0.0,) * HIDDEN)
    known = ModelIdentity.of(load_model(folder / "model")[0])
    Profile(heads, heads, heads, 0.01, known, reading_embedding=about, indexing_embedding=about).keep()
    (folder / "text").write_text("\n\n".join(topics.values())[:60_000])
    (folder / "book").write_text("\n\n".join([BOOK, *topics.values()])[:20_000])
    rows = [dict(zip(("question", "evidence", "answer"), row, strict=True)) for row in QUESTIONS]
    (folder / "questions").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name.upper(): str(folder / name) for name in ("model", "text", "book", "questions")}


@pytest.fixture
def study(paths, tmp_path, monkeypatch):
    """A function that runs a study's command in a folder of its own, with a model and an output."""
    monkeypatch.chdir(tmp_path)

    def run(name, *given):
        monkeypatch.setattr(sys, "argv", [name, "--model", paths["MODEL"], "--output", str(tmp_path / "out"), *given])
        importlib.import_module(name).main()

    return run


def test_ways_to_score_are_compared_on_attention_that_was_kept(study, tmp_path, monkeypatch):
    monkeypatch.setattr("heads.CHARACTERS", 1000)
    for step in ("collect", "compare"):
        study("heads", step, "--texts", "6", "--attention", "attention.pt")
    ways = json.loads((tmp_path / "out").read_text())["ways"]
    assert ways
    assert all(0 <= way["mean"] <= 1 for way in ways)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_comes_to_its_end(name, study, paths, tmp_path):
    study(name, *(paths.get(word, word) for word in shlex.split(STUDIES[name])))
    written = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert written
    assert all(path.stat().st_size for path in written)
