"""The page about a training: its numbers are those of the logs, and it says how the training ended."""

import base64
import io
import json
import math
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import PowerCut
from PIL import Image
from test_heldout import make_with, rows  # noqa: F401  a fixture
from test_loop import RECIPE, bytes_of, make, world  # noqa: F401  a fixture
from test_resume import interrupt

from minillava.errors import UserError
from minillava.evaluate import evaluate
from minillava.files import write_whole
from minillava.inputs.conversations import ConversationDataset
from minillava.training import answers, report
from minillava.training.answers import Questions, choose
from minillava.training.heldout import Heldout
from minillava.training.loop import Run, train
from minillava.training.report import POINTS, TEMPLATE, Report, chart_of, end_of, thin
from minillava.training.resume import is_finished
from minillava.training.tasks import Task, llava_task

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(2)>\u202e\ud83d &amp; {{DATA}}'


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Answers take most of the time."""
    monkeypatch.setattr(answers, "SHOWN", 2)
    monkeypatch.setattr(answers, "SCORED", 4)
    monkeypatch.setattr(answers, "LENGTH", 6)


def asking(rows: Path, kinds: tuple[str, ...] = ()) -> Task:  # noqa: F811
    """A task that only answers questions about held-out rows, as without --heldout."""
    task = make_with(rows)
    return llava_task(task.model, task.dataset, 2, heldout=task.heldout, kinds=kinds, measured=False)


def page_of(out: Path) -> dict:
    """The data in a run's page."""
    html = out.with_name(f"{out.name}.report.html").read_text(encoding="utf-8")
    return json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def lines_of(out: Path, log: str) -> list[dict]:
    return [json.loads(line) for line in out.with_name(f"{out.name}.{log}.jsonl").read_text().splitlines()]


def curves_of(page: dict) -> dict[tuple[str, str], list]:
    return {(chart["title"], line["name"]): line["points"] for chart in page["charts"] for line in chart["lines"]}


@pytest.mark.parametrize("kind", ["vision", "decoder", "stage1", "heldout"])
def test_the_page_has_the_numbers_of_the_logs(world, rows, tmp_path, kind):  # noqa: F811
    task = make_with(rows) if kind == "heldout" else make(world, kind)
    train(task, replace(RECIPE, eval_every=2), Run(tmp_path / "out", max_steps=5, dtype=torch.float32))
    page, metrics = page_of(tmp_path / "out"), lines_of(tmp_path / "out", "metrics")
    curves = curves_of(page)
    names = {"loss": "Loss (nats)", "gradient_norm": "Length of the gradient, before it is clipped to 1"}
    for name, title in names.items():
        points = [[line["step"], pytest.approx(line[name], rel=1e-3)] for line in metrics]
        assert curves[title, "each step"] == points
        middle = sum(line[name] for line in metrics) / 5
        assert curves[title, "running mean"][2] == [3, pytest.approx(middle, rel=1e-3)]
    rates = [[line["step"], pytest.approx(line["learning_rate"], rel=1e-3)] for line in metrics]
    assert curves["Learning rate", "learning rate"] == rates
    assert (page["state"], page["step"], page["steps"], page["left"]) == ("finished", 5, 5, "")
    learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in task.model.parameters())
    assert page["tables"]["What learns"][-1] == ["all", f"{learning:,} of {every:,} parameters"]
    recipe = dict(page["tables"]["Recipe"])
    assert recipe.items() >= {k: str(v) for k, v in asdict(replace(RECIPE, eval_every=2)).items()}.items()
    assert recipe["steps"] == "5" and recipe["seed"] == "0"
    machine = dict(page["tables"]["Machine"])
    assert machine["matrix products in"] == "float32" and machine["torch"] == torch.__version__
    assert "second" in dict(page["tables"]["Time"])["steps and measuring"]
    read = dict(page["tables"]["Rows"])
    assert str(task.dataset.path) in read["learnt"]
    assert any("sha256" in value for _, value in page["tables"]["Rows"])
    if padded := [line["padding"] for line in metrics if "padding" in line]:
        assert read["padding"] == f"{sum(padded) / 5:.0%} of the computed positions"
    assert bool(page["cards"]) == (kind == "heldout") == (("Loss (nats)", "held-out rows") in curves)
    if kind == "heldout":
        heldout = lines_of(tmp_path / "out", "heldout")
        losses = [[line["step"], pytest.approx(line["loss"], rel=1e-3)] for line in heldout]
        assert [step for step, _ in losses] == [0, 2, 4, 5]
        assert curves["Loss (nats)", "held-out rows"] == losses
        for card, *given in zip(page["cards"], *(line["answers"] for line in heldout)):
            assert card["answers"] == [[line["step"], one["answer"]] for line, one in zip(heldout, given)]
            same = ("row", "question", "reference")
            assert all(one[key] == card[key] for one in given for key in same)
            assert card["picture"].startswith("data:image/png;base64,")


def test_without_heldout_rows_of_ones_own_a_training_only_answers(rows, tmp_path, capsys):  # noqa: F811
    """Bit for bit, it learns what it learns without."""
    train(asking(rows), RECIPE, Run(tmp_path / "out", max_steps=8))
    train(make(rows.parent, "stage2"), RECIPE, Run(tmp_path / "plain", max_steps=8))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "plain")
    lines = lines_of(tmp_path / "out", "heldout")
    assert [line["step"] for line in lines] == [0, 1, 2, 4, 8]
    assert all(set(line) - {"scores"} == {"step", "data", "answers"} and len(line["answers"]) == 2 for line in lines)
    assert [line["step"] for line in lines if "scores" in line] == [8]
    assert not (tmp_path / "out.best").exists() and "held-out" not in capsys.readouterr().out
    page = page_of(tmp_path / "out")
    assert [[step for step, _ in card["answers"]] for card in page["cards"]] == [[0, 1, 2, 4, 8]] * 2
    assert page["scores"] == lines[-1]["scores"] and ("Loss (nats)", "held-out rows") not in curves_of(page)


def test_only_some_types_are_asked(rows, tmp_path):  # noqa: F811
    """The row of a type that is not asked for is missing, whichever its place."""
    stored = json.loads(rows.read_text())
    kinds = [row.get("type", "all") for row in stored]
    for chosen in (("colour", "size"), ("all",)):
        found = [one.row for one in asking(rows, chosen).questions.shown]
        assert found == [kinds.index(kind) for kind in chosen]


def test_types_are_equally_many_and_spread_over_the_file():
    by_type = {"a": list(range(0, 300, 3)), "b": list(range(1, 300, 3)), "c": [2, 5]}
    chosen = choose(by_type, 12)
    assert [sum(row in group for row in chosen) for group in by_type.values()] == [4, 4, 2]
    assert max(chosen) > 200 and len(set(chosen)) == len(chosen)
    assert {row % 3 for row in choose(by_type, 3)} == {0, 1, 2}
    first, second = choose({"a": [0, 2, 4, 6], "b": [1, 3, 5, 7]}, 2)
    assert first // 2 != second // 2  # as rows 2n and 2n + 1 may show the same picture
    assert choose({}, 5) == [] and choose({"a": [4, 7, 9]}, 10) == [4, 7, 9]


def test_the_scores_are_those_of_evaluate(rows, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(answers, "SCORED", 100)
    stored = json.loads((rows.parent / "heldout_words.json").read_text())[::7]
    stored += json.loads((rows.parent / "heldout.json").read_text())[:20]
    stored = [row for row in stored if len(row["conversations"]) == 2]  # of each row the first question is asked
    for row in stored[::2]:  # so that some answers are right
        row["conversations"][1]["value"] = "x"
        row["conversations"][1]["need"] = []
    path = rows.parent / "scored.json"
    path.write_text(json.dumps(stored))
    model = make_with(rows).model
    dataset = ConversationDataset(path, path.parent, model.processor, "first")
    expected, got = evaluate(model, path), Questions(model, dataset).scores(5)
    assert got["types"] == expected["types"] and got["descriptions"] == expected["descriptions"]
    assert got["exact"] == expected["by_type"] and got["meaning"] == expected["meaning_by_type"]
    assert (got["precision"], got["recall"]) == (expected["precision"], expected["recall"])


def test_of_each_row_the_first_question_is_asked(rows):  # noqa: F811
    stored = json.loads(rows.read_text())[:2]
    for row in stored:
        row["conversations"] *= 2
        row["conversations"][2] = {"from": "human", "value": "And?"}
    path = rows.with_name("longer.json")
    path.write_text(json.dumps(stored))
    questions = make_with(path).questions
    assert [(one.row, one.turn) for one in questions.shown] == [(0, 1), (1, 1)] and len(questions.scored) == 2


def test_an_answer_to_pope_counts_as_yes_or_no(rows):  # noqa: F811
    path = rows.parent / "pope_random.json"
    task = make_with(path)
    few = rows.with_name("few_pope.json")
    stored = json.loads(path.read_text())
    few.write_text(json.dumps([stored[one.row] for one in task.questions.scored]))
    accuracy = evaluate(task.model, few)["pope"]["normal"]["accuracy"]
    assert task.questions.scores(3)["exact"] == {"pope": accuracy} and accuracy > 0


def test_a_picture_in_the_page_is_small(rows, monkeypatch):  # noqa: F811
    monkeypatch.setattr(answers, "SIDE", 20)
    card = make_with(rows).questions.cards()[0]
    with Image.open(io.BytesIO(base64.b64decode(card["picture"].split(",")[1]))) as picture:
        assert picture.size == (20, 20)


def test_questions_are_asked_more_often_at_first(rows, tmp_path):  # noqa: F811
    held = Heldout(asking(rows), Run(tmp_path / "out"), 4, None, 0, 312, 100)
    assert [step for step in range(313) if held.is_due(step)] == [0, 2, 4, 9, 19, 39, 78, 156, 312]
    sharded = replace(Run(tmp_path).team, shard=True)
    held = Heldout(asking(rows), Run(tmp_path / "out", team=sharded), 4, None, 0, 312, 100)
    assert not any(map(held.is_due, range(313)))


def test_rows_without_types_have_no_scores(rows):  # noqa: F811
    stored = [{key: value for key, value in row.items() if key != "type"} for row in json.loads(rows.read_text())]
    path = rows.with_name("untyped.json")
    path.write_text(json.dumps(stored))
    questions = make_with(path).questions
    assert questions.scores(4) == {} and len(questions.answers(4)) == 2


def without_times(page: dict) -> dict:
    tables = {name: table for name, table in page["tables"].items() if name != "Time"}
    return page | {"written": 0, "name": "", "tables": tables}


def test_a_resumed_run_has_the_page_of_an_uninterrupted_one(rows, tmp_path, cut_power):  # noqa: F811
    train(asking(rows), RECIPE, Run(tmp_path / "whole", max_steps=8))
    task = asking(rows)
    cut_power(task)
    with pytest.raises(PowerCut):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=8))  # in step 6; saved is step 3
    page = page_of(tmp_path / "out")
    assert (page["state"], page["step"]) == ("failed", 5) and len(page["cards"][0]["answers"]) == 4
    train(asking(rows), RECIPE, Run(tmp_path / "out", max_steps=8, resume=True))
    assert without_times(page_of(tmp_path / "out")) == without_times(page_of(tmp_path / "whole"))


def test_the_times_of_both_parts_of_a_resumed_run_count():
    lines = [{"seconds": 2.0}, {"seconds": 5.0}, {"seconds": 1.5}, {}]
    assert report.spent(lines) == [2.0, 3.0, 1.5, 0.0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_says_by_what(world, tmp_path, number):  # noqa: F811
    task = make(world, "stage1")
    interrupt(task, number, 2)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=9))
    page = page_of(tmp_path / "out")
    by = {signal.SIGINT: "by Ctrl-C", signal.SIGTERM: "by SIGTERM"}
    assert (page["state"], page["why"], page["step"]) == ("stopped", by[number], 2)
    assert end_of(SystemExit(129)) == ("stopped", "by SIGHUP")


def test_a_training_that_fails_says_why(world, tmp_path, monkeypatch):  # noqa: F811
    task = make(world, "stage2")
    real, calls = task.loss, []

    def loss(batch):
        calls.append(1)
        return real(batch) * (math.inf if len(calls) == 3 else 1)

    task.loss = loss
    with pytest.raises(UserError) as raised:
        train(task, RECIPE, Run(tmp_path / "out", max_steps=9))
    page = page_of(tmp_path / "out")
    assert (page["state"], page["why"], page["step"]) == ("failed", str(raised.value), 2)
    assert end_of(RuntimeError("CUDA out of memory")) == ("failed", "CUDA out of memory")
    assert end_of(ZeroDivisionError()) == ("failed", "ZeroDivisionError")


@pytest.mark.parametrize("compile", [False, True])
def test_an_error_before_the_first_step_is_in_the_page(world, tmp_path, compile):  # noqa: F811
    task = make(world, "stage1")
    task.collate = lambda examples: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=9, compile=compile))
    page = page_of(tmp_path / "out")
    assert (page["state"], page["why"], page["step"], page["charts"]) == ("failed", "division by zero", 0, [])


def test_a_run_that_is_refused_leaves_the_page_of_the_other(world, tmp_path):  # noqa: F811
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    before = (tmp_path / "out.report.html").read_bytes()
    with pytest.raises(UserError, match="already exists"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    with pytest.raises(UserError, match="steps was 2, is 3"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=3, resume=True))
    assert (tmp_path / "out.report.html").read_bytes() == before


def full_disk(after: int):
    """A write_whole() whose disk is full after so many pages."""
    written = []

    def write(path: Path, fill) -> None:
        written.append(path)
        if len(written) > after:
            raise OSError(28, os.strerror(28), str(path))
        write_whole(path, fill)

    return write


def test_a_full_disk_loses_no_step(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(report, "PAUSE", 0)
    monkeypatch.setattr(report, "PATIENCE", 0)
    monkeypatch.setattr(report, "write_whole", full_disk(after=3))  # at the start and after two steps
    with pytest.raises(OSError, match=r"No space left.*out\.report\.html"):
        train(make(world, "stage1"), replace(RECIPE, save_every=100), Run(tmp_path / "out", max_steps=9))
    monkeypatch.undo()
    assert page_of(tmp_path / "out")["step"] == 2
    train(make(world, "stage1"), replace(RECIPE, save_every=100), Run(tmp_path / "out", max_steps=9, resume=True))
    train(make(world, "stage1"), replace(RECIPE, save_every=100), Run(tmp_path / "whole", max_steps=9))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert [line["step"] for line in lines_of(tmp_path / "out", "metrics")] == list(range(1, 10))


def test_a_disk_that_is_full_at_the_end_is_said(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(report, "write_whole", full_disk(after=2))  # at the start and at the last save
    with pytest.raises(OSError, match=r"No space left.*out\.report\.html"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    assert is_finished(tmp_path / "out")


def test_a_full_disk_does_not_hide_another_error(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(report, "write_whole", full_disk(after=1))
    task = make(world, "stage1")
    task.collate = lambda examples: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=9))


def test_pages_are_not_written_more_often_than_time_allows(world, tmp_path, monkeypatch):  # noqa: F811
    now, written = [0.0], []

    def write(path: Path, fill) -> None:
        written.append(len(lines_of(tmp_path / "out", "metrics")))
        now[0] += 0.5  # a hundred times that is more than the ten seconds between two pages

    monkeypatch.setattr(report, "write_whole", write)
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    task = make(world, "stage1")
    task.after_step = lambda: now.__setitem__(0, now[0] + 20)
    train(task, replace(RECIPE, save_every=100), Run(tmp_path / "out", max_steps=8))
    # At the start, after 60 and 120 seconds, at the last save and at the end.
    assert written == [0, 3, 6, 8, 8]


def test_text_of_rows_ends_no_script(rows, tmp_path):  # noqa: F811
    stored = json.loads(rows.read_text())[:4]
    for row in stored:
        row["conversations"][0]["value"] = f"<image>\n{HOSTILE}"
        row["conversations"][1]["value"] = HOSTILE
        row["type"] = HOSTILE
    path = rows.with_name("hostile.json")
    path.write_text(json.dumps(stored))
    train(asking(path), RECIPE, Run(tmp_path / "out</script>", max_steps=1))
    html = (tmp_path / "out</script>.report.html").read_text()
    assert html.count("<script") == html.count("</script>") == 2 and "<img" not in html
    assert TEMPLATE.with_name("report.js").read_text(encoding="utf-8") in html
    page = page_of(tmp_path / "out</script>")
    assert page["cards"][0]["question"] == page["cards"][0]["reference"] == HOSTILE
    assert [*page["scores"]["types"]] == [HOSTILE]


def test_a_long_run_keeps_its_spikes_and_stays_small(monkeypatch):
    losses = {step: 1 + math.sin(step) / 9 for step in range(1, 200_001)}
    losses |= {77_777: 50.0, 150_001: -3.0, 99_000: math.inf, 99_001: math.nan}
    chart = chart_of("Loss", losses)
    points = dict(chart["lines"][0]["points"])
    assert points[77_777] == 50 and points[150_001] == -3 and {1, 200_000} <= set(points)
    assert len(points) <= POINTS + 10 and list(points) == sorted(points) and chart["lost"] == [99_000, 99_001]
    assert len(json.dumps(chart)) < 120_000
    assert thin([]) == [] and thin([(1, 2.0), (2, 1.0)]) == [(1, 2.0), (2, 1.0)]


def test_of_many_answers_some_are_shown_the_first_and_the_last_too(rows, tmp_path):  # noqa: F811
    train(make_with(rows), replace(RECIPE, eval_every=1, epochs=3), Run(tmp_path / "out", max_steps=19))
    steps = [[step for step, _ in card["answers"]] for card in page_of(tmp_path / "out")["cards"]]
    assert all(len(one) == 12 and one[0] == 0 and one[-1] == 19 and one == sorted(set(one)) for one in steps)


def test_the_axes_are_those_of_the_chart_of_the_loss():
    """Logarithmic if the running mean changes tenfold and all values are above zero."""
    falling = {step: 15 * 0.01 ** (step / 400) for step in range(1, 401)}
    assert chart_of("", falling)["log"] and not chart_of("", falling, {"held-out rows": {1: 0.0}})["log"]
    assert not chart_of("", {step: 2.0 + step % 2 for step in range(1, 50)})["log"]
    axis = chart_of("", falling)["y"]
    assert axis["low"] == -1 and axis["high"] == pytest.approx(math.log10(20))
    assert [label for _, label in axis["ticks"]] == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"]


def test_only_the_first_of_several_processes_writes(world, tmp_path, monkeypatch):  # noqa: F811
    task = make(world, "stage1")
    team = replace(Run(tmp_path).team, rank=1)
    other = Report(task, RECIPE, Run(tmp_path / "out", team=team), 3, {}, torch.float32, [], None, [])
    with other:
        other.add({"step": 1, "loss": 1.0})
        other.draw()
    assert not list(tmp_path.iterdir()) and other.done == 1
