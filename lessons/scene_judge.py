"""A judge that knows the scene: how much of what a question asks for does an answer say, and how much of it is false?

In the paper GPT-4 judges the answer of the model and that of a teacher who read the picture as text; a score is the
ratio of the two sums (section 5.1, table 4). Here the teacher is the picture-book, and the judge is this program. It
cuts an answer into facts, such as "the red car is in the centre", and compares them with the scene:

    share = (right - wrong) / max(asked for, said)              of one answer, -1 to 1
    score = sum of the model's shares / sum of the teacher's    the teacher is never wrong: each of its shares is 1

What is asked for are the facts that the teacher's answer states and the question does not give: for a description, all
facts of the scene. A fact counts once, in whatever words. What is true and not asked for is neither right nor wrong,
but it is said: as in the paper, it matters whether an answer is relevant.
"""

import random
import re
from pathlib import Path
from typing import Literal

from data.picturebook.language import NUMBERS, description
from data.picturebook.questions import CELLS, NO, Question, reasoning
from data.picturebook.scene import COLOURS, KINDS, SETTINGS, SIZES, Scene, Thing
from data.picturebook.talk import MAKERS, WEIGHTS, worded
from data.requests import DETAIL_REQUESTS
from data.rows import conversation
from minillava.evaluate import answer_batch, questions, room_for
from minillava.inputs.conversations import ConversationDataset
from minillava.model import fast
from minillava.model.llava import Llava

TYPES = ("conversation", "detail", "reasoning")
OTHER = ("reasoning", "describe", "talk", "beyond", "say")  # kinds of questions that are no part of "conversation"
BATCH = 64

Fact = tuple  # ("red car", "place", "centre"), ("setting", "sea", True), ("number", 2), ("verdict", "yes"), ...
Attributes = dict[str, str]  # what is said of a thing: {"kind": "car", "place": "centre"}

VALUES = {"kind": KINDS, "colour": tuple(COLOURS), "size": tuple(SIZES), "place": CELLS}
SAME = {  # other words -> those of the picture-book
    r"\bcenter\b": "centre",
    r"\bupper (left|middle|centre|right)\b": r"top \1",
    r"\blower (left|middle|centre|right)\b": r"bottom \1",
    r"\b(top|bottom) centre\b": r"\1 middle",
    r"\bcentre (left|right)\b": r"middle \1",
    r"\b(in|at) the middle\b(?! (left|right))": "in the centre",
    r"\blittle\b": "small",
    r"\bbig(ger)?\b": lambda found: "larger" if found[1] else "large",
    r"\b(over|higher than)\b": "above",
    r"\b(under|lower than)\b": "below",
    r"\bzero\b": "none",
}
COUNTED = {word: number for number in range(2, 6) for word in (NUMBERS[number], str(number))}
ORDERS = {  # words -> what is compared, and whether the first thing has less of it
    "left of": ("column", True),
    "right of": ("column", False),
    "further left": ("column", True),
    "further right": ("column", False),
    "above": ("row", True),
    "below": ("row", False),
    "higher": ("row", True),
    "lower": ("row", False),
    "smaller": ("size", True),
    "larger": ("size", False),
}
ORDER = re.compile(rf"\bthe (.+?) is (?:(?:on|to) the )?({'|'.join(ORDERS)})(?: than)?(?: the (.+))?$")
SUBJECT = re.compile(r"^\W*the (.+?) is (.+)$")


def plain(text: str) -> str:
    """A text in lower case and in the words of the picture-book."""
    text = " ".join(text.lower().split())
    for words, ours in SAME.items():
        text = re.sub(words, ours, text)
    return text


def clauses(text: str) -> list[str]:
    """The parts of a plain text, each of which says something of one thing."""
    return [part.strip() for part in re.split(r"[.,;:!?]|\b(?:and|so|with|but)\b", text) if part.strip()]


def attributes(clause: str) -> Attributes:
    """What a clause says of a thing: the first kind, colour, size and place in it."""
    found = {what: re.search(rf"\b({'|'.join(values)})s?\b", clause) for what, values in VALUES.items()}
    return {what: match[1] for what, match in found.items() if match}


def agreed(thing: Thing, said: Attributes) -> int:
    """How much of what is said is true of a thing."""
    return sum(getattr(thing, what) == value for what, value in said.items())


def meant(said: Attributes, scene: Scene) -> Thing | None:
    """The thing of which this is said: it has the place, or all that is said of kind and colour."""
    name = {what: value for what, value in said.items() if what in ("kind", "colour")}
    fits = [t for t in scene.things if t.place == said.get("place") or (name and agreed(t, name) == len(name))]
    return best(fits, said)


def referred(name: str, said: Attributes, scene: Scene) -> Thing | None:
    """The thing that ``name`` refers to ("red car"), of which this is said."""
    asked = attributes(name)
    return best([thing for thing in scene.things if agreed(thing, asked) == len(asked)], said)


def best(fits: list[Thing], said: Attributes) -> Thing | None:
    """The thing of which most is true, if there are several; None if there is none."""
    return max(fits, key=lambda thing: agreed(thing, said), default=None)


def about(thing: Thing | None, said: Attributes) -> set[Fact]:
    return {(thing.pair if thing else "nothing", what, value) for what, value in said.items()}


def verdict(text: str) -> str | None:
    """Whether a plain text says yes or no: as its first or last word or, for no, anywhere."""
    words = re.findall(r"[\w']+", text) or [""]
    for word in (words[0], words[-1]):
        if word in ("yes", "no"):
            return word
    return "no" if set(words) & set(NO) else None


def facts(text: str, scene: Scene, asked: frozenset[Fact] = frozenset()) -> set[Fact]:
    """What a text says about a scene, true or false. ``asked``: what the teacher's answer states, for words that lean
    on the question: "in the centre" is then said of the only thing that was asked about."""
    text, found, told = plain(text), set(), []
    topics = {fact[0] for fact in asked if fact[1] in VALUES}
    topic = next((t for t in scene.things if topics == {t.pair}), None)
    for clause in clauses(text):
        said, subject, order = attributes(clause), SUBJECT.match(clause), ORDER.search(clause)
        for word in re.findall(rf"\b(?:{'|'.join(SETTINGS)}|day)\b", clause):
            negated = "not" in clause.split()
            found.add(("setting", "night", negated) if word == "day" else ("setting", word, not negated))
        if set(re.findall(r"[\w']+", clause)) & set(NO):
            if said and any(agreed(thing, said) == len(said) for thing in scene.things):
                found.add(("denied", *said.values()))  # and yet it is there
        elif order:
            found.add(ordered(*order.groups(), scene, told, asked))
        elif "same size" in clause:
            found.add(("same size", True))
        elif clause.startswith("one ") and said:
            found |= {("one", value) for value in said.values()}
        elif re.search(r"\b(all|both)\b", clause):
            found |= {("all", value) for value in said.values()}
        elif subject and attributes(subject[1]):
            said = attributes(subject[2])
            thing = referred(subject[1], said, scene)
            told.append(thing)
            found |= about(thing, said)
        else:
            found |= about(topic if topic and "kind" not in said else meant(said, scene), said)
    found |= {("number", number) for number in numbers(text)}
    return found | said_verdict(text, found, asked)


def numbers(text: str) -> set[int]:
    """The numbers that a plain text says or, if it says none, of how many things it says "one in the centre"."""
    said = {COUNTED[word] for word in re.findall(rf"\b(?:{'|'.join(COUNTED)})\b", text)}
    parts = clauses(text)
    if "one" in parts or "one thing" in text:
        said.add(1)
    ones = sum(part.startswith("one ") and bool(attributes(part)) for part in parts)
    return said or ({ones} if ones else set())


def ordered(name: str, word: str, other: str | None, scene: Scene, told: list, asked: frozenset[Fact]) -> Fact:
    """Which of two things is further left, higher or smaller, from "the ``name`` is ``word`` the ``other``". If no
    other is named, it is the other one of the two that were asked about or told of."""
    one = referred(name, {}, scene)
    if other:
        two = referred(other, {}, scene)
    else:
        pairs = {pair for fact in asked if fact[0] == "order" for pair in fact[2:]}
        known = [thing for thing in scene.things if thing.pair in pairs] or told
        two = next((thing for thing in known if thing is not one), None)
    what, less = ORDERS[word]
    names = [thing.pair if thing else "nothing" for thing in (one, two)]
    return ("order", what, *(names if less else names[::-1]))


def said_verdict(text: str, found: set[Fact], asked: frozenset[Fact]) -> set[Fact]:
    """The yes or no of an answer. Where yes or no is asked for, what is said of things that are there implies yes."""
    said = verdict(text)
    if asked and said != "no":
        if ("verdict", "yes") in asked:
            said = "yes" if said or found & asked else None
        else:
            said = "yes" if ("verdict", "no") in asked and (said or found) else None
    return {("verdict", said)} if said else set()


def holds(fact: Fact, scene: Scene, asked: frozenset[Fact]) -> bool:
    """Whether a fact that is not among ``asked`` is true all the same."""
    things = {thing.pair: thing for thing in scene.things}
    what, *said = fact
    if what == "setting":
        return (scene.setting == said[0]) == said[1]
    if what == "number":  # of all things, unless another number was asked for
        return said[0] == len(things) and not any(fact[0] == "number" for fact in asked)
    if what == "all":
        return all(said[0] in (thing.size, thing.colour, thing.kind, thing.place) for thing in scene.things)
    if what == "order":
        axis, less, more = said
        rank = {pair: (t.size == "large") if axis == "size" else getattr(t, axis) for pair, t in things.items()}
        return less in rank and more in rank and rank[less] < rank[more]
    return what in things and getattr(things[what], said[0]) == said[1]  # a verdict, "one" and a denial are not


def share(answer: str, question: str, teacher: str, scene: Scene) -> float:
    """What an answer says of that which is asked for, less what it says wrongly: -1 to 1, 0 for an empty answer."""
    taught = frozenset(facts(teacher, scene))
    words = plain(question)
    given = {fact for fact in taught if fact[1] in VALUES and re.search(rf"\b{fact[2]}s?\b", words)}
    said = facts(answer, scene, taught)
    if given != taught:  # "is it red or blue?" gives what it asks for
        taught, said = taught - given, said - given
    wrong = {fact for fact in said - taught if not holds(fact, scene, taught)}
    return (len(said & taught) - len(wrong)) / max(1, len(taught), len(said))


def scene_of(text: str) -> Scene:
    """The scene of a detailed description, without boxes."""
    said = [part for part in map(attributes, clauses(plain(text))) if len(part) == len(VALUES)]
    places = {place: divmod(index, 3) for index, place in enumerate(CELLS)}
    things = [Thing(a["kind"], a["colour"], a["size"], *places[a["place"]], (0, 0, 0, 0)) for a in said]
    return Scene(next(word for word in SETTINGS if word in text), tuple(things))


def question_about(scene: Scene, kind: str, rng: random.Random) -> tuple[str, str]:
    """A question of a type of response, as stage 2 words it, and the teacher's answer."""
    if kind == "detail":
        return rng.choice(DETAIL_REQUESTS), description(scene)
    question: Question | None = None
    while question is None or (kind == "conversation" and question.kind in OTHER):
        [make] = [reasoning] if kind == "reasoning" else rng.choices(list(MAKERS.values()), list(WEIGHTS.values()))
        question = make(scene, rng)
    return worded(question, rng), question.answer


def ask_about(heldout: list[dict], pictures: int, seed: int = 0) -> list[dict]:
    """Rows of LLaVA JSON: a question of each type about each of the first ``pictures`` pictures of which the rows of
    heldout.json have a detailed description. It is kept as "scene"."""
    rng, rows = random.Random(seed), []
    for row in [row for row in heldout if row["type"] == "detail"][:pictures]:
        told = row["conversations"][1]["value"]
        for kind in TYPES:
            turns = conversation([question_about(scene_of(told), kind, rng)])
            rows.append({"image": row["image"], "type": kind, "scene": told, "conversations": turns})
    return sorted(rows, key=lambda row: TYPES.index(row["type"]))  # answers of one type are about equally long


def relative(rows: list[dict], answers: list[str]) -> dict[str, float]:
    """The score of each type and of all: the sum of the answers' shares over that of the teacher's answers."""
    sums = {kind: [0.0, 0.0] for kind in (*TYPES, "all")}
    for row, answer in zip(rows, answers):
        scene, (asked, taught) = scene_of(row["scene"]), (turn["value"] for turn in row["conversations"])
        for kind in (row["type"], "all"):
            sums[kind][0] += share(answer, asked, taught, scene)
            sums[kind][1] += share(taught, asked, taught, scene)
    return {kind: ours / theirs for kind, (ours, theirs) in sums.items()}


def judge(model: Llava, file: Path, image_folder: Path, image_place: Literal["first", "last"] = "first") -> dict:
    """relative() of the model's answers to the questions in a file that has what ask_about() returns."""
    dataset = ConversationDataset(file, image_folder, model.processor, image_place)
    asked, answers = questions(dataset), []
    room = room_for(asked, model)
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        pictures = [dataset.pixels({"image": question.image}) for question in batch]
        answers += answer_batch(model, model.processor, batch, pictures, room, fast.generate_ids)
    return relative(dataset.rows, answers)
