"""The lessons' comparisons: what a table says, and each row trained for a few steps from the shipped towers."""

import json
import sys

import pytest

from data.picturebook.write import write_world
from lessons import comparisons, experiments
from minillava.training.tasks import Task


def result(accuracy: float, blind: float = 0.25, **more) -> dict:
    kinds = {"colour": accuracy, "count": 0.0}
    return {
        "accuracy": accuracy,
        "blind": blind,
        "by_type": kinds,
        "types": dict.fromkeys(kinds, 10),
        "learns": 12345,
        "visual_tokens": 64,
        "seconds": 90.0,
        **more,
    }


def test_a_table_gives_means_ranges_and_differences_beyond_the_ranges():
    found = {
        "first": [result(0.5), result(0.625)],
        "overlaps": [result(0.625), result(0.75, seconds=30.0)],
        "below": [result(0.25, blind=0.125), result(0.375)],
    }
    head, first, overlaps, below = experiments.table(found)
    assert head[4:6] == ["colour", "count"] and {len(line) for line in (first, overlaps, below)} == {len(head)}
    assert first == ["first", "56.2 (50.0 to 62.5)", "25.0 (25.0 to 25.0)", "", "56", "0", "12,345", "64", "1.5"]
    assert overlaps[3] == "none" and overlaps[-1] == "1.0"
    assert below[2:4] == ["18.8 (12.5 to 25.0)", "-25.0"]


@pytest.mark.parametrize(("accuracy", "blue"), [(0.0, False), (0.6, True)])
def test_a_bar_ends_at_the_mean(accuracy, blue):
    picture = experiments.draw("A title", {"row": [result(accuracy, blind=0.9)]})
    assert (picture.getpixel((190 + 510 // 2, 55)) == experiments.BLUE) == blue


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run's folder with only data, of few pictures."""
    run = tmp_path_factory.mktemp("experiments")
    write_world(run / "data", 60, 0)
    return run


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A comparison of the program, at its smallest."""
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(experiments, "QUESTIONS", 12)

    def compare(name: str, world, seeds: int = 1) -> dict:
        arguments = [name, "--run", world, "--out", tmp_path / "out", "--seeds", seeds, "--steps", 2, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
        experiments.main()
        return json.loads((tmp_path / "results" / f"{name}.json").read_text())

    return compare


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_each_row_of_a_comparison_is_trained_and_scored(name, world, small, tmp_path, capsys):
    found = small(name, world)
    printed = capsys.readouterr().out
    assert list(found["rows"]) == list(comparisons.COMPARISONS[name].rows)
    for title, (scores,) in found["rows"].items():
        assert f"| {title} |" in printed
        assert 0 <= scores["accuracy"] <= 1 and scores["learns"] > 0 and scores["seconds"] > 0
    assert (tmp_path / "results" / f"{name}.png").exists()


def test_the_roads_have_their_papers_visual_tokens_and_parts(world, small):
    rows = small("roads", world)["rows"]
    assert {title: scores["visual_tokens"] for title, (scores,) in rows.items()} == {
        "LLaVA": 64,
        "LLaVA, decoder frozen": 64,
        "Frozen": 2,
        "Flamingo": 64,
        "BLIP-2": 32,
        "Kosmos-1": 18,
    }
    learns = {title: scores["learns"] for title, (scores,) in rows.items()}
    assert learns["LLaVA, decoder frozen"] == 128 * 160 + 160 < min(n for t, n in learns.items() if "frozen" not in t)
    assert max(learns, key=learns.get) == "Kosmos-1"


def test_after_an_interruption_only_what_is_missing_is_trained(world, small, tmp_path, monkeypatch):
    """The second seed's second training fails at first."""
    trained, train = [], comparisons.train

    def noted(task: Task, recipe, run) -> None:
        trained.append((run.out.parent.name, run.out.name, run.resume))
        if len(trained) == 4:
            raise RuntimeError("power cut")
        train(task, recipe, run)

    monkeypatch.setattr(comparisons, "train", noted)
    one = comparisons.Comparison("One row", {"LLaVA": comparisons.llava})
    monkeypatch.setitem(comparisons.COMPARISONS, "one", one)
    with pytest.raises(RuntimeError, match="power cut"):
        small("one", world, seeds=2)
    first = small("one", world, seeds=2)
    assert trained == [
        ("0", "captions", False),
        ("0", "instructions", False),
        ("1", "captions", False),
        ("1", "instructions", False),
        ("1", "captions", True),
        ("1", "instructions", False),
    ]
    assert small("one", world, seeds=2) == first and len(trained) == 6
    straight = tmp_path / "straight"
    again = experiments.result_of(
        comparisons.llava, comparisons.Bench(experiments.PRETRAINED, world / "data", straight, 1, 2)
    )
    assert [part["loss"] for part in again["parts"]] == [part["loss"] for part in first["rows"]["LLaVA"][1]["parts"]]
