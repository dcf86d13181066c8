"""Judging answers, by their meaning and exactly, on answers written by hand; what the command prints and writes."""

import json
import re
import sys

import pytest
import torch
from PIL import Image

from minillava import evaluate
from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.errors import UserError, run_program
from minillava.evaluate import Question, check_judgement, commonest, confusion, means, own_words, words
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
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["type", "questions", "exact", "blind", "shuffled", "majority"]
    assert lines[2] == ["turn", "1", "0.0%", "100.0%", "0.0%", "100.0%"]
    assert lines[4] == ["type", "questions", "meaning", "blind", "shuffled", "majority"]
    assert lines[6] == ["turn", "1", "100.0%", "100.0%", "0.0%", "100.0%"]


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


def row_with(keys: dict) -> dict:
    return {"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "No.", **keys}]}


@pytest.mark.parametrize("keys, what", FAULTS, ids=lambda value: str(value)[:30])
def test_a_malformed_key_is_named(data, model, keys, what):
    with pytest.raises(UserError, match=what):
        check_judgement(row_with(keys))
    rows = json.loads(json.dumps(ROWS))
    rows[1]["conversations"][1] |= keys
    data.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"row 1: {what}"):
        evaluate.questions(ConversationDataset(data, data.parent, model.processor, "first"))


def test_well_formed_keys_pass():
    for keys in ({}, {"need": [], "refuse": []}, {"type": "x", "need": [["no", "top left"], ["a"]], "refuse": ["yes"]}):
        check_judgement(row_with(keys))


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


BAD_ROWS = [
    ({"type": None}, "'type' must be a string"),
    ({"type": ["x"]}, "'type' must be a string"),
    ({"type": "detail", "things": "fish"}, "'things' must be a list of words"),
    ({"type": "caption", "things": ["fish", 3]}, "'things' must be a list of words"),
    ({"type": "detail", "things": [""]}, "'things' must be a list of words"),
]


@pytest.mark.parametrize("keys, what", BAD_ROWS, ids=str)
def test_a_malformed_key_of_a_row_is_named(data, model, keys, what):
    data.write_text(json.dumps([ROWS[0], {**ROWS[1], **keys}]))
    with pytest.raises(UserError, match=re.escape(f"{data}: row 1: {what}")):
        evaluate.questions(ConversationDataset(data, data.parent, model.processor, "first"))


def test_things_of_rows_without_a_description_may_be_anything(data, model):
    data.write_text(json.dumps([{**ROWS[0], "things": 3}]))
    asked = evaluate.questions(ConversationDataset(data, data.parent, model.processor, "first"))
    assert [q.things for q in asked] == [[], []]


def test_the_majority_answer_is_each_type_s_own():
    told = [("No.", "a"), ("Yes.", "b"), ("No.", "a"), ("Two.", "b"), ("Yes.", "a"), ("Yes.", "b")]
    asked = [question(reference, kind=kind) for reference, kind in told]
    assert commonest(asked) == ["No.", "Yes.", "No.", "Yes.", "No.", "Yes."]


def test_answers_are_tabulated_for_types_with_few_short_references():
    asked = [question(reference, kind="number") for reference in ("One.", "Two.", "One.", "One.", "Two.", "One.")]
    answers = ["One.", "One.", "Two.", "A lot", "Two.", "One."]
    table = {"One.": {"One.": 2, "Two.": 1, "A lot": 1}, "Two.": {"One.": 1, "Two.": 1}}
    assert confusion(asked, answers) == {"number": table}
    for others in (
        ["No."] * 5,  # one reference only
        [str(number) for number in range(13)],
        ["No.", "Yes, I think so."],
    ):
        more = [question(reference, kind="other") for reference in others]
        assert confusion([*asked, *more], answers + others) == {"number": table}
    twelve = [str(number) for number in range(12)]
    most = confusion([question(reference, kind="most") for reference in twelve], ["0"] * 12)
    assert most == {"most": {number: {"0": 1} for number in twelve}}


def turns(*values: str, **keys) -> list[dict]:
    said = [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]
    said[0]["value"] = f"<image>\n{values[0]}"
    said[1] |= keys
    return said


MIXED = [
    {"image": "a.png", "type": "caption", "conversations": turns("Tell.", "A fish."), "things": ["Red fish", "boat"]},
    {
        "id": "two",
        "image": "a.png",
        "type": "fish",
        "conversations": turns("Is it?", "No.", "Sure?", "Yes.", need=[["no", "not"]]),
    },
    {"image": "a.png", "type": "detail", "conversations": turns("Tell all.", "A café.")},
    {"image": "b.png", "type": "fish", "conversations": turns("Really?", "No.")},
    {"image": "b.png", "type": "detail", "conversations": turns("Tell.", "A boat."), "things": ["boat"]},
]
ANSWERS = {
    "normal": {
        "No.": "no",
        "Yes.": "Yes.",
        "A café.": "A café \ud83d.",
        "A fish.": "A red fish, a RED FISH and a boat.",
        "A boat.": "A red fish.",
    },
    "blind": {"No.": "No.", "Yes.": "No.", "A fish.": "Nothing.", "A boat.": "A boat."},
    "shuffled": {"No.": "\x1b[2J", "Yes.": "Yes."},
}


@pytest.fixture
def command(data, model, monkeypatch, capsys):
    """``command(rows, *options)`` runs the program, with ANSWERS by reference: its exit code, stdout and stderr."""
    monkeypatch.setattr(evaluate, "load", lambda *_: model)
    monkeypatch.setattr(
        evaluate, "answer_all", lambda model, dataset, asked, shown: [ANSWERS[shown][q.reference] for q in asked]
    )
    Image.new("RGB", (64, 64), "red").save(data.parent / "b.png")

    def run(rows: list[dict], *options: str) -> tuple[int, str, str]:
        data.write_text(json.dumps(rows))
        monkeypatch.setattr(sys, "argv", ["evaluate", "--data", str(data), *options])
        code = 0
        try:
            run_program(evaluate.main)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_every_question_is_written_with_its_answer(command, tmp_path):
    path = tmp_path / "answers.jsonl"
    code, out, err = command(MIXED, "--answers", str(path))
    assert code == 0 and err == "" and out.splitlines()[-2] == f"{path}: 6 answers"
    fish = {"image": "a.png", "type": "fish"}
    assert list(map(json.loads, path.read_text(encoding="utf-8").splitlines())) == [
        {
            **{"row": 0, "turn": 1, "id": None, "image": "a.png", "type": "caption", "question": "Tell."},
            **{"reference": "A fish.", "answer": ANSWERS["normal"]["A fish."], "made_up": [], "missed": []},
        },
        {
            **{"row": 1, "turn": 1, "id": "two", **fish, "question": "Is it?"},
            **{"reference": "No.", "answer": "no", "right": False, "meaning": True},
        },
        {
            **{"row": 1, "turn": 3, "id": "two", **fish, "question": "Sure?"},
            **{"reference": "Yes.", "answer": "Yes.", "right": True},
        },
        {
            **{"row": 2, "turn": 1, "id": None, "image": "a.png", "type": "detail", "question": "Tell all."},
            **{"reference": "A café.", "answer": "A café \ud83d."},
        },
        {
            **{"row": 3, "turn": 1, "id": None, "image": "b.png", "type": "fish", "question": "Really?"},
            **{"reference": "No.", "answer": "no", "right": False},
        },
        {
            **{"row": 4, "turn": 1, "id": None, "image": "b.png", "type": "detail", "question": "Tell."},
            **{"reference": "A boat.", "answer": "A red fish.", "made_up": ["red fish"], "missed": ["boat"]},
        },
    ]
    assert "A café" in path.read_text(encoding="utf-8")


def test_an_answers_file_that_cannot_be_written_is_refused_before_the_work(command, tmp_path):
    path = tmp_path / "rows.json"
    code, out, err = command(MIXED, "--answers", str(path))
    assert (code, out, err) == (2, "", f"error: {path}: already exists\n")
    assert json.loads(path.read_text()) == MIXED
    code, out, err = command(MIXED, "--answers", str(tmp_path / "no" / "a.jsonl"))
    assert (code, out, err) == (2, "", f"error: {tmp_path / 'no'}: no such folder\n")


def test_scores_by_type_and_given_answers_are_printed(command):
    code, out, _ = command(MIXED)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and lines[:6] == [
        ["type", "questions", "exact", "blind", "shuffled", "majority"],
        ["fish", "3", "33.3%", "66.7%", "33.3%", "66.7%"],
        ["all", "3", "33.3%", "66.7%", "33.3%", "66.7%"],
        ["type", "questions", "meaning", "blind", "shuffled", "majority"],
        ["fish", "3", "66.7%", "66.7%", "33.3%", "66.7%"],
        ["all", "3", "66.7%", "66.7%", "33.3%", "66.7%"],
    ]
    assert out.splitlines()[6] == "fish: what was given (across) in place of what (down)"
    assert lines[7:10] == [["No.", "Yes.", "other"], ["No.", "0", "0", "2"], ["Yes.", "0", "1", "0"]]
    assert out.splitlines()[10:12] == [
        "2 descriptions: things named with precision 66.7%, recall 66.7% (blind 100.0%, 33.3%)",
        "1 descriptions are not scored, because their rows have no 'things'",
    ]
    result = json.loads(out.splitlines()[-1])
    assert result["confusion"] == {"fish": {"No.": {"no": 2}, "Yes.": {"Yes.": 1}}} and result["unscored"] == 1
    assert result["majority_by_type"] == {"fish": 0.6667} and result["shuffled_by_type"] == {"fish": 0.3333}
    assert result["shuffled_meaning_by_type"] == {"fish": 0.3333} and result["majority_meaning"] == 0.6667


def test_descriptions_that_cannot_be_scored_are_said_and_still_written(command, tmp_path):
    code, out, err = command([MIXED[2]])
    assert code == 2 and out == ""
    assert err.endswith("rows.json: contains no questions, only descriptions without 'things'\n")
    path = tmp_path / "a.jsonl"
    code, out, _ = command([MIXED[2]], "--answers", str(path))
    assert code == 0 and out.startswith("1 descriptions are not scored") and len(path.read_text().splitlines()) == 1


def test_types_and_answers_reach_the_terminal_as_text(command):
    rows = [{**MIXED[3], "type": "\x1b[2J\ud83d"}, {**MIXED[3], "conversations": turns("?", "Yes.")}]
    code, out, _ = command([*rows, {**rows[0], "conversations": turns("?", "Yes.")}])
    assert code == 0 and "\x1b" not in out and "\\x1b[2J\\ud83d" in out


# ---- POPE ---------------------------------------------------------------------------------------------------------

# A row as in coco_pope_random.json of the POPE repository
POPE_ROW = '{"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?", '


@pytest.mark.parametrize(
    "answer, yes",
    [
        ("Yes, there is a person in the image.", True),
        ("yes", True),
        ("There is one. There is no other.", True),
        ("", True),
        ("No, there is no person in the image.", False),
        ("no", False),
        ("No, it is empty.", False),
        ("There is not one in it.", False),
        ("I see nothing, no", False),
    ],
)
def test_an_answer_is_yes_or_no_as_in_pope(answer, yes):
    assert evaluate.says_yes(answer) == yes


def test_pope_scores_equal_a_count_by_hand():
    """Of 4 things there 2 are found, of 4 that are not there 1."""
    labels = ["yes", "yes", "yes", "yes", "no", "no", "no", "no"]
    answers = ["Yes.", "Yes, one.", "No.", "no", "Yes.", "No.", "It is not there.", "No, there is no cat."]
    scores = evaluate.yes_or_no([question(label, kind="pope") for label in labels], answers)
    assert scores == pytest.approx({"accuracy": 5 / 8, "precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "yes": 3 / 8})


def test_pope_scores_of_a_model_that_always_says_no():
    scores = evaluate.yes_or_no([question(label, kind="pope") for label in ("yes", "no", "no")], ["No."] * 3)
    assert scores == pytest.approx({"accuracy": 2 / 3, "precision": 0, "recall": 0, "f1": 0, "yes": 0})


def test_a_file_of_pope_is_read_and_scored(tmp_path, model, monkeypatch, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "COCO_val2014_000000016631.jpg")
    lines = [POPE_ROW + f'"label": "{label}"}}' for label in ("yes", "no", "no")]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(lines))
    asked = evaluate.questions(ConversationDataset(tmp_path / "coco_pope_random.json", tmp_path, model.processor))
    assert [(q.kind, q.reference) for q in asked] == [("pope", "yes"), ("pope", "no"), ("pope", "no")]
    monkeypatch.setattr(evaluate, "answer_all", lambda model, dataset, asked, shown, *_: ["No."] * len(asked))
    result = evaluate.evaluate(model, tmp_path / "coco_pope_random.json", answers=True)
    assert result["questions"] == 0 and set(result["pope"]) == {"normal", "blind", "shuffled"}
    assert result["pope"]["normal"]["accuracy"] == pytest.approx(2 / 3)
    assert [line["right"] for line in result["answers"]] == [False, True, True]
    assert result["answers"][0]["question"] == "Is there a person in the image?"
    evaluate.show(result)
    assert capsys.readouterr().out.splitlines()[1].split() == ["normal", "66.7%", "0.0%", "0.0%", "0.0%", "0.0%"]


def test_a_bad_row_of_pope_is_named(tmp_path, model):
    (tmp_path / "p.json").write_text(POPE_ROW + '"label": "maybe"}')
    with pytest.raises(UserError, match=r"p\.json: row 0: .*'label' must be 'yes' or 'no'"):
        ConversationDataset(tmp_path / "p.json", tmp_path, model.processor)
