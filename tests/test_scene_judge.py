"""The judge that knows the scene: answers written by hand, with shares counted by hand; and the teacher's own."""

import json
import random
from collections import Counter
from statistics import fmean

import pytest

from data.picturebook.language import captions, description
from data.picturebook.scene import Scene, Thing, sample_scene
from lessons import scene_judge
from lessons.scene_judge import TYPES, ask_about, facts, question_about, relative, scene_of, share

BOX = (0, 0, 0, 0)
SCENE = Scene(
    "sea",
    (
        Thing("car", "red", "large", 0, 0, BOX),
        Thing("car", "blue", "small", 1, 1, BOX),
        Thing("boat", "white", "small", 2, 2, BOX),
    ),
)
# A question, the teacher's answer, and other answers with their shares: (right - wrong) / max(asked for, said)
CASES = [
    (
        "Where is the boat?",
        "The boat is in the bottom right.",
        {
            "": 0,
            "Hello!": 0,
            "In the bottom right.": 1,
            "It is in the lower right.": 1,
            "The white boat is in the bottom right, in the bottom right.": 1,
            "The boat is in the centre.": -1,
            "In the centre.": -1,  # where a car is
            "The boat is in the bottom right and the boat is in the centre.": 0,
            "A small white boat in the bottom right, at sea.": 1 / 5,
            "There is no boat in the picture.": -1,
        },
    ),
    (
        "How many cars are there?",
        "One in the top left and one in the centre, so two.",
        {
            "Two.": 1 / 3,
            "2: one in the top left, one in the middle.": 1,
            "One in the top left and one in the centre.": 1,
            "One in the top left, so one.": 0,
            "One in the top left and one in the bottom right, so two.": 1 / 3,
            "Three.": -1 / 3,  # though there are three things
            "None.": -1 / 3,
        },
    ),
    (
        "Is there a dog?",
        "No, there is no dog in the picture.",
        {"No.": 1, "There is no dog.": 1, "I do not see one.": 1, "Yes, a dog in the centre.": -1 / 2, "Yes.": -1},
    ),
    (
        "Is there a red car?",
        "Yes, a red car in the top left.",
        {
            "Yes.": 1 / 2,
            "There is a red car in the top left.": 1,
            "Yes, in the top left.": 1,
            "A boat in the bottom right.": 0,
            "Yes, a red car in the centre.": 0,
            "No.": -1 / 2,
            "No, there are no red cars.": -1,
        },
    ),
    (
        "Is the boat white or blue?",
        "The boat is white.",
        {"White.": 1, "It is white.": 1, "Blue.": -1, "The boat is red.": -1},
    ),
    (
        "Is the boat on the left or on the right of the red car?",
        "The boat is in the bottom right and the red car is in the top left, so the boat is on the right of the red "
        "car.",
        {
            "The red car is to the left of the boat.": 1 / 3,
            "The boat is further right.": 1 / 3,
            "The boat is further right than the red car.": 1 / 3,
            "The boat is on the left of the red car.": -1 / 3,
            "The boat is below the red car.": 0,
            "The boat is above the red car.": -1 / 3,
            "The boat is on the right of the fish.": -1 / 3,
        },
    ),
    (
        "Which is larger, the boat or the red car?",
        "The boat is small and the red car is large, so the red car is larger.",
        {
            "The red car is bigger.": 1 / 3,
            "The boat is smaller than the red car.": 1 / 3,
            "The boat is small and the red car is large, so the boat is larger.": 1 / 3,
            "The boat is little and the red car is big, so they are the same size.": 1 / 3,
        },
    ),
    (
        "Could one sail here, and why?",
        "It is the sea and there is a boat in the bottom right, so yes.",
        {"Yes.": 1 / 4, "It is not the sea and there is no boat, so no.": -3 / 4, "It is a desert, so no.": -1 / 2},
    ),
    ("Is it day or night?", "It is day.", {"Day.": 1, "It is night.": -1}),
    (
        "What is the biggest thing?",
        "The red car in the top left.",
        {"The red car.": 2 / 3, "The biggest thing is the red car in the top left.": 1, "They are all large.": -1 / 3},
    ),
    (
        "Describe the image.",
        description(SCENE),
        {
            captions(SCENE)[0]: 13 / 14,  # all but the number
            "The picture shows the sea. In the top left is a large red car. That makes one thing.": 4 / 14,
            "In the top left is a small red car.": 2 / 14,
            "In the top right is a large green fish.": -4 / 14,
            "A red car. A red car. A red car and a red car.": 2 / 14,
        },
    ),
]


@pytest.mark.parametrize(("question", "teacher", "answers"), CASES, ids=[case[0] for case in CASES])
def test_answers_have_the_shares_that_were_counted_by_hand(question, teacher, answers):
    assert share(teacher, question, teacher, SCENE) == 1
    for answer, expected in answers.items():
        assert share(answer, question, teacher, SCENE) == pytest.approx(expected), answer


def test_of_several_things_those_are_meant_that_fit_best():
    """Two cars: the answer's own words decide which of them "the car" and "a car" are."""
    assert facts("The car is in the centre.", SCENE) == {("blue car", "place", "centre")}
    assert facts("The car is red.", SCENE) == {("red car", "colour", "red")}
    assert facts("A small car.", SCENE) == {("blue car", "kind", "car"), ("blue car", "size", "small")}
    assert facts("The thing in the centre is green.", SCENE) == {("blue car", "colour", "green")}
    assert facts("A green fish in the centre.", SCENE) == {
        ("blue car", "colour", "green"),
        ("blue car", "kind", "fish"),
        ("blue car", "place", "centre"),
    }


def test_what_is_said_of_all_things_is_true_only_of_all():
    question, small = "What is the smallest thing?", Scene("sea", SCENE.things[1:])
    assert share("They are all small.", question, "They are all small.", small) == 1
    assert share("They are all large.", question, "They are all small.", small) == -1


def scenes(count: int, seed: int = 3) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(count)]


def bare(scene: Scene) -> tuple:
    return scene.setting, [(t.kind, t.colour, t.size, t.row, t.column) for t in scene.things]


def test_a_description_is_read_back_as_its_scene():
    for scene in scenes(100):
        assert bare(scene_of(description(scene))) == bare(scene)


def test_a_description_states_four_facts_of_each_thing_the_setting_and_the_number():
    for scene in scenes(100):
        expected = {("setting", scene.setting, True), ("number", len(scene.things))}
        for thing in scene.things:
            name = f"{thing.colour} {thing.kind}"
            expected |= {(name, "kind", thing.kind), (name, "colour", thing.colour), (name, "size", thing.size)}
            expected.add((name, "place", thing.place))
        assert facts(description(scene), scene) == expected


def test_the_teacher_gets_all_and_its_answers_about_other_scenes_lose():
    rng, those = random.Random(4), scenes(150)
    for kind in TYPES:
        strange = []
        for number, scene in enumerate(those):
            asked, taught = question_about(scene, kind, rng)
            assert share(taught, asked, taught, scene) == 1, (asked, taught)
            strange.append(share(question_about(those[number - 1], kind, rng)[1], asked, taught, scene))
        assert fmean(strange) < -0.4 and min(strange) >= -1


def test_no_answer_of_the_teacher_is_false_of_its_scene():
    """By the scene only, without the teacher: all that can be so judged."""
    rng = random.Random(5)
    for scene in scenes(150):
        for kind in TYPES:
            asked, taught = question_about(scene, kind, rng)
            for fact in facts(taught, scene):
                if fact[0] not in ("verdict", "one", "same size", "number"):
                    assert scene_judge.holds(fact, scene, frozenset()), (asked, taught, fact)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory, draw_world):
    """A world's folder, and the rows of its heldout.json."""
    folder = tmp_path_factory.mktemp("judge") / "data"
    draw_world(folder, 20)
    return folder, json.loads((folder / "heldout.json").read_text())


def test_questions_of_each_type_are_about_held_out_pictures_and_the_same_each_time(heldout):
    _, rows = heldout
    asked = ask_about(rows, 3)
    assert Counter(row["type"] for row in asked) == dict.fromkeys(TYPES, 3)
    assert len({row["image"] for row in asked}) == 3 and all("/heldout/" in row["image"] for row in asked)
    things = {row["image"]: row["things"] for row in rows}
    assert all([t.pair for t in scene_of(row["scene"]).things] == things[row["image"]] for row in asked)
    assert asked == ask_about(rows, 3) != ask_about(rows, 3, seed=1)
    assert [row["type"] for row in asked] == sorted(row["type"] for row in asked)


def test_a_score_is_the_ratio_of_the_sums():
    def row(kind: str, question: str, teacher: str) -> dict:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": teacher}]
        return {"type": kind, "scene": description(SCENE), "conversations": turns}

    rows = [
        row("conversation", "Where is the boat?", "The boat is in the bottom right."),
        row("conversation", "Is it the sea?", "It is the sea."),
        row("conversation", "What is in the centre?", "A small blue car."),
        row("detail", "Describe it.", description(SCENE)),
        row("reasoning", "How many cars?", "One in the top left and one in the centre, so two."),
    ]
    answers = ["In the bottom right.", "It is a desert.", "A blue car.", "A red car.", "Two."]
    scores = relative(rows, answers)
    # "What is in the centre?" gives the place, so three facts are asked for.
    expected = {"conversation": (1 - 1 + 2 / 3) / 3, "detail": 2 / 14, "reasoning": 1 / 3}
    assert scores == pytest.approx(expected | {"all": (1 - 1 + 2 / 3 + 2 / 14 + 1 / 3) / 5})


def test_the_model_is_asked_all_questions_with_their_pictures(heldout, tmp_path, lively_model, monkeypatch):
    folder, rows = heldout
    asked = ask_about(rows, 2)
    (tmp_path / "judged.json").write_text(json.dumps(asked))
    seen = []

    def teacher(model, processor, batch, pictures, room, generate):
        seen.extend(zip([question.image for question in batch], pictures))
        assert room > 20
        return [question.reference for question in batch]

    monkeypatch.setattr(scene_judge, "BATCH", 4)
    monkeypatch.setattr(scene_judge, "answer_batch", teacher)
    assert scene_judge.judge(lively_model, tmp_path / "judged.json", folder) == dict.fromkeys((*TYPES, "all"), 1)
    assert [image for image, _ in seen] == [row["image"] for row in asked]
    assert len({picture.sum().item() for _, picture in seen}) == 2
