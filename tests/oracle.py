"""What is true of a picture-book scene, found from its fields: it shares no code with ``data/picturebook``'s texts.

``right_answer`` takes what is asked (the form and its slots) and gives the only right answer, word for word. ``read``
does this for a question in one of the old wordings. ``is_true`` takes an answer alone and tells whether everything that
it says of the scene is so, whatever the question was.
"""

import re
from collections.abc import Callable

from data.picturebook.scene import Scene, Thing

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
KINDS = ("house", "tree", "boat", "fish", "sun", "moon", "star", "car", "ball", "flower", "bird", "cloud")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PLACES = {
    (0, 0): "in the top left", (0, 1): "in the top middle", (0, 2): "in the top right",
    (1, 0): "in the middle left", (1, 1): "in the centre", (1, 2): "in the middle right",
    (2, 0): "in the bottom left", (2, 1): "in the bottom middle", (2, 2): "in the bottom right",
}  # fmt: skip
CELLS = {place.removeprefix("in the "): cell for cell, place in PLACES.items()}
SIDES = {
    "left": ("on the left", lambda t: t.box[0] + t.box[2] < 2 / 3),
    "right": ("on the right", lambda t: t.box[0] + t.box[2] > 4 / 3),
    "top": ("at the top", lambda t: t.box[1] + t.box[3] < 2 / 3),
    "bottom": ("at the bottom", lambda t: t.box[1] + t.box[3] > 4 / 3),
}
SETTINGS = {  # setting -> (where, what it is)
    "meadow": ("in a meadow", "a meadow"), "sea": ("at sea", "the sea"), "desert": ("in a desert", "a desert"),
    "snow": ("in the snow", "a field of snow"), "night": ("at night", "a night sky"),
    "mountains": ("in the mountains", "the mountains"),
}  # fmt: skip
GROUNDS = {"grass": "meadow", "water": "sea", "sand": "desert", "snow": "snow"}
WIDER = {"animal": "fish bird", "vehicle": "car boat", "plant": "tree flower", "building": "house"}
UNKNOWN = ("I do not see one", "I do not see any")  # of a noun that is not in the training


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a ") + noun


def upper(text: str) -> str:
    return text[0].upper() + text[1:]


def listed(items: list[str]) -> str:
    return re.sub(r"(.*), ", r"\1 and ", ", ".join(items))


def where(thing: Thing) -> str:
    return PLACES[thing.row, thing.column]


def middle(thing: Thing) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def those(scene: Scene, words: str) -> list[Thing]:
    """The things that a name covers, in the singular or plural: "things", "red thing", "small boats", "animals"."""
    *about, noun = words.split()
    nouns = (
        {"thing": KINDS} | {kind: (kind,) for kind in KINDS} | {word: kinds.split() for word, kinds in WIDER.items()}
    )
    kinds = nouns[noun] if noun in nouns else nouns[noun.removesuffix("s")]
    return [t for t in scene.things if t.kind in kinds and all(word in (t.colour, t.size) for word in about)]


def those_or_none(scene: Scene, words: str) -> list[Thing]:
    """Like those(); none where the noun is of no kind in this world."""
    try:
        return those(scene, words)
    except KeyError:
        return []


def only(scene: Scene, words: str) -> Thing:
    """The thing that "the fish", "the red fish" or "the red thing" names: there must be exactly one."""
    found = those(scene, words)
    assert len(found) == 1, f"the {words}: {len(found)} such things"
    return found[0]


def told(found: list[Thing]) -> str:
    """ "a red house in the top left and a blue boat in the centre", or "nothing"."""
    return listed([f"{a(f'{t.colour} {t.kind}')} {where(t)}" for t in found]) or "nothing"


def are(found: list[Thing]) -> str:
    return "are" if len(found) > 1 else "is"


def aloud(found: list[Thing]) -> str:
    return listed([f"one {where(t)}" for t in found]) or "none"


def counted(found: list[Thing]) -> str:
    return aloud(found) + (f", so {NUMBERS[len(found)]}" if len(found) > 1 else "")


def beside(one: Thing, word: str, other: Thing) -> bool:
    """Whether ``other`` is above, below, on the left of ... ``one``, by the middles of their boxes."""
    dx, dy = ((there - here) * 3 for here, there in zip(middle(one), middle(other)))
    step = abs(one.row - other.row) + abs(one.column - other.column)
    return {
        "on the left of": dx < -0.5, "on the right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5,
        "next to": step == 1,
    }[word]  # fmt: skip


def key(slot: str) -> str:
    """ "<top left>" -> "top left": the part of the grammar that a slot is filled with."""
    return slot.removeprefix("<").removesuffix(">")


# ---- the only right answer, by form; each function takes the scene and the slots -------------------------------------


def is_there(scene: Scene, slots: dict) -> str:
    asked = slots.get("many") or slots["a"].split(" ", 1)[1]
    assert "many" in slots or slots["a"] == a(asked)
    if found := those_or_none(scene, asked):
        return f"yes, {told(found)}"
    return f"no, there {'are' if 'many' in slots else 'is'} no {asked} in the picture"


def any_of_a_colour(scene: Scene, slots: dict) -> str:
    found = [t for t in scene.things if t.colour == slots["colour"]]
    return f"yes, {told(found)}" if found else f"no, there is nothing {slots['colour']} in the picture"


def name_in(slots: dict, slot: str = "the") -> str:
    article, words = slots[slot].split(" ", 1)
    assert article == "the"
    return words


def property_of(field: Callable[[Thing], str]) -> Callable[[Scene, dict], str]:
    """ "the car is red"; of several cars "one is red and one is blue"."""

    def answer(scene: Scene, slots: dict) -> str:
        words = slots["many"] if "many" in slots else name_in(slots)
        found = those_or_none(scene, words)
        if not found:
            return f"there is no {words} in the picture"
        if len(found) > 1:
            return listed([f"one is {field(thing)}" for thing in found])
        return f"the {words} is {field(found[0])}"

    return answer


def kind_of(scene: Scene, slots: dict) -> str:
    return f"the {slots['colour']} thing is {a(only(scene, slots['colour'] + ' thing').kind)}"


def what_is_at(scene: Scene, slots: dict, size: bool = False) -> str:
    place = key(slots["at"])
    if place in SIDES:
        name, holds = SIDES[place]
        found = [t for t in scene.things if holds(t)]
        return f"{name} there {are(found)} {told(found)}"
    found = [t for t in scene.things if (t.row, t.column) == CELLS[place]]
    names = [a(f"{t.size} {t.colour} {t.kind}" if size else f"{t.colour} {t.kind}") for t in found]
    return f"in the {place} there is {(*names, 'nothing')[0]}"


def how_many(scene: Scene, slots: dict) -> str:
    many = slots["many"]
    if many.startswith("["):  # the first of several names
        many = many[1:].split("|")[0]
    return counted(those_or_none(scene, many))


def count_is(scene: Scene, slots: dict) -> str:
    found = those(scene, slots["many"])
    assert "single" not in slots or those(scene, slots["single"]) == found
    right = len(found) == NUMBERS.index(slots["some"]) if "some" in slots else len(found) > 1
    return f"{counted(found)}{':' if len(found) > 1 else ', so'} {'yes' if right else 'no'}"


def where_from(scene: Scene, slots: dict) -> str:
    first, second, sides = name_in(slots), name_in(slots, "other"), {key(slots["one"]), key(slots["two"])}
    assert sides in ({"on the left of", "on the right of"}, {"above", "below"})
    here, there = only(scene, first), only(scene, second)
    [side] = [side for side in sides if beside(there, side, here)]
    return f"the {first} is {where(here)} and the {second} is {where(there)}, so the {first} is {side} the {second}"


def which_is_further(scene: Scene, slots: dict) -> str:
    one, other, here, there = two_things(scene, slots)
    side = {"further left": "on the left of", "further right": "on the right of", "higher": "above", "lower": "below"}
    way = key(slots["way"])
    best = one if beside(there, side[way], here) else other
    assert beside(there, side[way], here) != beside(here, side[way], there)
    return f"the {one} is {where(here)} and the {other} is {where(there)}, so the {best} is {way}"


def what_is_near(scene: Scene, slots: dict) -> str:
    words, side = name_in(slots), key(slots["rel"])
    if not those_or_none(scene, words):
        return f"there is no {words} in the picture"
    thing = only(scene, words)
    if side == "next to":
        assert not [t for t in scene.things if (abs(t.row - thing.row), abs(t.column - thing.column)) == (1, 1)]
    found = [t for t in scene.things if t is not thing and beside(thing, side, t)]
    return f"the {words} is {where(thing)}, and {side} it there {are(found)} {told(found)}"


def holds(scene: Scene, slots: dict) -> str:
    """Is it so: a colour, a size, a cell, a side, or a place seen from another thing."""
    words, claim = name_in(slots), slots["is"]
    if not those_or_none(scene, words):
        return f"there is no {words} in the picture"
    return claim_about(scene, only(scene, words), words, claim)


def claim_about(scene: Scene, thing: Thing, words: str, claim: str) -> str:
    if "> the " in claim:
        side, other = claim.split("> the ")
        there = only(scene, other)
        verdict = "yes" if beside(there, side[1:], thing) else "no"
        way = {"on the left of": "further left", "on the right of": "further right"}
        way |= {"above": "higher", "below": "lower"}
        pairs = ((words, thing, there), (other, there, thing))
        best = [f"the {one} is {way[side[1:]]}: " for one, here, than in pairs if beside(than, side[1:], here)]
        return f"the {words} is {where(thing)} and the {other} is {where(there)}, so {''.join(best)}{verdict}"
    claim = key(claim)
    if claim in COLOURS:
        fact, right = thing.colour, claim == thing.colour
    elif claim in ("big", "small"):
        fact, right = thing.size, (claim == "big") == (thing.size == "large")
    else:
        fact = where(thing)
        right = SIDES[claim][1](thing) if claim in SIDES else CELLS[claim] == (thing.row, thing.column)
    return f"{'yes' if right else 'no'}, the {words} is {fact}"


def two_things(scene: Scene, slots: dict) -> tuple[str, str, Thing, Thing]:
    one, other = name_in(slots), name_in(slots, "other")
    return one, other, only(scene, one), only(scene, other)


def larger(word: str) -> Callable[[Scene, dict], str]:
    def answer(scene: Scene, slots: dict) -> str:
        one, other, a_thing, b_thing = two_things(scene, slots)
        looks = f"the {one} is {a_thing.size} and the {other} is {b_thing.size}"
        if a_thing.size == b_thing.size:
            return f"{looks}, so they are the same size"
        width = {one: a_thing.box[2] - a_thing.box[0], other: b_thing.box[2] - b_thing.box[0]}
        return f"{looks}, so the {(max if word == 'larger' else min)(width, key=width.get)} is {word}"

    return answer


def bigger_than(scene: Scene, slots: dict) -> str:
    _, _, here, there = two_things(scene, slots)
    wide, narrow = (here, there) if key(slots["more"]) == "bigger" else (there, here)
    verdict = "yes" if (wide.size, narrow.size) == ("large", "small") else "no"
    return f"{larger('larger' if slots['more'] != 'smaller' else 'smaller')(scene, slots)}: {verdict}"


def same(field: str) -> Callable[[Scene, dict], str]:
    def answer(scene: Scene, slots: dict) -> str:
        one, other, here, there = two_things(scene, slots)
        looks = f"the {one} is {getattr(here, field)} and the {other} is {getattr(there, field)}"
        verdict = "yes" if getattr(here, field) == getattr(there, field) else "no"
        return f"{larger('larger')(scene, slots)}: {verdict}" if field == "size" else f"{looks}, so {verdict}"

    return answer


def without(scene: Scene, slots: dict) -> str:
    gone = slots["gone"].strip("[]").split("|")[0]
    assert gone.split()[0] == slots["not"]
    left = [t for t in scene.things if t not in those(scene, gone)]
    return counted(left)


def sailing(scene: Scene, slots: dict) -> str:
    boats, sea = those(scene, "boats"), scene.setting == "sea"
    boat = f"there is a boat {where(boats[0])}" if boats else "there is no boat"
    return f"it is {'' if sea else 'not '}the sea and {boat}, so {'yes' if sea and boats else 'no'}"


def first_met(scene: Scene, slots: dict) -> str:
    assert {slots["start"], slots["end"]} == {"left", "right"}
    end = min if slots["start"] == "left" else max
    first = end(scene.things, key=lambda t: middle(t)[0])
    assert sum(t.column == first.column for t in scene.things) == 1
    return f"{where(first)} there is {a(f'{first.colour} {first.kind}')}, so that comes first"


def day(word: str) -> Callable[[Scene, dict], str]:
    def answer(scene: Scene, slots: dict) -> str:
        now = "night" if scene.setting == "night" else "day"
        return f"it is {now}" if not word else f"{'yes' if word == now else 'no'}, it is {now}"

    return answer


def is_this(scene: Scene, slots: dict) -> str:
    if "place" in slots:
        [setting] = [setting for setting, (_, name) in SETTINGS.items() if name == slots["place"]]
    else:
        assert scene.setting not in ("night", "mountains")
        setting = {**GROUNDS, "mountains": "mountains"}[slots["many"]]
    return f"{'yes' if scene.setting == setting else 'no'}, it is {SETTINGS[scene.setting][1]}"


def described(scene: Scene, slots: dict) -> str:
    lines = [f"The picture shows {SETTINGS[scene.setting][1]}."]
    lines += [upper(f"{where(t)} is a {t.size} {t.colour} {t.kind}.") for t in scene.things]
    number = f"{NUMBERS[len(scene.things)]} thing{'s' * (len(scene.things) > 1)}"
    return " ".join([*lines, f"That makes {number}"])


def described_one(scene: Scene, slots: dict) -> str:
    thing = only(scene, name_in(slots))
    return f"a {thing.size} {thing.colour} {thing.kind} {where(thing)}"


def most(scene: Scene, slots: dict) -> str:
    size = {"[biggest|largest]": "large", "smallest": "small"}[slots["most"]]
    found = [t for t in scene.things if t.size == size]
    if len(scene.things) == 1 and not found:
        return f"the {scene.things[0].kind} is {scene.things[0].size}"
    if not found or len(found) == len(scene.things) > 1:
        return f"they are all {scene.things[0].size}"
    return listed([f"the {t.colour} {t.kind} {where(t)}" for t in found])


def list_of(field: str) -> Callable[[Scene, dict], str]:
    def answer(scene: Scene, slots: dict) -> str:
        wanted = {"big": "large"}.get(key(slots[field]), key(slots[field]))
        return told([t for t in scene.things if getattr(t, field) == wanted])

    return answer


RIGHT: dict[str, Callable[[Scene, dict], str]] = {
    "existence": is_there, "existence many": is_there,
    "existence mass": lambda s, slots: f"no, there is no {slots['many']} in the picture",
    "anything of a colour": any_of_a_colour,
    "anybody": lambda s, slots: "no, there are no people in the picture",
    "colour": property_of(lambda t: t.colour), "several colour": property_of(lambda t: t.colour),
    "colour or": property_of(lambda t: t.colour),
    "position": property_of(where), "several position": property_of(where),
    "size": property_of(lambda t: t.size), "several size": property_of(lambda t: t.size),
    "kind": kind_of, "at": what_is_at, "colour at": what_is_at,
    "size at": lambda s, slots: what_is_at(s, slots, size=True),
    "count": how_many, "check count": count_is,
    "more than one": count_is,
    "relation": where_from, "across": where_from, "down": where_from, "further": which_is_further,
    "near": what_is_near, "check": holds,
    "setting": lambda s, slots: f"it is {SETTINGS[s.setting][1]}",
    "is it this place": is_this, "is there this ground": is_this,
    "day": day(""), "night": day("night"), "daytime": day("day"),
    "about": lambda s, slots: f"it shows {SETTINGS[s.setting][1]} with {told(s.things)}",
    "describe": described, "describe one": described_one,
    "list": lambda s, slots: told(s.things),
    "list of a colour": list_of("colour"), "list of a size": list_of("size"),
    "colours": lambda s, slots: listed([f"{t.colour} {where(t)}" for t in s.things]),
    "extreme": most, "larger": larger("larger"), "smaller": larger("smaller"), "bigger than": bigger_than,
    "same size": same("size"), "same colour": same("colour"),
    "leaving": without, "sailing": sailing, "first": first_met,
    "say": lambda s, slots: slots["word"],
}  # fmt: skip


def right_answer(scene: Scene, form: str, slots: dict) -> str:
    """The only right answer. Fails if the question has none, such as one about "the car" where there are none."""
    return f"{RIGHT[form](scene, slots)}."


# ---- questions in the old wordings ----------------------------------------------------------------------------------

SIDE = "(on the left of|on the right of|above|below)"
COLOUR, KIND = "|".join(COLOURS), "|".join(KINDS)
NAMED = rf"(the (?:(?:{COLOUR}) )?(?:{KIND}|thing))"
MANY = rf"((?:(?:{COLOUR}) )?things|fish|(?:{KIND})s)"
OLD: dict[str, tuple[str, Callable[..., dict]]] = {  # wording -> form, and the slots from what is matched
    rf"(?:Is there|Do you see) (an? (?:(?:{COLOUR}) )?(?:{KIND}))\?": ("existence", lambda a: {"a": a}),
    rf"(?:What|Of what) colour is {NAMED}\?": ("colour", lambda the: {"the": the}),
    rf"What is the ({COLOUR}) thing\?": ("kind", lambda colour: {"colour": colour}),
    rf"What is in the ({'|'.join(CELLS)})\?": ("at", lambda cell: {"at": f"<{cell}>"}),
    rf"How many {MANY} are there\?": ("count", lambda many: {"many": many}),
    rf"Where is {NAMED}\?": ("position", lambda the: {"the": the}),
    rf"Is {NAMED} (?:small or large|large or small)\?": ("size", lambda the: {"the": the}),
    rf"How big is {NAMED}\?": ("size", lambda the: {"the": the}),
    rf"Is {NAMED} {SIDE} or {SIDE} {NAMED}\?": (
        "relation",
        lambda the, one, two, other: {"the": the, "one": one, "two": two, "other": other},
    ),
    r"What is the setting\?|Where was this picture made\?": ("setting", dict),
    rf"If all the {MANY} left, how many things would remain\?": (
        "leaving",
        lambda gone: {"gone": gone, "not": gone.removesuffix(" things")},
    ),
    r"Could one sail here, and why\?": ("sailing", dict),
    r"Walking from (left|right) to (left|right), what does one meet first\?": (
        "first",
        lambda start, end: {"start": start, "end": end},
    ),
    rf"Which is larger, {NAMED} or {NAMED}\?": ("larger", lambda the, other: {"the": the, "other": other}),
}


def read(question: str) -> tuple[str, dict]:
    """A question in an old wording -> its form and slots."""
    found = [(match, form, slots) for old, (form, slots) in OLD.items() if (match := re.fullmatch(old, question))]
    assert len(found) == 1, f"{len(found)} ways to read {question!r}"
    match, form, slots = found[0]
    return form, slots(*match.groups())


def is_old(question: str) -> bool:
    return any(re.fullmatch(old, question) for old in OLD)


# ---- an answer alone ------------------------------------------------------------------------------------------------

PLACE = rf"(?:{'|'.join(PLACES.values())})"
PAIR = rf"(?:{COLOUR}) (?:{KIND})"
LIST = rf"(?:an? {PAIR} {PLACE}(?:, | and )?)+"
NAME = rf"the (?:{PAIR}|(?:{COLOUR}) thing|{KIND})"
ALOUD = rf"(?:one {PLACE}(?:, (?!so)| and )?)+"
FIXED = (
    "None.",
    "None, so no.",
    "No, nothing else.",
    "I see it in the picture.",
    "I cannot tell that from the picture.",
    "Hello! Ask me about the picture.",
    "You are welcome.",
    "Goodbye!",
    "I am fine, thank you.",
    "I am a small program that looks at pictures.",
    "I can tell you what is in the picture, where it is, and its colour and size.",
    "Thank you.",
    *(f"{lead}{upper(text) if lead == '' else text}." for lead in ("", "No, ", "Yes, ") for text in UNKNOWN),
)


def all_there(scene: Scene, text: str) -> bool:
    """Whether every "a red car in the centre" in a text is there."""
    named = re.findall(rf"({PAIR}) ({PLACE})", text)
    return bool(named) and set(named) <= {(f"{t.colour} {t.kind}", where(t)) for t in scene.things}


def one_is(scene: Scene, words: str, fact: str) -> bool:
    return any(fact in (t.colour, t.size, where(t), a(t.kind)) for t in those(scene, words))


def is_true(scene: Scene, answer: str) -> bool:
    """Whether all that an answer says of the scene is so. False for an answer in no known form."""
    if answer in FIXED or re.fullmatch(r"[a-z-]+( [a-z]+)?\.", answer):  # the last: a word that was to be repeated
        return True
    if answer == upper(right_answer(scene, "describe", {})):
        return True
    text = answer[0].lower() + answer[1:].removesuffix(".")
    text = re.sub("^(yes|no), ", "", text)
    name, setting = re.escape(SETTINGS[scene.setting][1]), scene.setting
    if match := re.fullmatch(r"there (?:is|are) no (.+?)(?: in the picture)?", text):
        return not those_or_none(scene, match[1])
    if match := re.fullmatch(r"there is nothing (\w+) in the picture", text):
        return not those(scene, f"{match[1]} things")
    if re.fullmatch(rf"(?:there (?:is|are) (?:also )?)?{LIST}", text):
        return all_there(scene, text)
    if match := re.fullmatch(rf"({PLACE}|(?:on|at) the \w+) there (?:is|are) (.+?)(?:, so that comes first)?", text):
        place, what = match.groups()
        if place in PLACES.values():
            found = [t for t in scene.things if where(t) == place]
            return what in [a(f"{s}{t.colour} {t.kind}") for t in found for s in ("", f"{t.size} ")] or (
                what == "nothing" and not found
            )
        found = [t for t in scene.things if SIDES[place.split()[-1]][1](t)]
        return what == told(found)
    if match := re.fullmatch(rf"({ALOUD})(?:, so (\w+))?(?:: yes|: no)?", text):
        places = re.findall(PLACE, match[1])
        there = [where(t) for t in scene.things]
        right = match[2] in (None, "yes", "no", NUMBERS[len(places)])
        return right and len(set(places)) == len(places) and set(places) <= set(there)
    if re.fullmatch(rf"it is {name}", text) or text == ("it is night" if setting == "night" else "it is day"):
        return True
    if re.fullmatch(rf"it shows {name} with {LIST}", text):
        return text == RIGHT["about"](scene, {})
    if re.fullmatch(r"it is (?:not )?the sea and .+", text):
        return text == sailing(scene, {})
    if match := re.fullmatch(rf"({NAME}) is ({PLACE}), and (.+) it there (?:is|are) (.+)", text):
        thing_words, place, side, what = match.groups()
        things = [t for t in those(scene, thing_words.removeprefix("the ")) if where(t) == place]
        return any(what == told([o for o in scene.things if o is not t and beside(t, side, o)]) for t in things)
    if match := re.fullmatch(rf"({NAME}) is (.+?) and ({NAME}) is (.+?), so (.+)", text):
        one, fact, other, fact2, _ = match.groups()
        return one_is(scene, one[4:], fact) and one_is(scene, other[4:], fact2)
    if match := re.fullmatch(rf"({NAME}) is (.+)", text):
        return one_is(scene, match[1][4:], match[2])
    if re.fullmatch(r"one is .+", text):
        facts = re.findall(rf"one is (\w+|{PLACE})(?:, | and |$)", text)
        return all(any(fact in (t.colour, t.size, where(t)) for t in scene.things) for fact in facts)
    if match := re.fullmatch(r"they are all (small|large)", text):
        return {t.size for t in scene.things} == {match[1]}
    if re.fullmatch(rf"(?:the {PAIR} {PLACE}(?:, | and )?)+", text):
        return all_there(scene, text)
    if match := re.fullmatch(rf"a (small|large) ({PAIR}) ({PLACE})", text):
        return any(match.groups() == (t.size, f"{t.colour} {t.kind}", where(t)) for t in scene.things)
    if re.fullmatch(rf"(?:(?:{COLOUR}) {PLACE}(?:, | and )?)+", text):
        return text == RIGHT["colours"](scene, {})
    return False
