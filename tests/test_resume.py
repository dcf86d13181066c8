"""Saving and resuming: a resumed run ends like an unbroken one, whatever has ended it, or is refused."""

# ruff: noqa: F811  world is a fixture
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PowerCut
from test_loop import RECIPE, bytes_of, make, world  # noqa: F401  world is a fixture

from minillava.checkpoint import load
from minillava.errors import UserError
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.templates import TEMPLATES
from minillava.training import signals
from minillava.training.distributed import SINGLE
from minillava.training.loop import Run, train
from minillava.training.order import Order
from minillava.training.resume import STATE, is_finished, read_metrics
from minillava.training.tasks import Task, llava_task


def interrupt(task: Task, number: int, call: int) -> None:
    """Let the signal arrive while the loss of a batch is computed, in the given call."""
    real, calls = task.loss, []

    def loss(batch):
        calls.append(batch)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(batch)

    task.loss = loss


@pytest.mark.parametrize("kind", ["vision", "decoder", "stage1", "stage2"])
def test_a_resumed_run_ends_like_an_unbroken_one(world, tmp_path, kind, cut_power):
    train(make(world, kind), RECIPE, Run(tmp_path / "whole", max_steps=8))
    task = make(world, kind)
    cut_power(task)
    with pytest.raises(PowerCut):
        train(task, RECIPE, Run(tmp_path / "broken", max_steps=8))
    train(make(world, kind), RECIPE, Run(tmp_path / "broken", max_steps=8, resume=True))
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")
    whole, broken = (
        [json.loads(line) for line in (tmp_path / f"{n}.metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "broken")
    )
    assert [(r["step"], r["loss"]) for r in whole] == [(r["step"], r["loss"]) for r in broken]


def _train_and_die(world: Path, out: Path, moment: str) -> None:
    """Train in a separate process that kills itself (SIGKILL) during the second save, at ``moment``."""
    torch.set_num_threads(1)  # as in conftest.py: the rounding of sums depends on the number of threads
    saves = []
    real_save, real_replace = torch.save, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save(state, file):
        saves.append(file)
        if len(saves) == 2 and moment == "half a file":
            file.write(b"half")
            file.flush()
            die()
        real_save(state, file)

    def rename(source, target):
        if len(saves) == 2 and moment == "before the renames":
            die()
        real_replace(source, target)
        if len(saves) == 2 and moment == "between the renames":
            die()

    torch.save, os.replace = save, rename
    train(make(world, "stage2"), RECIPE, Run(out, max_steps=8))


@pytest.mark.parametrize("moment", ["half a file", "before the renames", "between the renames"])
def test_a_kill_during_a_save_loses_nothing(world, tmp_path, moment, capsys):
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_die, args=(world, tmp_path / "cut", moment)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    load(tmp_path / "cut")  # every reader finds the checkpoint
    assert "a save has not ended" in capsys.readouterr().err or moment != "between the renames"
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "cut", max_steps=8, resume=True))
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=8))
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cut", "whole"]


def test_resume_refuses_what_is_not_its_own(world, tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "none", max_steps=2, resume=True))
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    (tmp_path / "out" / STATE).write_bytes(b"not a state")
    with pytest.raises(UserError, match="not a training state"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2, resume=True))
    torch.save({"step": 2, "total": 2, "seed": 0}, tmp_path / "out" / STATE)  # as earlier versions wrote it
    with pytest.raises(UserError, match="not a training state of this version"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2, resume=True))


def repacked(world: Path) -> Task:
    task = make(world, "stage2")
    return llava_task(task.model, task.dataset, 2, pack=True)


def placed(world: Path) -> Task:
    task = make(world, "stage2")
    task.dataset.image_place = "last"
    return task


def templated(world: Path) -> Task:
    task = make(world, "stage2")
    task.dataset.processor.template = TEMPLATES["v1"]
    return task


def with_other_tower(world: Path) -> Task:
    task = make(world, "stage2")
    with torch.no_grad():
        task.model.vision_tower.pre_layrnorm.bias += 1
    return task


def with_other_rows(world: Path) -> Task:
    """A file of the same number of rows and bytes."""
    task, copy = make(world, "stage2"), world.parent / "other.json"
    copy.write_text((world / "instruct.json").read_text().replace("###", "##!").replace(" red ", " rad "))
    assert copy.stat().st_size == (world / "instruct.json").stat().st_size
    return llava_task(task.model, ConversationDataset(copy, world, task.dataset.processor), 2)


@pytest.fixture(scope="module")
def begun(world, tmp_path_factory) -> Path:
    """Stage 2, stopped after two of eight steps."""
    out = tmp_path_factory.mktemp("begun") / "out"
    task = make(world, "stage2")
    interrupt(task, signal.SIGTERM, 2)
    with pytest.raises(SystemExit):
        train(task, RECIPE, Run(out, max_steps=8, dtype=torch.float32))
    return out


@pytest.mark.parametrize(
    ("task", "recipe", "run", "message"),
    [
        (None, {"learning_rate": 2e-3}, {}, r"learning_rate was 0\.001, is 0\.002$"),
        (None, {"batch_size": 5}, {}, "batch_size was 4, is 5"),
        (None, {"optimizer": "adamw"}, {}, "optimizer was muon, is adamw"),
        (None, {"warmup": 0.1}, {}, r"warmup was 0\.03, is 0\.1"),
        (None, {"weight_decay": 0.1}, {}, r"weight_decay was 0\.0, is 0\.1"),
        (None, {"compact": True}, {}, "compact was False, is True"),
        (None, {}, {"seed": 5}, "seed was 0, is 5"),
        (None, {}, {"dtype": torch.bfloat16}, "dtype was float32, is bfloat16"),
        (None, {}, {"max_steps": 7}, r"steps was 8, is 7 \(the learning rate falls to zero .* start from the result"),
        (repacked, {}, {}, "pack was False, is True"),
        (placed, {}, {}, "image_place was random, is last"),
        (templated, {}, {}, "another template"),
        (with_other_tower, {}, {}, "frozen weights was [0-9a-f]{16}, is"),
        (with_other_rows, {}, {}, "data was .* rows, .* bytes, sha256 [0-9a-f]{16}, is"),
        (lambda world: make(world, "stage1"), {}, {}, "data was .*; frozen weights was"),
    ],
)
def test_resume_names_and_refuses_what_changes_the_result(world, begun, task, recipe, run, message):
    before = (begun / STATE).read_bytes()
    run = Run(begun, **{"max_steps": 8, "dtype": torch.float32, "resume": True} | run)
    with pytest.raises(UserError, match=message) as error:
        train((task or (lambda world: make(world, "stage2")))(world), replace(RECIPE, **recipe), run)
    assert str(error.value).startswith(f"{begun / STATE}: this run is not the one saved there: ")
    assert "\n" not in str(error.value) and (begun / STATE).read_bytes() == before


def test_resume_is_free_in_what_changes_only_time_and_memory(world, begun, tmp_path):
    shutil.copytree(begun, tmp_path / "out")  # the metrics are not needed
    recipe = replace(RECIPE, accumulation=2, checkpointing=True, save_every=1, save_minutes=3, eval_every=7, epochs=2)
    task = make(world, "stage2")
    train(task, recipe, Run(tmp_path / "out", max_steps=8, resume=True, workers=1, dtype=torch.float32))
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=8, dtype=torch.float32))
    one, other = (load(tmp_path / name).state_dict() for name in ("out", "whole"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


# ---- what ends a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_an_interrupted_run_ends_its_step_saves_and_resumes_as_if_unbroken(world, tmp_path, capfd, number, end):
    task, before = make(world, "stage2"), signal.getsignal(number)
    interrupt(task, number, 2)
    with pytest.raises(end) as error:
        train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    assert end is KeyboardInterrupt or error.value.code == 128 + number
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2
    printed = capfd.readouterr()
    assert f"stage2: {tmp_path / 'out'} is saved as it was after 2 of 4 steps; --resume continues\n" in printed.out
    assert printed.err == "\nstopping after this step\n"
    assert signal.getsignal(number) is before
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "out", max_steps=4, resume=True))
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=4))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_ends_a_run_with_workers_alike(world, tmp_path, capfd, number):
    task, others = make(world, "stage2"), set(multiprocessing.active_children())
    real, calls = task.loss, []

    def loss(batch):
        calls.append(batch)
        if len(calls) == 2:
            workers = set(multiprocessing.active_children()) - others
            assert len(workers) == 2
            for pid in (*(worker.pid for worker in workers), os.getpid()):
                os.kill(pid, number)
            time.sleep(0.5)  # a worker that dies is noticed
        return real(batch)

    task.loss = loss
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=8, workers=2))
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2
    assert capfd.readouterr().err == "\nstopping after this step\n"
    assert not set(multiprocessing.active_children()) - others


def test_an_error_ends_the_workers(world, tmp_path):
    """Which ignore the signal by which Python would end them, so the program could not end."""
    task, others = make(world, "stage1"), set(multiprocessing.active_children())
    task.loss = lambda batch: batch["input_ids"].sum() * math.nan + task.model.multi_modal_projector.bias.sum()
    with pytest.raises(UserError, match="nan at step 0") as error:
        train(task, RECIPE, Run(tmp_path / "out", max_steps=8, workers=2))
    assert error and not set(multiprocessing.active_children()) - others


@pytest.mark.parametrize(
    ("numbers", "end"),
    [((signal.SIGINT, signal.SIGINT), KeyboardInterrupt), ((signal.SIGHUP, signal.SIGTERM), SystemExit)],
)
def test_a_second_signal_does_not_wait(world, tmp_path, monkeypatch, numbers, end):
    """Nor does it save: the weights may be half those of one step and half those of the next."""
    monkeypatch.setattr(signals, "PAUSE", 0.01)
    task, steps = make(world, "stage2"), []

    def after_step() -> None:
        steps.append(1)
        if len(steps) == 2:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.02)
            steps.append("went on")

    task.after_step = after_step
    with pytest.raises(end):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    assert steps == [1, 1] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "pause"), [(signal.SIGINT, 1.0), (signal.SIGTERM, 1.0), (signal.SIGHUP, 0.0)])
def test_a_signal_that_comes_twice_at_once_is_one(world, tmp_path, monkeypatch, number, pause):
    """A closed terminal sends SIGHUP twice, perhaps with a pause."""
    monkeypatch.setattr(signals, "PAUSE", pause)
    task = make(world, "stage1")
    interrupt(task, number, 2)
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda *its: (kill(*its), time.sleep(0.005), kill(*its)))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2


def test_a_signal_that_is_ignored_stays_ignored(world, tmp_path):
    """As under nohup."""
    task, before = make(world, "stage1"), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt(task, signal.SIGHUP, 1)
        train(task, RECIPE, Run(tmp_path / "out", max_steps=2))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert is_finished(tmp_path / "out")


@pytest.mark.parametrize("damage", ["gone", "torn", "empty", "noise"])
def test_a_damaged_log_does_not_block_resuming(world, tmp_path, capsys, damage):
    task, out = make(world, "stage1"), tmp_path / "out"
    interrupt(task, signal.SIGTERM, 4)
    with pytest.raises(SystemExit):
        train(task, RECIPE, Run(out, max_steps=6))
    log = tmp_path / "out.metrics.jsonl"
    whole = log.read_bytes().splitlines(keepends=True)
    torn = b"".join([whole[0], whole[1][:40], b"\n", *whole[2:]])
    strange = b'{}\n{"step": [2], "loss": 1.0}\n{"step": 2, "loss": "x"}\n{"step": 2}\n'
    noise = b"".join([whole[0], b"\xff\x00[[[[\n", strange, *whole[2:]])
    log.write_bytes({"gone": b"", "torn": torn, "empty": b"", "noise": noise}[damage])
    if damage == "gone":
        log.unlink()
    train(make(world, "stage1"), RECIPE, Run(out, max_steps=6, resume=True))
    missing = 4 if damage in ("gone", "empty") else 1
    assert f"out: {log}: {missing} of 4 steps are missing; it goes on without them\n" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == ([5, 6] if missing == 4 else [1, 3, 4, 5, 6]) and is_finished(out)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"},
        {"step": 9},
        {"settings": []},
        {"settings": {"steps": "many"}},
        {"parameters": {"bias": 1}},
        {"optimizers": None},
        {"towers": {"vision": 1}},
    ],
)
def test_a_state_of_other_types_is_refused(begun, tmp_path, change):
    shutil.copytree(begun, tmp_path / "out")
    state = torch.load(begun / STATE, weights_only=True)
    for broken in (state | change, {}, [1], None):
        torch.save(broken, tmp_path / "out" / STATE)
        with pytest.raises(UserError, match=r"trainer_state\.pt: not a training state of this version"):
            is_finished(tmp_path / "out")


def test_a_signal_during_the_last_save_is_not_lost(world, tmp_path):
    task = make(world, "stage1")
    write = task.write
    task.write = lambda *arguments: (os.kill(os.getpid(), signal.SIGTERM), write(*arguments))
    with pytest.raises(SystemExit):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=2))
    assert is_finished(tmp_path / "out")


def test_a_picture_that_is_broken_ends_the_run_after_a_save(world, tmp_path):
    """And a run that is resumed with the picture ends like one that has had it from the beginning."""
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=4))
    rows = json.loads((world / "instruct.json").read_text())
    order = Order(len(rows), lambda row: 0, RECIPE, 0, SINGLE)
    early = {rows[row].get("image") for step in (0, 1) for row in order.batch(step)}
    name = next(rows[row]["image"] for row in order.batch(2) if rows[row].get("image") not in {*early, None})
    whole = (world / name).read_bytes()
    (world / name).write_bytes(whole[:-30])
    try:
        with pytest.raises(UserError, match=rf"instruct\.json: row \d+: .*{Path(name).name}: not a readable picture"):
            train(make(world, "stage2"), RECIPE, Run(tmp_path / "out", max_steps=4))
    finally:
        (world / name).write_bytes(whole)
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "out", max_steps=4, resume=True))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_ends_the_run_with_the_weights_before_it(world, tmp_path, where):
    task = make(world, "stage1")
    real, calls = task.loss, []

    def loss(batch):
        calls.append(batch)
        value = real(batch)
        if len(calls) == 5 and where == "loss":
            return value * math.nan
        if len(calls) == 5:
            bias = task.model.multi_modal_projector.bias
            return value + (bias - bias).sqrt().sum()  # zero, but the derivative of the root is infinite there
        return value

    task.loss = loss
    found = "loss is nan at step 4" if where == "loss" else "at step 4, the length of its gradient nan"
    with pytest.raises(UserError, match=found):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=8))
    state = torch.load(tmp_path / "out" / STATE, weights_only=True)
    assert state["step"] == 4 and all(tensor.isfinite().all() for tensor in state["parameters"].values())


@pytest.mark.parametrize("steps", [8, 3])
def test_weights_that_are_not_finite_are_never_saved(world, tmp_path, steps):
    """The step that ruins them, perhaps the last, has a finite loss and gradient; the checkpoint before it stays."""
    task = make(world, "stage1")
    task.after_step = lambda: calls.append(1) or (len(calls) == 3 and ruin())
    calls, names = [], [row["id"] for row in json.loads((world / "captions.json").read_text())]

    def ruin() -> None:
        with torch.no_grad():
            task.model.multi_modal_projector.bias[0] = math.inf

    with pytest.raises(
        UserError, match=r"stage1: weights are not finite after step 2; its batch: row \d+, row"
    ) as error:
        train(task, replace(RECIPE, save_every=1), Run(tmp_path / "out", max_steps=8))
    state = torch.load(tmp_path / "out" / STATE, weights_only=True)
    assert state["step"] == 2 and all(tensor.isfinite().all() for tensor in state["parameters"].values())
    batch = Order(len(names), task.size, RECIPE, 0, SINGLE).batch(2)
    assert set(re.findall(r"row (\d+)", str(error.value))) == set(map(str, batch))


def test_nothing_is_saved_of_a_run_that_fails_at_once(world, tmp_path):
    task = make(world, "stage1")
    task.loss = lambda batch: batch["input_ids"].sum() * math.nan + task.model.multi_modal_projector.bias.sum()
    with pytest.raises(UserError, match="nan at step 0"):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=8))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("steps", "minutes", "saves"), [(2, math.inf, 3), (math.inf, 0, 5), (math.inf, 9, 1)])
def test_a_run_is_saved_every_so_many_steps_or_minutes(world, tmp_path, steps, minutes, saves):
    task, written = make(world, "stage1"), []
    write = task.write
    task.write = lambda *arguments: (written.append(1), write(*arguments))
    recipe = replace(RECIPE, save_every=steps, save_minutes=minutes)
    train(task, recipe, Run(tmp_path / "out", max_steps=5))
    assert len(written) == saves


def test_a_state_with_a_tensor_left_over_is_refused(world, tmp_path):
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    path = tmp_path / "out" / STATE
    state = torch.load(path, weights_only=True)
    state["parameters"]["vision_tower.pre_layrnorm.weight"] = torch.zeros(32)  # frozen in stage 1
    torch.save(state, path)
    with pytest.raises(UserError, match=r"vision_tower\.pre_layrnorm\.weight is missing, left over"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2, resume=True))


def test_only_numbers_are_read_from_metrics(tmp_path):
    line = {"step": 1, "loss": 0.5, "padding": 0.25, "seconds": "3", "waited": None, "more": [1]}
    (tmp_path / "out.metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert read_metrics(Run(tmp_path / "out"), 1) == [{"step": 1, "loss": 0.5, "padding": 0.25}]
