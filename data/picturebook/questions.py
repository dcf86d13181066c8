"""What can be asked about a scene, and the answers: questions with their truth, before anybody has worded them.

Each maker takes ``(scene, rng, subject)`` and returns a Question, or None if the scene gives no definite answer.
``subject`` is the thing that the question is about (an absent thing's noun); if it is None, the maker chooses one.

Answers are short and have few forms. Where a verdict needs more than one look, the looks come first: "One in the top
left and one in the centre, so two." Lists give each thing its place, which keeps the model's own place in the list.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.picturebook import nouns
from data.picturebook.language import (
    NUMBERS,
    SETTING_NAMES,
    at,
    description,
    listing,
    plural,
    region,
    sentence,
    some_things,
    with_article,
)
from data.picturebook.scene import COLOURS, KINDS, PLACES, SIZES, Scene, Thing
from data.picturebook.wordings import ask, ask_plainly

ACROSS = ("on the left of", "on the right of")
DOWN = ("above", "below")
FURTHER = {"on the left of": "further left", "on the right of": "further right", "above": "higher", "below": "lower"}
CELLS = [place for row in PLACES for place in row]
SIDES = {  # the cells of a whole column or row
    "left": lambda thing: thing.column == 0,
    "right": lambda thing: thing.column == 2,
    "top": lambda thing: thing.row == 0,
    "bottom": lambda thing: thing.row == 2,
}
SIDE_NAMES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
NEAR = {  # whether the second thing is there, seen from the first
    "on the left of": lambda thing, other: other.column < thing.column,
    "on the right of": lambda thing, other: other.column > thing.column,
    "above": lambda thing, other: other.row < thing.row,
    "below": lambda thing, other: other.row > thing.row,
    "next to": lambda thing, other: abs(other.row - thing.row) + abs(other.column - thing.column) == 1,
}
CATEGORIES = {
    "animal": ("fish", "bird"),
    "vehicle": ("car", "boat"),
    "plant": ("tree", "flower"),
    "building": ("house",),
}
GROUNDS = {"meadow": "grass", "sea": "water", "desert": "sand", "snow": "snow", "mountains": "mountains"}
YES, NO = ("yes",), ("no", "not", "none", "nothing", "isn't", "don't", "nowhere")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
Words = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What is asked, and the answer.

    kind: the type, by which answers are scored; form: the frames that ask it (wordings.py), whose slots are filled with
    ``slots``; told: the things that the answer tells of; asks: what a follow-up such as "and the tree?" asks too; said:
    the answer as a clause that can be said again ("the car is red").
    An answer is right if it has a word of each list in ``need`` and none of ``refuse``.
    """

    kind: str
    form: str
    slots: dict[str, str]
    answer: str
    need: tuple[Words, ...]
    refuse: Words = ()
    told: tuple[Thing, ...] = ()
    asks: str = ""
    said: str = ""

    @property
    def subject(self) -> Thing | None:
        """The thing that "it" means from now on."""
        return self.told[0] if len(self.told) == 1 else None

    def ask(self, rng: random.Random, held_out: bool = False) -> str:
        """The question as people type it."""
        return ask(self.form, self.slots, rng, held_out)

    def ask_plainly(self, rng: random.Random) -> str:
        """The question in one of the old wordings."""
        return ask_plainly(self.form, self.slots, rng)


Maker = Callable[..., Question | None]


# ---- names, lists, and what an answer must and must not say ---------------------------------------------------------


def name(thing: Thing, scene: Scene) -> str:
    """The name of a thing: "fish" if it is the only one, else "red fish"."""
    return thing.kind if sum(other.kind == thing.kind for other in scene.things) == 1 else thing.pair


def called(thing: Thing, scene: Scene, rng: random.Random) -> str:
    """A name of a thing as people choose it: sometimes with a colour that it does not need, or with a colour only."""
    form = rng.random()
    if form < 0.1 and sum(other.colour == thing.colour for other in scene.things) == 1:
        return f"{thing.colour} thing"
    return thing.pair if form < 0.3 else name(thing, scene)


def placed(found: Sequence[Thing], size: bool = False) -> str:
    """ "a red house in the top left and a blue boat in the centre"."""
    return listing([f"{with_article(f'{t.size} {t.pair}' if size else t.pair)} {at(t)}" for t in found])


def counting(found: Sequence[Thing]) -> str:
    """ "one in the top left and one in the centre, so two"; "one in the centre"; "none"."""
    if not found:
        return "none"
    aloud = listing([f"one {at(thing)}" for thing in found])
    return aloud if len(found) == 1 else f"{aloud}, so {NUMBERS[len(found)]}"


def other_places(found: Sequence[Thing]) -> Words:
    """The places in which none of these things is."""
    return tuple(cell for cell in CELLS if cell not in {thing.place for thing in found})


def other_kinds(*names: str) -> Words:
    """The kinds that none of these names has."""
    return tuple(kind for kind in KINDS if kind not in {name.split()[-1] for name in names})


def other_colours(found: Sequence[Thing]) -> Words:
    return tuple(colour for colour in COLOURS if colour not in {thing.colour for thing in found})


def others(found: Sequence[Thing]) -> Words:
    """Kinds, colours, places and pairs that are not those of ``found``."""
    kinds = sorted({thing.kind for thing in found})
    pairs = {f"{colour} {kind}" for colour in sorted({thing.colour for thing in found}) for kind in kinds}
    wrong = sorted(pairs - {thing.pair for thing in found})
    return (*(kind for kind in KINDS if kind not in kinds), *other_colours(found), *other_places(found), *wrong)


def all_of(found: Sequence[Thing]) -> tuple[Words, ...]:
    return tuple((thing.pair,) for thing in found)


def places_of(found: Sequence[Thing]) -> tuple[Words, ...]:
    return tuple((thing.place,) for thing in found)


def numbers(count: int) -> tuple[tuple[Words, ...], Words]:
    """What a counted answer must say, and what it must not. Counting aloud says "one" for every thing."""
    if count == 0:
        return (("none", "no", "zero", "not"),), NUMBERS[1:]
    return ((NUMBERS[count],),), tuple(word for word in NUMBERS[2:] if word != NUMBERS[count])


def no_such(asked: str, number: str = "one", known: bool = True) -> str:
    """What is said about something that is not in the picture. A noun of the training is named, any other is not: a
    model that has to copy a word that it has never met often writes another. Made-up nouns teach this."""
    if not known:
        return "I do not see one" if number == "one" else "I do not see any"
    return f"there {'are' if number == 'many' else 'is'} no {asked} in the picture"


# ---- the nine old types: with ``ask_plainly`` they are those of heldout.json ----------------------------------------


def existence(scene, rng, subject=None):
    return _existence(scene, *_something(scene, rng, subject))


def _something(scene: Scene, rng: random.Random, subject: Thing | None = None) -> tuple[str, list[Thing]]:
    """A name, and the thing that has it. In half of the cases there is none; most of these names differ in one word
    from something that is there."""
    pairs = {thing.pair for thing in scene.things}
    kinds = {thing.kind for thing in scene.things}
    thing = subject or rng.choice(scene.things)
    if rng.random() < 0.5:
        return rng.choice((name(thing, scene), thing.pair)), [thing]
    if rng.random() < 0.5:
        return rng.choice([kind for kind in KINDS if kind not in kinds]), []
    near = [f"{colour} {thing.kind}" for colour in COLOURS] + [f"{thing.colour} {kind}" for kind in KINDS]
    return rng.choice([pair for pair in near if pair not in pairs]), []


def _existence(scene: Scene, asked: str, found: list[Thing], number: str = "one") -> Question:
    """Is there an ``asked``? ``number``: "one" or "many", which decides whether it is asked for in the plural."""
    slots, form = {"a": with_article(asked), "bare": asked}, "existence"
    if number == "many":
        slots, form = {"many": plural(asked)}, "existence many"
    if found:
        be = "is" if len(found) == 1 else "are"
        yes, no = sentence(f"yes, {placed(found)}"), f"there {be} {placed(found)}"
        return Question("existence", form, slots, yes, (YES,), (*NO, *others(found)), tuple(found), "existence", no)
    said = no_such(asked if number == "one" else plural(asked), number)
    refuse = (*YES, *CELLS, *other_kinds(asked))
    return Question("existence", form, slots, sentence(f"no, {said}"), (NO,), refuse, (), "existence", said)


def colour(scene, rng, subject=None):
    once = [t for t in scene.things if name(t, scene) == t.kind and subject in (None, t)]
    if not once:
        return None
    thing = rng.choice(once)
    said = f"the {thing.kind} is {thing.colour}"
    wrong = (*other_colours([thing]), *other_kinds(thing.kind))
    the = {"the": f"the {thing.kind}"}
    return Question("colour", "colour", the, sentence(said), ((thing.colour,),), wrong, (thing,), "colour", said)


def kind(scene, rng, subject=None):
    thing = subject or rng.choice(scene.things)
    if rng.random() < 0.5 and sum(other.colour == thing.colour for other in scene.things) == 1:
        said = f"the {thing.colour} thing is {with_article(thing.kind)}"
        wrong = other_kinds(thing.kind)
        slots = {"colour": thing.colour}
        return Question("kind", "kind", slots, sentence(said), ((thing.kind,),), wrong, (thing,), "", said)
    return replace(_at(thing.place, [thing]), kind="kind")


def _at(cell: str, found: list[Thing]) -> Question:
    """What is in a cell?"""
    said = f"in the {cell} there is {with_article(found[0].pair) if found else 'nothing'}"
    need = all_of(found) if found else (NO,)
    refuse = others(found) if found else (*KINDS, *COLOURS, *(other for other in CELLS if other != cell))
    refuse = (*refuse, *SIDE_NAMES.values())
    return Question("place", "at", {"at": f"<{cell}>"}, sentence(said), need, refuse, tuple(found), "place", said)


def count(scene, rng, subject=None):
    what, found = some_things(scene, rng)
    return _count(what, found)


def _count(what: str, found: list[Thing]) -> Question:
    need, refuse = numbers(len(found))
    slots = {"many": _several(what)}
    said = counting(found) if found else ""
    refuse = (*refuse, *other_places(found))
    return Question("count", "count", slots, sentence(counting(found)), need, refuse, tuple(found), "count", said)


def _several(what: str) -> str:
    """Ways to name several things: "red things" are also "red objects" and "things that are red"."""
    colour, _, noun = what.rpartition(" ")
    if noun != "things":
        return what
    return f"[{what}|{colour} <things>|<things> that are {colour}|{colour} ones]" if colour else "[things|<things>]"


def position(scene, rng, subject=None):
    thing = subject or rng.choice(scene.things)
    asked = called(thing, scene, rng)
    said, wrong = f"the {asked} is {at(thing)}", (*other_places([thing]), *other_kinds(thing.kind))
    the, need = {"the": f"the {asked}"}, places_of([thing])
    return Question("position", "position", the, sentence(said), need, wrong, (thing,), "position", said)


def size(scene, rng, subject=None):
    thing = subject or rng.choice(scene.things)
    asked = called(thing, scene, rng)
    said = f"the {asked} is {thing.size}"
    [wrong] = [words for size, words in SIZE_WORDS.items() if size != thing.size]
    wrong = (*wrong, *other_kinds(thing.kind))
    the, need = {"the": f"the {asked}"}, (SIZE_WORDS[thing.size],)
    return Question("size", "size", the, sentence(said), need, wrong, (thing,), "size", said)


def relation(scene, rng, subject=None):
    found = [
        (a, b, words, along)
        for words, along in ((ACROSS, lambda thing: thing.column), (DOWN, lambda thing: thing.row))
        for a in scene.things
        for b in scene.things
        if along(a) != along(b) and subject in (None, a)
    ]
    if not found:
        return None
    a, b, words, along = rng.choice(found)
    answer, wrong = words if along(a) < along(b) else words[::-1]
    one, other, (first, second) = name(a, scene), name(b, scene), rng.sample(words, 2)
    said = f"{_two(a, b, scene, at)}, so the {one} is {answer} the {other}"
    slots = {"the": f"the {one}", "other": f"the {other}", "one": f"<{first}>", "two": f"<{second}>"}
    form = rng.choice(("relation", "relation", "across" if words == ACROSS else "down"))
    verdict = f"{one} is {answer}"
    need = ((verdict, verdict.replace("on the", "to the"), verdict.replace("on the ", "")),)
    refuse = (wrong.replace("on the ", ""), *other_places([a, b]), *other_kinds(one, other))
    return Question("relation", form, slots, sentence(said), need, refuse, (), "", said)


def _two(a: Thing, b: Thing, scene: Scene, told: Callable[[Thing], str]) -> str:
    """ "The car is red and the boat is blue": something about each of two things."""
    return f"the {name(a, scene)} is {told(a)} and the {name(b, scene)} is {told(b)}"


def setting(scene, rng, subject=None):
    said = f"it is {SETTING_NAMES[scene.setting]}"
    words = {setting: (name.split()[-1],) for setting, name in SETTING_NAMES.items()}
    words |= {"snow": ("snow", "snowy"), "night": ("night",)}
    wrong = tuple(word for setting, those in words.items() if setting != scene.setting for word in those)
    return Question("setting", "setting", {}, sentence(said), (words[scene.setting],), wrong, (), "", said)


def reasoning(scene, rng, subject=None):
    return rng.choice((_leaving, _leaving, _sailing, _first_met, _comparing))(scene, rng)


def _leaving(scene, rng):
    """What stays is counted aloud, like any other things."""
    gone, word, test = rng.choice(
        [(f"{c} things", c, lambda t, c=c: t.colour == c) for c in sorted({t.colour for t in scene.things})]
        + [(plural(k), plural(k), lambda t, k=k: t.kind == k) for k in sorted({t.kind for t in scene.things})]
    )
    found = [thing for thing in scene.things if not test(thing)]
    slots = {"gone": _several(gone), "not": word}
    return replace(_count("things", found), kind="reasoning", form="leaving", slots=slots, asks="")


def _sailing(scene, rng):
    sea, boats = scene.setting == "sea", [thing for thing in scene.things if thing.kind == "boat"]
    if not (sea or boats) and rng.random() < 0.8:  # else guessing "no" would pay off
        return None
    boat = f"there is a boat {at(boats[0])}" if boats else "there is no boat"
    said = f"{'it is the sea' if sea else 'it is not the sea'} and {boat}, so {'yes' if sea and boats else 'no'}"
    need, refuse = ((YES,), ("no", "not")) if sea and boats else ((NO,), YES)
    return Question("reasoning", "sailing", {}, sentence(said), need, (*refuse, *other_places(boats)))


def _first_met(scene, rng):
    start, end = rng.choice((("left", "right"), ("left", "right"), ("right", "left")))
    column = (min if start == "left" else max)(thing.column for thing in scene.things)
    first = [thing for thing in scene.things if thing.column == column]
    if len(first) > 1 or len(scene.things) == 1:
        return None
    said = f"{at(first[0])} there is {with_article(first[0].pair)}, so that comes first"
    slots = {"start": start, "end": end}
    return Question("reasoning", "first", slots, sentence(said), all_of(first), others(first), (first[0],), "", said)


def _comparing(scene, rng):
    return _larger(scene, rng, [(a, b) for a in scene.things for b in scene.things if a.size != b.size], "larger")


def _larger(scene: Scene, rng: random.Random, pairs: list[tuple[Thing, Thing]], form: str) -> Question | None:
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    looks = _two(a, b, scene, lambda thing: thing.size)
    slots = {"the": f"the {name(a, scene)}", "other": f"the {name(b, scene)}"}
    if a.size == b.size:
        said, need = f"{looks}, so they are the same size", (("same", "equal", "neither", "equally"),)
        return Question("compare", form, slots, sentence(said), need, (form, *other_kinds(a.kind, b.kind)))
    best = name(a if (a.size == "large") == (form == "larger") else b, scene)
    said, other = f"{looks}, so the {best} is {form}", name(b, scene) if best == name(a, scene) else name(a, scene)
    words = (form, "bigger") if form == "larger" else (form,)
    need = (tuple(f"{best} is {word}" for word in words),)
    refuse = (f"{other} is {form}", "same", *other_kinds(a.kind, b.kind))
    return Question("reasoning", form, slots, sentence(said), need, refuse, (), "", said)


QUESTIONS: dict[str, Maker] = {
    "existence": existence,
    "colour": colour,
    "kind": kind,
    "count": count,
    "position": position,
    "relation": relation,
    "size": size,
    "setting": setting,
    "reasoning": reasoning,
}


# ---- more types -----------------------------------------------------------------------------------------------------


def existence_of_several(scene, rng, subject=None):
    """Existence asked in the plural ("any red boats?"), or of a kind, a size or a wider word ("animals")."""
    number, form = rng.choice(("one", "many", "many")), rng.random()
    if form < 0.5:
        return _existence(scene, *_something(scene, rng), number)
    if form < 0.7:
        kind = rng.choice(scene.things).kind
        return _existence(scene, kind, [thing for thing in scene.things if thing.kind == kind], number)
    if form < 0.85:
        word = rng.choice(list(CATEGORIES))
        return _existence(scene, word, [thing for thing in scene.things if thing.kind in CATEGORIES[word]], number)
    size, kind = rng.choice(list(SIZES)), rng.choice(scene.things).kind
    found = [thing for thing in scene.things if (thing.size, thing.kind) == (size, kind)]
    return _existence(scene, f"{size} {kind}", found, number)


def something_of_a_colour(scene, rng, subject=None):
    colour = rng.choice([thing.colour for thing in scene.things] if rng.random() < 0.5 else list(COLOURS))
    found = [thing for thing in scene.things if thing.colour == colour]
    if not found:
        said = f"there is nothing {colour} in the picture"
        answer, need, refuse = sentence(f"no, {said}"), (NO,), (*YES, *CELLS)
        return Question("existence", "anything of a colour", {"colour": colour}, answer, need, refuse, (), "", said)
    said = f"there {'is' if len(found) == 1 else 'are'} {placed(found)}"
    form, slots, refuse = "anything of a colour", {"colour": colour}, (*NO, *others(found))
    return Question("existence", form, slots, sentence(f"yes, {placed(found)}"), (YES,), refuse, tuple(found), "", said)


def count_of_some(scene, rng, subject=None):
    """How many of a size, of a colour and kind, or of a wider word, are there?"""
    thing, form = rng.choice(scene.things), rng.random()
    if form < 0.4:
        size = rng.choice(list(SIZES))
        return _count(f"{size} things", [other for other in scene.things if other.size == size])
    if form < 0.7:
        word = rng.choice(list(CATEGORIES))
        return _count(plural(word), [other for other in scene.things if other.kind in CATEGORIES[word]])
    pair = f"{rng.choice((thing.colour, rng.choice(list(COLOURS))))} {thing.kind}"
    return _count(plural(pair), [other for other in scene.things if other.pair == pair])


def check_count(scene, rng, subject=None):
    """ "Are there two boats?", "Is there more than one?" They are counted aloud, and then comes the verdict."""
    what, found = some_things(scene, rng)
    number = len(found) if len(found) > 1 and rng.random() < 0.5 else rng.randint(2, 4)
    form, slots, true = "check count", {"some": NUMBERS[number], "many": what}, len(found) == number
    if rng.random() < 0.4:
        single = what if what.endswith("fish") else what.removesuffix("s")
        form, slots, true = "more than one", {"single": single, "many": what}, len(found) > 1
    verdict = "yes" if true else "no"
    answer = sentence(f"{counting(found)}: {verdict}" if len(found) > 1 else f"{counting(found)}, so {verdict}")
    need, refuse = ((YES,), ("no", "not")) if true else ((NO,), YES)
    return Question("check", form, slots, answer, need, (*refuse, *other_places(found)))


def colour_or(scene, rng, subject=None):
    """Is it red or blue?"""
    question = colour(scene, rng, subject)
    if question is None:
        return None
    thing = question.subject
    one, two = rng.sample((thing.colour, rng.choice(other_colours([thing]))), 2)
    return replace(question, form="colour or", slots={**question.slots, "one": one, "two": two})


def setting_or_not(scene, rng, subject=None):
    """Is this the sea? Is there any water? The latter only where the settings leave no doubt."""
    where, true = setting(scene, rng), rng.random() < 0.5
    if rng.random() < 0.6:
        asked = scene.setting if true else rng.choice([name for name in SETTING_NAMES if name != scene.setting])
        form, slots = "is it this place", {"place": SETTING_NAMES[asked]}
    elif scene.setting in ("night", "mountains"):
        return None
    else:
        asked = scene.setting if true else rng.choice([name for name in GROUNDS if name != scene.setting])
        form, slots = "is there this ground", {"many": GROUNDS[asked]}
    verdict, need, refuse = ("yes", YES, ("no", "not")) if true else ("no", NO, YES)
    answer, refuse = sentence(f"{verdict}, {where.said}"), (*refuse, *where.refuse)
    return Question("setting", form, slots, answer, (need, *where.need), refuse, (), "", where.said)


def place(scene, rng, subject=None):
    """What is in a cell, which is empty in two of five questions, or in a whole column or row."""
    if rng.random() < 0.15:
        return _colour_or_size_at(rng.choice(scene.things), rng)
    if rng.random() < 0.4:
        side = rng.choice(list(SIDES))
        found = [thing for thing in scene.things if SIDES[side](thing)]
        said = f"{SIDE_NAMES[side]} there {'are' if len(found) > 1 else 'is'} {placed(found) if found else 'nothing'}"
        need, refuse = (all_of(found), others(found)) if found else ((NO,), (*KINDS, *COLOURS, *CELLS))
        refuse = (*refuse, *(name for name in SIDE_NAMES.values() if name != SIDE_NAMES[side]))
        slots = {"at": f"<{side}>"}
        return Question("place", "at", slots, sentence(said), need, refuse, tuple(found), "place", said)
    if rng.random() < 0.35:
        return _at((thing := rng.choice(scene.things)).place, [thing])
    return _at(rng.choice(other_places(scene.things)), [])


def _colour_or_size_at(thing: Thing, rng: random.Random) -> Question:
    """The colour or the size of "the thing in the centre". The answer tells what it is as well."""
    if rng.random() < 0.5:
        return replace(_at(thing.place, [thing]), form="colour at")
    said = f"{at(thing)} there is {with_article(f'{thing.size} {thing.pair}')}"
    slots, wrong = {"at": f"<{thing.place}>"}, tuple(size for size in SIZES if size != thing.size)
    need, refuse = ((thing.size,), (thing.pair,)), (*others([thing]), *wrong)
    return Question("place", "size at", slots, sentence(said), need, refuse, (thing,), "", said)


def further(scene, rng, subject=None):
    """Which of two things is further left, right, up or down?"""
    ways, along = rng.choice(
        (
            (("further left", "further right"), lambda thing: thing.column),
            (("higher", "lower"), lambda thing: thing.row),
        )
    )
    pairs = [(a, b) for a in scene.things for b in scene.things if along(a) != along(b)]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    way = rng.choice(ways)
    best, other = sorted((a, b), key=along, reverse=way == ways[1])
    said = f"{_two(a, b, scene, at)}, so the {name(best, scene)} is {way}"
    slots = {"the": f"the {name(a, scene)}", "other": f"the {name(b, scene)}", "way": f"<{way}>"}
    refuse = (f"{name(other, scene)} is {way}", *other_places([a, b]), *other_kinds(a.kind, b.kind))
    need = ((f"{name(best, scene)} is {way}",),)
    return Question("relation", "further", slots, sentence(said), need, refuse, (), "", said)


def near(scene, rng, subject=None):
    """What is above, below, beside a thing. "Next to" is asked only where no corner touches: there people differ."""
    thing, word = subject or rng.choice(scene.things), rng.choice(list(NEAR))
    found = [other for other in scene.things if other is not thing and NEAR[word](thing, other)]
    if word == "next to" and any(
        abs(other.row - thing.row) == 1 and abs(other.column - thing.column) == 1 for other in scene.things
    ):
        return None
    told = placed(found) if found else "nothing"
    verb = "are" if len(found) > 1 else "is"
    asked = called(thing, scene, rng)
    said = f"the {asked} is {at(thing)}, and {word} it there {verb} {told}"
    need = all_of(found) if found else (NO,)
    slots = {"the": f"the {asked}", "rel": f"<{word}>"}
    return Question("near", "near", slots, sentence(said), need, others([thing, *found]), (thing,), "", said)


def compare(scene, rng, subject=None):
    """Which of two things is larger or smaller; have they the same size or colour?"""
    form = rng.choice(("larger", "smaller", "bigger than", "same size", "same colour"))
    things = scene.things
    if form == "same colour":  # "the red car" would give the answer away
        things = [thing for thing in scene.things if name(thing, scene) == thing.kind]
    pairs = [(a, b) for a in things for b in things if a is not b]
    if not pairs:
        return None
    if form in ("larger", "smaller"):
        differ = [pair for pair in pairs if pair[0].size != pair[1].size]
        turn = _larger(scene, rng, differ if differ and rng.random() < 0.7 else pairs, form)
        return replace(turn, kind="compare")
    wanted, more = rng.random() < 0.5, rng.choice(("large", "small"))
    told, holds = {
        "bigger than": (lambda thing: thing.size, lambda a, b: a.size == more != b.size),
        "same size": (lambda thing: thing.size, lambda a, b: a.size == b.size),
        "same colour": (lambda thing: thing.colour, lambda a, b: a.colour == b.colour),
    }[form]
    a, b = rng.choice([pair for pair in pairs if holds(*pair) == wanted] or pairs)
    verdict = "yes" if holds(a, b) else "no"
    so = verdict
    if form != "same colour":  # in words first, as if asked which is larger
        more = "large" if form == "same size" else more
        best = name(a if a.size == more else b, scene)
        word = "larger" if more == "large" else "smaller"
        so = "they are the same size" if a.size == b.size else f"the {best} is {word}"
        so = f"{so}: {verdict}"
    said = f"{_two(a, b, scene, told)}, so {so}"
    slots = {"the": f"the {name(a, scene)}", "other": f"the {name(b, scene)}"}
    slots["more"] = "<bigger>" if more == "large" else "smaller"
    need, refuse = ((YES,), NO) if verdict == "yes" else ((NO,), YES)
    refuse = (*refuse, *other_kinds(a.kind, b.kind))
    refuse += other_colours([a, b]) if form == "same colour" else ()
    return Question("compare", form, slots, sentence(said), need, refuse)


def check(scene, rng, subject=None):
    """Is it red, big, in the top left, above the tree? Half of the answers are yes."""
    thing, true = subject or rng.choice(scene.things), rng.random() < 0.5
    of = rng.choice(("colour", "size", "place", "relation", "relation"))
    once = name(thing, scene) == thing.kind
    if of == "relation":
        return _check_relation(scene, rng, thing, true)
    asked = called(thing, scene, rng)
    if of == "colour" and once:
        asked = thing.kind
        value = thing.colour if true else rng.choice(other_colours([thing]))
        fact, wrong = thing.colour, other_colours([thing])
    elif of == "size":
        other = next(size for size in SIZES if size != thing.size)
        value = {"large": "<big>", "small": "<small>"}[thing.size if true else other]
        fact, wrong = thing.size, SIZE_WORDS[other]
    else:
        value = thing.place if true else rng.choice(other_places([thing]))
        sides = [side for side, holds in SIDES.items() if holds(thing) == true]
        if sides and rng.random() < 0.5:
            value = rng.choice(sides)
        value, fact, wrong = f"<{value}>", at(thing), other_places([thing])
    said = f"the {asked} is {fact}"
    verdict, need, refuse = ("yes", YES, ("no", "not")) if true else ("no", NO, YES)
    slots, answer = {"the": f"the {asked}", "is": value}, sentence(f"{verdict}, {said}")
    refuse = (*refuse, *wrong, *other_kinds(thing.kind))
    return Question("check", "check", slots, answer, (need,), refuse, (thing,), "", said)


def _check_relation(scene: Scene, rng: random.Random, thing: Thing, true: bool) -> Question | None:
    """Is it above the tree? What is so comes before the verdict, with the word that was asked for: which of the two is
    higher. The verdict is then whether this is the thing that was asked about."""
    others = [other for other in scene.things if other is not thing]
    found = [(other, words, word) for other in others for words in (ACROSS, DOWN) for word in words]
    holding = {(other, words): word for other, words, word in found if NEAR[word](other, thing)}
    if not true and rng.random() < 0.8:  # mostly the opposite holds, sometimes neither: they are in one row or column
        found = [(other, words, word) for other, words, word in found if (other, words) in holding]
    found = [(other, words, word) for other, words, word in found if (holding.get((other, words)) == word) == true]
    if not found:
        return None
    other, words, word = rng.choice(found)
    so = verdict = "yes" if true else "no"
    if (other, words) in holding:
        so = f"the {name(thing if true else other, scene)} is {FURTHER[word]}: {verdict}"
    said = f"{_two(thing, other, scene, at)}, so {so}"
    slots = {"the": f"the {name(thing, scene)}", "is": f"<{word}> the {name(other, scene)}"}
    need, refuse = ((YES,), NO) if true else ((NO,), YES)
    refuse = (*refuse, *other_places([thing, other]), *other_kinds(thing.kind, other.kind))
    return Question("check", "check", slots, sentence(said), need, refuse)


def day(scene, rng, subject=None):
    dark = scene.setting == "night"
    form = rng.choice(("day", "day", "night", "daytime"))
    said = f"it is {'night' if dark else 'day'}"
    need, refuse = (("night", "dark"), ("day", "light")) if dark else (("day", "light", "daytime"), ("night", "dark"))
    if form == "day":
        return Question("day", form, {}, sentence(said), (need,), refuse, (), "", said)
    verdict, words, wrong = ("yes", YES, NO) if dark == (form == "night") else ("no", NO, YES)
    answer = sentence(f"{verdict}, {said}")
    return Question("day", form, {}, answer, (words, need), (*wrong, *refuse), (), "", said)


def about(scene, rng, subject=None):
    answer = sentence(f"it shows {SETTING_NAMES[scene.setting]} with {placed(scene.things)}")
    where = setting(scene, rng)
    need, refuse = (*where.need, *all_of(scene.things)), (*where.refuse, *others(scene.things))
    return Question("about", "about", {}, answer, need, refuse)


def describe(scene, rng, subject=None):
    """The whole picture, or one thing."""
    if rng.random() < 0.5:
        thing = rng.choice(scene.things)
        slots, wrong = {"the": f"the {called(thing, scene, rng)}"}, tuple(size for size in SIZES if size != thing.size)
        need, refuse = ((thing.size,), (thing.pair,), (thing.place,)), (*others([thing]), *wrong)
        return Question("describe", "describe one", slots, sentence(region(thing)), need, refuse, (thing,))
    where = setting(scene, rng)
    need, refuse = (*where.need, *all_of(scene.things)), (*where.refuse, *others(scene.things))
    return Question("describe", "describe", {}, description(scene), need, refuse, scene.things)


def things_there(scene, rng, subject=None):
    """All things, or those of a colour or a size."""
    form = rng.random()
    if form < 0.65:
        answer, need, refuse = sentence(placed(scene.things)), all_of(scene.things), others(scene.things)
        return Question("list", "list", {}, answer, need, refuse, scene.things)
    thing = rng.choice(scene.things)
    if form < 0.8:
        form, slots = "list of a size", {"size": "<big>" if thing.size == "large" else "<small>"}
        found = [other for other in scene.things if other.size == thing.size]
    else:
        form, slots = "list of a colour", {"colour": thing.colour}
        found = [other for other in scene.things if other.colour == thing.colour]
    return Question("list", form, slots, sentence(placed(found)), all_of(found), others(found), tuple(found))


def colours(scene, rng, subject=None):
    answer = sentence(listing([f"{thing.colour} {at(thing)}" for thing in scene.things]))
    need = tuple((colour,) for colour in sorted({thing.colour for thing in scene.things}))
    return Question("colours", "colours", {}, answer, need, (*other_colours(scene.things), *other_places(scene.things)))


def extreme(scene, rng, subject=None):
    """The biggest or the smallest thing. There are two sizes, so it may be several things or all."""
    size = rng.choice(("large", "large", "small"))
    found = [thing for thing in scene.things if thing.size == size]
    slots = {"most": "[biggest|largest]" if size == "large" else "smallest"}
    if not found or (len(found) == len(scene.things) > 1):
        same = size if found else next(other for other in SIZES if other != size)
        answer = f"They are all {same}." if len(scene.things) > 1 else f"The {scene.things[0].kind} is {same}."
        [wrong] = [words for other, words in SIZE_WORDS.items() if other != same]
        need = (SIZE_WORDS[same],) if len(scene.things) == 1 else (SIZE_WORDS[same], ("all", "same", "both"))
        return Question("extreme", "extreme", slots, answer, need, wrong)
    answer = sentence(listing([f"the {thing.pair} {at(thing)}" for thing in found]))
    return Question("extreme", "extreme", slots, answer, all_of(found), others(found), tuple(found))


def several(scene, rng, subject=None):
    """The colours, places or sizes of several things of a kind. A question about "the house" may mean two."""
    kinds = [kind for kind in KINDS if sum(thing.kind == kind for thing in scene.things) > 1]
    if not kinds:
        return None
    kind, form = rng.choice(kinds), rng.choice(("colour", "position", "size"))
    found = [thing for thing in scene.things if thing.kind == kind]
    if form == "colour":
        told, need, refuse = "is {0.colour}", tuple((thing.colour,) for thing in found), other_colours(found)
    elif form == "position":
        told, need, refuse = "is in the {0.place}", places_of(found), other_places(found)
    else:
        sizes = {thing.size for thing in found}
        told, need = "is {0.size}", tuple(SIZE_WORDS[size] for size in sorted(sizes))
        refuse = tuple(word for size in SIZES if size not in sizes for word in SIZE_WORDS[size])
    answer = sentence(listing([f"one {told.format(thing)}" for thing in found]))
    form, slots = (form, {"the": f"the {kind}"}) if rng.random() < 0.3 else (f"several {form}", {"many": plural(kind)})
    return Question("several", form, slots, answer, need, refuse)


def absent(scene, rng, subject=None):
    """Is there something that this world does not have? ``subject``: its noun."""
    if subject is None and rng.random() < 0.06:
        said, refuse = no_such("people", "many"), (*YES, *CELLS, *KINDS)
        return Question("absent", "anybody", {}, sentence(f"no, {said}"), (NO,), refuse, (), "existence", said)
    noun = subject or nouns.absent(rng)
    form = {"one": "existence", "many": "existence many", "mass": "existence mass"}[noun.number]
    said = no_such(noun.word, noun.number, noun.known)
    slots = {"a": with_article(noun.word), "bare": noun.word} if noun.number == "one" else {"many": noun.word}
    answer = sentence(f"no, {said}")
    return Question("absent", form, slots, answer, (NO,), (*YES, *CELLS, *KINDS), (), "existence", said)


def missing(scene, rng, subject=None):
    """A question about something that is not there: one of an absent kind or pair, or (``subject``) of a noun."""
    noun = subject or (nouns.absent(rng) if rng.random() < 0.5 else None)
    if noun is None:
        word, found = _something(scene, rng)
        if found:
            return None
        noun, wrong = nouns.Noun(word, "one"), (*CELLS, *YES)
    else:
        wrong = (*CELLS, *YES, *KINDS)
    if noun.number == "mass":
        return None
    if noun.number == "many":
        need, refuse = numbers(0)
        return Question("missing", "count", {"many": noun.word}, "None.", need, (*refuse, *wrong))
    form = rng.choice(("colour", "position", "position", "size", "near", "check"))
    slots = {"the": f"the {noun.word}", "rel": f"<{rng.choice(list(NEAR))}>"}
    slots["is"] = rng.choice((rng.choice(list(COLOURS)), "<big>", "<small>", f"<{rng.choice(CELLS)}>"))
    said = no_such(noun.word, noun.number, noun.known)
    return Question("missing", form, slots, sentence(said), (NO,), wrong, (), "", said)


MORE: dict[str, Maker] = {
    "several existence": existence_of_several,
    "something of a colour": something_of_a_colour,
    "count of some": count_of_some,
    "check count": check_count,
    "colour or": colour_or,
    "setting or not": setting_or_not,
    "place": place,
    "further": further,
    "near": near,
    "compare": compare,
    "check": check,
    "day": day,
    "about": about,
    "describe": describe,
    "list": things_there,
    "colours": colours,
    "extreme": extreme,
    "several": several,
    "absent": absent,
    "missing": missing,
}
