"""Tasks that are made here: their samples fit their length, can be answered, and hold the evidence they name."""

import re

import pytest
from nltk.stem import SnowballStemmer

from homerlm.errors import InputError
from homerlm.lab.corpora import NAMES, python_documentation
from homerlm.lab.questions import Setup
from homerlm.lab.samples import GRADINGS
from homerlm.lab.tasks.planted import Planted, pairs
from tiny import llama

TEXT = " ".join(f"Sentence w{i % 90} stands here." for i in range(3000))
FACT_SETS = {"associations": 60, "relations": 30, "paraphrases": 30}
PLANTED = [Planted(name, TEXT, "text", facts) for name in FACT_SETS for facts in (1, 4)]
TASKS = [*PLANTED]


@pytest.mark.parametrize("length", [400, 1000])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name} {task.variant}")
def test_samples_fit_their_length_hold_their_evidence_and_repeat(words, task, length):
    for index in range(4):
        sample = task.sample(words, length, index, seed=3)
        (question,) = sample.questions
        ids = Setup(llama(), words, None).ids(sample, question)  # type: ignore[arg-type]
        tokens = sum(part.shape[1] for part in (ids.prefix, ids.context, ids.suffix))
        assert 0.5 * length < tokens <= length
        assert all(wanted in sample.document for wanted in question.needed)
        assert not any(wanted in question.text + question.answer_start for wanted in question.expected)
        assert ids.gold
        assert sample == task.sample(words, length, index, seed=3)
        assert sample != task.sample(words, length, index, seed=4)
    with pytest.raises(InputError, match="no room"):
        task.sample(words, 60, 0, 0)


# Planted facts

SMALL = """a about an and as at be been by did do does for from has have he in into is it its of off on or out some
someone somebody that the their them to was were what when who whom whose will with s"""


def _stems(text):
    stem = SnowballStemmer("english").stem
    bare = text.replace("{name}", "").replace("{other}", "").lower()
    return {stem(word) for word in re.findall(r"[a-z]+|\d+", bare) if word not in SMALL.split()}


@pytest.mark.parametrize(("name", "least"), FACT_SETS.items())
def test_facts_and_questions_share_no_stem(name, least):
    found = pairs(name)
    assert len({(pair.fact, pair.question) for pair in found}) == len(found) >= least
    assert not [pair for pair in found if _stems(pair.fact) & _stems(pair.question)]
    for pair in found:
        assert pair.fact.count("{name}") == 1
        assert "{name}" not in pair.question
        assert (pair.fact.count("{other}"), pair.question.count("{other}")) == (
            (1, 1) if name == "relations" else (0, 0)
        )


def test_names_are_no_words_of_the_text_to_hide_them_in():
    assert len(set(NAMES)) == len(NAMES) >= 36
    assert not [name for name in NAMES if re.search(rf"\b{name}\b", python_documentation())]


def test_one_of_several_facts_is_asked_for_at_its_depth_and_the_others_differ_in_kind(words):
    task = Planted("associations", TEXT, "text")
    asked, depths = [], []
    for index in range(len(pairs("associations"))):
        sample = task.sample(words, 1500, index, seed=1)
        (question,) = sample.questions
        (fact,), (name,) = question.evidence, question.expected
        assert sample.document.index(fact) / len(sample.document) == pytest.approx(sample.depth, abs=0.1)
        assert name in fact
        assert sample.document.count(name) == 1
        assert len({*sample.facts["others"], name}) == 4
        assert all(other in sample.document for other in sample.facts["others"])
        templates = {pair for pair in pairs("associations") if _planted(pair, sample.document)}
        assert len({pair.kind for pair in templates}) == len(templates) == 4
        asked.append(question.text)
        depths.append(sample.depth)
    assert set(asked) == {pair.question for pair in pairs("associations")}
    assert sorted(int(depth * 10) for depth in depths[:10]) == list(range(10))


def _planted(pair, document):
    return pair.fact.removeprefix("{name}") in document


@pytest.mark.parametrize(
    ("answer", "score"), [(" Greta, not Farid.", 1.0), (" Farid or Greta", 0.0), ("Gretas", 0.0), ("nobody", 0.0)]
)
def test_the_first_name_of_an_answer_counts(answer, score):
    assert GRADINGS["first_name"](answer, ("Greta",)) == score
