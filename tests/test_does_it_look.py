"""The page "Does it look?": which questions are asked, what is counted, and what the tables say."""

import json
import sys
from collections import Counter

import pytest

from lessons import does_it_look
from minillava.errors import UserError

VIEW = {"accuracy": 0.75, "precision": 1.0, "recall": 0.5, "f1": 0.625, "yes": 0.25}
BLIND = {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 0.875, "yes": 1.0}


def scores(accuracy: float, blind: float, types: dict[str, int], by_type: dict[str, float]) -> dict:
    whole = {"questions": sum(types.values()), "accuracy": accuracy, "blind": blind, "shuffled": 0.125}
    return whole | {"types": types, "by_type": by_type, "blind_by_type": dict.fromkeys(types, 0.0625)}


def found(**more) -> dict:
    """What looks() finds, by hand."""
    types = {"count": 30, "position": 10, "size": 30}
    return {
        "heldout": scores(0.6, 0.2, types, {"count": 0.5, "position": 0.9, "size": 0.7}),
        "unseen": scores(0.375, 0.03125, {"position": 4, "size": 4}, {"position": 0.5, "size": 0.25}),
        "pope": {way: {"normal": VIEW, "blind": BLIND} for way in ("random", "popular", "adversarial")},
        "count": {"0": [9, 10], "1": [1, 3]},
        "position": {"2": [1, 4]},
        **more,
    }


def lines_of(page: str, name: str) -> list[list[str]]:
    """The cells of a model's lines, table by table."""
    rows = [line.split("|")[2:-1] for line in page.splitlines() if line.startswith(f"| {name} ")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_page_says_what_was_found():
    page = does_it_look.page({"toy": found(), "Frozen": found(count={"1": [2, 2], "3": [0, 1]})})
    pope = "75.0 / 62.5 / 25.0"
    assert lines_of(page, "toy") == [
        ["70", "60.0", "20.0", "12.5", "50.0"],
        ["50.0 (6.2)", "90.0 (6.2)", "70.0 (6.2)"],
        [pope, pope, pope, "50.0 / 87.5 / 100.0"],
        ["90.0 (10)", "33.3 (3)", ""],
        ["25.0 (4)"],
        ["75.0", "37.5", "3.1", "8"],  # 10 questions with 0.9 and 30 with 0.7: 0.75
    ]
    assert lines_of(page, "Frozen")[3] == ["", "100.0 (2)", "0.0 (1)"]


def test_difficulties_are_counted():
    assert does_it_look.tally([(2, True), (0, False), (2, False), (2, True)]) == {"0": [0, 1], "2": [2, 3]}


@pytest.fixture(scope="module")
def run(tmp_path_factory, draw_world):
    run = tmp_path_factory.mktemp("looks")
    draw_world(run / "data", 20)
    return run


def test_all_questions_about_some_pictures_are_asked(run, monkeypatch):
    """By what evaluate() gets. Its answers to counting are right if there is one thing, to places if there are two."""
    asked = {}

    def answered(model, path, data, answers):
        assert data == run / "data" and answers
        rows = asked[path.name] = json.loads(path.read_text())
        if path.name.startswith("pope"):
            return {"pope": path.name, "answers": []}
        lines = [
            {
                "row": number,
                "type": row["type"],
                "reference": row["conversations"][1]["value"],
                "right": len(row["things"]) == {"count": 1, "position": 2}.get(row["type"]),
            }
            for number, row in enumerate(rows)
        ]
        return {"answers": lines}

    monkeypatch.setattr(does_it_look, "evaluate", answered)
    got = does_it_look.looks(None, run / "data", every=3)
    assert got["pope"] == {way: f"pope_{way}.json" for way in ("random", "popular", "adversarial")}
    assert set(asked) == {"heldout.json", "unseen.json", *got["pope"].values()}
    for name, rows in asked.items():
        every = json.loads((run / "data" / name).read_text())
        pictures = sorted({row["image"] for row in every})
        assert {row["image"] for row in rows} == set(pictures[::3])
        assert rows == [row for row in every if row["image"] in pictures[::3]]
        if name.startswith("pope"):
            assert Counter(row["label"] for row in rows)["yes"] == len(rows) / 2
    numbers = {"count": Counter(), "position": Counter()}
    for row in asked["heldout.json"]:
        if row["type"] == "count":
            said = row["conversations"][1]["value"]
            numbers["count"][str(said.count("One") + said.count("one in"))] += said != "None."
            numbers["count"]["0"] += said == "None."
        if row["type"] == "position":
            numbers["position"][str(len(row["things"]))] += 1
    for kind, expected in numbers.items():
        assert {hard: number for hard, (_, number) in got[kind].items()} == {h: n for h, n in expected.items() if n}
    assert all(right == (number if hard == "2" else 0) for hard, (right, number) in got["position"].items())


def test_a_road_must_be_trained_before(tmp_path):
    with pytest.raises(UserError, match=r"Frozen/0: not trained yet"):
        does_it_look.model_of("Frozen", tmp_path, 400, "cpu")


@pytest.fixture
def program(run, tmp_path, monkeypatch):
    """A function that runs the program on the small world; its results are in ``tmp_path``."""
    monkeypatch.setattr(does_it_look, "RESULTS", tmp_path)

    def look(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["does_it_look", *arguments, "--run", str(run), "--every", "7"])
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--device", "cpu"])
        does_it_look.main()

    return look


def test_the_shipped_model_looks(program, tmp_path, monkeypatch):
    program("toy")
    page, stored = (tmp_path / "does-it-look.md").read_text(), json.loads((tmp_path / "looks.json").read_text())
    [[_, right, blind, _, looking], *_] = lines_of(page, "toy")
    assert float(right) > 70 > 40 > float(blind) and float(looking) > 60
    assert stored["toy"]["pope"]["random"]["normal"]["accuracy"] > 0.7
    assert (tmp_path / "looks.png").exists()
    # What is stored makes the page again, in the order of MODELS.
    (tmp_path / "looks.json").write_text(json.dumps({"Frozen": stored["toy"], **stored}))
    program()
    again = (tmp_path / "does-it-look.md").read_text()
    assert again.index("| toy ") < again.index("| Frozen ") and lines_of(again, "toy")[0] == lines_of(page, "toy")[0]


@pytest.mark.parametrize(("arguments", "words"), [(["nobody"], "no model nobody"), ([], "nothing is stored yet")])
def test_what_cannot_be_is_one_line(program, arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        program(*arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err
