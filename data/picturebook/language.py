"""Scene -> words: captions, region phrases, descriptions, and questions with definite answers.

Each question maker takes ``(scene, rng, subject)`` and returns ``(question, answer)``, or None if the scene gives no
definite answer. ``subject`` is the thing that the question is about; if it is None, the maker chooses one.
"""

import random
from collections.abc import Sequence

from data.picturebook.scene import COLOURS, KINDS, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")
LENGTH = 600  # maximum characters of a conversation: rows of similar length need little padding
WHERE = {
    "meadow": "in a meadow",
    "sea": "at sea",
    "desert": "in a desert",
    "snow": "in the snow",
    "night": "at night",
    "mountains": "in the mountains",
}
SETTING_NAMES = {
    "meadow": "a meadow",
    "sea": "the sea",
    "desert": "a desert",
    "snow": "a field of snow",
    "night": "a night sky",
    "mountains": "the mountains",
}


def region(thing: Thing) -> str:
    """The phrase for a box: "a large red house in the top left"."""
    return f"{with_article(f'{thing.size} {thing.pair}')} {at(thing)}"


def at(thing: Thing) -> str:
    return f"in the {thing.place}"


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(kind: str) -> str:
    return {"fish": "fish"}.get(kind, f"{kind}s")


def things(count: int) -> str:
    return f"{NUMBERS[count]} thing{'' if count == 1 else 's'}"


def listing(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counting(found: Sequence[Thing]) -> str:
    """ "one in the top left, two in the centre", or "none". The last number is how many there are."""
    return ", ".join(f"{number} {at(thing)}" for number, thing in zip(NUMBERS[1:], found)) or "none"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def captions(scene: Scene) -> list[str]:
    """Five true captions. Each names every thing, in reading order."""
    where, setting = WHERE[scene.setting], SETTING_NAMES[scene.setting]
    full = listing([region(thing) for thing in scene.things])
    sized = listing([with_article(f"{thing.size} {thing.pair}") for thing in scene.things])
    plain = listing([with_article(thing.pair) for thing in scene.things])
    return [
        sentence(f"{full}, {where}"),
        sentence(f"{where} there is {full}"),
        sentence(f"a picture of {setting} with {sized}"),
        sentence(f"{where}: {plain}"),
        sentence(f"{full}: {things(len(scene.things))} {where}"),
    ]


def description(scene: Scene) -> str:
    """The detailed description: the setting, then one sentence per thing in reading order, then their number."""
    sentences = [f"The picture shows {SETTING_NAMES[scene.setting]}."]
    sentences += [sentence(f"{at(t)} is {with_article(f'{t.size} {t.pair}')}") for t in scene.things]
    return " ".join([*sentences, f"That makes {things(len(scene.things))}."])


def notes(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A request for notes, and the notes. With them a decoder learns to look things up before it learns to talk.

    One half are index cards: "red fish top left large, top right small blue boat". The things are in random order, and
    each card begins with a random one of the thing's four attributes, so the rest can only be found by looking for a
    thing with this attribute. The other half are lists of the requested things in reading order.
    """
    if rng.random() < 0.5:
        cards = []
        for thing in scene.things:
            card = [thing.size, thing.colour, thing.kind, thing.place]
            start = rng.randrange(len(card))
            cards.append(" ".join(card[start:] + card[:start]))
        rng.shuffle(cards)
        return "Make notes of the picture.", f"{', '.join(cards)}."
    what, found = some_things(scene, rng)
    return f"Make a list of the {what}.", f"{', '.join(f'{thing.place} {thing.pair}' for thing in found) or 'none'}."


def some_things(scene: Scene, rng: random.Random) -> tuple[str, list[Thing]]:
    """The things of one colour or kind, perhaps none ("red things", "boats"), or all ("things").

    Each number of things that is possible in this scene is equally likely.
    """
    of = [("things", list(scene.things))]
    of += [(f"{c} things", [t for t in scene.things if t.colour == c]) for c in COLOURS]
    of += [(plural(k), [t for t in scene.things if t.kind == k]) for k in KINDS]
    wanted = rng.choice(sorted({len(found) for _, found in of}))
    return rng.choice([(what, found) for what, found in of if len(found) == wanted])


def name(thing: Thing, scene: Scene) -> str:
    """The name of a thing: "fish" if it is the only one, else "red fish"."""
    return thing.kind if sum(other.kind == thing.kind for other in scene.things) == 1 else thing.pair


def existence(scene, rng, subject=None):
    pairs = {thing.pair for thing in scene.things}
    kinds = {thing.kind for thing in scene.things}
    thing = subject or rng.choice(scene.things)
    there = rng.random() < 0.5
    if there:
        asked = rng.choice((name(thing, scene), thing.pair))
    elif rng.random() < 0.5:
        asked = rng.choice([kind for kind in KINDS if kind not in kinds])
    else:  # differs in one word from something that is there
        near = [f"{colour} {thing.kind}" for colour in COLOURS] + [f"{thing.colour} {kind}" for kind in KINDS]
        asked = rng.choice([pair for pair in near if pair not in pairs])
    question = rng.choice(("Is there {}?", "Do you see {}?")).format(with_article(asked))
    return question, f"The {asked} is {at(thing)}, so yes." if there else f"The {asked} is nowhere, so no."


def colour(scene, rng, subject=None):
    once = [t for t in scene.things if name(t, scene) == t.kind and subject in (None, t)]
    if not once:
        return None
    thing = rng.choice(once)
    question = rng.choice(("What colour is the {}?", "Of what colour is the {}?"))
    return question.format(thing.kind), f"The {thing.kind} is {thing.colour}."


def kind(scene, rng, subject=None):
    thing = subject or rng.choice(scene.things)
    if rng.random() < 0.5 and sum(other.colour == thing.colour for other in scene.things) == 1:
        return f"What is the {thing.colour} thing?", f"The {thing.colour} thing is {with_article(thing.kind)}."
    return f"What is {at(thing)}?", sentence(f"{at(thing)} is {with_article(thing.pair)}")


def count(scene, rng, subject=None):
    what, found = some_things(scene, rng)
    return f"How many {what} are there?", f"I see {counting(found)}, so I count {NUMBERS[len(found)]}."


def position(scene, rng, subject=None):
    thing = subject or rng.choice(scene.things)
    return f"Where is the {name(thing, scene)}?", f"The {name(thing, scene)} is {at(thing)}."


def size(scene, rng, subject=None):
    thing = subject or rng.choice(scene.things)
    words = list(SIZES)
    rng.shuffle(words)
    question = rng.choice((f"Is the {{}} {words[0]} or {words[1]}?", "How big is the {}?"))
    return question.format(name(thing, scene)), f"The {name(thing, scene)} is {thing.size}."


def relation(scene, rng, subject=None):
    across = ("on the left of", "on the right of"), lambda thing: thing.column
    down = ("above", "below"), lambda thing: thing.row
    found = [
        (a, b, words, along)
        for words, along in (across, down)
        for a in scene.things
        for b in scene.things
        if along(a) != along(b) and subject in (None, a)
    ]
    if not found:
        return None
    a, b, words, along = rng.choice(found)
    answer = words[0] if along(a) < along(b) else words[1]
    one, other, (first, second) = name(a, scene), name(b, scene), rng.sample(words, 2)
    because = f"The {one} is {at(a)} and the {other} is {at(b)}"
    return f"Is the {one} {first} or {second} the {other}?", f"{because}, so the {one} is {answer} the {other}."


def setting(scene, rng, subject=None):
    return rng.choice(
        ("What is the setting?", "Where was this picture made?")
    ), f"It is {SETTING_NAMES[scene.setting]}."


def reasoning(scene, rng, subject=None):
    return rng.choice((_leaving, _leaving, _sailing, _first_met, _comparing))(scene, rng)


def _leaving(scene, rng):
    gone, test = rng.choice(
        [(f"{c} things", lambda t, c=c: t.colour == c) for c in sorted({t.colour for t in scene.things})]
        + [(plural(k), lambda t, k=k: t.kind == k) for k in sorted({t.kind for t in scene.things})]
    )
    without = [thing for thing in scene.things if test(thing)]
    because = f"I see {counting(scene.things)}, without {counting(without)}"
    left = NUMBERS[len(scene.things) - len(without)]
    return f"If all the {gone} left, how many things would remain?", f"{because}, so I would count {left}."


def _sailing(scene, rng):
    sea, boats = scene.setting == "sea", [thing for thing in scene.things if thing.kind == "boat"]
    if not (sea or boats) and rng.random() < 0.8:  # else guessing "no" would pay off
        return None
    because = f"The sea is {'here' if sea else 'nowhere'} and a boat is {at(boats[0]) if boats else 'nowhere'}"
    return "Could one sail here, and why?", f"{because}, so {'yes' if sea and boats else 'no'}."


def _first_met(scene, rng):
    column = min(thing.column for thing in scene.things)
    first = [thing for thing in scene.things if thing.column == column]
    if len(first) > 1 or len(scene.things) == 1:
        return None
    question = "Walking from left to right, what does one meet first?"
    return question, sentence(f"{at(first[0])} is {with_article(first[0].pair)}, so that comes first")


def _comparing(scene, rng):
    pairs = [(a, b) for a in scene.things for b in scene.things if a.size != b.size]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    one, other = name(a, scene), name(b, scene)
    larger = one if a.size == "large" else other
    because = f"The {one} is {a.size} and the {other} is {b.size}"
    return f"Which is larger, the {one} or the {other}?", f"{because}, so the {larger} is larger."


QUESTIONS = {
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


def conversation(scene: Scene, rng: random.Random, length: int) -> list[tuple[str, str]]:
    """Questions of mixed types and their answers, at most ``length`` characters in total, no question twice.

    Counting and reasoning, whose answers depend on the most things, are twice as likely: they need more practice.
    """
    weights = [2 if kind in ("count", "reasoning") else 1 for kind in QUESTIONS]
    asked: dict[str, str] = {}
    for _ in range(40):
        [make] = rng.choices(list(QUESTIONS.values()), weights)
        question, answer = make(scene, rng) or ("", "")
        if question and len(question) + len(answer) <= length and question not in asked:
            asked[question] = answer
            length -= len(question) + len(answer)
    return list(asked.items())


def words_by_patch(scene: Scene, grid: int) -> list[str]:
    """The picture given as words: ``grid`` x ``grid`` cells in reading order, without pixels.

    A cell has the words of the thing that covers its middle (the smaller one if there are two), else the setting.
    """
    cells = []
    for row in range(grid):
        for column in range(grid):
            u, v = (column + 0.5) / grid, (row + 0.5) / grid
            covering = [t for t in scene.things if t.box[0] <= u <= t.box[2] and t.box[1] <= v <= t.box[3]]
            thing = min(covering, key=lambda t: t.area, default=None)  # the one on top
            cells.append(f"{thing.size} {thing.pair} {thing.place}" if thing else scene.setting)
    return cells
