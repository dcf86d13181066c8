"""Two processes, with DDP and with FSDP2, train what one trains, and go on with one another's checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from train_together import LORA, MUON, RECIPE, STEPS, make, run

from minillava import Llava, save
from minillava.config import DecoderConfig, LlavaConfig, VisionConfig
from minillava.distributed import ALONE, Team
from minillava.lora import is_adapter
from minillava.training import STATE
from minillava.weights import ADAPTER

ROOT = Path(__file__).parent.parent
KINDS = ("ddp", "sharded")


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def row(index: int) -> dict:
    """Questions of different lengths, some without a picture."""
    turns = [
        {"from": "human", "value": "What is it?" + " Tell me more." * (index % 4)},
        {"from": "gpt", "value": "The small red fish is at the top." * (1 + index % 3)},
    ]
    if index % 3 == 0:
        return {"id": str(index), "conversations": turns}
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": str(index), "image": f"{index % 5}.png", "conversations": turns}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer) -> Path:
    """A model and rows to train it on."""
    folder = tmp_path_factory.mktemp("together")
    vision = VisionConfig(24, 40, 3, 2, image_size=24, patch_size=8, projection_dim=20)
    decoder = DecoderConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 12, tie_word_embeddings=True)
    torch.manual_seed(1)
    save(Llava(LlavaConfig(vision, decoder, image_token_id=tokenizer.image_id), tokenizer), folder / "model")
    (folder / "rows.json").write_text(json.dumps([row(index) for index in range(50)]))
    for index in range(5):
        Image.new("RGB", (24, 24), (50 * index, 100, 200 - 40 * index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folder(inputs) -> Path:
    """What one process trains, and then what two do: all the runs that are compared below."""
    folder = inputs
    for stage in (1, 2):
        run(folder, f"alone{stage}", stage, RECIPE, ALONE)
    run(folder, "alone-lora", 2, LORA, ALONE)
    run(folder, "alone-muon", 2, MUON, ALONE)
    run(folder, "alone-cut", 2, RECIPE, ALONE, cut=True)
    for kind in KINDS:
        shutil.copytree(folder / "alone-cut", folder / f"alone-cut-{kind}")
        shutil.copy(folder / "alone-cut.metrics.jsonl", folder / f"alone-cut-{kind}.metrics.jsonl")
    done = torchrun("tests/train_together.py", folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


def losses(out: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in out.with_name(f"{out.name}.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def learnt(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / STATE, weights_only=True)["parameters"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_have_the_losses_of_one(folder, kind, stage):
    alone, two = losses(folder / f"alone{stage}"), losses(folder / f"{kind}{stage}")
    print(kind, stage, (alone - two).abs().max(), alone[0], alone[-1])
    torch.testing.assert_close(two, alone, rtol=0, atol=1e-5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["lora", "muon"])
def test_x(folder, kind, what):
    alone, two = losses(folder / f"alone-{what}"), losses(folder / f"{kind}-{what}")
    print(kind, what, (alone - two).abs().max(), alone[0], alone[-1])
def test_y(folder):
    print((folder/"said").read_text())
