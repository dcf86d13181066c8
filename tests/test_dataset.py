"""Examples -> batches: padding, packing and pictures. test_conversations.py has the rows in files."""

import json
import random
from pathlib import Path

import pytest
import torch
from expect import same

from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset, pad, pad_rows, share_rows
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor

RIGHT = "the padding is on the right"


def test_lists_are_padded_on_the_right():
    got = pad([[5, 6, 7], [8], [9, 4]], 0)
    same(got, torch.tensor([[5, 6, 7], [8, 0, 0], [9, 4, 0]]), f"{RIGHT}, up to the longest list, in int64")


@pytest.mark.parametrize("value", [0, -1, -100, 17])
def test_the_padding_has_the_value(value):
    same(pad([[1], [2, 3]], value), torch.tensor([[1, value], [2, 3]]), "what is missing is the value")


def test_lists_of_one_length_need_no_padding():
    same(pad([[1, 2], [3, 4]], 9), torch.tensor([[1, 2], [3, 4]]), "lists of one length stay as they are")


def test_a_list_may_be_empty_and_there_may_be_none():
    same(pad([[], [3, 4]], 9), torch.tensor([[9, 9], [3, 4]]), "an empty list is only padding")
    same(pad([], 9), torch.zeros(0, 1, dtype=torch.int64), "no lists are (0, 1)")


def test_labels_are_padded_without_a_loss():
    rows = [([5, 6, 7], [-100, 6, 7]), ([8], [8])]
    got = pad_rows(iter(rows), 2)
    assert got.keys() == {"input_ids", "labels"}, "the batch has input_ids and labels"
    same(got["input_ids"], torch.tensor([[5, 6, 7], [8, 2, 2]]), f"ids are padded with pad_id; {RIGHT}")
    same(got["labels"], torch.tensor([[-100, 6, 7], [8, -100, -100]]), "padding has no loss: its label is IGNORE")


LENGTHS = [[5, 9, 4, 2, 7, 3, 9, 1], [4], [3, 3, 3], [1, 1, 1, 9], [6, 5, 4, 3, 2, 1], [2, 8, 2, 8]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_rows_are_shared_and_none_is_longer_than_the_longest(lengths):
    rows = share_rows(lengths)
    found = sorted(index for row in rows for index in row)
    assert found == list(range(len(lengths))), "each conversation is in one row, by its index"
    sizes = [sum(lengths[index] for index in row) for row in rows]
    assert max(sizes) <= max(lengths), "no row is longer than the longest conversation"
    assert all(rows), "no row is empty"


@pytest.mark.parametrize(
    "lengths, want",
    [
        ([5, 9, 4, 2, 7, 3, 9, 1], [[1], [6], [4, 3], [0, 2], [5, 7]]),
        ([3, 3, 3], [[0], [1], [2]]),
        ([1, 1, 1, 9], [[3], [0, 1, 2]]),
        ([6, 5, 4, 3, 2, 1], [[0], [1, 5], [2, 4], [3]]),
        ([2, 8, 2, 8], [[1], [3], [0, 2]]),
        ([10, 6, 3, 4, 7], [[0], [4, 2], [1, 3]]),
    ],
)
def test_the_longest_goes_first_and_each_into_the_first_row_with_room(lengths, want):
    got = share_rows(lengths)
    assert [len(row) for row in got] == [len(row) for row in want], (
        "from the longest to the shortest, each conversation goes to the first row with enough room; a row may be full"
    )
    assert got == want, (
        "of equal lengths the first conversation comes first, and rows stay in the order of their making"
    )


@pytest.fixture(scope="module")
def data(tokenizer, tmp_path_factory) -> ConversationDataset:
    """A dataset, of which only the methods are used: the examples below are made by hand."""
    folder: Path = tmp_path_factory.mktemp("dataset")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A fish."}]
    (folder / "rows.json").write_text(json.dumps([{"conversations": turns}]))
    return ConversationDataset(folder / "rows.json", folder, Processor(tokenizer, ImageProcessor.for_size(4), 2))


def example(*ids: int, **more) -> dict:
    """All tokens but the first two have a loss."""
    return {"input_ids": list(ids), "labels": [-100, -100, *ids[2:]][: len(ids)], **more}


def picture(shade: float) -> torch.Tensor:
    return torch.full((3, 4, 4), shade)


def test_a_batch_has_ids_labels_and_lengths(data):
    pad_id = data.processor.tokenizer.pad_id
    got = data.collate([example(5, 6, 7), example(8)])
    assert got.keys() == {"input_ids", "labels", "lengths"}, "a batch without pictures has these three"
    same(
        got["input_ids"], torch.tensor([[5, 6, 7], [8, pad_id, pad_id]]), f"ids are padded with the pad token; {RIGHT}"
    )
    same(got["labels"], torch.tensor([[-100, -100, 7], [-100, -100, -100]]), "padding has no loss")
    same(got["lengths"], torch.tensor([3, 1]), "lengths are the numbers of tokens without padding")


def test_pictures_are_stacked_in_the_order_of_their_rows(data):
    rows = [example(5, pixel_values=picture(0.5)), example(6), example(7, pixel_values=picture(0.25))]
    got = data.collate(rows)
    assert "pixel_values" in got, "a batch with a picture has pixel_values"
    want = torch.stack([picture(0.5), picture(0.25)])
    same(got["pixel_values"], want, "pixel_values are (images, 3, H, W): only rows with a picture, in their order")


def test_pictures_given_as_words_are_padded_with_minus_one(data):
    rows = [example(5, word_ids=[[1, 2], [3], [9]]), example(6), example(7, word_ids=[[4], [5, 6, 7], [8, 8]])]
    got = data.collate(rows)
    assert "word_ids" in got, "a batch with a picture given as words has word_ids"
    want = torch.tensor([[[1, 2, -1], [3, -1, -1], [9, -1, -1]], [[4, -1, -1], [5, 6, 7], [8, 8, -1]]])
    same(
        got["word_ids"], want, "word_ids are (images, patches, longest), padded with -1 up to the longest of the batch"
    )
    assert "pixel_values" not in got, "pictures given as words have no pixel_values"


def test_packed_conversations_share_a_row(data):
    pad_id = data.processor.tokenizer.pad_id
    got = data.collate_packed([example(11, 12), example(21, 22, 23, 24, 25, 26), example(31, 32, 33)])
    ids = torch.tensor([[21, 22, 23, 24, 25, 26], [31, 32, 33, 11, 12, pad_id]])
    same(got["input_ids"], ids, "share_rows() says which conversations share a row, one behind the other")
    labels = torch.tensor([[-100, -100, 23, 24, 25, 26], [-100, -100, 33, -100, -100, -100]])
    same(got["labels"], labels, "each token keeps its label, and padding has no loss")
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 0]])
    same(got["attention_mask"], mask, "attention_mask counts the conversations of a row from 1; padding is 0")
    same(got["lengths"], torch.tensor([6, 5]), "lengths are those of the packed rows")


def test_the_first_token_of_a_packed_conversation_has_no_loss(data):
    text = {"input_ids": [41, 42], "labels": [41, 42]}
    got = data.collate_packed([example(21, 22, 23, 24), text, {"input_ids": [51, 52], "labels": [51, 52]}])
    want = torch.tensor([[-100, -100, 23, 24], [-100, 42, -100, 52]])
    same(got["labels"], want, "the token before a conversation is of another one, so its first token has no loss")


def test_pictures_of_packed_rows_are_in_the_order_of_their_tokens(data):
    rows = [example(11, 12, pixel_values=picture(0.1)), example(*range(20, 26), pixel_values=picture(0.2)),
            example(31, 32, 33, pixel_values=picture(0.3))]  # fmt: skip
    got = data.collate_packed(rows)
    want = torch.stack([picture(0.2), picture(0.3), picture(0.1)])
    same(got["pixel_values"], want, "pictures come in the order in which their conversations are in the packed rows")


def test_packing_changes_no_example(data):
    rows = [example(11, 12), example(21, 22, 23)]
    before = json.dumps(rows)
    data.collate_packed(rows)
    assert json.dumps(rows) == before, "the examples are not changed"


def test_packed_batches_hold_every_token_once(data):
    rng = random.Random(0)
    for _ in range(20):
        rows = [example(*(rng.randrange(3, 99) for _ in range(rng.randint(1, 12)))) for _ in range(rng.randint(1, 9))]
        got = data.collate_packed(rows)
        tokens = sorted(index for row in rows for index in row["input_ids"])
        assert sorted(got["input_ids"][got["attention_mask"] > 0].tolist()) == tokens, "every token is in one row"
        assert got["labels"].shape == got["input_ids"].shape, "labels have the shape of input_ids"
        assert (got["labels"] != IGNORE).sum() == sum(max(0, len(row["input_ids"]) - 2) for row in rows), (
            "packing takes the loss of no token but a conversation's first"
        )
