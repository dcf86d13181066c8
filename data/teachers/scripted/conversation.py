"""Conversations: questions about what is there, how many, where, of what colour, and what is going on.

Each maker yields ``(question, answer)`` pairs; a conversation opens with what the picture shows, and draws the rest.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator

from data.picturebook.language import NUMBERS, listing, sentence
from data.teachers.scripted import captions as telling
from data.teachers.scripted.captions import STATES, STAYING, Clause
from data.teachers.scripted.view import Group, View, area, middle, place
from data.teachers.scripted.words import USES, capital, plural

MOST_TURNS = 6
WITH_OBJECT = frozenset("""holding wearing riding eating carrying using throwing feeding cutting pulling pushing hitting
catching kicking preparing drinking reading flying brushing""".split())
ARTICLES = frozenset("a an the his her their its some two three several".split())
SETTINGS = (
    "living room", "dining room", "waiting room", "hotel room", "parking lot", "tennis court", "baseball field",
    "soccer field", "train station", "bus stop", "ski slope", "city street", "kitchen", "bathroom", "bedroom", "street",
    "beach", "field", "park", "ocean", "road", "sidewalk", "zoo", "restaurant", "office", "forest", "river", "lake",
    "harbor", "airport", "market", "garden", "yard", "farm", "mountain", "hill", "pool", "stadium", "museum", "city",
    "pasture", "desert", "highway", "intersection", "room", "store", "slope", "court",
)  # fmt: skip


def conversation(view: View, rng: random.Random) -> list[tuple[str, str]]:
    """Two to six turns where the context has enough for them, no question twice, at most two of one maker."""
    found = [_drawn(list(make(view, rng)), 2, rng) for make in (doing, counting, placing, sides, colour, setting, size)]
    found.append(_drawn([*uses(view, rng), *others(view, rng), *told_places(view, rng)], 2, rng))
    rest = _drawn([turn for turns in found for turn in turns], rng.randint(3, MOST_TURNS) - 1, rng)
    turns = [overview(view, rng), *rest]
    if len(turns) == 1 and len(view.captions) > 1:
        turns.append((rng.choice(("How else could one put it?", "What more can be said?")), view.captions[-1].told()))
    asked: dict[str, str] = {}
    for question, answer in turns:
        asked.setdefault(question, answer)
    return list(asked.items())


def _drawn(turns: list, most: int, rng: random.Random) -> list:
    return rng.sample(turns, min(most, len(turns)))


def overview(view: View, rng: random.Random) -> tuple[str, str]:
    """What the picture shows: a caption, or the things in it."""
    question = rng.choice(
        ("What does the picture show?", "What can be seen in the picture?", "What is in this picture?")
    )
    if view.captions:
        return question, telling.draw(view.captions, rng).told()
    shown = listing([group.some for group in view.groups[:6]])
    return question, rng.choice((f"The picture shows {shown}.", f"One can see {shown}."))


def doing(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What somebody does. Where there are several people, "the man" may be any of them."""
    clauses = [caption.clause for caption in view.captions if caption.clause]
    for clause in _drawn(clauses, 1, rng):
        several = view.people is not None and not view.people.single and clause.be == "is" and clause.alive
        answer = sentence(f"{clause.definite} {clause.be} {clause.action}")
        if not clause.alive and clause.verb in STAYING | STATES:
            yield f"Where {clause.be} {clause.definite}?", answer
        elif several and len(clause.subject.split()) < 4 and clause.noun in telling.PEOPLE:
            yield "What is one of the people doing?", sentence(clause.told)
        elif clause.verb not in STATES:
            yield f"What {clause.be} {clause.definite} doing?", answer
            if what := _object_question(clause):
                yield what, answer


def _object_question(clause: Clause) -> str | None:
    """ "What is the man holding?", where the action is one verb and its object."""
    verb, *rest = clause.action.split()
    if verb in WITH_OBJECT and rest and rest[0] in ARTICLES and not set(rest) & telling.DOING:
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
        if len(places) == 1 and area(group.boxes[0]) < 0.5:
            yield question, capital(f"{group.the} is {places[0]} of the picture.")
        elif len(places) == 2:
            yield question, f"One is {places[0]} and the other is {places[1]}."


def sides(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Which of two things is further left, or higher up."""
    pairs = [(a, b) for a in view.singles for b in view.singles if a is not b]
    for a, b in _drawn(pairs, 6, rng):
        if side := beside(a, b):
            yield (
                f"Is {a.the} on the left or on the right of {b.the}?",
                f"{capital(a.the)} is on the {side} of {b.the}.",
            )
        elif height := beside(a, b, axis=1):
            higher = a if height == "left" else b
            yield (
                f"Which is higher up in the picture, {a.the} or {b.the}?",
                f"{capital(higher.the)} is higher up in the picture.",
            )


def beside(a: Group, b: Group, axis: int = 0) -> str | None:
    """ "left" or "right", of single things clearly apart; with ``axis`` 1 "left" means above."""
    (low, high), (other_low, other_high) = ((g.boxes[0].bbox[axis], g.boxes[0].bbox[axis + 2]) for g in (a, b))
    apart = middle(a.boxes[0])[axis] - middle(b.boxes[0])[axis]
    if abs(apart) < 0.15 or (low - other_low) * apart <= 0 or (high - other_high) * apart <= 0:
        return None
    return "left" if apart < 0 else "right"


def colour(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Colours that captions give to one thing, where none gives it another."""
    said: dict[str, set[str]] = {}
    for caption in view.captions:
        for noun, told in telling.colours(caption.words):
            said.setdefault(noun, set()).add(told)
    for noun, told in said.items():
        words = [caption.words for caption in view.captions]
        grouped = [group for group in view.groups if group.name.split()[-1] == noun]
        if len(told) > 1 or any(not group.single for group in grouped) or noun.endswith("s"):
            continue
        if any(plural(noun) in line or line.count(noun) > 1 for line in words):
            continue
        question = rng.choice((f"What colour is the {noun}?", f"Of what colour is the {noun}?"))
        yield question, f"The {noun} is {told.pop()}."


def setting(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where it all takes place, in a caption's words."""
    places = "|".join(SETTINGS)
    ends = r"(?= (?:with|and|that|in|on|at|near|by|of|next|under|during|while|holding|filled)\b|[ ,.]*$|,)"
    found = Counter(
        " ".join(match.group(0).lower().split())
        for caption in view.captions
        for match in re.finditer(rf"\b(?:in|on|at) (?:a|an|the) (?:[\w-]+ )?(?:{places}){ends}", caption.text, re.I)
        if not set(match.group(0).lower().split()[2:-1]) & (telling.PREPOSITIONS | {"top", "side", "edge", "middle"})
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
    """Background knowledge: what a thing in the picture is for."""
    for group in view.groups:
        if group.category in USES and not view.pretended:
            word = group.names if group.many else group.some
            question = f"What {'are' if group.many else 'is'} {word} generally used for?"
            pronoun = "They are" if group.many else "It is"
            yield question, f"{pronoun} generally used for {USES[group.category]}."


def others(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """What there is beside the largest thing."""
    if len(view.groups) > 2:
        first, *rest = view.groups
        shown = listing([group.some for group in rest[:5]])
        question = rng.choice(("What else is there, besides {}?", "What can be seen in addition to {}?"))
        yield question.format(first.the), rng.choice((f"One can also see {shown}.", f"There {rest[0].be} also {shown}."))


def told_places(view: View, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where a caption puts a thing: "a laptop on top of a bed"."""
    for caption in view.captions:
        match = re.fullmatch(
            r"(?:a|an|the) ((?:[\w-]+ ){0,2}?[\w-]+) ((?:on|under|next to|in front of|beside|near|inside) (?:a|an|the) .+)",
            caption.noun_phrase or "",
            re.I,
        )
        if match and not set(match[1].lower().split()) & (telling.PREPOSITIONS | telling.PICTURES | telling.DOING):
            yield f"Where is the {match[1]}?", f"The {match[1]} is {match[2]}."
