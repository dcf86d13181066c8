"""Judging answers by their meaning, on answers written by hand."""

import json

import pytest
import torch
from PIL import Image

from minillava import evaluate
from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.evaluate import Question, check_judgement, means, own_words, words
from minillava.inputs.conversations import ConversationDataset


def question(reference: str, need=None, refuse=(), asked="", kind="x") -> Question:
    return Question(0, None, torch.tensor([0]), reference, kind, [], need, list(refuse), frozenset(words(asked)))


BOAT = question("No, there is no boat in the picture.", [["no", "not"]], ["yes", "top left"], "Is there a boat?")
PLACE = question("The car is in the top left.", [["top left", "upper left"]], ["top right"], "Where is the car?")
TWO = question("One in the centre and one in the top left, so two.", [["two"], ["centre", "center"]], ["three"])
CAMEL = question("No, there is no camel in the picture.", [["no"]], ["yes"], "Any camel?")
KNOWN = own_words([BOAT, PLACE, TWO, CAMEL])


@pytest.mark.parametrize(
    "asked, answer, right",
    [
        (BOAT, "No, there is no boat in the picture.", True),
        (BOAT, "no", True),
        (BOAT, "NO!!! There is no boat...", True),
        (BOAT, "Yes, there is a boat.", False),
        (BOAT, "No, yes.", False),
        (BOAT, "Nothing.", False),
        (BOAT, "", False),
        (BOAT, "No, in the top left.", False),
        (BOAT, "No, there is no camate in the picture.", False),  # made up
        (BOAT, "No, there is no camel in the picture.", False),  # another question's noun
        (CAMEL, "No, there is no camel in the picture.", True),
        (CAMEL, "No, there is no boat in the picture.", False),
        (PLACE, "The car is in the top-left.", True),
        (PLACE, "In the upper left.", True),
        (PLACE, "In the left top.", False),
        (PLACE, "In the top lefts.", False),
        (PLACE, "In the top left and in the top right.", False),
        (TWO, "One in the centre and one in the top left, so two.", True),
        (TWO, "Two in the center.", True),
        (TWO, "So two.", False),
        (TWO, "Two in the centre, so three.", False),
    ],
)
def test_an_answer_has_a_word_of_each_list_none_refused_and_none_made_up(asked, answer, right):
    assert means(asked, answer, KNOWN) == right


def test_words_are_those_of_references_and_needs_without_what_they_repeat():
    assert {"no", "there", "is", "upper", "center", "two"} <= KNOWN
    assert not {"boat", "camel", "car"} & KNOWN


def test_without_need_an_answer_must_equal_the_reference():
    assert means(question("A fish."), "A fish.", set()) and not means(question("A fish."), "a fish", {"a", "fish"})


ROWS = [
    {
        "id": "1",
        "image": "a.png",
        "type": "row",
        "conversations": [
            {"from": "human", "value": "<image>\nIs there a kite?"},
            {
                "from": "gpt",
                "value": "No.",
                "type": "turn",
                "need": [["no", "not", "nowhere", "yes"]],
                "refuse": ["maybe"],
            },
            {"from": "human", "value": "What colour is the sky?"},
            {"from": "gpt", "value": "It is quite certainly not there."},
        ],
    },
    {
        "id": "2",
        "image": "a.png",
        "type": "row",
        "conversations": [
            {"from": "human", "value": "<image>\nAnd a boat?"},
            {"from": "gpt", "value": "No.", "refuse": ["yes", "no", "not", "nowhere", "one", "the", "a"]},
        ],
    },
]


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture(scope="module")
def model():
    return load(PRETRAINED / "llava")


def test_questions_know_their_types_and_what_was_said_before(data, model):
    asked = evaluate.questions(ConversationDataset(data, data.parent, model.processor, "first"))
    assert [q.kind for q in asked] == ["turn", "row", "row"]
    assert [q.need for q in asked] == [ROWS[0]["conversations"][1]["need"], None, []]
    assert "kite" in asked[0].asked and {"kite", "no", "sky"} <= asked[1].asked and "kite" not in asked[2].asked


def test_meaning_is_scored_next_to_exact_match(data, model, monkeypatch, capsys):
    answers = {"normal": ["Yes, no", "Wrong.", "So."], "blind": ["No.", "", "no"], "shuffled": ["maybe no"] * 3}
    monkeypatch.setattr(evaluate, "answer_all", lambda model, dataset, asked, shown: answers[shown])
    known = {"so"}
    monkeypatch.setattr(evaluate, "own_words", lambda asked: known | own_words(asked))
    result = evaluate.evaluate(model, data)
    assert result["accuracy"] == 0 and result["by_type"] == {"row": 0, "turn": 0}
    assert result["meaning"] == pytest.approx(2 / 3) and result["meaning_by_type"] == {"row": 0.5, "turn": 1}
    assert result["blind"] == pytest.approx(1 / 3) and result["blind_meaning"] == pytest.approx(1 / 3)
    assert result["shuffled_meaning"] == 0 and result["blind_meaning_by_type"] == {"row": 0, "turn": 1}
    evaluate.show(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["type", "questions", "exact", "blind", "meaning", "blind"]
    assert lines[2].split() == ["turn", "1", "0.0%", "100.0%", "100.0%", "100.0%"]


def test_a_file_without_need_has_no_meaning(data, model, monkeypatch):
    rows = [
        {**ROWS[0], "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]}
    ]
    data.write_text(json.dumps(rows))
    monkeypatch.setattr(evaluate, "answer_all", lambda model, dataset, asked, shown: ["A."])
    result = evaluate.evaluate(model, data)
    assert result["accuracy"] == 1 and "meaning" not in result and "meaning_by_type" not in result


FAULTS = [
    ({"type": 3}, "turn 1: 'type' must be a string"),
    ({"need": "no"}, "turn 1: 'need' must be a list of lists of words"),
    ({"need": ["no"]}, "turn 1: 'need' must be a list of lists of words"),
    ({"need": [[]]}, "turn 1: 'need' must be a list of lists of words"),
    ({"need": [["no", 3]]}, "turn 1: 'need' must be a list of lists of words"),
    ({"need": [["?"]]}, "turn 1: 'need' must be a list of lists of words"),
    ({"need": None}, "turn 1: 'need' must be a list of lists of words"),
    ({"refuse": "yes"}, "turn 1: 'refuse' must be a list of words"),
    ({"refuse": [["yes"]]}, "turn 1: 'refuse' must be a list of words"),
    ({"refuse": [""]}, "turn 1: 'refuse' must be a list of words"),
]


@pytest.mark.parametrize("keys, what", FAULTS, ids=lambda value: str(value)[:30])
def test_a_malformed_key_is_named(data, model, keys, what):
    with pytest.raises(UserError, match=what):
        check_judgement({"from": "gpt", "value": "No.", **keys}, 1)
    rows = json.loads(json.dumps(ROWS))
    rows[1]["conversations"][1] |= keys
    data.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"row 1: {what}"):
        evaluate.questions(ConversationDataset(data, data.parent, model.processor, "first"))


def test_well_formed_keys_pass():
    for keys in ({}, {"need": [], "refuse": []}, {"type": "x", "need": [["no", "top left"], ["a"]], "refuse": ["yes"]}):
        check_judgement({"from": "gpt", "value": "No.", **keys}, 1)


def test_questions_that_the_model_cannot_read_whole_are_left_out_and_counted(data, model, capsys):
    rows = json.loads(json.dumps(ROWS))
    rows[1]["conversations"][0]["value"] += " boat" * 1100
    data.write_text(json.dumps(rows))
    result = evaluate.evaluate(model, data)
    assert result["too_long"] == 1 and result["questions"] == 2
    evaluate.show(result)
    assert capsys.readouterr().out.startswith("questions left out because the model cannot read them and answer: 1\n")


def test_a_file_of_questions_that_are_all_too_long_is_refused(data, monkeypatch):
    rows = json.loads(json.dumps(ROWS[1:]))
    rows[0]["conversations"][0]["value"] += " boat" * 1100
    data.write_text(json.dumps(rows))
    monkeypatch.setattr("sys.argv", ["evaluate", "--data", str(data)])
    with pytest.raises(UserError, match="contains no questions, all are longer than the model reads"):
        evaluate.main()
