"""What makes training faster on a machine changes no result: compiled blocks, float16, workers, Muon in float32."""

import json
import os
import shutil
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from conftest import PowerCut
from test_loop import RECIPE, bytes_of, make, world  # noqa: F401  world is a fixture

from minillava.errors import UserError
from minillava.model import decoder, vision
from minillava.training import loop, machine, optimizers
from minillava.training.distributed import Team
from minillava.training.loop import Run, train
from minillava.training.optimizers import Muon, orthogonalise


def losses(out) -> list[float]:
    return [json.loads(line)["loss"] for line in out.with_name(f"{out.name}.metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("fast", "tolerance"), [(True, 0.04), (False, 1e-4)])
def test_muon_takes_pytorchs_steps(monkeypatch, fast, tolerance):
    """In bfloat16, in which PyTorch always multiplies, and in float32, with PyTorch's conversion switched off."""
    monkeypatch.setattr(optimizers, "has_fast_bfloat16", lambda device: fast)
    if not fast:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda matrix: matrix.clone())
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((16, 16), (48, 16), (16, 48))]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    one = Muon(ours, 0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for size in (1, 0.001, 30):
        for a, b in zip(ours, theirs):
            a.grad = size * torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for a, b, before in zip(ours, theirs, start):
        assert (a - b).norm() < tolerance * (b - before).norm()


def test_orthogonalise_brings_singular_values_to_one():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(24, 60)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_compiled_blocks_learn_the_same_and_are_compiled_once_for_all_lengths(world, tmp_path, cut_power):  # noqa: F811
    recipe = replace(RECIPE, checkpointing=True)
    train(make(world, "stage2"), recipe, Run(tmp_path / "eager", max_steps=8, compile=False))
    real = loop.compile_now

    def compile_now(*arguments) -> None:
        real(*arguments)
        torch._dynamo.config.error_on_recompile = True

    with patch.object(loop, "compile_now", compile_now), torch._dynamo.config.patch(error_on_recompile=False):
        task = make(world, "stage2")
        train(task, recipe, Run(tmp_path / "compiled", max_steps=8, compile=True))
        blocks = [part for part in task.model.modules() if isinstance(part, (decoder.Block, vision.Block))]
        assert all(block._compiled_call_impl for block in blocks)
        assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)

        torch._dynamo.config.error_on_recompile = False
        task = make(world, "stage2")
        cut_power(task)
        with pytest.raises(PowerCut):
            train(task, recipe, Run(tmp_path / "broken", max_steps=8, compile=True))
        torch._dynamo.config.error_on_recompile = False
        train(make(world, "stage2"), recipe, Run(tmp_path / "broken", max_steps=8, resume=True, compile=True))
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "compiled")


def test_without_a_compiler_training_goes_on(world, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    torch._dynamo.reset()
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2, compile=True))
    printed = capsys.readouterr().out
    assert "the blocks cannot be compiled here, training goes on without" in printed, printed
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "eager", max_steps=2))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "eager")


@pytest.mark.parametrize("steps", [499, 500])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_compiling_is_for_gpus_and_for_long_runs_on_wide_cpus(monkeypatch, steps, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert machine.compiling_pays("cpu", steps) == (steps == 500 and capability == "AVX512")
    assert machine.compiling_pays("cuda:1", steps) and not machine.compiling_pays("mps", steps)


def test_float16_learns_with_a_scaled_loss_and_resumes(world, tmp_path, cut_power):  # noqa: F811
    recipe = replace(RECIPE, optimizer="adamw")
    train(make(world, "stage2"), recipe, Run(tmp_path / "whole", max_steps=8, dtype=torch.float16))
    train(make(world, "stage2"), recipe, Run(tmp_path / "float32", max_steps=8, dtype=torch.float32))
    whole, exact = losses(tmp_path / "whole"), losses(tmp_path / "float32")
    assert whole == pytest.approx(exact, rel=0.02) and whole != exact
    task = make(world, "stage2")
    cut_power(task)
    with pytest.raises(PowerCut):
        train(task, recipe, Run(tmp_path / "broken", max_steps=8, dtype=torch.float16))
    train(make(world, "stage2"), recipe, Run(tmp_path / "broken", max_steps=8, dtype=torch.float16, resume=True))
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")


def test_a_gradient_too_large_for_float16_is_a_step_not_taken(world, tmp_path):  # noqa: F811
    """The scaler starts at 65,536; with losses this large the first gradients are infinite, and no weight may move."""
    task = make(world, "stage1")
    real, before = task.loss, task.model.multi_modal_projector.weight.detach().clone()
    task.loss = lambda batch: real(batch) * 1e36
    train(task, RECIPE, Run(tmp_path / "out", max_steps=1, dtype=torch.float16))
    assert torch.equal(task.model.multi_modal_projector.weight, before)


def test_float16_is_not_sharded(world, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="--shard: needs bfloat16 or float32"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", dtype=torch.float16, team=Team(0, 1, shard=True)))


@pytest.mark.parametrize(
    ("bfloat16", "device", "dtype"),
    [(True, "cuda", torch.bfloat16), (False, "cuda", torch.float16), (True, "mps", torch.float32)],
)
def test_each_device_gets_its_fastest_dtype(monkeypatch, bfloat16, device, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    assert machine.fastest_dtype(device) == dtype


def test_the_number_of_workers_changes_nothing(world, tmp_path):  # noqa: F811
    for workers in (0, 2):
        train(make(world, "stage2"), RECIPE, Run(tmp_path / f"{workers}", max_steps=4, workers=workers))
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "2")


def test_an_error_in_a_worker_is_its_own_one_line(world, tmp_path):  # noqa: F811
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    for picture in (copy / "images" / "train").iterdir():
        os.truncate(picture, 20)
    shutil.copy(world.parent / "tokenizer.json", tmp_path)
    messages = []
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            train(make(copy, "stage1"), RECIPE, Run(tmp_path / f"{workers}", max_steps=4, workers=workers))
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0] and "not a readable picture" in messages[0]


def test_a_gpus_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    assert [machine.default_workers("cuda:0", n) for n in (1, 4, 16)] == [8, 3, 1]
    assert machine.default_workers("cpu", 1) == 0


@pytest.mark.parametrize("kind", ["vision", "decoder", "stage2"])
def test_bfloat16_stays_near_float32(world, tmp_path, kind):  # noqa: F811
    """Over an epoch of eight steps or more, rounding to eight bits changes each loss by less than 2 %, and the sum of
    all steps by less than a tenth."""
    changes, curves = [], []
    for dtype in (torch.float32, torch.bfloat16):
        out, task = tmp_path / str(dtype), make(world, kind)
        learns = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        begin = torch.cat([parameter.detach().flatten() for parameter in learns])
        train(task, RECIPE, Run(out, dtype=dtype))
        changes.append(torch.cat([parameter.detach().flatten() for parameter in learns]) - begin)
        curves.append(losses(out))
    assert all(0 < abs(one - other) < 0.02 * one for one, other in zip(*curves, strict=True)) and len(curves[0]) >= 8
    assert (changes[0] - changes[1]).norm() < 0.1 * changes[0].norm()
