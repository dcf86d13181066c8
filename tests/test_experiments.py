"""The lessons' comparisons: what a table says, and each row trained for a few steps from the shipped towers."""

import json
import re
import sys
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from lessons import comparisons, experiments


def result(accuracy: float, blind: float = 0.25, **more) -> dict:
    kinds = {"colour": accuracy, "count": 0.0}
    return {
        "accuracy": accuracy,
        "blind": blind,
        "by_type": kinds,
        "types": dict.fromkeys(kinds, 10),
        "precision": 0.8,
        "recall": 0.4,
        "learns": 12345,
        "visual_tokens": 64,
        "seconds": 90.0,
        "relative": {"conversation": accuracy, "detail": 1.0, "reasoning": accuracy / 2, "all": 0.75},
        **more,
    }


def test_a_table_gives_means_ranges_differences_beyond_the_ranges_and_the_least_time():
    found = {
        "first": [result(0.5), result(0.625)],
        "overlaps": [result(0.625, seconds=60.0), result(0.75, seconds=900.0)],
        "below": [result(0.25, blind=0.125), result(0.375)],
    }
    head, first, overlaps, below = experiments.table(found)
    assert head[4:6] == ["colour", "count"] and {len(line) for line in (first, overlaps, below)} == {len(head)}
    assert first == ["first", "56.2 (50.0 to 62.5)", "25.0 (25.0 to 25.0)", "", "56", "0", "30", "12,345", "64", "1.5"]
    assert overlaps[3] == "none" and overlaps[-1] == "1.0"
    assert below[2:4] == ["18.8 (12.5 to 25.0)", "-25.0"]
    assert [line[3] for line in experiments.table({"a": [result(0.5)], "b": [result(0.9)]})[1:]] == ["", "?"]


def test_the_least_that_looking_is_worth_is_of_the_worst_row_and_seed():
    found = {"good": [result(0.9)], "bad": [result(0.75), result(0.5, blind=0.375), result(0.25, blind=0.0)]}
    assert experiments.least_seen(found).endswith("at least 12.5 points more than blind (bad).")
    assert "-25.0 points" in experiments.least_seen({**found, "blind": [result(0.0)]})


def test_a_second_table_gives_the_judges_scores():
    found = {"first": [result(0.5), result(0.625)], "below": [result(-0.25)]}
    head, first, below = experiments.relative_table(found)
    assert head[1:] == ["conversation", "detail", "reasoning", "all"]
    assert first[1:3] == ["56.2 (50.0 to 62.5)", "100.0 (100.0 to 100.0)"] and first[3] == "28.1 (25.0 to 31.2)"
    assert below == ["below", "-25.0 (-25.0 to -25.0)", first[2], "-12.5 (-12.5 to -12.5)", "75.0 (75.0 to 75.0)"]


@pytest.mark.parametrize(("accuracy", "blue"), [(0.0, False), (0.6, True)])
def test_a_bar_ends_at_the_mean(accuracy, blue):
    picture = experiments.draw("A title", {"row": [result(accuracy, blind=0.9)]})
    assert (picture.getpixel((190 + 510 // 2, 55)) == experiments.BLUE) == blue


def test_a_name_means_the_same_in_all_comparisons():
    names = [name for comparison in comparisons.COMPARISONS.values() for name in comparison.others]
    assert len({*names, "LLaVA"}) == len(names) + 1


def test_the_answer_goes_before_its_reason():
    said = "One in the centre and one in the top right, so two."
    assert comparisons.answer_first(said) == "Two: one in the centre and one in the top right."
    assert comparisons.answer_first("Both are large, so no, they are equal.") == "No, they are equal: both are large."
    assert comparisons.answer_first("The fish is red.") == "The fish is red."


def test_a_loss_everywhere_is_on_all_text_and_nothing_else():
    ids = torch.tensor([[7, 3, 3, 8, 0, 0], [9, 3, 3, 5, 6, 0]])
    batch = {"input_ids": ids, "lengths": torch.tensor([4, 6])}
    labels = comparisons.loss_everywhere(batch, image_id=3)["labels"]
    assert labels.tolist() == [[7, -100, -100, 8, -100, -100], [9, -100, -100, 5, 6, 0]]


@pytest.fixture(scope="module")
def world(tmp_path_factory, draw_world):
    """A run's folder with only data, of few pictures."""
    run = tmp_path_factory.mktemp("experiments")
    draw_world(run / "data", 60)
    return run


def bench_of(world, out, row: comparisons.Row, seed: int = 0) -> comparisons.Bench:
    return comparisons.Bench(row, experiments.PRETRAINED, world / "data", out, seed, 2)


def test_rows_are_chosen_by_type_and_rewritten(world, tmp_path):
    row = comparisons.Row(comparisons.llava, shares={"conversation": 0.5, "detail": 1}, answer_first=True)
    bench = bench_of(world, tmp_path, row)
    every = json.loads((world / "data" / "instruct.json").read_text())
    kept = bench.instructions(bench.llava()).rows
    kinds = {kind: sum(row["type"] == kind for row in kept) for kind in ("conversation", "detail", "reasoning")}
    number = {kind: sum(row["type"] == kind for row in every) for kind in kinds}
    assert kinds["detail"] == number["detail"] > 0 and kinds["reasoning"] == 0
    assert 0.2 < kinds["conversation"] / number["conversation"] < 0.8
    asked = json.loads(bench.questions(60).read_text())
    assert len(asked) == 60
    assert not any(", so " in turn["value"] for row in asked for turn in row["conversations"])
    assert any(": one in" in turn["value"] for row in asked for turn in row["conversations"])


def test_each_seed_begins_with_a_projection_of_its_own(world, tmp_path):
    first, again, other = (
        bench_of(world, tmp_path, comparisons.Row(comparisons.llava), seed).llava().multi_modal_projector.state_dict()
        for seed in (0, 0, 1)
    )
    [weight] = [name for name, value in first.items() if value.ndim == 2 and not torch.equal(value, other[name])]
    assert all(torch.equal(first[name], again[name]) for name in first) and first[weight].std() > 0


def test_a_tower_without_training_keeps_its_shape_and_nothing_else(world, tmp_path):
    trained, random = (
        bench_of(world, tmp_path, comparisons.Row(comparisons.llava, tower=tower)).llava().vision_tower.state_dict()
        for tower in (True, False)
    )
    name = "encoder.layers.0.self_attn.q_proj.weight"
    assert trained.keys() == random.keys() and not torch.allclose(trained[name], random[name], atol=0.01)


def test_a_result_without_the_judges_scores_is_completed_without_training(world, tmp_path, monkeypatch):
    """Of a row of each kind, with what it learns in the project's checkpoint, or in one of a road's own."""

    def never(*_, **__):
        raise AssertionError("trained or asked again")

    monkeypatch.setattr(experiments, "QUESTIONS", 12)
    monkeypatch.setattr(experiments, "JUDGED", 6)
    for name, train in (("llava", comparisons.llava), ("kosmos", comparisons.kosmos_road)):
        bench = bench_of(world, tmp_path / name, comparisons.Row(train))
        whole = experiments.result_of(bench)
        file = bench.out / "result.json"
        old = {key: value for key, value in whole.items() if key != "relative"}
        file.write_text(json.dumps(old | {"accuracy": 0.125}))
        with monkeypatch.context() as patched:
            patched.setattr(experiments, "evaluate", never)
            patched.setattr("minillava.training.loop.accumulate", never)
            completed = experiments.result_of(bench_of(world, tmp_path / name, comparisons.Row(train)))
        assert completed == whole | {"accuracy": 0.125} == json.loads(file.read_text())


def test_all_rows_learn_from_the_same_number_of_examples(world, tmp_path, monkeypatch):
    """In each step. Kosmos-1's captions are in documents of one to three pictures."""

    def counted(bench, part, task, recipe) -> None:
        whole = getattr(task.dataset, "captions", task.dataset)
        examples[title, part] = recipe.batch_size * len(whole) / len(task.dataset)

    examples: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(comparisons.Bench, "train", counted)
    rows = {title: row for one in comparisons.COMPARISONS.values() for title, row in one.rows.items()}
    for title, row in rows.items():
        row.train(bench_of(world, tmp_path / title, row))
    assert {count for (_, part), count in examples.items() if part == "instructions"} == {16}
    captions = {title: count for (title, part), count in examples.items() if part == "captions"}
    assert 31 < captions.pop("Kosmos-1") < 33 and set(captions.values()) == {32}
    assert len(examples) == 2 * len(rows) - 2  # no stage 1, no stage 2


@pytest.fixture
def small(monkeypatch, tmp_path, world):
    """A function that runs the program at its smallest. What one test has trained, the others find in ``world``."""
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(experiments, "QUESTIONS", 12)
    monkeypatch.setattr(experiments, "JUDGED", 2)
    for name in ("PROJECTION", "CAPTIONS", "ANSWERS"):
        monkeypatch.setattr(comparisons, name, replace(getattr(comparisons, name), batch_size=4))

    def compare(name: str, seeds: int = 1, out: str = "experiments") -> dict:
        options = ["--run", world, "--out", world / out, "--seeds", seeds, "--steps", 2, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["experiments", name, *map(str, options)])
        experiments.main()
        return experiments.kept(name)

    return compare


def test_after_an_interruption_only_what_is_missing_is_trained(world, small, tmp_path, monkeypatch):
    """The power fails before the second training of the second seed."""
    trained, train = [], comparisons.train

    def noted(task, recipe, run) -> None:
        trained.append((run.out.parent.name, run.out.name, run.resume))
        if len(trained) == 4:
            raise RuntimeError("power cut")
        train(task, recipe, run)

    monkeypatch.setattr(comparisons, "train", noted)
    monkeypatch.setitem(comparisons.COMPARISONS, "one", comparisons.Comparison("One row", {}))
    with pytest.raises(RuntimeError, match="power cut"):
        small("one", 2, "again")
    first = small("one", 2, "again")
    assert trained[4:] == [("1", "captions", True), ("1", "instructions", False)]
    assert small("one", 2, "again") == first and len(trained) == 6
    straight = experiments.result_of(bench_of(world, tmp_path, comparisons.Row(comparisons.llava), seed=1))
    assert [part["loss"] for part in straight["parts"]] == [part["loss"] for part in first["LLaVA"][1]["parts"]]


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_each_row_of_a_comparison_is_trained_and_scored(name, small, tmp_path, capsys):
    found = small(name)
    printed = capsys.readouterr().out
    runs = len(comparisons.COMPARISONS[name].rows)
    assert re.search(rf"{name}: \d of {runs} runs are missing, about \d+ seconds? on one CPU core", printed)
    assert list(found) == ["LLaVA", *comparisons.COMPARISONS[name].others]
    for title, (scores,) in found.items():
        assert printed.count(f"| {title} |") == 2
        assert all(-1 <= scores["relative"][kind] <= 1 for kind in (*experiments.TYPES, "all"))
        assert 0 <= scores["accuracy"] <= 1 and scores["learns"] > 0 and scores["seconds"] > 0
    assert (tmp_path / "results" / f"{name}.png").exists()
    # Each row is trained in a way of its own; but of the few rows here, 5 % and 10 % are none.
    losses = {title: [part["loss"] for part in scores["parts"]] for title, (scores,) in found.items()}
    losses.pop("5 % detail, 10 % reasoning", None)
    assert all(losses[a] != losses[b] for a, b in combinations(losses, 2))


def test_the_roads_have_their_papers_visual_tokens_and_parts(small):
    rows = small("roads")
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


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_the_kept_results_have_three_seeds_and_each_row_beats_its_blind_baseline(name):
    rows = experiments.kept(name)
    assert list(rows) == list(comparisons.COMPARISONS[name].rows)
    for title, results in rows.items():
        assert len(results) >= 3, title
        assert all(one["accuracy"] - one["blind"] > 0.05 and one["questions"] > 800 for one in results), title
