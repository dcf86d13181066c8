"""Conversations: questions about what is there, how many, where, of what colour, and what is going on.

Each maker yields ``(question, answer)`` pairs; a conversation opens with what the picture shows, and draws the rest.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator

from data.picturebook.language import NUMBERS, listing, sentence, with_article
from data.teachers.scripted import captions as telling
from data.teachers.scripted.captions import Caption
from data.teachers.scripted.grammar import PICTURES, PREPOSITIONS, Clause, colours_of
from data.teachers.scripted.view import View, area, comes_first, place
from data.teachers.scripted.words import (
    ANIMALS,
    DOING,
    PEOPLE,
    PLACES_FOR,
    STATES,
    STAYING,
    USES,
    capital,
    listed,
    plural,
)

MOST_TURNS = 6
WITH_OBJECT = listed(
    """holding wearing riding eating carrying using throwing feeding cutting pulling pushing hitting catching kicking
    preparing drinking reading flying brushing"""
)
ARTICLES = frozenset(("a", "an", "the", "his", "her", "their", "its", "some", "two", "three", "several"))


def conversation(view: View, rng: random.Random) -> list[tuple[str, str]]:
    """Two to six turns where the context has enough for them, no question twice, at most two of one maker."""
    opening = telling.draw(view.captions, rng) if view.captions else None
    makers = (counting, placing, sides, colour, setting, size, uses, others, animal, told_places)
    found = [_drawn(list(make(view, rng)), 2, rng) for make in makers]
    found.append(list(doing(view, rng, opening)))
    rest = _drawn([turn for turns in found for turn in turns], rng.randint(3, MOST_TURNS) - 1, rng)
    if not rest and len(view.captions) > 1:
        other = next(caption for caption in view.captions if caption is not opening)
        rest = [(rng.choice(("How else could one put it?", "What more can be said?")), other.told())]
    asked: dict[str, str] = {}
    for question, answer in [overview(view, rng, opening), *rest]:
        asked.setdefault(question, answer)
    return list(asked.items())


def _drawn(turns: list, most: int, rng: random.Random) -> list:
    return rng.sample(turns, min(most, len(turns)))


def overview(view: View, rng: random.Random, opening: Caption | None) -> tuple[str, str]:
    """What the picture shows: a caption, or the things in it."""
    question = rng.choice(
        ("What does the picture show?", "What can be seen in the picture?", "What is in this picture?")
    )
    if opening:
        return question, opening.told()
    shown = listing([group.some for group in view.groups[:6]])
    return question, rng.choice((f"The picture shows {shown}.", f"One can see {shown}."))


def doing(view: View, rng: random.Random, opening: Caption | None) -> Iterator[tuple[str, str]]:
    """What somebody does, in other words than the opening's if there are any. Where there are several people, "the
    man" may be any of them."""
    clauses = [caption.clause for caption in view.captions if caption.clause and caption is not opening]
    if not clauses and opening and opening.clause:
        clauses = [opening.clause]
    for clause in _drawn(clauses, 1, rng):
        answer = sentence(f"{clause.definite} {clause.be} {clause.action}")
        alone = view.people is None or view.people.single or clause.be == "are" or len(clause.subject.split()) > 3
        if not clause.alive and clause.verb in STAYING | STATES:
            yield f"Where {clause.be} {clause.definite}?", answer
        elif clause.noun in PEOPLE - {"couple", "family"} and not alone:
            yield "What is one of the people doing?", sentence(clause.told)
        elif clause.verb not in STATES:
            if clause.verb != "wearing":
                yield f"What {clause.be} {clause.definite} doing?", answer
            if what := _object_question(clause):
                yield what, answer


def _object_question(clause: Clause) -> str | None:
    """ "What is the man holding?", where the action is one verb and its object."""
    verb, *rest = clause.action.split()
    if verb in WITH_OBJECT and rest and rest[0] in ARTICLES and DOING.isdisjoint(rest):
        return f"What {clause.be} {clause.definite} {verb}?"
    return None


def counting(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """How many there are, by the boxes; of many only that they are several."""
    for group in view.groups:
        question = rng.choice(("How many {} are there?", "How many {} can you see in the picture?")).format(group.names)
        if group.counted:
            number, be = NUMBERS[len(group.boxes)], group.be
            noun = group.names if group.many else group.name
            yield question, rng.choice((f"There {be} {number} {noun}.", f"I can see {number} {noun}."))
        elif group.crowded and group.many:
            yield question, f"There are several {group.names}."


def placing(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where things are on the picture."""
    for group in view.groups:
        places = [place(box) for box in group.boxes]
        if not group.counted or len(places) > 2 or None in places or len(set(places)) < len(places):
            continue
        question = f"Where in the picture {group.be} {group.the}?"
        if len(places) == 2:
            yield question, f"One is {places[0]} and the other is {places[1]}."
        elif area(group.boxes[0]) < 0.5:
            yield question, capital(f"{group.the} is {places[0]} of the picture.")


def sides(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Which of two things is further left, or higher up."""
    pairs = [(a, b) for a in view.singles for b in view.singles if a is not b]
    for a, b in _drawn(pairs, 6, rng):
        left, above = comes_first(a, b, axis=0), comes_first(a, b, axis=1)
        if left is not None:
            question = f"Is {a.the} on the left or on the right of {b.the}?"
            yield question, f"{capital(a.the)} is on the {'left' if left else 'right'} of {b.the}."
        elif above is not None:
            question = f"Which is higher up in the picture, {a.the} or {b.the}?"
            yield question, f"{capital((a if above else b).the)} is higher up in the picture."


def colour(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Colours that captions give to one thing; no two of the captions give it different ones."""
    lines = [caption.words for caption in view.captions]
    for noun, told in dict(pair for line in lines for pair in colours_of(line)).items():
        several = noun.endswith("s") or any(plural(noun) in line or line.count(noun) > 1 for line in lines)
        boxed = [group for group in view.groups if group.name.split()[-1] == noun]
        if not several and all(group.single for group in boxed):
            question = rng.choice((f"What colour is the {noun}?", f"Of what colour is the {noun}?"))
            yield question, f"The {noun} is {told}."


def setting(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where it all takes place, in a caption's words."""
    found = Counter(
        f"{where} {phrase}" for caption in view.captions for where, phrase, _ in caption.places if where != "of"
    )
    for where, _ in found.most_common(1):
        yield rng.choice(("Where does the scene take place?", "What is the setting?")), f"It takes place {where}."


def size(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Which of two things takes up more of the picture."""
    for a, b in zip(view.singles, view.singles[1:]):
        if a.area > 1.5 * b.area:
            one, other = rng.sample((a, b), 2)
            question = f"Which takes up more of the picture, {one.the} or {other.the}?"
            yield question, f"{capital(a.the)} takes up more of the picture than {b.the}."


def uses(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Background knowledge: what a thing or a place is for."""
    if view.pretended:
        return
    for group in view.groups:
        if group.category in USES:
            kind, be, they = (group.names, "are", "They are") if group.many else (group.some, "is", "It is")
            yield f"What {be} {kind} generally used for?", f"{they} generally used for {USES[group.category]}."
    if view.setting:
        yield f"What is {with_article(view.setting)} generally for?", f"It is generally for {PLACES_FOR[view.setting]}."


def animal(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """The kind of the animals, where all are of one kind."""
    told = view.told
    boxed = [group for group in view.groups if group.category in ANIMALS]
    kinds = {noun for noun in ANIMALS if noun in told or plural(noun) in told} | {group.category for group in boxed}
    if view.pretended or len(kinds) != 1 or not told.isdisjoint(("teddy", "hot", "animal", "animals")):
        return
    (kind,) = kinds
    if not boxed and not view.tells(kind, plural(kind)):  # "a bird cage"
        return
    shown = boxed[0].some if boxed else plural(kind) if plural(kind) in told else with_article(kind)
    yield rng.choice(("What kind of animal can be seen?", "Which animal is in the picture?")), f"One can see {shown}."


def others(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What there is beside the largest thing."""
    if len(view.groups) > 2:
        first, *rest = view.groups
        shown = listing([group.some for group in rest[:5]])
        question = rng.choice(("What else is there, besides {}?", "What can be seen in addition to {}?"))
        answer = rng.choice((f"One can also see {shown}.", f"There {rest[0].be} also {shown}."))
        yield question.format(first.the), answer


def told_places(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where a caption puts a thing: "a laptop on top of a bed"."""
    form = re.compile(
        r"(?:an?|the) ((?:[\w-]+ ){0,2}?[\w-]+) "
        r"((?:on|on top of|under|next to|in front of|beside|near|inside) (?:an?|the) .+)",
        re.I,
    )
    for caption in view.captions:
        match = form.fullmatch(caption.noun_phrase or "")
        if match and (PREPOSITIONS | PICTURES | DOING | STATES).isdisjoint(match[1].lower().split()):
            yield f"Where is the {match[1]}?", f"The {match[1]} is {match[2]}."
