"""Rows on disk -> batches: the order, what each batch holds, and errors that name the file and the row."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import batch_of
from PIL import Image, ImageColor
from torch.utils.data import DataLoader

from data.picturebook.language import words_by_patch
from data.picturebook.scene import sample_scene
from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation, image_goes_first
from minillava.inputs.conversations import ConversationDataset, encode_row
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.regions import RegionDataset, patches_of_boxes
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer, train_bpe, write_tokenizer
from minillava.training.distributed import SINGLE
from minillava.training.order import Order, batch_order
from minillava.training.recipes import Recipe

COLOURS = ["red", "lime", "blue", "white", "yellow"]
SIZE = 16  # pixels per side


# ---- the order of batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length, batch_size", [(1, 4), (7, 1), (12, 4), (103, 8), (1000, 7)])
def test_an_epoch_shows_every_row_once(length, batch_size):
    batches = batch_order(length, batch_size, seed=3, epoch=2)
    assert sorted(index for batch in batches for index in batch) == list(range(length))
    full, rest = divmod(length, batch_size)
    assert sorted(map(len, batches)) == [rest] * (rest > 0) + [batch_size] * full


def test_order_depends_only_on_seed_and_epoch():
    orders = {(seed, epoch): batch_order(200, 8, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(order == batch_order(200, 8, *key) for key, order in orders.items())
    assert len({str(order) for order in orders.values()}) == 9
    assert all([i for batch in order for i in batch] != list(range(200)) for order in orders.values())


# ---- conversations --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, train_bpe("Human: What is the colour?\nAssistant: It is red. a large blue fish " * 3, 350))
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(tokenizer) -> Processor:
    """Four image tokens per picture."""
    return Processor(tokenizer, ImageProcessor.for_size(SIZE), 4)


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of plain pictures, one per colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (20, 24), colour).save(folder / f"{colour}.png")
    return folder


def said(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def pictured(colour: str, **extra) -> dict:
    turns = said("<image>\nWhat is the colour?", f"It is {colour}.") + said("Are you sure?", "Yes." * (1 + len(colour)))
    return {"id": colour, "image": f"{colour}.png", "conversations": turns, **extra}


WRITTEN = {"id": "written", "conversations": said("What is red?", "A large fish.")}
TOLD = {"patch_words": ["a large fish", "sea", "red", "sea"], "conversations": said("<image>\nWhat?", "A fish.")}
TOLD_SHORT = {**TOLD, "patch_words": ["sea", "sea", "red", "sea"]}


@pytest.fixture
def dataset(tmp_path, images, processor):
    """``dataset(rows, **options)`` opens a ConversationDataset of ``rows``, a list or the bytes of a file."""

    def make(rows, **options) -> ConversationDataset:
        path = tmp_path / "rows.json"
        path.write_bytes(rows if isinstance(rows, bytes) else json.dumps(rows).encode())
        return ConversationDataset(path, images, processor, **options)

    return make


def colour_of(pixels: torch.Tensor) -> tuple[bool, ...]:
    return tuple(bool(channel > 0.5) for channel in pixels.mean((1, 2)))


def ids_and_labels(example: dict) -> tuple[list[int], list[int]]:
    return example["input_ids"], example["labels"]


RGB = {colour: tuple(c > 127 for c in ImageColor.getrgb(colour)) for colour in COLOURS}


def test_batch_is_padded_on_the_right_and_holds_each_row(dataset, tokenizer):
    data = dataset([pictured("red"), WRITTEN, pictured("yellow")], image_place="first")
    batch = batch_of(data, [2, 1, 0])
    encoded = [
        encode_conversation(data.rows[i]["conversations"], tokenizer, TEMPLATES["v0"], 4, True) for i in (2, 1, 0)
    ]
    longest = max(len(ids) for ids, _ in encoded)
    assert len({len(ids) for ids, _ in encoded}) == 3
    assert batch["input_ids"].shape == batch["labels"].shape == (3, longest)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    for ids, labels, (true_ids, true_labels) in zip(batch["input_ids"], batch["labels"], encoded):
        rest = longest - len(true_ids)
        assert ids.tolist() == true_ids + [tokenizer.pad_id] * rest
        assert labels.tolist() == true_labels + [-100] * rest


def test_pictures_come_in_the_order_of_their_rows(dataset):
    data = dataset([pictured("red"), WRITTEN, pictured("blue"), pictured("lime")])
    batch = batch_of(data, [3, 1, 0, 2])
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE) and batch["pixel_values"].dtype == torch.float32
    assert [colour_of(pixels) for pixels in batch["pixel_values"]] == [RGB["lime"], RGB["red"], RGB["blue"]]


def test_rows_without_picture_make_a_batch_without_pixels(dataset, tokenizer):
    batch = batch_of(dataset([pictured("red"), WRITTEN]), [1])
    assert batch.keys() == {"input_ids", "labels", "lengths"}
    assert tokenizer.image_id not in batch["input_ids"]


def test_pictures_given_as_words_become_word_ids(dataset, tokenizer):
    batch = batch_of(dataset([TOLD, WRITTEN, TOLD_SHORT, pictured("red")]), [2, 1, 0, 3])
    cells = [TOLD_SHORT["patch_words"], TOLD["patch_words"]]
    longest = max(len(tokenizer.encode(f" {text}")) for texts in cells for text in texts)
    assert batch["word_ids"].shape == (2, 4, longest) and batch["pixel_values"].shape[0] == 1
    for told, texts in zip(batch["word_ids"].tolist(), cells):
        for ids, text in zip(told, texts):
            known = [index for index in ids if index != -1]
            assert tokenizer.decode(known) == f" {text}" and ids == known + [-1] * (longest - len(known))
    assert (batch["input_ids"] == tokenizer.image_id).sum(1).tolist() == [4, 0, 4, 4]


def test_lines_of_text_become_rows_where_every_token_has_loss(dataset, tmp_path, tokenizer):
    (tmp_path / "text.txt").write_text("It is red.\nA ### in <image> is text.\n")
    data = dataset([pictured("red")], text_path=tmp_path / "text.txt")
    assert len(data) == 3
    batch = batch_of(data, [1, 2])
    assert batch.keys() == {"input_ids", "labels", "lengths"}
    for ids, labels, text in zip(batch["input_ids"], batch["labels"], ("It is red.", "A ### in <image> is text.")):
        true_ids = [*tokenizer.encode(text, special=False), tokenizer.eos_id]
        assert ids[labels != -100].tolist() == labels[labels != -100].tolist() == true_ids
        assert (ids[len(true_ids) :] == tokenizer.pad_id).all()


def test_coin_is_tossed_for_each_row_and_epoch(dataset, tokenizer):
    data = dataset([pictured("red")] * 12)
    turns = data.rows[0]["conversations"]
    for epoch in (0, 1):
        tosses = [image_goes_first(5, epoch, row) for row in range(12)]
        assert len(set(tosses)) == 2
        for row, first in enumerate(tosses):
            assert ids_and_labels(data[5, epoch, row]) == encode_conversation(
                turns, tokenizer, TEMPLATES["v0"], 4, first
            )
    fixed = dataset([pictured("red")] * 12, image_place="last")
    assert {str(ids_and_labels(fixed[5, 0, row])) for row in range(12)} == {
        str(encode_conversation(turns, tokenizer, TEMPLATES["v0"], 4, False))
    }


def test_captions_take_the_brief_template(dataset, tokenizer):
    data = dataset([pictured("red", type="caption"), pictured("red", type="conversation")], image_place="first")
    brief, whole = (tokenizer.decode(data[0, 0, row]["input_ids"]) for row in (0, 1))
    assert brief.startswith("<image><image><image><image>\nWhat") and whole.startswith("A chat between")


def test_the_first_turn_ends_where_the_answer_begins(processor, tokenizer):
    (question, labels), (whole, _) = (encode_row(pictured("red"), processor, turns=turns) for turns in (1, None))
    assert whole[: len(question)] == question and set(labels) == {-100}
    assert tokenizer.decode(question).endswith("\nAssistant:")


def test_extra_keys_pass_through(dataset, tokenizer):
    """Rows keep keys that are not part of the format, and those do not change ids and labels."""
    plain = ids_and_labels(dataset([pictured("red")])[0, 0, 0])
    for key, value in {"words": 3, "text": "red.", "plain": "red.", "label": 3, "captions": [], "url": None}.items():
        data = dataset([pictured("red", **{key: value})])
        assert data.rows[0][key] == value
        assert ids_and_labels(data[0, 0, 0]) == plain, key


def unlike(**changes) -> dict:
    row = pictured("red")
    row.update(changes)
    return row


SECOND_ROW_WRONG = {
    "no dict": ["red.png"],
    "no conversations": {"id": 1, "image": "red.png"},
    "conversations that are no list": unlike(conversations="What?"),
    "no turns": unlike(conversations=[]),
    "a turn that is a text": unlike(conversations=["What?"]),
    "an answer first": unlike(conversations=said("What?", "Red.")[::-1]),
    "an image that is no text": unlike(image=["red.png"]),
    "an image that is null": unlike(image=None),
    "a missing image": unlike(image="purple.png"),
    "a folder for an image": unlike(image="."),
    "a broken image": unlike(image="broken.png"),
    "an image outside": unlike(image="../outside.png"),
    "an absolute image": unlike(image="/outside.png"),
    "a name no file can have": unlike(image="red\0.png"),
    "a mark without an image": {"conversations": pictured("red")["conversations"]},
    "an image and words": {**TOLD, "image": "red.png"},
    "a system turn first": unlike(conversations=[{"from": "system", "value": "Hi"}, *pictured("red")["conversations"]]),
    "an image without a mark": unlike(conversations=WRITTEN["conversations"]),
    "two marks for one image": unlike(conversations=said("<image>\n<image>\nWhat differs?", "Nothing.")),
    "a mark in an answer": unlike(conversations=said("<image>\nWhat?", "An <image>.")),
    "a mark in a later turn": unlike(conversations=pictured("red")["conversations"] + said("And <image>?", "Yes.")),
    "no answer": unlike(conversations=pictured("red")["conversations"][:1]),
    "too few words": {**TOLD, "patch_words": TOLD["patch_words"][:-1]},
    "no words": {**TOLD, "patch_words": []},
    "words that are null": {**TOLD, "patch_words": None},
    "words that are no texts": {**TOLD, "patch_words": [["sea"]] * 4},
}


@pytest.mark.parametrize("fault", SECOND_ROW_WRONG)
def test_faulty_row_is_named_with_its_file(dataset, tmp_path, images, fault):
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (images / "broken.png").write_bytes((images / "red.png").read_bytes()[:-30])
    rows = [pictured("red"), SECOND_ROW_WRONG[fault]]
    with pytest.raises(UserError) as error:
        if fault == "a broken image":  # the only fault that shows no earlier than when the row is read
            dataset(rows)[0, 0, 1]
        else:
            dataset(rows)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'rows.json'}: row 1: ") and "\n" not in message


def test_a_row_of_another_kind_is_told_from_a_list_in_an_object(dataset):
    with pytest.raises(UserError, match=r"row 0: no 'conversations' among its keys \('messages'\)$"):
        dataset([{"messages": [{"role": "user", "content": "Hi"}]}])
    what = r"among its keys \('version', 'data'\); the file must be a list of rows, not one object around 'data'"
    with pytest.raises(UserError, match=what):
        dataset(json.dumps({"version": 1, "data": [pictured("red")]}).encode())


def test_a_template_for_captions_refuses_conversations_when_the_file_is_opened(tmp_path, images, processor):
    (tmp_path / "rows.json").write_text(json.dumps([pictured("red")]))
    plain = Processor(processor.tokenizer, processor.image, 4, TEMPLATES["plain"])
    with pytest.raises(UserError, match=r"row 0: the template 'plain' is for one picture and one caption"):
        ConversationDataset(tmp_path / "rows.json", images, plain)


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b'[{"conversations": []}', b"\xff\xfe", b"[]", b'"rows"', b"5", b'{"conversations": []'],
)
def test_faulty_file_is_named(dataset, tmp_path, content):
    with pytest.raises(UserError) as error:
        dataset(content)
    assert str(error.value).startswith(f"{tmp_path / 'rows.json'}: ") and "\n" not in str(error.value)


def test_missing_files_are_named(dataset, tmp_path, images, processor):
    with pytest.raises(UserError, match=r"nowhere\.json: No such file"):
        ConversationDataset(tmp_path / "nowhere.json", images, processor)
    with pytest.raises(UserError, match=r"nowhere\.txt: No such file"):
        dataset([WRITTEN], text_path=tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"nowhere\.jsonl: No such file"):
        RegionDataset(tmp_path / "nowhere.jsonl", images, processor)


def test_a_byte_order_mark_is_no_part_of_a_text(dataset, tmp_path, tokenizer):
    (tmp_path / "text.txt").write_bytes("a fish\n".encode("utf-8-sig"))
    ids = [*tokenizer.encode("a fish", special=False), tokenizer.eos_id]
    assert dataset([WRITTEN], text_path=tmp_path / "text.txt")[0, 0, 1]["input_ids"] == ids


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xff", b"a\xff"])
def test_text_that_is_empty_or_no_utf8_is_refused(dataset, tmp_path, content):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"text\.txt: "):
        dataset([WRITTEN], text_path=tmp_path / "text.txt")


# ---- regions --------------------------------------------------------------------------------------------------------


def context(colour: str, boxes: dict[str, list[float]], **changes) -> dict:
    instances = [{"category": "thing", "bbox": box, "phrase": phrase} for phrase, box in boxes.items()]
    captions = [f"{colour} {number}" for number in ("one", "two", "three")] + ["the same caption"]
    return {"id": colour, "image": f"{colour}.png", "captions": captions, "instances": instances, **changes}


CONTEXTS = [
    context("red", {"a large fish": [0.0, 0.0, 1.0, 1.0], "a blue fish": [0.1, 0.1, 0.45, 0.45]}),
    context("lime", {"a large fish": [0.2, 0.5, 0.9, 0.9], "a tiny fish": [0.01, 0.01, 0.02, 0.02]}),
    context("blue", {"a red fish": [0.5, 0, 1, 0.3], "a blue fish": [0, 0.5, 0.3, 1], "a": [0.4, 0.4, 0.9, 0.9]}),
    context("white", {"a red fish": [0.55, 0.55, 0.99, 0.99]}),
]


@pytest.fixture
def regions(tmp_path, images, processor):
    """``regions(rows)`` opens a RegionDataset of ``rows``, a list or the text of a file; 4 x 4 patches per picture."""

    def make(rows) -> RegionDataset:
        path = tmp_path / "contexts.jsonl"
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return RegionDataset(path, images, replace(processor, num_image_tokens=16))

    return make


def texts(ids: torch.Tensor, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(row[: row.index(tokenizer.eos_id)]) for row in ids.tolist()]


def test_regions_point_to_their_texts_and_patches(regions, tokenizer):
    """A patch has the phrase of the smallest box that covers its centre, and no phrase if no box does."""
    data, chosen = regions(CONTEXTS), [2, 0, 3, 1]
    batch = batch_of(data, chosen)
    assert batch["pixel_values"].shape == (4, 3, SIZE, SIZE)
    assert [colour_of(p) for p in batch["pixel_values"]] == [RGB[CONTEXTS[index]["image"][:-4]] for index in chosen]

    phrases = texts(batch["phrases"], tokenizer)
    found = {(owner, patch): phrases[phrase] for owner, patch, phrase in
             zip(*(batch[name].tolist() for name in ("region_owner", "region_patch", "phrase_match")))}  # fmt: skip
    assert len(found) == len(batch["region_owner"])  # no patch twice
    for position, index in enumerate(chosen):
        for patch in range(16):
            u, v = (patch % 4 + 0.5) / 4, (patch // 4 + 0.5) / 4
            covering = []
            for instance in CONTEXTS[index]["instances"]:
                x1, y1, x2, y2 = instance["bbox"]
                if x1 <= u <= x2 and y1 <= v <= y2:
                    covering.append(((x2 - x1) * (y2 - y1), instance["phrase"]))
            assert found.get((position, patch)) == (min(covering)[1] if covering else None)

    captions = texts(batch["captions"], tokenizer)
    for index, match in zip(chosen, batch["caption_match"].tolist(), strict=True):
        assert captions[match] in CONTEXTS[index]["captions"]


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("width, height", [(96, 32), (32, 64), (48, 48)])
def test_boxes_follow_a_picture_that_is_cut_or_padded(regions, images, fit, width, height):
    """Each thing is drawn into its box; a patch belongs to the thing whose colour is at its centre."""
    things = {"red": [0, 0, 0.5, 1.0], "lime": [0.5, 0.28, 0.7, 0.72], "blue": [0.7, 0.5, 1, 1]}
    picture = Image.new("RGB", (width, height), "white")
    for colour, (x1, y1, x2, y2) in things.items():
        picture.paste(colour, (round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)))
    picture.save(images / "white.png")
    data = regions([context("white", things)])
    data.processor.image = replace(data.processor.image.fitting(fit, SIZE), resample=Image.Resampling.NEAREST)
    (_, found) = zip(*data[0, 0, 0]["regions"])
    shown = data.processor.image.view(picture)
    centres = [shown.getpixel((4 * (index % 4) + 2, 4 * (index // 4) + 2)) for index in range(16)]
    for colour, patches in zip(things, found):
        assert patches == [index for index, seen in enumerate(centres) if seen == ImageColor.getrgb(colour)]
    assert any(found)


def test_texts_of_a_batch_are_distinct_and_all_used(regions, tokenizer):
    data = regions(CONTEXTS)
    shared = 0
    for epoch in range(20):
        batch = batch_of(data, [0, 1, 2, 3], epoch)
        for name, match in (("captions", "caption_match"), ("phrases", "phrase_match")):
            found = texts(batch[name], tokenizer)
            assert len(set(found)) == len(found)
            assert set(batch[match].tolist()) == set(range(len(found)))
        shared += len(batch["captions"]) < 4
        assert len(batch["phrases"]) == 4
    assert shared  # in some epochs two pictures drew the same caption and shared one text


def test_captions_are_drawn_anew_each_epoch_and_alike_within_one(regions, tokenizer):
    data = regions(CONTEXTS)

    def drawn(epoch: int, rows: list[int]) -> list[str]:
        batch = batch_of(data, rows, epoch)
        return [texts(batch["captions"], tokenizer)[match] for match in batch["caption_match"]]

    assert all(drawn(epoch, [0, 1, 2, 3]) == drawn(epoch, [3, 2, 1, 0])[::-1] for epoch in range(10))
    assert {caption for epoch in range(60) for caption in drawn(epoch, [0])} == set(CONTEXTS[0]["captions"])


def test_box_too_small_for_a_patch_is_left_out(regions, tokenizer):
    batch = batch_of(regions(CONTEXTS), [1])
    assert texts(batch["phrases"], tokenizer) == ["a large fish"]
    assert batch["region_owner"].tolist() == [0] * len(batch["region_patch"])


def test_pictures_without_boxes_have_no_regions(regions):
    data = regions([context("red", {}), CONTEXTS[1]])
    assert set(batch_of(data, [0, 1])["region_owner"].tolist()) == {1}
    batch = batch_of(data, [0])
    for name in ("region_owner", "region_patch", "phrase_match"):
        assert batch[name].shape == (0,) and batch[name].dtype == torch.int64
    assert len(batch["phrases"]) == 0


def test_unusual_line_separators_within_a_text_do_not_end_the_line(regions, tokenizer):
    """JSON allows them unescaped, and only "\\n" ends a line of a .jsonl file."""
    row = context("red", {"a fish": [0.0, 0.0, 1.0, 1.0]}, captions=["one\u2028two\x85three"])
    data = regions(json.dumps(row, ensure_ascii=False) + "\n")
    assert texts(batch_of(data, [0])["captions"], tokenizer) == ["one\u2028two\x85three"]


SECOND_LINE_WRONG = {
    "no JSON": '{"image": "red.png"',
    "a list": "[1]",
    "a number": "5",
    "no image": json.dumps({key: value for key, value in CONTEXTS[0].items() if key != "image"}),
    "no captions": json.dumps({key: value for key, value in CONTEXTS[0].items() if key != "captions"}),
    "captions that are empty": json.dumps(context("red", {"a": [0, 0, 1, 1]}, captions=[])),
    "captions that are one text": json.dumps(context("red", {"a": [0, 0, 1, 1]}, captions="a red one")),
    "captions that are numbers": json.dumps(context("red", {"a": [0, 0, 1, 1]}, captions=[1, 2])),
    "no phrase": json.dumps(context("red", {}, instances=[{"bbox": [0, 0, 1, 1]}])),
    "a phrase that is a number": json.dumps(context("red", {}, instances=[{"bbox": [0, 0, 1, 1], "phrase": 5}])),
    "a box of three": json.dumps(context("red", {"a": [0, 0, 1]})),
    "a box of pixels": json.dumps(context("red", {"a": [10, 10, 90, 80]})),
    "a box of no number": json.dumps(context("red", {"a": [0, 0, 1, float("nan")]})),
    "a box of texts": json.dumps(context("red", {"a": ["0", "0", "1", "1"]})),
    "an image that is no text": json.dumps(context("red", {"a": [0, 0, 1, 1]}, image=5)),
    "a missing image": json.dumps(context("purple", {"a": [0, 0, 1, 1]})),
    "an image outside": json.dumps(context("../outside", {"a": [0, 0, 1, 1]})),
}


@pytest.mark.parametrize("fault", SECOND_LINE_WRONG)
def test_faulty_line_is_named_with_its_file(regions, tmp_path, fault):
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    with pytest.raises(UserError) as error:
        batch_of(regions(f"{json.dumps(CONTEXTS[0])}\n{SECOND_LINE_WRONG[fault]}\n"), [0, 1])
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'contexts.jsonl'}: line 2: ") and "\n" not in message


def test_empty_lines_are_passed_over_but_counted(regions, tmp_path):
    whole = json.dumps(CONTEXTS[0])
    assert len(regions(f"{whole}\n\n{whole}\n\n")) == 2
    with pytest.raises(UserError, match=r"contexts\.jsonl: line 4: "):
        regions(f"{whole}\n\n{whole}\n[]\n")
    with pytest.raises(UserError, match=r"contexts\.jsonl: line 3: "):
        batch_of(regions(f"{whole}\n\n{json.dumps(context('purple', {}))}\n"), [1])


def test_patches_of_boxes_agree_with_pictures_given_as_words():
    """patches_of_boxes() and words_by_patch() agree on what is in each patch, overlaps included."""
    rng = random.Random(0)
    for _ in range(500):
        scene = sample_scene(rng)
        told = [scene.setting] * 64
        for thing, patches in zip(scene.things, patches_of_boxes([thing.box for thing in scene.things], 8)):
            for patch in patches:
                told[patch] = f"{thing.size} {thing.colour} {thing.kind} {thing.place}"
        assert told == words_by_patch(scene, 8), scene


# ---- worker processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["apart", "packed", "regions"])
def test_workers_give_the_batches_that_one_process_gives(dataset, regions, kind):
    rows = [pictured(colour) for colour in COLOURS] + [WRITTEN, TOLD, TOLD_SHORT]
    data = regions(CONTEXTS) if kind == "regions" else dataset(rows)
    collate = data.collate_packed if kind == "packed" else data.collate
    size = (lambda row: 0) if kind == "regions" else data.size
    order = Order(len(data), size, Recipe(1e-3, batch_size=3, epochs=2, accumulation=2), 0, SINGLE)
    order.steps = range(2 * order.per_epoch)
    plain, shared = (
        list(DataLoader(data, batch_sampler=order, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    )
    assert len(plain) == len(shared) > len(data)
    for one, other in zip(plain, shared):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
