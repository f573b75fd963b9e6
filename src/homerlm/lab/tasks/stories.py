"""Stories of people who move about and carry things, their sentences spread over prose in order, in the manner of bAbI:
one, two or three of them must be put together, or counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from homerlm.lab.corpora import COUNTS, NAMES
from homerlm.lab.samples import Draw, Question, Sample, Task
from homerlm.lab.tasks.prose import hidden

PLACES = ("attic", "bakery", "cellar", "garage", "harbour", "kitchen", "library", "orchard", "stable", "theatre")
THINGS = ("apple", "candle", "hammer", "kettle", "lantern", "mirror", "teapot", "umbrella")
GO, TAKE, DROP = "go", "take", "drop"
WORDS = {
    GO: ("went to", "walked to", "travelled to", "moved to"),
    TAKE: ("picked up", "took", "grabbed"),
    DROP: ("put down", "dropped"),
}
PEOPLE_IN_STORY = 4
KINDS = ("one fact", "two facts", "three facts", "counting")
INSTRUCTION = "Sentences of a story are hidden within the following text. Memorize them. I will quiz you about them."


class Event(NamedTuple):
    """A person goes to a place (`what`), takes a thing or drops it. No event happens twice in a story."""

    person: str
    deed: str
    what: str
    sentence: str


class Asked(NamedTuple):
    """A question with its answer and the events that it follows from."""

    question: str
    start: str
    answer: str
    events: tuple[Event, ...]


def stories(kind: str, prose: str, text: str, events: int = 14) -> Task:
    """kind: one of `KINDS`. The answer's word stands elsewhere in the story too: what must be kept is the sentences
    that it follows from; a sample's depth is that of the first of them."""

    def sample(draw: Draw) -> Sample:
        rng = draw.generator("stories", kind)
        found: list[Asked] = []
        while not found:
            told = story(events, rng)
            found = list(ASKING[kind](told))
        asked = rng.choice(found)
        depths = sorted(rng.random() for _ in told)
        placed = [(depth, event.sentence) for depth, event in zip(depths, told, strict=True)]
        evidence = tuple(event.sentence for event in asked.events)
        grading = "first_count" if kind == "counting" else "share_held"
        question = Question(asked.question, asked.start, (asked.answer,), grading, evidence=evidence)
        return hidden(prose, draw, rng, INSTRUCTION, placed, question, depth=depths[told.index(asked.events[0])])

    return Task("stories", kind, text, sample, max_new_tokens=12)


def story(length: int, rng: random.Random) -> list[Event]:
    """So many events. People never come back to a place, and take only what nobody has had or what lies where they
    are."""
    events: list[Event] = []
    people = rng.sample(NAMES, PEOPLE_IN_STORY)
    while len(events) < length:
        person, deed = rng.choice(people), rng.choice((GO, GO, TAKE, TAKE, DROP))
        if choices := _possible(events, person, deed):
            what = rng.choice(choices)
            events.append(Event(person, deed, what, f"{person} {rng.choice(WORDS[deed])} the {what}."))
    return events


def place_of(person: str, events: list[Event]) -> Event | None:
    """The last event by which a person came anywhere."""
    return next((event for event in reversed(events) if (event.person, event.deed) == (person, GO)), None)


def carrier_of(thing: str, events: list[Event]) -> Event | None:
    """The event by which a thing came to the person who carries it now."""
    last = next((event for event in reversed(events) if event.what == thing), None)
    return last if last is not None and last.deed == TAKE else None


def _possible(events: list[Event], person: str, deed: str) -> list[str]:
    """What a person may go to, take or drop next."""
    past = {(event.deed, event.what) for event in events if event.person == person}
    if deed == GO:
        return [place for place in PLACES if (GO, place) not in past]
    if (here := place_of(person, events)) is None:
        return []
    held = [thing for thing in THINGS if (taken := carrier_of(thing, events)) and taken.person == person]
    if deed == DROP:
        return [thing for thing in held if (DROP, thing) not in past]
    free = [thing for thing in THINGS if _lies(thing, here.what, events)]
    return [thing for thing in free if (TAKE, thing) not in past]


def _lies(thing: str, place: str, events: list[Event]) -> bool:
    """Whether nobody carries a thing, and it lies at a place, or may, as nobody has had it yet."""
    last = next((k for k in reversed(range(len(events))) if events[k].what == thing), None)
    if last is None:
        return True
    dropped = place_of(events[last].person, events[:last]) if events[last].deed == DROP else None
    return dropped is not None and dropped.what == place


def _where_is_a_person(events: list[Event]) -> Iterator[Asked]:
    for person in dict.fromkeys(event.person for event in events):
        if came := place_of(person, events):
            yield Asked(f"Where is {person} now?", f"{person} is in the", came.what, (came,))


def _where_is_a_thing(events: list[Event]) -> Iterator[Asked]:
    """Carried since it was taken, by somebody who has gone on."""
    for taken, moves in _carried(events):
        if len(moves) > 1:
            thing = taken.what
            yield Asked(f"Where is the {thing} now?", f"The {thing} is in the", moves[-1].what, (taken, moves[-1]))


def _where_was_a_thing(events: list[Event]) -> Iterator[Asked]:
    """Before the place where it is carried now."""
    for taken, moves in _carried(events):
        if len(moves) > 1:
            thing, before, now = taken.what, moves[-2], moves[-1]
            question = f"Where was the {thing} before it was in the {now.what}?"
            needed = tuple(event for event in events if event in (taken, before, now))
            yield Asked(question, f"Before that, the {thing} was in the", before.what, needed)


def _how_many(events: list[Event]) -> Iterator[Asked]:
    """Things that somebody who has taken two or more carries now."""
    for person in dict.fromkeys(event.person for event in events):
        deeds = tuple(event for event in events if event.person == person and event.deed != GO)
        taken = sum(event.deed == TAKE for event in deeds)
        if taken > 1:
            count = COUNTS[2 * taken - len(deeds)]
            yield Asked(f"How many things is {person} carrying now?", f"{person} is carrying", count, deeds)


def _carried(events: list[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Each thing that somebody carries now: how it was taken, and where it has been since, the place of that first."""
    for thing in THINGS:
        if taken := carrier_of(thing, events):
            start = events.index(taken)
            first = place_of(taken.person, events[:start])
            later = [event for event in events[start:] if (event.person, event.deed) == (taken.person, GO)]
            yield taken, [*([first] if first else []), *later]


ASKING = dict(zip(KINDS, (_where_is_a_person, _where_is_a_thing, _where_was_a_thing, _how_many), strict=True))
