"""Batches with little padding: micro-batches of rows with similar lengths, or several conversations packed in one row
that do not see each other."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import cut_up
from PIL import Image
from torch.amp import GradScaler

from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset, share_rows
from minillava.training.distributed import SINGLE
from minillava.training.loop import Run, padding
from minillava.training.recipes import Recipe
from minillava.training.step import accumulate
from minillava.training.tasks import Task, llava_task

TURNS = [1, 4, 1, 2, 3, 1, 2, 1]


def write_rows(folder: Path) -> None:
    """Rows of different lengths, every other one with a picture of its own colour, and a text file of one line."""
    rows = []
    for index, turns in enumerate(TURNS):
        talk = [("human", f"What is it? {index}"), ("gpt", "The red fish is at the top.")] * turns
        row = {"id": str(index), "conversations": [{"from": who, "value": text} for who, text in talk]}
        if index % 2:
            row["image"] = f"{index}.png"
            row["conversations"][0] = {"from": "human", "value": "<image>\nWhat is it?"}
            Image.new("RGB", (24, 24), (30 * index, 255 - 30 * index, 90)).save(folder / row["image"])
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "text.txt").write_text("The small boat.\n")


@pytest.fixture
def data(tiny_model, tmp_path) -> ConversationDataset:
    write_rows(tmp_path)
    return ConversationDataset(tmp_path / "rows.json", tmp_path, tiny_model.processor, text_path=tmp_path / "text.txt")


@pytest.fixture
def two(tiny_model, data) -> tuple[Task, Task]:
    """A task with one conversation per row, and a task with packed rows."""
    return llava_task(tiny_model, data, stage=2), llava_task(tiny_model, data, stage=2, pack=True)


def whole(parts: int = 1) -> Recipe:
    """A recipe in which all nine rows are one batch, cut into ``parts`` micro-batches."""
    return Recipe(1e-3, batch_size=9, epochs=1, accumulation=parts)


def lengths_of(data: ConversationDataset, rows: list[int]) -> list[int]:
    return [len(data[0, 0, row]["input_ids"]) for row in rows]


def test_rows_are_shared_and_none_is_longer_than_the_longest():
    lengths = [5, 9, 4, 2, 7, 3, 9, 1]
    rows = share_rows(lengths)
    assert sorted(index for row in rows for index in row) == list(range(8))
    assert all(sum(lengths[index] for index in row) <= 9 for row in rows)
    assert len(rows) == 5  # 40 tokens do not fit in four rows of nine


def test_packed_rows_have_the_loss_and_the_gradients_of_separate_rows(two, data, tiny_model, tmp_path):
    results = []
    for task in two:
        tiny_model.zero_grad()
        micro, shares = cut_up(task, whole())
        loss = accumulate(task, micro, shares, Run(tmp_path), nullcontext(), GradScaler(enabled=False))
        gradients = {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}
        results.append((micro[0], loss, padding(micro, shares, SINGLE)["padding"], gradients))
    (apart, loss, much, gradients), (packed, packed_loss, less, packed_gradients) = results
    assert len(apart["input_ids"]) == 9 and len(packed["input_ids"]) <= 6 and packed["attention_mask"].max() > 1
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-4, atol=1e-5)
    tokens = sum(lengths_of(data, range(9)))
    assert much == pytest.approx(1 - tokens / apart["input_ids"].numel())
    assert less == pytest.approx(1 - tokens / packed["input_ids"].numel()) and less < much


def test_micro_batches_hold_rows_of_similar_length(two, data, tmp_path):
    found = {}
    for parts in (1, 3):
        micro, shares = cut_up(two[0], whole(parts))
        loss = accumulate(two[0], micro, shares, Run(tmp_path), nullcontext(), GradScaler(enabled=False))
        found[parts] = loss, padding(micro, shares, SINGLE)
    rows = [row for share in shares for row in share]
    assert lengths_of(data, rows) == sorted(lengths_of(data, rows)) and sorted(rows) == list(range(9))
    (loss, much), (parts_loss, little) = found.values()
    assert loss == pytest.approx(parts_loss, abs=1e-5) and little["padding"] < much["padding"] / 2


@pytest.mark.parametrize("packed", [0, 1])
def test_logits_are_computed_only_where_a_token_has_loss(two, tiny_model, packed):
    seen = []
    tiny_model.language_model.lm_head.register_forward_hook(lambda _, inputs, logits: seen.append(logits.shape))
    [batch], _ = cut_up(two[packed], whole())
    two[packed].loss(batch)
    assert seen == [((batch["labels"][:, 1:] != IGNORE).sum(), tiny_model.config.decoder.vocab_size)]
