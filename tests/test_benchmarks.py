"""The benchmarks run at their smallest sizes and print JSON; flops.py counts the same operations as PyTorch."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import batch_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minillava.training.plan import Setting
from minillava.training.recipes import Recipe

BENCHMARKS = Path(__file__).parent / "benchmarks"
# Runs ``python PATH --help`` for each path, each in a fork of one process.
START = """
import os, runpy, sys
import torch
paths = sys.argv[1:]
for path in paths:
    if not os.fork():
        sys.path[0], sys.argv = os.path.dirname(path), [path, "--help"]
        runpy.run_path(path, run_name="__main__")
        break
else:
    sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in paths))
"""


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def printed(benchmark, monkeypatch, capsys):
    """A function that runs a benchmark in this process and returns its line of JSON."""

    def run(name: str, *arguments: str) -> list | dict:
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--json"])
        benchmark(name).main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize(("stage", "lora"), [(1, 0), (2, 0), (2, 3)], ids=["stage 1", "stage 2", "LoRA"])
def test_operations_are_those_that_pytorch_counts(benchmark, tiny_config, projector, stage, lora):
    tiny_config = replace(tiny_config, projector=projector)
    setting = Setting(tiny_config, stage, Recipe(1e-3, 3, 1, lora=lora, length=20), bfloat16=False, gpu=False)
    task = benchmark("models").random_task(setting, "cpu")
    batch = batch_of(task.dataset, [0, 1, 2])
    # PyTorch does not count inside the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.loss(batch).backward()
    assert benchmark("flops").step_flops(setting) == counter.get_total_flops()


def test_generation_gives_the_same_tokens_as_transformers(printed):
    (result,) = printed("generation", "--size", "toy", "--tokens", "12", "--rounds", "1")
    assert result["same_tokens"] == 12 and result["shortfall"] == 0
    assert result["ratio"] > 0 and result["first_token_ratio"] > 0


def test_a_training_step_has_the_same_losses_as_transformers(printed):
    results = printed("train_step", "--size", "toy", "--stage", "2", "--rounds", "2")
    assert results[0]["loss_difference"] < 1e-3
    assert all(bytes_ > 2**20 for bytes_ in results[0]["peak_bytes"].values())


def test_exponents_are_slopes(benchmark, printed):
    assert benchmark("cost").exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    length, pictures = printed("cost", "--lengths", "72", "96", "--pictures", "1", "2", "--rounds", "1")
    assert (length["sizes"], pictures["sizes"]) == ([72, 96], [1, 2])
    assert pictures["exponent_of_flops"] == pytest.approx(1) and length["exponent_of_flops"] > 0


def test_a_preset_is_measured_on_a_cpu_too(printed):
    result = printed("gpu", "--device", "cpu", "--preset", "toy", "--stage", "1", "--steps", "1")
    assert result["tokens_per_second"] == pytest.approx(32 * 256 / result["step_seconds"])
    assert result["utilisation"] is None and result["peak_bytes"] > 0


def test_the_first_word_is_compared_with_importing_torch(printed):
    result = printed("first_token", "--rounds", "1")
    assert min(result["first_word_seconds"], result["import_torch_seconds"]) > 0.1
    assert result["difference"] == result["first_word_seconds"] - result["import_torch_seconds"]


def test_without_a_gpu_one_line_says_so(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here") as raised:
        benchmark("gpu").main()
    assert "\n" not in str(raised.value)


def test_they_start_from_anywhere(tmp_path):
    """Each in a fork of a process that has imported torch, in a folder outside the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", START, *sorted(BENCHMARKS.glob("*.py"))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and len(command) > 10, done.stderr
