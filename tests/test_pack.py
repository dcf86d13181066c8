"""Batches with little padding: like lengths side by side, or conversations in one row that do not see each other."""

import json
from pathlib import Path

import pytest
import torch
from minillava.training import _accumulate, nullcontext
from PIL import Image

from minillava import Llava
from minillava.conversation import IGNORE
from minillava.conversations import ConversationDataset, share_rows
from minillava.image import ImageProcessor
from minillava.tasks import llava_task

TURNS = [1, 4, 1, 2, 3, 1, 2, 1]


def write_rows(folder: Path) -> None:
    """Rows of different lengths, every other with a picture of its own colour; one line of text at the end."""
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


def dataset(folder: Path, model: Llava, pack: bool) -> ConversationDataset:
    return ConversationDataset(
        folder / "rows.json",
        folder,
        model.processor.tokenizer,
        ImageProcessor.for_size(24),
        model.config.num_image_tokens,
        text_path=folder / "text.txt",
        pack=pack,
    )


@pytest.fixture
def two(tiny_model, tmp_path) -> tuple[ConversationDataset, ConversationDataset]:
    write_rows(tmp_path)
    return dataset(tmp_path, tiny_model, pack=False), dataset(tmp_path, tiny_model, pack=True)


def test_rows_are_shared_and_none_is_longer_than_the_longest():
    lengths = [5, 9, 4, 2, 7, 3, 9, 1]
    rows = share_rows(lengths)
    assert sorted(index for row in rows for index in row) == list(range(8))
    assert all(sum(lengths[index] for index in row) <= 9 for row in rows)
    assert len(rows) == 5  # 40 tokens do not fit in four rows of nine


def test_packed_rows_have_the_loss_and_the_gradients_of_rows_apart(two, tiny_model):
    results = []
    for data in two:
        tiny_model.zero_grad()
        task = llava_task(tiny_model, data, stage=2)
        indices = list(range(len(data)))
        batch = data.batch(indices, 0)
        loss, padding = _accumulate(task, indices, 0, 1, "cpu", nullcontext())
        gradients = {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}
        results.append((batch, loss, padding["padding"], gradients))
    (apart, loss, padding, gradients), (packed, packed_loss, less, packed_gradients) = results
    assert len(apart["input_ids"]) == 9 and len(packed["input_ids"]) <= 6 and packed["segments"].max() > 1
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-4, atol=1e-5)
    tokens = sum(len(two[0].encode(index, 0)[0]) for index in range(9))
    assert padding == pytest.approx(1 - tokens / apart["input_ids"].numel())
    assert less == pytest.approx(1 - tokens / packed["input_ids"].numel()) and less < padding


def test_micro_batches_hold_rows_of_like_length(two, tiny_model):
    data, indices = two[0], list(range(9))
    task = llava_task(tiny_model, data, stage=2)
    lengths = [len(data.encode(index, 0)[0]) for index in data.arrange(indices, 0)]
    assert lengths == sorted(lengths) and sorted(data.arrange(indices, 0)) == indices
    (whole, much), (parts, little) = (_accumulate(task, indices, 0, n, "cpu", nullcontext()) for n in (1, 3))
    assert whole == pytest.approx(parts, abs=1e-5) and little["padding"] < much["padding"] / 2


@pytest.mark.parametrize("packed", [0, 1])
def test_logits_exist_where_a_token_bears_loss_and_nowhere_else(two, tiny_model, packed):
    seen = []
    tiny_model.language_model.lm_head.register_forward_hook(lambda _, inputs, logits: seen.append(logits.shape))
    batch = two[packed].batch(list(range(9)), 0)
    llava_task(tiny_model, two[packed], stage=2).loss(batch)
    assert seen == [((batch["labels"][:, 1:] != IGNORE).sum(), tiny_model.config.decoder.vocab_size)]
