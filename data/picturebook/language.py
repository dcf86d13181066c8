"""Scene -> words: captions, region phrases, descriptions, notes, and the picture given as words."""

import random

from data.picturebook.scene import COLOURS, KINDS, PLACES, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")
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
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def plural(kind: str) -> str:
    return kind if kind.endswith("fish") else f"{kind}s"


def things(count: int) -> str:
    return f"{NUMBERS[count]} thing{'' if count == 1 else 's'}"


def listing(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


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


def notes(scene: Scene, rng: random.Random, requests: int = 10) -> list[tuple[str, str]]:
    """Short requests for notes, and the notes. With them a decoder learns to look things up before it learns to talk.

    In half of the scenes the first note is index cards of all things: "red fish top left large, top right small blue
    boat". The cards are in random order, and each begins with a random one of its thing's four attributes, so the rest
    can only be found by looking for a thing with this attribute. The others are look-ups ("red things"), whose notes
    have cards in reading order, each from the place to the kind.
    """
    turns = {}
    if rng.random() < 0.5:
        cards = []
        for thing in scene.things:
            card = [thing.size, thing.colour, thing.kind, thing.place]
            start = rng.randrange(len(card))
            cards.append(" ".join(card[start:] + card[:start]))
        rng.shuffle(cards)
        turns["notes"] = f"{', '.join(cards)}."
    while len(turns) < requests:
        if len(scene.things) > 1 and rng.random() < 0.15:
            request, note = _relation(scene, rng)
            turns[request] = note
            continue
        request, found = look_up(scene, rng)
        if rng.random() < 0.25:
            note = f"{', '.join(thing.place for thing in found)}: {NUMBERS[len(found)]}" if found else "none"
            turns[f"count {request}"] = f"{note}."
        else:
            turns[request] = f"{', '.join(f'{t.place} {t.size} {t.pair}' for t in found) or 'none'}."
    return list(turns.items())


def _relation(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Is one thing on the left of another? The note has both places, the one that is further left, and the verdict."""
    a, b = rng.sample(scene.things, 2)
    asked, way, ahead = rng.choice(
        (
            ("on the left of", "further left", b.column - a.column),
            ("on the right of", "further right", a.column - b.column),
            ("above", "higher", b.row - a.row),
            ("below", "lower", a.row - b.row),
        )
    )
    so = "neither: no" if ahead == 0 else f"{a.pair} {way}: yes" if ahead > 0 else f"{b.pair} {way}: no"
    return f"{a.pair} {asked} {b.pair}", f"{a.place}, {b.place}, {so}."


def look_up(scene: Scene, rng: random.Random) -> tuple[str, list[Thing]]:
    """What to look up: a colour or kind or all others, a pair, a place, or a size; and what matches, often nothing."""
    thing, way = rng.choice(scene.things), rng.random()
    if way < 0.4:
        what, found = some_things(scene, rng)
        if way < 0.12 and what != "things":  # "not red things": the others
            return f"not {what}", [other for other in scene.things if other not in found]
        return what, found
    if way < 0.7:
        asked = thing.pair
        if rng.random() < 0.5:  # one attribute is another's
            asked = f"{rng.choice(list(COLOURS))} {thing.kind}" if way < 0.55 else f"{thing.colour} {rng.choice(KINDS)}"
        return asked, [other for other in scene.things if other.pair == asked]
    if way < 0.9:
        place = thing.place if rng.random() < 0.6 else rng.choice([place for row in PLACES for place in row])
        return place, [other for other in scene.things if other.place == place]
    size = rng.choice(list(SIZES))
    return f"{size} things", [other for other in scene.things if other.size == size]


def some_things(scene: Scene, rng: random.Random) -> tuple[str, list[Thing]]:
    """The things of one colour or kind, perhaps none ("red things", "boats"), or all ("things").

    Each number of things that is possible in this scene is equally likely.
    """
    of = [("things", list(scene.things))]
    of += [(f"{c} things", [t for t in scene.things if t.colour == c]) for c in COLOURS]
    of += [(plural(k), [t for t in scene.things if t.kind == k]) for k in KINDS]
    wanted = rng.choice(sorted({len(found) for _, found in of}))
    return rng.choice([(what, found) for what, found in of if len(found) == wanted])


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
