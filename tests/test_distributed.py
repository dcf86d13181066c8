"""Two ranks, with DDP or FSDP2, train the same weights as one process, and each resumes the other's checkpoints."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from train_together import FEW, LORA, MEASURED, MUON, RECIPE, STEPS, run

from minillava import Llava, Processor, load, save
from minillava.config import DecoderConfig, LlavaConfig, VisionConfig
from minillava.formats.adapter_config import is_adapter
from minillava.formats.tensors import ADAPTER, WEIGHTS
from minillava.inputs.image import ImageProcessor
from minillava.training.distributed import SINGLE, Team
from minillava.training.order import Order
from minillava.training.resume import STATE

ROOT = Path(__file__).parent.parent
KINDS = ("ddp", "sharded")


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *map(str, arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def row(index: int) -> dict:
    """A row of LLaVA JSON; lengths differ, and some rows have no picture."""
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
    """A folder with a model and the rows to train it on."""
    folder = tmp_path_factory.mktemp("together")
    vision = VisionConfig(24, 40, 3, 2, image_size=24, patch_size=8, projection_dim=20)
    decoder = DecoderConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 12, tie_word_embeddings=True)
    torch.manual_seed(1)
    processor = Processor(tokenizer, ImageProcessor.for_size(24), vision.num_patches)
    model = Llava(LlavaConfig(vision, decoder, image_token_id=tokenizer.image_id), processor)
    model.language_model.embed_tokens.weight.data *= 0.2  # tied to the head: a loss of about 6 instead of 30
    save(model, folder / "model")
    (folder / "rows.json").write_text(json.dumps([row(index) for index in range(50)]))
    (folder / "heldout.json").write_text(json.dumps([row(index) for index in range(90, 95)]))
    for index in range(5):
        Image.new("RGB", (24, 24), (50 * index, 100, 200 - 40 * index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folder(inputs) -> Path:
    """All runs that are compared below: first with one process, then with two ranks."""
    folder = inputs
    for stage in (1, 2):
        run(folder, f"single{stage}", stage, RECIPE, SINGLE)
    run(folder, "single-lora", 2, LORA, SINGLE)
    run(folder, "single-muon", 2, MUON, SINGLE)
    run(folder, "single-measured", 2, MEASURED, SINGLE)
    run(folder, "single-cut", 2, RECIPE, SINGLE, cut=True)
    for kind in KINDS:
        shutil.copytree(folder / "single-cut", folder / f"single-cut-{kind}")
        shutil.copy(folder / "single-cut.metrics.jsonl", folder / f"single-cut-{kind}.metrics.jsonl")
    done = torchrun("tests/train_together.py", folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


def losses(out: Path, steps: int = STEPS) -> torch.Tensor:
    rows = [json.loads(line) for line in out.with_name(f"{out.name}.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def learnt(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / STATE, weights_only=True)["parameters"]


def assert_ends_alike(one: Path, other: Path) -> None:
    """The same losses and weights, and checkpoints with the same files, tensor shapes and dtypes."""
    torch.testing.assert_close(losses(one), losses(other), rtol=0, atol=1e-5)
    torch.testing.assert_close(learnt(one), learnt(other), rtol=0, atol=1e-4)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    kinds = [{name: (t.shape, t.dtype) for name, t in load_file(out / WEIGHTS).items()} for out in (one, other)]
    assert kinds[0] == kinds[1]


def test_every_row_of_a_batch_falls_to_one_process():
    for size, rows, most in ((2, 7, 2), (3, 1, 2), (4, 32, 4), (1, 5, 2)):
        shares = [Team(rank, size).share(list(range(rows)), most) for rank in range(size)]
        assert len({len(share) for share in shares}) == 1  # every rank has the same number of micro-batches
        assert sorted(row for share in shares for micro in share for row in micro) == list(range(rows))
        assert max(len(micro) for share in shares for micro in share) <= most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_train_what_one_does(folder, kind, stage):
    single = losses(folder / f"single{stage}")
    assert single[-5:].mean() < single[:5].mean()
    assert_ends_alike(folder / f"{kind}{stage}", folder / f"single{stage}")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_two_and_resumed_by_one_is_as_if_nothing_had_happened(folder, kind):
    out = folder / f"{kind}-cut"
    assert torch.load(out / STATE, weights_only=True)["step"] == 20
    run(folder, out.name, 2, RECIPE, SINGLE, resume=True)
    assert_ends_alike(out, folder / "single2")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_one_and_resumed_by_two_is_as_if_nothing_had_happened(folder, kind):
    assert torch.load(folder / "single-cut" / STATE, weights_only=True)["step"] == 20
    assert_ends_alike(folder / f"single-cut-{kind}", folder / "single2")


@pytest.mark.parametrize("kind", KINDS)
def test_lora_checkpointing_and_compact_weights_work_together(folder, kind):
    """In bfloat16, which rounds in the third digit, so the tolerance is larger."""
    out, single = folder / f"{kind}-lora", folder / "single-lora"
    torch.testing.assert_close(losses(out, FEW), losses(single, FEW), rtol=0, atol=0.02)
    assert is_adapter(out) and load_file(out / ADAPTER).keys() == load_file(single / ADAPTER).keys()
    assert any(tensor.any() for name, tensor in load_file(out / ADAPTER).items() if "lora_B" in name)


@pytest.mark.parametrize("kind", KINDS)
def test_muon_turns_whole_matrices_not_slices(folder, kind):
    """Muon may multiply in bfloat16, so the tolerance is a few percent of the change."""
    one, other = learnt(folder / f"{kind}-muon"), learnt(folder / "single-muon")
    start = load(folder / "model").state_dict()
    for name, value in other.items():
        moved, apart = (value - start[name]).norm(), (one[name] - value).norm()
        assert apart < 0.05 * moved, name


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_rows_are_shared_and_the_best_model_is_kept_whole(folder, kind):
    """Sharded weights answer nothing, since no rank has all of them."""
    one, other = (
        [json.loads(line) for line in (folder / f"{name}-measured.heldout.jsonl").read_text().splitlines()]
        for name in (kind, "single")
    )
    assert [line["step"] for line in one] == [line["step"] for line in other] == [0, 4, 8, 10]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], abs=1e-4)
    assert [len(line["answers"]) for line in one] == [0 if kind == "sharded" else 5] * 4
    html = (folder / f"{kind}-measured.report.html").read_text(encoding="utf-8")
    page = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert (page["state"], page["step"], len(page["cards"])) == ("finished", 10, 0 if kind == "sharded" else 5)
    parameters = sum(p.numel() for p in load(folder / "single-measured").parameters())
    assert page["tables"]["What learns"][-1][1].endswith(f"of {parameters:,} parameters")
    best = load_file(folder / f"{kind}-measured.best" / WEIGHTS)
    assert min(one, key=lambda line: line["loss"])["step"] == 10
    for name, tensor in load_file(folder / f"{kind}-measured" / WEIGHTS).items():
        assert torch.equal(tensor, best[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_one_process_cannot_read_ends_both_after_a_save(folder, kind):
    ends = re.findall(r"^process (\d) ended: (.*)$", (folder / "said").read_text(), re.MULTILINE)
    assert sorted(ends) == [(rank, "row 9 is missing") for rank in "0011"]
    order = Order(50, lambda row: 0, RECIPE, 0, SINGLE)
    done = next(step for step in range(8, 16) if 9 in order.batch(step))
    assert torch.load(folder / f"{kind}-missing" / STATE, weights_only=True)["step"] == done
    found, expected = losses(folder / f"{kind}-missing", done), losses(folder / "single2")[:done]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_the_first_process_writes(folder):
    changes = dict(re.findall(r"^process (\d) made (\d+) changes$", (folder / "said").read_text(), re.MULTILINE))
    assert int(changes["0"]) > 100 and changes["1"] == "0"


def test_an_error_in_one_process_ends_both_with_one_line(inputs, tmp_path):
    """One row's picture is broken, so only the rank that reads this row raises an error."""
    (inputs / "broken.png").write_bytes(b"not a picture")
    rows = [row(1), row(2), {**row(4), "image": "broken.png"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = ("--model", inputs / "model", "--data", tmp_path / "rows.json", "--image-folder", inputs, "--device", "cpu")
    done = torchrun("train.py", "--stage", "2", *data, "--out", tmp_path / "out")
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "[rank"))]
    assert len(said) == 1 and "row 2" in said[0] and "broken.png" in said[0], done.stderr
    assert "exitcode  : 2" in done.stderr
    assert done.stdout.count("stage2: training") == 1


def test_shard_without_torchrun_is_refused(tmp_path):
    command = [sys.executable, "train.py", "--stage", "2", "--shard", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --shard: ") and done.stderr.count("\n") == 1
