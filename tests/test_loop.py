"""The training loop: frozen parts, repeatability, number of steps, estimate; and accumulation on real tasks."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import batch_of, cut_up
from PIL import Image
from torch.amp import GradScaler

from minillava.checkpoint import load
from minillava.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.formats.llava_json import Rows
from minillava.inputs import processor
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.regions import RegionDataset
from minillava.inputs.tokenizer import Tokenizer, train_bpe, write_tokenizer
from minillava.model.contrastive import Clip
from minillava.model.decoder import Decoder
from minillava.model.llava import Llava
from minillava.saving import replace_folder
from minillava.training import progress
from minillava.training.loop import Run, prepare, train
from minillava.training.recipes import Recipe
from minillava.training.resume import is_finished
from minillava.training.step import accumulate
from minillava.training.tasks import Task, contrastive_task, initialise, llava_task, mean_of_words, next_token_task

VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, projection_dim=32
)
RECIPE = Recipe(learning_rate=1e-3, batch_size=4, epochs=1, save_every=3, optimizer="muon")


@pytest.fixture(scope="module")
def world(tmp_path_factory, draw_world) -> Path:
    folder = tmp_path_factory.mktemp("training") / "world"
    draw_world(folder, 40)
    write_tokenizer(folder.parent, train_bpe((folder / "text.txt").read_text(), 400))
    return folder


def make(world: Path, kind: str) -> Task:
    """A new small task of one of the four kinds, always the same."""
    tokenizer = Tokenizer.from_pretrained(world.parent)
    reader = Processor(tokenizer, ImageProcessor.for_size(64), 64)
    torch.manual_seed(0)
    if kind == "vision":
        clip = Clip(
            VISION, TextConfig(tokenizer.vocab_size, 32, 64, 1, 2, projection_dim=32, eos_token_id=tokenizer.eos_id)
        )
        initialise(clip)
        return contrastive_task(clip, RegionDataset(world / "contexts.jsonl", world, reader))
    config = DecoderConfig(tokenizer.vocab_size, 32, 64, 2, 2, 1, 16)
    file = {"decoder": "words.json", "stage1": "captions.json", "stage2": "instruct.json"}[kind]
    text = world / "text.txt" if kind == "decoder" else None
    dataset = ConversationDataset(world / file, world, reader, text_path=text)
    if kind == "decoder":
        decoder = Decoder(config)
        initialise(decoder)
        return next_token_task(kind, decoder, dataset)
    model = Llava(LlavaConfig(VISION, config, image_token_id=tokenizer.image_id), reader)  # PyTorch's initial weights
    return llava_task(model, dataset, int(kind[-1]))


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


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


def test_a_finished_run_is_not_overwritten(world, tmp_path):
    train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    kept = bytes_of(tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        train(make(world, "stage1"), RECIPE, Run(tmp_path / "out", max_steps=2))
    assert bytes_of(tmp_path / "out") == kept and is_finished(tmp_path / "out")


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


def test_a_run_leaves_its_metrics_and_a_picture_of_its_loss(world, tmp_path):
    train(make(world, "decoder"), RECIPE, Run(tmp_path / "out", max_steps=4))
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "out.metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-3, 1e-3, 0.75e-3, 0.25e-3])  # warm-up for one step, then half a cosine
    picture = Image.open(tmp_path / "out.loss.png").convert("RGB")
    assert (40, 90, 200) in {picture.getpixel((x, y)) for x in range(picture.width) for y in range(picture.height)}


def test_replace_folder_keeps_the_old_one_when_writing_fails(tmp_path):
    replace_folder(tmp_path / "out", lambda new: (new / "file").write_text("old"))

    def fail(new):
        (new / "file").write_text("new")
        raise OSError("disk full")

    with pytest.raises(UserError, match=r"out: cannot be saved: disk full$"):
        replace_folder(tmp_path / "out", fail)
    assert (tmp_path / "out" / "file").read_text() == "old"
