"""Rows that a training does not learn from: their loss, the answers shown, and the best model."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import PowerCut
from test_loop import RECIPE, bytes_of, make, world  # noqa: F401  world is a fixture
from test_resume import interrupt

from minillava import load
from minillava.errors import UserError
from minillava.inputs.conversations import ConversationDataset
from minillava.training import answers, heldout
from minillava.training.answers import spread_out
from minillava.training.heldout import Heldout
from minillava.training.loop import Run, train
from minillava.training.resume import describe_data
from minillava.training.tasks import Task, llava_task

EVERY_2 = replace(RECIPE, eval_every=2)


@pytest.fixture(scope="module")
def rows(world) -> Path:  # noqa: F811
    """Nine questions about held-out pictures, and one row without a picture."""
    found = json.loads((world / "heldout.json").read_text())[:9]
    found.append({"id": "t", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "You."}]})
    (world / "few.json").write_text(json.dumps(found))
    return world / "few.json"


@pytest.fixture(autouse=True)
def no_answers(monkeypatch):
    """Most tests are not about answers, which take most of the time."""
    monkeypatch.setattr(answers, "SHOWN", 0)
    monkeypatch.setattr(answers, "SCORED", 0)


def make_with(rows: Path, pack: bool = False, max_rejected: int = 0) -> Task:
    task = make(rows.parent, "stage2")
    dataset = ConversationDataset(rows, rows.parent, task.dataset.processor, "first", max_rejected=max_rejected)
    return llava_task(task.model, task.dataset, 2, pack=pack, heldout=dataset)


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.with_name(f"{out.name}.heldout.jsonl").read_text().splitlines()]


def mean_loss(folder: Path, rows: Path) -> float:
    """The mean over all tokens with a loss, from the logits of one row at a time."""
    model = load(folder)
    dataset, total, count = ConversationDataset(rows, rows.parent, model.processor, "first"), 0.0, 0
    for index in range(len(dataset)):
        example = dataset[0, 0, index]
        pixels = example["pixel_values"][None] if "pixel_values" in example else None
        with torch.no_grad():
            logits = model(torch.tensor([example["input_ids"]]), pixels)[0][0]
        targets = torch.tensor(example["labels"][1:])
        total += F.cross_entropy(logits[:-1], targets, reduction="sum").item()  # which leaves -100 out
        count += (targets != -100).sum().item()
    return total / count


@pytest.mark.parametrize("pack", [False, True])
def test_the_loss_is_the_mean_over_all_tokens_of_the_rows(rows, tmp_path, pack):
    task = make_with(rows, pack)
    earlier = {"step": 0, "loss": -1.0, "data": describe_data(task.heldout), "answers": []}
    (tmp_path / "out.heldout.jsonl").write_text(json.dumps(earlier) + "\n")  # of another run, so it does not count
    train(task, EVERY_2, Run(tmp_path / "out", max_steps=3, dtype=torch.float32))
    lines = lines_of(tmp_path / "out")
    assert [line["step"] for line in lines] == [0, 2, 3]
    assert lines[-1]["loss"] == pytest.approx(mean_loss(tmp_path / "out", rows), rel=1e-5)
    assert lines[0]["loss"] > lines[1]["loss"] > lines[2]["loss"]


def test_the_answers_are_those_of_a_chat(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answers, "SHOWN", 3)
    train(make_with(rows), EVERY_2, Run(tmp_path / "out", max_steps=2, dtype=torch.float32))
    model, stored = load(tmp_path / "out"), json.loads(rows.read_text())
    shown = lines_of(tmp_path / "out")[-1]["answers"]
    assert len(shown) == 3
    assert len({answer["row"] for answer in shown}) == 3
    for answer in shown:
        index = answer.pop("row")
        human, gpt = (turn["value"] for turn in stored[index]["conversations"][:2])
        question, image = human.replace("<image>", "").strip(), rows.parent / stored[index]["image"]
        said = model.chat(image, question, max_new_tokens=64)
        assert answer == {"question": question, "answer": said, "reference": gpt}
    printed = capsys.readouterr().out
    assert f"stage2: held-out loss {lines_of(tmp_path / 'out')[-1]['loss']:.3f} after 2 steps" in printed
    assert f'"{shown[0]["question"]}": "' in printed and f'in the file: "{shown[0]["reference"]}"' in printed


def test_measuring_changes_nothing_in_what_is_learnt(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "SHOWN", 1)
    train(make_with(rows), EVERY_2, Run(tmp_path / "measured", max_steps=4))
    train(make(rows.parent, "stage2"), RECIPE, Run(tmp_path / "plain", max_steps=4))
    assert bytes_of(tmp_path / "measured") == bytes_of(tmp_path / "plain")


def test_the_best_model_is_kept(rows, tmp_path, monkeypatch, capsys):
    given = iter([5.0, 3.0, 4.0, 3.5])
    monkeypatch.setattr(Heldout, "_loss", lambda self: next(given))
    train(make_with(rows), EVERY_2, Run(tmp_path / "out", max_steps=6))
    monkeypatch.undo()
    train(make(rows.parent, "stage2"), RECIPE, Run(tmp_path / "all", max_steps=6))
    task = make(rows.parent, "stage2")
    interrupt(task, signal.SIGTERM, 2)
    with pytest.raises(SystemExit):
        train(task, RECIPE, Run(tmp_path / "two", max_steps=6))
    assert bytes_of(tmp_path / "out.best") == bytes_of(tmp_path / "two")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "all") != bytes_of(tmp_path / "two")
    best = [line for line in capsys.readouterr().out.splitlines() if "lowest" in line]
    first, second = ("loss 5.000 after 0 steps", "loss 3.000 after 2 steps")
    assert best == [f"stage2: held-out {words}, the lowest so far" for words in (first, second)]


def test_a_resumed_run_goes_on_measuring(rows, tmp_path, cut_power):
    train(make_with(rows), EVERY_2, Run(tmp_path / "whole", max_steps=8))
    task = make_with(rows)
    real, batches = task.loss, []

    def loss(batch):
        batches.append(1)
        if len(batches) == 14:  # three batches of held-out rows before the first step and after each second
            raise PowerCut
        return real(batch)

    task.loss = loss
    with pytest.raises(PowerCut):
        train(task, EVERY_2, Run(tmp_path / "out", max_steps=8))
    assert [line["step"] for line in lines_of(tmp_path / "out")] == [0, 2, 4]
    train(make_with(rows), EVERY_2, Run(tmp_path / "out", max_steps=8, resume=True))  # from step 3
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")
    for end in ("", ".best"):
        assert bytes_of(tmp_path / f"out{end}") == bytes_of(tmp_path / f"whole{end}")


def test_losses_of_other_rows_do_not_count_after_resuming(rows, tmp_path):
    task = make_with(rows)
    interrupt(task, signal.SIGTERM, 4)
    with pytest.raises(SystemExit):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    other = rows.with_name("other.json")
    other.write_text(json.dumps(json.loads(rows.read_text())[:5]))
    train(make_with(other), EVERY_2, Run(tmp_path / "out", max_steps=4, resume=True))
    assert {line["data"][:6] for line in lines_of(tmp_path / "out")} == {"5 rows"}


def test_a_bad_row_is_named_before_anything_is_trained(rows, tmp_path):
    stored = json.loads(rows.read_text())
    stored[4]["image"] = "none.png"
    bad = rows.with_name("bad.json")
    bad.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"bad\.json: row 4: .*none\.png: no such picture"):
        train(make_with(bad), EVERY_2, Run(tmp_path / "out", max_steps=4))
    assert not list(tmp_path.iterdir())


def test_held_out_rows_whose_picture_cannot_be_read_are_left_out_and_listed(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answers, "SHOWN", 10)
    stored = json.loads(rows.read_text())
    (rows.parent / "broken.png").write_bytes(b"\x89PNG")
    stored[4]["image"] = "broken.png"
    bad = rows.with_name("broken.json")
    bad.write_text(json.dumps(stored))
    task = make_with(bad, max_rejected=1)
    train(task, EVERY_2, Run(tmp_path / "out", max_steps=1))
    listed = [json.loads(line) for line in (tmp_path / "out.heldout.rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed] == [4] and len(lines_of(tmp_path / "out")[-1]["answers"]) == 9
    assert "out: rows left out because their picture cannot be read: 1\n" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_said(rows, tmp_path):
    task = make_with(rows)
    with torch.no_grad():
        task.model.language_model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="stage2: the loss of held-out rows is nan"):
        train(task, EVERY_2, Run(tmp_path / "out", max_steps=4))


def test_of_many_rows_some_are_measured_at_equal_distances(rows, tmp_path, monkeypatch, capsys):
    assert spread_out(3, 5) == [0, 1, 2] and spread_out(10, 5) == [0, 2, 4, 6, 8] and spread_out(7, 3) == [0, 2, 4]
    monkeypatch.setattr(heldout, "MOST", 2)
    train(make_with(rows), EVERY_2, Run(tmp_path / "out", max_steps=1, dtype=torch.float32))
    assert "  of 2 of the 10 held-out rows\n" in capsys.readouterr().out
    two = rows.with_name("two.json")
    two.write_text(json.dumps([json.loads(rows.read_text())[index] for index in (0, 5)]))
    assert lines_of(tmp_path / "out")[-1]["loss"] == pytest.approx(mean_loss(tmp_path / "out", two), rel=1e-5)


def test_in_bfloat16_with_checkpointing_and_in_micro_batches(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "SHOWN", 2)
    recipe = replace(EVERY_2, compact=True, checkpointing=True, accumulation=2)
    train(make_with(rows), recipe, Run(tmp_path / "out", max_steps=2))
    line = lines_of(tmp_path / "out")[-1]
    assert line["loss"] == pytest.approx(mean_loss(tmp_path / "out", rows), rel=0.02) and len(line["answers"]) == 2
