"""Contexts: every file format is read, malformed input is named in one line; and the prompts made from them."""

import json

import pytest

from data import prompts
from data.contexts import LINE_BYTES, Box, Context, read_contexts
from data.prompts import KINDS, messages
from data.teachers import Request
from minillava.errors import UserError

ROW = {
    "id": 7,
    "image": "a/7.jpg",
    "captions": ["A dog  on\na couch.", " "],
    "instances": [{"category": "dog", "bbox": [0.1, 0.2, 0.30004, 1.004]}, {"category": "cup", "bbox": [0, 0, 1, 1]}],
}


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def coco(folder, captions=None, instances=None):
    """Write a pair of COCO files with two pictures; ``captions`` and ``instances`` replace keys in them."""
    images = [
        {"id": 9, "file_name": "000009.jpg", "width": 640, "height": 480},
        {"id": 4, "file_name": "000004.jpg", "width": 200, "height": 100},
    ]
    told = [
        {"image_id": 4, "caption": "Two dogs."},
        {"image_id": 9, "caption": "A bus\n"},
        {"image_id": 4, "caption": ""},
    ]
    drawn = [
        {"image_id": 4, "category_id": 18, "bbox": [20, 10, 40, 50], "iscrowd": 0, "segmentation": [[1, 2, 3]]},
        {"image_id": 4, "category_id": 18, "bbox": [190, 90, 12, 10.5], "iscrowd": 1, "segmentation": {"counts": [1]}},
        {"image_id": 9, "category_id": 6, "bbox": [64, 48, 320, 0]},
    ]
    categories = [{"id": 6, "name": "bus"}, {"id": 18, "name": "dog"}]
    told_file = {"images": images, "annotations": told} | (captions or {})
    drawn_file = {"images": images, "annotations": drawn, "categories": categories} | (instances or {})
    (folder / "captions_val.json").write_text(json.dumps(told_file))
    (folder / "instances_val.json").write_text(json.dumps(drawn_file))
    return folder / "captions_val.json"


def test_jsonl_is_read_with_spaces_made_single_and_edges_cut(tmp_path):
    (context,) = read_contexts(jsonl(tmp_path / "x.jsonl", ROW))
    boxes = (Box("dog", (0.1, 0.2, 0.3, 1.0)), Box("cup", (0, 0, 1, 1)))
    assert context == Context("7", "a/7.jpg", ("A dog on a couch.",), boxes)
    assert context.text() == "A dog on a couch.\n\ndog: [0.100, 0.200, 0.300, 1.000]\ncup: [0.000, 0.000, 1.000, 1.000]"


def test_coco_pixels_become_fractions_and_categories_names(tmp_path):
    expected = [
        Context("9", "000009.jpg", ("A bus",), (Box("bus", (0.1, 0.1, 0.6, 0.1)),)),
        Context(
            "4",
            "000004.jpg",
            ("Two dogs.",),
            (Box("dog", (0.1, 0.1, 0.3, 0.6)), Box("dog", (0.95, 0.9, 1, 1), crowd=True)),
        ),
    ]
    path = coco(tmp_path)
    assert list(read_contexts(path)) == expected
    assert list(read_contexts(tmp_path)) == expected  # the folder's only pair
    assert "crowd of dog: [0.950, 0.900, 1.000, 1.000]" in expected[1].text()


def test_world_is_read_from_its_folder(tmp_path, draw_world):
    draw_world(tmp_path / "world", 3)
    rows = [json.loads(line) for line in (tmp_path / "world" / "contexts.jsonl").read_text().splitlines()]
    read = list(read_contexts(tmp_path / "world"))
    assert [c.id for c in read] == ["train-000000", "train-000001", "train-000002"]
    for row, context in zip(rows, read):
        assert list(context.captions) == row["captions"] and context.image == row["image"]
        assert [(b.category, list(b.bbox)) for b in context.boxes] == [
            (i["category"], i["bbox"]) for i in row["instances"]
        ]


def box(**changes):
    return {"instances": [{"category": "dog", "bbox": [0, 0, 1, 1]} | changes]}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"id": None}, "'id'"),
        ({"id": True}, "'id'"),
        ({"image": ""}, "'image' is empty"),
        ({"image": "/etc/passwd"}, "leads out"),
        ({"image": "a/../../b.jpg"}, "leads out"),
        ({"image": "..\\b.jpg"}, "leads out"),
        ({"image": "C:\\b.jpg"}, "leads out"),
        ({"image": "a\0b"}, "leads out"),
        ({"captions": "A dog."}, "must be lists"),
        ({"captions": ["A dog.", 3]}, "captions[1] is not a string"),
        ({"captions": ["x" * 2001]}, "longer than 2000"),
        ({"captions": ["a d\ud83dg"]}, "captions[0] has half a character"),
        ({"instances": None}, "must be lists"),
        ({"instances": [3]}, "instances[0]: not a JSON object"),
        ({"instances": box()["instances"] * 1001}, "more than 1000 boxes"),
        (box(category=["dog"]), "instances[0]: 'category' is not a string"),
        (box(category=" "), "'category' is empty"),
        (box(bbox=[0, 0, 1]), "four numbers"),
        (box(bbox=[0, 0, 1, "1"]), "four numbers"),
        (box(bbox=[0, 0, 1, float("nan")]), "four numbers"),
        (box(bbox=[0, 0, 1, 10**400]), "four numbers"),
        (box(bbox=[0, 0, 1, True]), "four numbers"),
        (box(bbox=[0.5, 0, 0.4, 1]), "not x1, y1, x2, y2 inside"),
        (box(bbox=[12, 30, 200, 100]), "not x1, y1, x2, y2 inside"),
        (box(bbox=[-0.03, 0, 1, 1]), "not x1, y1, x2, y2 inside"),
        (box(iscrowd="yes"), "'iscrowd'"),
    ],
)
def test_malformed_row_is_named(tmp_path, change, named):
    path = jsonl(tmp_path / "x.jsonl", ROW | {"id": 1}, ROW | change)
    with pytest.raises(UserError) as error:
        list(read_contexts(path))
    assert str(error.value).startswith(f"{path}: line 2: ") and named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line, named",
    [
        (b'{"id": 1', "line 1: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b"[1]", "line 1: not a JSON object"),
        (b'{"id": "\xff"}', "line 1: not JSON"),
        (b" " * (LINE_BYTES + 1), "line 1: longer than"),
        (b"\n\n", "no picture"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, named):
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(UserError, match=named):
        list(read_contexts(tmp_path / "x.jsonl"))


def test_an_id_that_is_there_twice_is_named(tmp_path):
    with pytest.raises(UserError, match="line 2: id '7' occurs twice"):
        list(read_contexts(jsonl(tmp_path / "x.jsonl", ROW, ROW | {"id": "7"})))


IMAGE = {"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}


@pytest.mark.parametrize(
    "captions, instances, named",
    [
        ({"images": 3}, {}, "captions_val.json: no list 'images'"),
        ({"annotations": [3]}, {}, "captions_val.json: annotations[0]: not a JSON object"),
        ({"annotations": [{"image_id": 5, "caption": "A"}]}, {}, "annotations[0]: 'image_id' 5 is not listed in"),
        ({"annotations": [{"image_id": [5], "caption": "A"}]}, {}, "annotations[0]: 'image_id' must be"),
        ({"annotations": [{"image_id": 4}]}, {}, "captions[0] is not a string"),
        ({}, {"categories": None}, "instances_val.json: no list 'categories'"),
        ({}, {"categories": [{"id": 1}]}, "categories[0]: 'name' is not a string"),
        (
            {},
            {"annotations": [{"image_id": 4, "category_id": 5, "bbox": [0, 0, 1, 1]}]},
            "'category_id' 5 is not listed in",
        ),
        ({}, {"annotations": [{"image_id": 4, "category_id": 6}]}, "annotations[0]: 'bbox' must be four numbers"),
        ({}, {"annotations": [{"image_id": 4, "category_id": 6, "bbox": [0, 0, 900, 1]}]}, "inside the picture"),
        ({"images": [IMAGE | {"width": 0}]}, {"images": []}, "captions_val.json: images[0]: no 'width'"),
        ({"images": [IMAGE | {"height": None}]}, {"images": []}, "captions_val.json: images[0]: no 'width'"),
        ({"images": [IMAGE | {"file_name": "../1.jpg"}]}, {"images": []}, "leads out"),
    ],
)
def test_malformed_coco_is_named(tmp_path, captions, instances, named):
    if "images" in captions and captions["images"] != 3:
        captions = captions | {"annotations": []}
        instances = instances | {"annotations": [{"image_id": 1, "category_id": 6, "bbox": [0, 0, 1, 1]}]}
    with pytest.raises(UserError) as error:
        list(read_contexts(coco(tmp_path, captions, instances)))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_missing_and_unknown_files_are_named(tmp_path):
    def refused(path, named):
        with pytest.raises(UserError, match=named):
            list(read_contexts(path))

    refused(tmp_path / "none.jsonl", "none.jsonl: No such file")
    refused(tmp_path / "rows.json", "rows.json: neither")
    refused(tmp_path, "found none")
    path = coco(tmp_path)
    (tmp_path / "captions_train.json").write_text("{}")
    refused(tmp_path, "found captions_train.json, captions_val.json")
    (tmp_path / "instances_val.json").unlink()
    refused(path, "instances_val.json: No such file")


def test_a_huge_coco_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "captions_x.json", "wb") as file:
        file.truncate(2_000_000_001)  # a sparse file takes no disk space
    with pytest.raises(UserError, match="more than 2,000,000,000 bytes"):
        list(read_contexts(tmp_path / "captions_x.json"))


# ---- prompts ------------------------------------------------------------------------------------------------------

CONTEXT = Context("1", "1.jpg", ("A dog.",), (Box("dog", (0.1, 0.2, 0.3, 0.4)),))


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_is_system_then_examples_then_the_context(kind):
    question = "Describe the image." if kind == "detail" else None
    sent = Request(kind, CONTEXT, question, seed=0).messages
    assert [m["role"] for m in sent] == ["system", *["user", "assistant"] * ((len(sent) - 2) // 2), "user"]
    assert len(sent) >= 6
    assert sent[-1]["content"] == "A dog.\n\ndog: [0.100, 0.200, 0.300, 0.400]" + (
        f"\n\n{question}" if question else ""
    )
    for shown, answer in zip(sent[1:-1:2], sent[2:-1:2]):
        lines = shown["content"].removesuffix(f"\n\n{question}").split("\n")
        boxes = lines[lines.index("") + 1 :]
        corners = [[float(value) for value in line.split(": [")[1].rstrip("]").split(", ")] for line in boxes]
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in corners)
        assert (shown["content"].endswith(question)) if question else True
        blocks = answer["content"].split("\n===\n")
        if kind == "detail":
            assert len(blocks) == 1 and "\n" not in blocks[0]
        else:
            assert len(blocks) == 2 if kind == "reasoning" else len(blocks) >= 6
            assert all(b.startswith(("Question: ", "Answer: ")[i % 2]) and "\n" not in b for i, b in enumerate(blocks))
        assert not any(word in answer["content"].lower() for word in ("caption", "bounding", "sentence", "0."))


def test_prompts_can_be_edited_and_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    prompts._prompt.cache_clear()
    folder = tmp_path / "reasoning"
    folder.mkdir()
    (folder / "system.txt").write_text("Think.\n")
    (folder / "01.context.txt").write_text("A cat.")
    try:
        with pytest.raises(UserError, match=r"01.answer.txt: No such file"):
            messages("reasoning", CONTEXT)
        (folder / "01.answer.txt").write_text(" \n")
        with pytest.raises(UserError, match=r"01.answer.txt: empty"):
            messages("reasoning", CONTEXT)
        (folder / "01.answer.txt").write_text("It sleeps.")
        assert [m["content"] for m in messages("reasoning", CONTEXT)][:3] == ["Think.", "A cat.", "It sleeps."]
    finally:
        prompts._prompt.cache_clear()
