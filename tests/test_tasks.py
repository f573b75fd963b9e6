"""Tasks that are made here: their samples fit their length, can be answered, and hold the evidence they name."""

import json
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from nltk.stem import SnowballStemmer

from homerlm.errors import InputError
from homerlm.lab.corpora import NAMES, python_documentation
from homerlm.lab.questions import Setup
from homerlm.lab.samples import GRADINGS, Asked, Draw, token_span
from homerlm.lab.tasks.common import CODE_LEN, COMMON, COMMON_TIMES, DOTS, OTHER_TIMES, common_words, frequent_words
from homerlm.lab.tasks.headings import Section, found, headings, load_sections, sections
from homerlm.lab.tasks.own import Item, load_questions, questions
from homerlm.lab.tasks.planted import pairs, planted
from homerlm.lab.tasks.stories import DROP, GO, KINDS, PLACES, TAKE, stories, story
from homerlm.lab.tasks.variables import variables
from tiny import llama

TEXT = " ".join(f"Sentence w{i % 90} stands here." for i in range(3000))
FACT_SETS = {"associations": 60, "relations": 30, "paraphrases": 30}
PLANTED = [planted(name, TEXT, "text", facts) for name in FACT_SETS for facts in (1, 4)]
STORIES = [stories(kind, TEXT, "text") for kind in KINDS]
CHAINS = [variables(TEXT, "text", hops, chains) for hops, chains in ((2, 1), (4, 2))]
CORPUS = tuple(Section(f"About v{k}", f"v{k} " + f"w{k % 90} is w{k * k % 90} . " * 40) for k in range(30))
DIGEST = " ".join(f"lower{chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(400))
OWN = " ".join(f"w{k % 90} is told of v{k} here." for k in range(1200))
ASKED = [(f"Where is the {k}th?", re.search(rf"told of v{k} ", OWN).span()) for k in (0, 3, 500, 801, 1199)]  # type: ignore[union-attr]
QUESTIONS = questions([Item(text, *span, "told") for text, span in ASKED], OWN, "text")
TASKS = [
    *(*PLANTED, *STORIES, *CHAINS, common_words(DIGEST, "text"), frequent_words(), headings(CORPUS, "text")),
    QUESTIONS,
]


@pytest.mark.parametrize("length", [1000, 2000])
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
    task = planted("associations", TEXT, "text")
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


# Stories


def _told(events, until=None):
    """Who is where, who carries what and what lies where, from the sentences alone."""
    place, held, lying = {}, {}, {}
    for event in events[:until]:
        person, *_, what = event.sentence.removesuffix(".").replace(" the ", " ").split()
        if event.deed == GO:
            place[person] = what
        elif event.deed == TAKE:
            assert what not in held, "somebody has it"
            assert lying.pop(what, place[person]) == place[person]
            held[what] = person
        else:
            assert held.pop(what) == person
            lying[what] = place[person]
    return place, held, lying


def test_a_story_holds_together_and_tells_nothing_twice():
    for seed in range(60):
        events = story(14, random.Random(seed))
        assert len({event.sentence for event in events}) == len(events) == 14
        assert {event.deed for event in events} <= {GO, TAKE, DROP}
        _told(events)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_evidence_in_its_order(words, kind):
    counts = {"one fact": {1}, "two facts": {2}, "three facts": {3}, "counting": {2, 3, 4, 5, 6, 7}}[kind]
    for index in range(30):
        sample = stories(kind, TEXT, "text").sample(words, 1500, index, seed=2)
        (question,) = sample.questions
        places = [sample.document.index(sentence) for sentence in question.evidence]
        assert places == sorted(places)
        assert len(places) in counts
        told = [sentence.removesuffix(".").split() for sentence in question.evidence]
        (answer,) = question.expected
        if kind == "counting":
            held = sum(1 if sentence[-3] != "down" and sentence[1] != "dropped" else -1 for sentence in told)
            assert answer == ("nothing", "one", "two", "three", "four", "five", "six", "seven")[held]
        else:
            assert answer in PLACES
            assert any(sentence[-1] == answer for sentence in told)
        if kind in ("one fact", "two facts"):
            assert told[-1][-1] == answer
        if kind == "three facts":
            assert question.text.endswith(f"{told[-1][-1]}?")
            assert len({sentence[0] for sentence in told}) == 1


def test_nothing_happens_after_the_evidence_that_would_change_the_answer(words):
    for index in range(30):
        sample = stories("two facts", TEXT, "text").sample(words, 1500, index, seed=4)
        (question,) = sample.questions
        thing = question.text.removeprefix("Where is the ").removesuffix(" now?")
        taken, moved = question.evidence
        person = taken.split()[0]
        after = sample.document[sample.document.index(moved) + len(moved) :]
        assert f"the {thing}" not in after
        assert not any(f"{person} {deed} the" in after for deed in ("went to", "walked to", "travelled to", "moved to"))


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        (" two things", "two", 1.0),
        ("2.", "two", 1.0),
        ("no things", "nothing", 1.0),
        (" one or two", "two", 0.0),
        ("someone", "one", 0.0),
        ("400", "four", 0.0),
        ("", "one", 0.0),
    ],
)
def test_the_first_count_of_an_answer_counts(answer, expected, score):
    assert GRADINGS["first_count"](answer, (expected,)) == score


# Variables and words


def test_a_chain_of_assignments_leads_from_the_value_to_every_variable(words):
    sample = variables(TEXT, "text", hops=4, chains=2).sample(words, 1500, 0, seed=0)
    (question,) = sample.questions
    lines = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", sample.document)
    assert len(lines) == 10
    value = re.search(r"value (\d+)", question.text)[1]
    reached, steps = {value}, 0
    for name, source in lines:  # in the document's order
        if source in reached:
            reached.add(name)
            steps += 1
    assert reached - {value} == set(question.expected)
    assert steps == 5
    assert question.grade(" ".join(question.expected[:3])) == pytest.approx(0.6)


def test_common_words_stand_thirty_times_and_the_others_three_times(words):
    (question,) = (sample := common_words(DIGEST, "text").sample(words, 2000, 0, seed=0)).questions
    numbers, listed = zip(*(entry.split(". ") for entry in re.split(r" (?=\d)", sample.document)), strict=True)
    assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
    counts = Counter(listed)
    assert set(counts.values()) == {COMMON_TIMES, OTHER_TIMES}
    assert {word for word, count in counts.items() if count == COMMON_TIMES} == set(question.expected)
    assert len(question.expected) == COMMON
    with pytest.raises(InputError, match=r"the text has 400 words.*: take shorter prompts"):
        common_words(DIGEST, "text").sample(words, 20_000, 0, seed=0)
    with pytest.raises(InputError, match=r"a list of ([\d,]+) tokens has: take longer prompts") as refused:
        common_words(DIGEST, "text").sample(words, 300, 0, seed=0)
    least = int(re.findall(r"a list of ([\d,]+) tokens has", str(refused.value))[-1].replace(",", "")) + 150
    assert common_words(DIGEST, "text").sample(words, least, 0, seed=0).questions, "with room for the question"


def test_frequent_codes_are_the_most_frequent_but_the_dots(words):
    (question,) = (sample := frequent_words().sample(words, 3000, 0, seed=0)).questions
    counts = Counter(sample.document.split())
    (dots, most), *ranked = counts.most_common(5)
    assert dots == DOTS
    assert most > len(sample.document.split()) * 0.5
    assert [code for code, _ in ranked[:3]] == list(question.expected)
    assert all(len(code) == CODE_LEN for code in question.expected)


# Headings

MARKDOWN = """Before it all.

# One thing #
About the one.

## A thing of it
Its part.

### Empty

Other
=====
What else.
"""


def test_sections_are_what_stands_below_their_headings():
    assert list(sections(MARKDOWN)) == [
        ("One thing", "About the one."),
        ("A thing of it", "Its part."),
        ("Other", "What else."),
    ]


def test_sections_of_a_folder_of_pages_and_of_pythons_help(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.md").write_text(MARKDOWN)
    (tmp_path / "b.html").write_text("<h2 class=x>Third <b>kind</b></h2><p>Said of it.</p><h3>Fourth</h3><p>More.</p>")
    (tmp_path / "c.bin").write_text("# Not\n read")
    assert {section.heading for section in load_sections(str(tmp_path))} == {
        *("One thing", "A thing of it", "Other", "Third kind", "Fourth")
    }
    with pytest.raises(InputError, match="has 1 headings"):
        load_sections(str(tmp_path / "c.bin"))
    found = load_sections("python")
    assert len(found) > 100
    assert len({section.body for section in found}) == len({section.heading for section in found}) == len(found)


def test_a_heading_is_not_in_the_document_and_its_section_is_at_its_depth(words):
    for index in range(10):
        sample = headings(CORPUS, "text").sample(words, 2000, index, seed=0)
        (question,) = sample.questions
        (body,) = question.evidence
        assert f"About {body.split()[0]}" in question.text
        assert "About" not in sample.document
        assert "\n\n".join(sample.sections) == sample.document
        assert sample.document.index(body) / len(sample.document) == pytest.approx(sample.depth, abs=0.15)
    with pytest.raises(InputError, match="sections are too few"):
        headings(CORPUS, "text").sample(words, 20_000, 0, 0)


@pytest.mark.parametrize(
    ("kept", "recall", "first", "share"),
    [
        (range(100, 164), 1.0, 1.0, 1.0),
        (range(100, 163), 0.0, 1.0, 1.0),
        ([*range(10, 80), *range(100, 164)], 1.0, 0.0, 64 / 134),
        ([*range(5), *range(100, 164), *range(400, 410)], 1.0, 1.0, 1.0),  # the affixes do not count
        (range(10, 40), 0.0, 0.0, 0.0),
        ([], 0.0, 0.0, 0.0),
    ],
)
def test_a_section_is_found_by_64_of_its_tokens_and_first_by_more_than_any_other(kept, recall, first, share):
    asked = Asked(*[torch.zeros(1, 1)] * 3, gold=tuple(range(100, 300)), sections=((5, 100), (100, 300), (300, 400)))
    outcome = found(None, None, asked, SimpleNamespace(token_indices=torch.tensor([*kept], dtype=torch.long)))
    assert (outcome["needle_kept"], outcome["score"]) == (recall, first)
    assert outcome["gold_share"] == pytest.approx(share, abs=1e-3)


# Questions of one's own


def test_the_text_around_the_evidence_is_read_at_a_depth_or_as_far_as_it_goes(words):
    seen, depths = set(), []
    for index in range(len(ASKED)):
        sample = QUESTIONS.sample(words, 1000, index, seed=1)
        (question,) = sample.questions
        seen.add(question.text)
        at = OWN.index(sample.document)
        before, _, after = sample.document.partition(question.evidence[0])
        inside = at > 0 and at + len(sample.document) < len(OWN)
        assert before or question.text == "Where is the 0th?"
        assert after or question.text == "Where is the 1199th?"
        if inside:
            depths.append((index, len(before) / len(sample.document)))
        assert sample.depth == pytest.approx(len(before) / len(sample.document), abs=0.01)
    assert len(seen) == len(ASKED)
    assert len(depths) == 2
    for index, depth in depths:
        assert depth == pytest.approx(
            (draw := Draw(words, 1000, index, 1)).depth(draw.generator("questions")), abs=0.05
        )
    whole = QUESTIONS.sample(words, 100_000, 0, seed=1)
    assert whole.document == OWN


def test_a_text_whose_tokens_have_no_places_is_cut_by_characters(words):
    class Slow:
        is_fast = False

        def __call__(self, text, **_options):
            return words(text)

    sample = QUESTIONS.sample(Slow(), 1000, 2, seed=1)  # type: ignore[arg-type]
    assert sample.questions[0].evidence[0] in sample.document
    assert 3000 < len(sample.document) <= 4000  # four a token


def _written(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_questions_are_read_with_their_places_in_the_text(tmp_path):
    rows = (
        {"question": "Who?", "evidence": "told  of v7 here "},
        {"question": "What?", "evidence": "v8 h", "answer": "eight"},
    )
    first, second = load_questions(_written(tmp_path / "q", *rows), OWN)
    assert (first.question, OWN[first.start : first.stop], first.answer) == (
        "Who?",
        "told of v7 here",
        "told of v7 here",
    )
    assert (OWN[second.start : second.stop], second.answer) == ("v8 h", "eight")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Who?", "evidence": "nowhere at all"}, r"question 2: .*'nowhere at all' is not in the text"),
        ({"question": "Who?", "evidence": "is told of"}, "stands 1200 times in the text; it must stand there once"),
        ({"question": "Who?"}, "it must be one of JSON lines"),
        ({"question": " ", "evidence": "v8"}, "it must be one of JSON lines"),
        ({"question": "Who?", "evidence": "v8 here.", "answer": 8}, "it must be one of JSON lines"),
        ("Who?", "it must be one of JSON lines"),
    ],
)
def test_what_is_no_question_about_the_text_is_refused(tmp_path, row, said):
    good = {"question": "Who?", "evidence": "v9 here."}
    with pytest.raises(InputError, match=said):
        load_questions(_written(tmp_path / "q", good, row), OWN)


def test_a_file_without_questions_is_refused(tmp_path):
    for content, said in (("", "holds no questions"), ("{", "cannot be read")):
        (tmp_path / "q").write_text(content)
        with pytest.raises(InputError, match=said):
            load_questions(tmp_path / "q", OWN)
    with pytest.raises(InputError, match="cannot be read"):
        load_questions(tmp_path / "none", OWN)


def test_tokens_of_sections_are_those_of_their_texts(words):
    sample = headings(CORPUS, "text").sample(words, 1000, 0, seed=0)
    ids = Setup(llama(), words, None).ids(sample, sample.questions[0])  # type: ignore[arg-type]
    whole = torch.cat([ids.prefix, ids.context, ids.suffix], dim=1)[0]
    for (start, stop), body in zip(ids.sections, sample.sections, strict=True):
        assert whole[start:stop].tolist() == words(body).input_ids


def test_tokens_that_hold_characters():
    offsets = [(0, 3), (3, 5), (5, 9)]
    assert [token_span(offsets, *span) for span in ((3, 5), (0, 9), (4, 6), (2, 3))] == [(1, 2), (0, 3), (1, 3), (0, 1)]
