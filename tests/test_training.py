"""The training loop: schedule, accumulation, frozen parts, repeatability, resuming, kills during a save."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import PowerCut, batch_of, cut_up
from PIL import Image
from torch.amp import GradScaler

from data.picturebook.write import write_world
from minillava.checkpoint import load
from minillava.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.formats.llava_json import Rows
from minillava.inputs import processor
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.regions import RegionDataset
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer, train_bpe, write_tokenizer
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava
from minillava.saving import replace_folder
from minillava.training import progress
from minillava.training.distributed import SINGLE
from minillava.training.loop import Run, accumulate, prepare, train
from minillava.training.optimizers import schedule
from minillava.training.order import Order
from minillava.training.recipes import Recipe
from minillava.training.resume import STATE, is_finished
from minillava.training.tasks import Task, contrastive_task, initialise, llava_task, mean_of_words, next_token_task

VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, projection_dim=32
)
RECIPE = Recipe(learning_rate=1e-3, batch_size=4, epochs=1, save_every=3, optimizer="muon")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "world"
    write_world(folder, count=40, seed=0)
    write_tokenizer(folder.parent, train_bpe((folder / "text.txt").read_text(), 400))
    return folder


def make(world: Path, kind: str) -> Task:
    """A new small task of one of the four kinds, always the same."""
    tokenizer = Tokenizer.from_pretrained(world.parent)
    torch.manual_seed(0)
    if kind == "vision":
        clip = Clip(
            VISION, TextConfig(tokenizer.vocab_size, 32, 64, 1, 2, projection_dim=32, eos_token_id=tokenizer.eos_id)
        )
        initialise(clip)
        return contrastive_task(clip, RegionDataset(world / "contexts.jsonl", world, tokenizer, VISION), tokenizer)
    config = DecoderConfig(tokenizer.vocab_size, 32, 64, 2, 2, 1, 16)
    file = {"decoder": "words.json", "stage1": "captions.json", "stage2": "instruct.json"}[kind]
    text = world / "text.txt" if kind == "decoder" else None
    reader = Processor(tokenizer, ImageProcessor.for_size(64), 64)
    dataset = ConversationDataset(world / file, world, reader, text_path=text)
    if kind == "decoder":
        decoder = Decoder(config)
        initialise(decoder)
        return next_token_task(kind, decoder, dataset)
    model = Llava(LlavaConfig(VISION, config, image_token_id=tokenizer.image_id), reader)  # PyTorch's initial weights
    return llava_task(model, dataset, int(kind[-1]))


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_schedule_warms_up_in_a_line_and_ends_near_zero():
    recipe = Recipe(learning_rate=1.0, batch_size=1, epochs=1, warmup=0.1)
    rates = [schedule(step, 100, recipe) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert all(a >= b for a, b in pairwise(rates[10:])) and rates[-1] < 0.001


@pytest.mark.parametrize("kind", ["vision", "decoder", "stage1", "stage2"])
def test_a_training_overfits_one_batch(world, tmp_path, kind):
    task = make(world, kind)
    batch = batch_of(task.dataset, list(range(4)))
    task.collate = lambda examples: batch
    rate = 0.005 if kind == "vision" else 0.02  # at a higher rate the contrastive loss does not settle
    train(task, Recipe(rate, 4, 30), Run(tmp_path / kind, max_steps=60, dtype=torch.float32))
    losses = [json.loads(line)["loss"] for line in (tmp_path / f"{kind}.metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 60
    # Stage 1 trains only W, before an untrained decoder.
    assert losses[-1] < losses[0] * (0.99 if kind == "stage1" else 0.3)


@pytest.mark.parametrize("stage", [1, 2])
def test_frozen_parts_keep_every_byte_and_no_gradient(world, tmp_path, stage):
    task = make(world, f"stage{stage}")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    moved = {name.split(".")[0] for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    graded = {name.split(".")[0] for name, p in task.model.named_parameters() if p.grad is not None}
    learns = {"multi_modal_projector"} | ({"language_model"} if stage == 2 else set())
    assert moved == graded == learns
    stored = load(tmp_path / "out").state_dict()
    for name, value in before.items():
        if name.split(".")[0] not in learns:
            assert stored[name].numpy().tobytes() == value.numpy().tobytes()


def test_accumulated_gradients_are_those_of_the_whole_batch(world):
    gradients = []
    for parts in (1, 3):
        task = make(world, "stage2")
        micro, shares = cut_up(task, replace(RECIPE, batch_size=7, accumulation=parts))
        assert sorted(map(len, shares)) == {1: [7], 3: [1, 3, 3]}[parts]
        accumulate(task, micro, shares, Run(world), nullcontext(), GradScaler(enabled=False))
        gradients.append([p.grad for p in task.model.parameters() if p.grad is not None])
    for whole, summed in zip(*gradients):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-6)


def test_a_row_is_read_and_encoded_once_a_step(world, tmp_path, monkeypatch):
    """Even if a batch is cut into micro-batches and its rows are sorted by length."""
    task, calls = make(world, "stage2"), Counter()

    def count(place, name: str) -> None:
        real = getattr(place, name)

        def counted(*arguments, **options):
            calls[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(place, name, counted)

    count(json, "loads")
    count(Rows, "__getitem__")
    count(processor, "encode_conversation")
    train(task, replace(RECIPE, accumulation=2), Run(tmp_path / "out", max_steps=3))
    assert calls == {"loads": 12, "__getitem__": 12, "encode_conversation": 12}


def gradients_and_kept_bytes(world, checkpointing: bool) -> tuple[list[torch.Tensor], int]:
    task = make(world, "stage2")
    prepare(task.model, frozen=None, checkpointing=checkpointing)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task.loss(batch_of(task.dataset, list(range(4))))
    loss.backward()
    gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
    return gradients, sum(tensor.nbytes for tensor in kept.values())


def test_checkpointing_keeps_less_and_gives_the_same_gradients(world):
    (plain, kept), (again, kept_less) = (gradients_and_kept_bytes(world, on) for on in (False, True))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    assert kept_less < kept / 3


def test_compact_holds_what_is_frozen_in_bfloat16_and_what_learns_in_float32(world, tmp_path):
    compact = replace(RECIPE, compact=True)
    before = {name: p.clone() for name, p in make(world, "stage1").model.state_dict().items()}
    train(make(world, "stage1"), compact, Run(tmp_path / "one", max_steps=3))
    model = load(tmp_path / "one", dtype="stored")
    for name, value in model.state_dict().items():
        frozen = not name.startswith("multi_modal_projector")
        assert value.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert torch.equal(value.float(), before[name].bfloat16().float()) == frozen
    task = make(world, "stage2")
    task.model.load_state_dict(load(tmp_path / "one").state_dict())
    train(task, compact, Run(tmp_path / "two", max_steps=3))
    for name, value in load(tmp_path / "two", dtype="stored").state_dict().items():
        frozen = name.startswith("vision_tower")
        assert value.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert torch.equal(value.float(), model.state_dict()[name].float()) == frozen, name
    train(make(world, "stage1"), compact, Run(tmp_path / "float32", max_steps=1, dtype=torch.float32))
    kinds = {p.dtype for p in load(tmp_path / "float32", dtype="stored").parameters()}
    assert kinds == {torch.float32}


def test_a_words_embedding_is_the_mean_of_its_words():
    embedding = torch.nn.Embedding(5, 3)
    got = mean_of_words(embedding, torch.tensor([[[1, 2, -1], [4, -1, -1]]]))
    expected = torch.stack([(embedding.weight[1] + embedding.weight[2]) / 2, embedding.weight[4]])
    torch.testing.assert_close(got[0], expected)


@pytest.mark.parametrize("kind", ["vision", "decoder", "stage1", "stage2"])
def test_same_seed_same_bytes_and_another_seed_others(world, tmp_path, kind):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(make(world, kind), RECIPE, Run(tmp_path / name, seed=seed, max_steps=3))
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "c")


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

    def save(state, path):
        saves.append(path)
        if len(saves) == 2 and moment == "half a file":
            Path(path).write_bytes(b"half")
            die()
        real_save(state, path)

    def rename(source, target):
        if len(saves) == 2 and moment == "before the renames":
            die()
        real_replace(source, target)
        if len(saves) == 2 and moment == "between the renames":
            die()

    torch.save, os.replace = save, rename
    train(make(world, "stage2"), RECIPE, Run(out, max_steps=8))


@pytest.mark.parametrize("moment", ["half a file", "before the renames", "between the renames"])
def test_a_kill_during_a_save_loses_nothing(world, tmp_path, moment):
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_die, args=(world, tmp_path / "cut", moment)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "cut", max_steps=8, resume=True))
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=8))
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cut", "whole"]


def test_a_finished_run_is_not_overwritten(world, tmp_path):
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    kept = bytes_of(tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    assert bytes_of(tmp_path / "out") == kept and is_finished(tmp_path / "out")


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
        (None, {}, {"max_steps": 9}, r"steps was 8, is 9 \(the learning rate falls to zero .* start from the result"),
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


def interrupt(task: Task, number: int, call: int) -> None:
    """Let the signal arrive while the loss of a batch is computed, in the given call."""
    real, calls = task.loss, []

    def loss(batch):
        calls.append(batch)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(batch)

    task.loss = loss


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupted_run_ends_its_step_saves_and_resumes_as_if_unbroken(world, tmp_path, capfd, number, end):
    task, before = make(world, "stage2"), signal.getsignal(number)
    interrupt(task, number, 2)
    with pytest.raises(end) as error:
        train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    assert end is KeyboardInterrupt or error.value.code == 143
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2
    printed = capfd.readouterr()
    assert "stage2: saved after 2 of 4 steps; --resume continues\n" in printed.out
    assert printed.err == "\nstopping after this step\n"
    assert signal.getsignal(number) is before
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "out", max_steps=4, resume=True))
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=4))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait(world, tmp_path):
    """Nor does it save: the weights may be half those of one step and half those of the next."""
    task, steps = make(world, "stage2"), []

    def after_step() -> None:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("went on")

    task.after_step = after_step
    with pytest.raises(KeyboardInterrupt):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=4))
    assert steps == [1, 1] and not (tmp_path / "out").exists()


def test_a_signal_during_the_last_save_is_not_lost(world, tmp_path):
    task = make(world, "stage1")
    write = task.write
    task.write = lambda *arguments: (os.kill(os.getpid(), signal.SIGTERM), write(*arguments))
    with pytest.raises(SystemExit):
        train(task, RECIPE, Run(tmp_path / "out", max_steps=2))
    assert is_finished(tmp_path / "out")


def test_a_picture_that_is_missing_ends_the_run_after_a_save(world, tmp_path):
    """And a run that is resumed with the picture ends like one that has had it from the beginning."""
    train(make(world, "stage2"), RECIPE, Run(tmp_path / "whole", max_steps=4))
    rows = json.loads((world / "instruct.json").read_text())
    order = Order(len(rows), lambda row: 0, RECIPE, 0, SINGLE)
    early = {rows[row].get("image") for step in (0, 1) for row in order.batch(step)}
    name = next(rows[row]["image"] for row in order.batch(2) if rows[row].get("image") not in {*early, None})
    (world / name).rename(tmp_path / "away.png")
    try:
        with pytest.raises(UserError, match=rf"instruct\.json: row \d+: .*{Path(name).name}: no such picture"):
            train(make(world, "stage2"), RECIPE, Run(tmp_path / "out", max_steps=4))
    finally:
        (tmp_path / "away.png").rename(world / name)
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


# ---- steps, estimates, pictures -------------------------------------------------------------------------------------


def test_the_number_of_steps_is_said_and_how_to_get_more(world, tmp_path, capsys):
    rows = len(json.loads((world / "captions.json").read_text()))
    train(make(world, "stage1"), replace(RECIPE, batch_size=rows + 1), Run(tmp_path / "few"))
    out = capsys.readouterr().out
    assert f"few: training into {tmp_path / 'few'}: 1 step of {rows} rows, 1 times through {rows} rows\n" in out
    assert "few: few steps teach little; --epochs 100 trains 100\n" in out
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "cut", max_steps=2))
    assert "little" not in capsys.readouterr().out


def test_the_estimate_is_of_measured_steps(monkeypatch, capsys):
    """Ten seconds for the first step, then two for each."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Progress("stage2", done=0, total=100, is_first=True) as shown:
        for step in range(1, 101):
            now[0] += 10 if step == 1 else 2
            shown.update(step, loss=1.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage2: step 4 of 100, loss 1.250, 2 s a step, about 3 minutes left"
    assert lines[1:] == [
        "stage2: step 34 of 100, loss 1.250, 2 s a step, about 2 minutes left",
        "stage2: step 64 of 100, loss 1.250, 2 s a step, about 72 seconds left",
        "stage2: step 94 of 100, loss 1.250, 2 s a step, about 12 seconds left",
    ]
    assert progress.in_words(5400) == "1.5 hours"


def test_a_run_leaves_a_picture_of_its_loss(world, tmp_path):
    train(make(world, "decoder"), RECIPE, Run(tmp_path / "out", max_steps=4))
    picture = Image.open(tmp_path / "out.loss.png").convert("RGB")
    assert (40, 90, 200) in {picture.getpixel((x, y)) for x in range(picture.width) for y in range(picture.height)}


def test_replace_folder_keeps_the_old_one_when_writing_fails(tmp_path):
    replace_folder(tmp_path / "out", lambda new: (new / "file").write_text("old"))

    def fail(new):
        (new / "file").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "out", fail)
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_a_state_with_a_tensor_left_over_is_refused(world, tmp_path):
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    path = tmp_path / "out" / STATE
    state = torch.load(path, weights_only=True)
    state["parameters"]["vision_tower.pre_layrnorm.weight"] = torch.zeros(32)  # frozen in stage 1
    torch.save(state, path)
    with pytest.raises(UserError, match=r"vision_tower\.pre_layrnorm\.weight is missing, left over"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2, resume=True))
