"""Everything that the picture-book world says about a scene is true.

``oracle.py`` finds the right answers using only the scene's fields; it shares no code with the texts. Captions and
descriptions are checked in the same way.
"""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from oracle import (
    CELLS,
    COLOURS,
    KINDS,
    NUMBERS,
    OLD,
    PAIR,
    PLACES,
    SETTINGS,
    a,
    beside,
    is_old,
    is_true,
    listed,
    middle,
    only,
    read,
    right_answer,
    those,
    upper,
)
from PIL import Image

from data.picturebook import draw, language, nouns, talk, write
from data.picturebook.draw import draw_scene
from data.picturebook.heldout import PER_TYPE, TYPES
from data.picturebook.questions import QUESTIONS
from data.picturebook.scene import UNSEEN_PAIRS, Scene, Thing, sample_scene
from data.picturebook.unseen_wordings import VERBS
from data.picturebook.wordings import normal
from data.picturebook.write import write_world
from data.requests import BRIEF_REQUESTS, DETAIL_REQUESTS

ROOT = Path(__file__).parents[1]
TOLD_IN_WORDS = ("notes.json", "words.json")
TRAINING = (*TOLD_IN_WORDS, "captions.json", "instruct.json")
JUDGED = ("heldout_words.json", "heldout_frames.json")  # by meaning
JSON_FILES = (*TRAINING, "heldout.json", "unseen.json", *JUDGED)


# ---- the checker --------------------------------------------------------------------------------------------------


def is_right(scene: Scene, question: str, answer: str) -> bool:
    """Whether ``answer`` is the right one to a question in an old wording."""
    return answer == upper(right_answer(scene, *read(question)))


def gist(kind: str, scene: Scene, question: str) -> str:
    """The part of the answer that one would have to guess."""
    said = right_answer(scene, *read(question))
    if kind == "existence":
        return said.split(",")[0]
    if kind == "relation":
        return re.search("on the left of|on the right of|above|below", said.split(", so ")[1])[0]
    if kind == "count":
        return str(said.count("one "))
    return said


def true_captions(scene: Scene) -> list[str]:
    where, setting = SETTINGS[scene.setting]
    pairs = [f"{t.colour} {t.kind}" for t in scene.things]
    sized = [a(f"{t.size} {pair}") for t, pair in zip(scene.things, pairs)]
    placed = [f"{text} {PLACES[t.row, t.column]}" for t, text in zip(scene.things, sized)]
    number = f"{NUMBERS[len(pairs)]} thing{'s' * (len(pairs) > 1)}"
    return [
        upper(f"{listed(placed)}, {where}."),
        upper(f"{where} there is {listed(placed)}."),
        f"A picture of {setting} with {listed(sized)}.",
        upper(f"{where}: {listed([a(pair) for pair in pairs])}."),
        upper(f"{listed(placed)}: {number} {where}."),
    ]


def check_description(scene: Scene, text: str) -> None:
    first, *rest, last = re.findall(r"[^.]+\.", text)
    assert first == f"The picture shows {SETTINGS[scene.setting][1]}."
    number, plural = re.fullmatch(r" That makes (\w+) thing(s?)\.", last).groups()
    assert number == NUMBERS[len(scene.things)] and bool(plural) == (len(scene.things) > 1)
    form = re.compile(r" (.+ the .+) is (an?) (small|large) (\w+) (\w+)\.")
    told = [form.fullmatch(sentence).groups() for sentence in rest]
    assert told == [(upper(PLACES[t.row, t.column]), "a", t.size, t.colour, t.kind) for t in scene.things]


def check_notes(scene: Scene, request: str, note: str) -> None:
    """One card for each thing, with its four words in cyclic order from any of them; or what is looked up."""
    parts = note.removesuffix(".").split(", ")
    place = {thing: PLACES[thing.row, thing.column].split(" the ")[1] for thing in scene.things}
    if match := re.fullmatch(rf"({PAIR}) (on the left of|on the right of|above|below) ({PAIR})", request):
        one, other = only(scene, match[1]), only(scene, match[3])
        way = {"on the left of": "further left", "on the right of": "further right"}
        way |= {"above": "higher", "below": "lower"}
        if beside(other, match[2], one):
            so = f"{match[1]} {way[match[2]]}: yes"
        else:
            so = f"{match[3]} {way[match[2]]}: no" if beside(one, match[2], other) else "neither: no"
        assert note == f"{place[one]}, {place[other]}, {so}."
    elif request == "notes":
        for thing in scene.things:
            words = [thing.size, thing.colour, thing.kind, place[thing]]
            assert len([part for part in parts if part in [" ".join(words[i:] + words[:i]) for i in range(4)]]) == 1
        assert len(parts) == len(scene.things)
    else:
        what = request.removeprefix("count ")
        found = those(scene, what.removeprefix("not "))
        if what in CELLS:
            found = [t for t in scene.things if place[t] == what]
        if what.startswith("not "):
            found = [t for t in scene.things if t not in found]
        if found and what != request:
            assert note == f"{', '.join(place[t] for t in found)}: {NUMBERS[len(found)]}."
        else:
            cards = [f"{place[t]} {t.size} {t.colour} {t.kind}" for t in found]
            assert note == f"{', '.join(cards) or 'none'}."


def check_turns(scene: Scene, turns: list[dict], notes: bool = False) -> None:
    for asked, told in zip(turns[::2], turns[1::2]):
        question, answer = asked["value"].removeprefix("<image>\n"), told["value"]
        if notes:
            check_notes(scene, question, answer)
        elif question in DETAIL_REQUESTS:
            check_description(scene, answer)
        elif question in BRIEF_REQUESTS or answer in true_captions(scene):
            assert answer in true_captions(scene)
        elif is_old(question):
            assert is_right(scene, question, answer), f"{question} {answer} {scene}"
        else:
            assert is_true(scene, answer), f"{question} {answer} {scene}"


# ---- scenes and the texts about them --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [sample_scene(rng) for _ in range(3000)]


@pytest.fixture(scope="module")
def asked(scenes) -> list[tuple[str, Scene, str, str]]:
    """(type, scene, question, answer) for every type and scene."""
    rng = random.Random(2)
    made = [(kind, scene, talk.ask(kind, scene, rng)) for scene in scenes for kind in QUESTIONS]
    return [(kind, scene, *turn) for kind, scene, turn in made if turn]


def test_checker_itself_rejects_false_answers_and_ambiguous_questions():
    box = (0.01, 0.01, 0.43, 0.43)
    scene = Scene("sea", (Thing("fish", "red", "large", 0, 0, box), Thing("fish", "blue", "large", 2, 2, box)))
    assert is_right(scene, "Is there a blue fish?", "Yes, a blue fish in the bottom right.")
    assert not is_right(scene, "Is there a blue fish?", "Yes, a blue fish in the top left.")
    assert not is_right(scene, "Is there a boat?", "Yes, a blue boat in the bottom right.")
    assert is_right(scene, "What is the red thing?", "The red thing is a fish.")
    assert is_right(scene, "Where is the blue fish?", "The blue fish is in the bottom right.")
    assert not is_right(scene, "Where is the blue fish?", "The red fish is in the bottom right.")
    for question in ("What is the green thing?", "Is there an fish?", "Which is larger, the fish or the red fish?"):
        with pytest.raises(AssertionError):
            right_answer(scene, *read(question))


FALSE = """Yes, a red fish in the bottom right.|There is no fish in the picture.|In the top left there is a blue fish.
In the centre there is a red fish.|One in the top left and one in the centre, so two.|It is a meadow.|It is night.
One in the top left and one in the bottom right, so three.|The red fish is small.|The red fish is in the bottom right.
On the left there is nothing.|The boat is red.|A small red fish in the top left.|They are all small.|No idea.
Red in the top left and red in the bottom right.|There are also a green fish in the top left and a car in the centre.
The red fish is large and the blue fish is small, so the red fish is larger.|It is the sea and there is no boat, so yes.
The red fish is in the top left, and below it there is nothing.|It shows the sea with a red fish in the top left."""
TRUE = """Yes, a red fish in the top left.|There is no boat in the picture.|In the top left there is a red fish.
In the centre there is nothing.|One in the top left and one in the bottom right, so two.|It is the sea.|It is day.
The red fish is large.|On the left there is a red fish in the top left.|They are all large.|camate.
Red in the top left and blue in the bottom right.|It is the sea and there is no boat, so no.
The red fish is in the top left, and below it there is a blue fish in the bottom right."""


@pytest.mark.parametrize("answers, true", [(TRUE, True), (FALSE, False)])
def test_checker_of_answers_alone_knows_true_from_false(answers, true):
    big, low = (0.01, 0.01, 0.43, 0.43), (0.57, 0.57, 0.99, 0.99)
    scene = Scene("sea", (Thing("fish", "red", "large", 0, 0, big), Thing("fish", "blue", "large", 2, 2, low)))
    for answer in re.split(r"[|\n]", answers):
        assert is_true(scene, answer) == true, answer


def test_every_answer_is_right(asked):
    for _, scene, question, answer in asked:
        assert is_right(scene, question, answer), f"{question} {answer} {scene}"


def test_every_old_wording_is_asked(asked):
    assert {old for _, _, question, _ in asked for old in OLD if re.fullmatch(old, question)} == set(OLD)
    assert Counter(kind for kind, *_ in asked).keys() == QUESTIONS.keys()


def test_answers_about_a_chosen_subject_are_right(scenes):
    rng = random.Random(3)
    for scene in scenes[:1000]:
        subject = rng.choice(scene.things)
        names = (subject.kind, f"{subject.colour} {subject.kind}", f"{subject.colour} thing")
        for kind in ("existence", "colour", "kind", "position", "relation", "size"):
            if turn := talk.ask(kind, scene, rng, subject):
                assert is_right(scene, *turn)
                if kind not in ("existence", "kind"):
                    assert any(f"the {name}" in turn[0] for name in names)


def test_captions_are_true(scenes):
    for scene in scenes:
        assert language.captions(scene) == true_captions(scene)


def test_descriptions_are_true(scenes):
    for scene in scenes:
        check_description(scene, language.description(scene))


def test_existence_is_answered_yes_as_often_as_no(asked):
    answers = Counter(gist(kind, scene, question) for kind, scene, question, _ in asked if kind == "existence")
    assert answers.keys() == {"yes", "no"}
    assert 0.45 <= answers["yes"] / answers.total() <= 0.55


@pytest.mark.parametrize("kind", QUESTIONS)
def test_no_type_has_one_answer_worth_guessing(asked, kind):
    answers = Counter(gist(kind, scene, question) for other, scene, question, _ in asked if other == kind)
    assert answers.total() > 2000
    assert answers.most_common(1)[0][1] / answers.total() < 0.6


def test_boxes_lie_in_the_picture_and_in_their_cells(scenes):
    for scene in scenes:
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            x, y = middle(thing)
            assert (int(y * 3), int(x * 3)) == (thing.row, thing.column)
            assert (thing.size == "large") == (x2 - x1 > 0.35)


def test_things_have_their_own_cells_and_pairs_in_reading_order(scenes):
    for scene in scenes:
        cells = [(thing.row, thing.column) for thing in scene.things]
        assert 1 <= len(cells) <= 5 and cells == sorted(set(cells))
        assert len({(thing.colour, thing.kind) for thing in scene.things}) == len(cells)


def test_unseen_pairs_come_as_asked():
    rng = random.Random(5)
    for _ in range(300):
        assert not any(thing.pair in UNSEEN_PAIRS for thing in sample_scene(rng, "never").things)
        assert any(thing.pair in UNSEEN_PAIRS for thing in sample_scene(rng, "required").things)


# ---- pictures -------------------------------------------------------------------------------------------------------


class Steady(random.Random):
    """Not random: shades stay the same when a thing is left out."""

    def uniform(self, a, b):
        return (a + b) / 2


def pixels(setting: str, *things: Thing) -> np.ndarray:
    return np.asarray(draw_scene(Scene(setting, things), Steady())).astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one != other).any(axis=-1)


def test_picture_is_64_pixels_square_and_repeatable(scenes):
    for scene in scenes[:20]:
        image = draw_scene(scene, random.Random(7))
        assert image.size == (64, 64) and image.mode == "RGB"
        assert image.tobytes() == draw_scene(scene, random.Random(7)).tobytes()
        assert image.tobytes() != draw_scene(scene, random.Random(8)).tobytes()


def test_every_thing_is_visible(scenes):
    """Without it, the picture changes within its box; and others hide at most half of its pixels."""
    for scene in scenes[:300]:
        whole, nothing = pixels(scene.setting, *scene.things), pixels(scene.setting)
        for thing in scene.things:
            shown = differ(whole, pixels(scene.setting, *(other for other in scene.things if other != thing)))
            x1, y1, x2, y2 = (round(64 * side) for side in thing.box)
            assert shown[y1:y2, x1:x2].sum() > 40
            alone = pixels(scene.setting, thing)
            own = differ(nothing, alone)
            assert ((shown | ~differ(whole, alone)) & own).sum() >= own.sum() / 2, f"{thing} in {scene}"


def test_smallest_thing_lies_on_top(scenes):
    """At least 90% of the thing with the smallest box is visible: where things overlap, the smaller is drawn on top."""
    for scene in scenes[:300]:
        *others, smallest = sorted(scene.things, key=lambda t: (t.box[0] - t.box[2]) * (t.box[3] - t.box[1]))
        whole, alone = pixels(scene.setting, *scene.things), pixels(scene.setting, smallest)
        own = differ(pixels(scene.setting), alone)
        seen = differ(whole, pixels(scene.setting, *others)) | ~differ(whole, alone)
        assert (seen & own).sum() >= 0.9 * own.sum(), f"{smallest} in {scene}"  # outlines may coincide


def test_things_are_drawn_inside_their_boxes(scenes):
    """Up to two pixels outside, for the outlines."""
    for scene in scenes[:300]:
        nothing = pixels(scene.setting)
        for thing in scene.things:
            rows, columns = np.nonzero(differ(nothing, pixels(scene.setting, thing)))
            x1, y1, x2, y2 = (64 * side for side in thing.box)
            assert x1 - 2 <= columns.min() and columns.max() + 1 <= x2 + 2, thing
            assert y1 - 2 <= rows.min() and rows.max() + 1 <= y2 + 2, thing


def test_every_kind_and_colour_looks_different():
    looks = [
        pixels("meadow", Thing(kind, colour, "large", 1, 1, (0.29, 0.29, 0.71, 0.71))).tobytes()
        for kind in KINDS
        for colour in COLOURS
    ]
    assert len(set(looks)) == len(KINDS) * len(COLOURS)


def test_pictures_are_anti_aliased(scenes, monkeypatch):
    def shades(scene):
        return len(draw_scene(scene, Steady()).getcolors(64 * 64))

    smooth = [shades(scene) for scene in scenes[:30]]
    monkeypatch.setattr(draw, "OVERSAMPLING", 1)
    assert all(many > 2 * shades(scene) for many, scene in zip(smooth, scenes))


# ---- files ----------------------------------------------------------------------------------------------------------


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def contexts_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "contexts.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "world"
    write_world(folder, count=60, seed=0)
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, dict[str, list[Scene]]]:
    """The folder of a larger world whose pictures are not drawn, and its scenes by split."""
    folder, splits = tmp_path_factory.mktemp("told") / "world", {}

    def keep(out: Path, scenes: dict[str, list[Scene]], seed: int) -> None:
        out.mkdir(parents=True)
        splits.update(scenes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_draw_all", keep)
        write_world(folder, count=3000, seed=0)
    return folder, splits


@pytest.fixture
def undrawn(monkeypatch):
    """``write_world`` draws no pictures and has two scenes per held-out split and two questions of a type."""
    monkeypatch.setattr(write, "_draw_all", lambda out, scenes, seed: out.mkdir(parents=True))
    monkeypatch.setattr(write, "HELDOUT_PICTURES", 2)
    monkeypatch.setattr(write, "UNSEEN_PICTURES", 2)
    monkeypatch.setattr(write, "PER_TYPE", 2)


def test_world_holds_every_file_and_picture(world):
    names = {path.name for path in world.iterdir()}
    assert names == {"images", "contexts.jsonl", "text.txt", *JSON_FILES}
    assert {path.name: len(list(path.iterdir())) for path in (world / "images").iterdir()} == {
        "train": 60, "heldout": 520, "unseen": 250,
    }  # fmt: skip
    assert (world / "text.txt").read_text().splitlines()
    for path in (world / "images").rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (64, 64) and image.mode == "RGB"


@pytest.mark.parametrize("name", JSON_FILES)
def test_rows_are_llava_json(world, name):
    rows = read_json(world / name)
    assert rows and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert isinstance(row["type"], str) and all(isinstance(pair, str) for pair in row["things"])
        assert ("words" in row) if name in TOLD_IN_WORDS else (world / row["image"]).is_file()
        turns = row["conversations"]
        assert turns and [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(turn["value"].strip() == turn["value"] != "" for turn in turns)
        assert turns[0]["value"].startswith("<image>\n")
        assert sum(turn["value"].count("<image>") for turn in turns) == 1


def test_types_are_the_advertised_ones(told):
    types = {name: {row["type"] for row in read_json(told[0] / name)} for name in JSON_FILES}
    assert types["notes.json"] == {"notes"}
    assert types["words.json"] == {"caption", "conversation"} and types["captions.json"] == {"caption"}
    assert types["instruct.json"] == {"conversation", "detail", "reasoning", "caption"}
    assert types["heldout.json"] == {*QUESTIONS, "detail", "caption"}
    assert types["unseen.json"] == {"existence", "colour", "kind", "position", "relation", "size"}
    assert all(types[name] == set(TYPES) for name in JUDGED)


def test_boxes_on_disk_have_three_decimals_and_their_phrases_are_true(told):
    folder, splits = told
    lines = (folder / "contexts.jsonl").read_text().splitlines()
    assert len(lines) == len(splits["train"])
    for line, scene in zip(lines, splits["train"]):
        row = json.loads(line, parse_float=str)
        assert all(re.fullmatch(r"[01]\.\d{1,3}", side) for item in row["instances"] for side in item["bbox"])
        assert row["captions"] == true_captions(scene)
        for item, thing in zip(row["instances"], scene.things, strict=True):
            assert tuple(map(float, item["bbox"])) == thing.box and item["category"] == thing.kind
            assert item["phrase"] == f"a {thing.size} {thing.colour} {thing.kind} {PLACES[thing.row, thing.column]}"


@pytest.mark.parametrize("name", JSON_FILES)
def test_every_row_on_disk_is_true(told, name):
    folder, splits = told
    for row in read_json(folder / name):
        split = "train" if name in TRAINING else name.removesuffix(".json").split("_")[0]
        number = re.search(r"\d{6}", row["image"] if name in JUDGED else row["id"])[0]
        scene = splits[split][int(number)]
        assert row["things"] == [f"{thing.colour} {thing.kind}" for thing in scene.things]
        if name not in TOLD_IN_WORDS:
            assert row["image"] == f"images/{split}/{number}.png"
        check_turns(scene, row["conversations"], notes=name == "notes.json")


def test_splits_share_no_scene(told):
    """At this size, random scenes of one thing would occur in several splits if nothing prevented it."""
    kept = {
        split: {(s.setting, *((t.kind, t.colour, t.size, t.row, t.column) for t in s.things)) for s in scenes}
        for split, scenes in told[1].items()
    }
    assert {split: len(scenes) for split, scenes in told[1].items()} == {"train": 3000, "heldout": 520, "unseen": 250}
    assert len(kept["heldout"]) == 520 and len(kept["unseen"]) == 250
    for one, other in combinations(kept.values(), 2):
        assert not one & other


def test_splits_share_no_picture(world):
    bytes_of = {
        folder.name: {path.read_bytes() for path in folder.iterdir()} for folder in (world / "images").iterdir()
    }
    assert all(not one & other for one, other in combinations(bytes_of.values(), 2))


def test_instruct_json_shows_and_names_no_unseen_pair(told):
    rows = read_json(told[0] / "instruct.json")
    assert len(rows) > 1000
    text = json.dumps(rows).lower()
    assert not [pair for pair in UNSEEN_PAIRS if pair in text]


def questions_in(path: Path) -> list[str]:
    return [turn["value"].removeprefix("<image>\n") for row in read_json(path) for turn in row["conversations"][::2]]


def test_no_training_has_a_held_out_question_noun_or_verb(told):
    folder, _ = told
    trained = {normal(question) for name in TRAINING for question in questions_in(folder / name)}
    for name in JUDGED:
        assert not trained & {normal(question) for question in questions_in(folder / name)}
    text = " ".join((folder / name).read_text() for name in (*TRAINING, "text.txt", "contexts.jsonl"))
    words = set(re.findall(r"[a-z]+", text.lower()))
    kept = {noun.word for noun in nouns.everyday()[1]}
    assert len([noun for noun in nouns.everyday()[1] if noun.number == "one"]) >= 50
    assert not words & (kept | set(VERBS))
    assert not [word for word in kept if " " in word and word in text.lower()]


@pytest.mark.parametrize("name", JUDGED)
def test_judged_questions_are_many_and_various(told, name):
    rows = read_json(told[0] / name)
    assert PER_TYPE >= 150 and Counter(row["type"] for row in rows) == dict.fromkeys(TYPES, PER_TYPE)
    for kind in TYPES:
        questions = [row["conversations"][-2]["value"] for row in rows if row["type"] == kind]
        assert len(set(map(normal, questions))) >= 5
    for row in rows:
        *_, last = row["conversations"]
        assert last["type"] == row["type"] and all(turn["need"] for turn in row["conversations"][1::2])
        assert len(row["conversations"]) == (4 if row["type"] in ("it", "and", "sure", "else") else 2)


def test_frames_ask_about_nouns_that_are_kept_for_them(told):
    kept = {noun.word for noun in nouns.everyday()[1]}
    rows = [row for row in read_json(told[0] / "heldout_frames.json") if row["type"] == "absent"]
    assert all(any(f" {word}" in row["conversations"][0]["value"].lower() for word in kept) for row in rows)
    assert {row["conversations"][1]["value"] for row in rows} == {"No, I do not see one.", "No, I do not see any."}


def test_other_files_do_name_unseen_pairs(told):
    for name in ("captions.json", "words.json", "unseen.json"):
        text = (told[0] / name).read_text()
        assert all(pair in text for pair in UNSEEN_PAIRS)


def test_every_unseen_row_shows_an_unseen_pair(told):
    folder, splits = told
    rows = read_json(folder / "unseen.json")
    assert len(rows) > 1000
    assert all(UNSEEN_PAIRS & set(row["things"]) for row in rows)
    assert not any(thing.pair in UNSEEN_PAIRS for scene in splits["heldout"] for thing in scene.things)


def test_word_pictures_agree_with_the_boxes(told):
    """A cell names a thing whose box covers its centre, a small one if there is one; if there is none, the setting."""
    folder, splits = told
    for row, scene in zip(read_json(folder / "words.json"), splits["train"], strict=True):
        assert len(row["words"]) == 64
        for index, text in enumerate(row["words"]):
            u, v = (index % 8 + 0.5) / 8, (index // 8 + 0.5) / 8
            covering = [t for t in scene.things if t.box[0] <= u <= t.box[2] and t.box[1] <= v <= t.box[3]]
            covering = [t for t in covering if t.size == "small"] or covering
            places = {t: PLACES[t.row, t.column].split(" the ")[1] for t in covering}
            assert text in ([f"{t.size} {t.colour} {t.kind} {places[t]}" for t in covering] or [scene.setting])


def test_same_seed_writes_the_same_bytes(world, tmp_path):
    write_world(tmp_path / "again", count=60, seed=0)
    assert contents(tmp_path / "again") == contents(world)


def test_another_seed_writes_another_world(tmp_path, undrawn):
    write_world(tmp_path / "zero", count=5, seed=0)
    write_world(tmp_path / "one", count=5, seed=1)
    zero, one = contents(tmp_path / "zero"), contents(tmp_path / "one")
    assert zero.keys() == one.keys() and all(zero[name] != one[name] for name in zero)


def test_files_are_json_whatever_the_scenes(tmp_path, undrawn):
    """Also where the only training scene shows an unseen pair, so that instruct.json has no row."""
    shown = set()
    for seed in range(12):
        write_world(tmp_path / str(seed), count=1, seed=seed)
        assert all(isinstance(read_json(tmp_path / str(seed) / name), list) for name in JSON_FILES), f"seed {seed}"
        shown |= set(read_json(tmp_path / str(seed) / "words.json")[0]["things"])
    assert shown & UNSEEN_PAIRS


def test_folder_name_may_end_in_a_slash(tmp_path, undrawn):
    write_world(f"{tmp_path}/world/", count=2, seed=0)
    assert (tmp_path / "world" / "instruct.json").is_file()


@pytest.mark.parametrize("name", ["there", "there/", ".", ".."])
def test_folder_that_is_there_already_is_left_alone(tmp_path, undrawn, monkeypatch, name):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError):
        write_world(name, count=2, seed=0)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data.picturebook", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command_line_writes_a_world(tmp_path):
    done = run("--out", tmp_path / "world", "--count", 20, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert len(contexts_of(tmp_path / "world")) == len(list((tmp_path / "world/images/train").iterdir())) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize("below", ["", "world", "deep/world"])
def test_command_line_names_an_unwritable_path_in_one_line(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    done = run("--out", tmp_path / "file" / below, "--count", 20)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "file") in line


def test_command_line_refuses_a_count_of_zero(tmp_path):
    done = run("--out", tmp_path / "world", "--count", 0)
    assert done.returncode == 2 and "--count must be at least 1" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "world").exists()
