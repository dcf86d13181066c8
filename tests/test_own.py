"""A folder of one's own pictures: what is made of it for each training, what is refused, and the one command."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import cards
import pytest
from PIL import Image
from programs import run

import train
from data.own import REQUESTS, spread, write_own
from data.requests import BRIEF_REQUESTS
from minillava.errors import UserError
from minillava.inputs.image import find_picture

PATCHES = 16


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A folder of pictures with captions and conversations; four pictures are held out."""
    folder = tmp_path_factory.mktemp("own") / "cards"
    cards.write(folder, 28, seed=0)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of four pictures, of which nothing is said yet."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.jpg", "d.png"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def written(folder: Path, heldout: Path | None = None) -> dict[str, list]:
    """The contents of each file that is written for ``folder``."""
    out = folder.parent / "out" / "data"
    write_own(folder, out, PATCHES, heldout)
    read = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir() if path.is_file()}
    lines = {name: read.pop(name).splitlines() for name in ("text.txt", "contexts.jsonl")}
    lines["contexts.jsonl"] = [json.loads(line) for line in lines["contexts.jsonl"]]
    return lines | {name: json.loads(text) for name, text in read.items()}


def row(image: str | None, *said: str) -> dict:
    values = [f"<image>\n{said[0]}" if image else said[0], *said[1:]]
    turns = [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": "1", **({"image": image} if image else {}), "conversations": turns}


def test_everything_that_is_said_of_the_pictures_is_written(table, capsys):
    files = written(table, heldout=table / "heldout.json")
    rows = json.loads((table / "instruct.json").read_text())
    told = [line.split(",", 1) for line in (table / "captions.csv").read_text().splitlines()[1:]]
    named = {f"images/{name}" for name, _ in told}
    captions = {(c["image"], text) for c in files["contexts.jsonl"] for text in c["captions"]}
    assert captions == {(f"images/{name}", caption) for name, caption in told} and len(named) == 24
    assert all(context["instances"] == [] for context in files["contexts.jsonl"])
    stage_1 = [(r["image"], *(turn["value"] for turn in r["conversations"])) for r in files["captions.json"]]
    assert {(image, answer) for image, _, answer in stage_1} == captions and len(stage_1) == len(told)
    assert {question.removeprefix("<image>\n") for _, question, _ in stage_1} <= set(BRIEF_REQUESTS)
    assert files["instruct.json"] == [{**row, "image": f"images/{row['image']}"} for row in rows]
    for source, words, line in zip(rows, files["words.json"], files["text.txt"]):
        assert words["conversations"] == source["conversations"] and "image" not in words
        known = Counter(" ".join(caption for name, caption in told if name == source["image"]).split())
        assert len(words["patch_words"]) == PATCHES
        assert Counter(" ".join(words["patch_words"]).split()) >= known
        turns = " ".join(turn["value"].removeprefix("<image>\n") for turn in source["conversations"])
        assert line.endswith(turns) and Counter(line.removesuffix(turns).split()) == known
    assert len(files["words.json"]) == len(files["text.txt"]) == len(rows)
    assert all(find_picture(table.parent / "out" / "data", name) for name in named)
    assert capsys.readouterr().out == (
        f"data: 24 pictures of {table}; 120 captions of 24 pictures; 96 conversations in instruct.json; "
        "4 other pictures there are not trained on: nothing is said of them\n"
    )


def test_captions_alone_are_enough(folder):
    lines = ["caption,image", "a red fish,a.png", '"a boat, seen\nfrom above",more/c.jpg', " the sea ,a.png"]
    (folder / "captions.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    files = written(folder)
    assert [(c["image"], c["captions"]) for c in files["contexts.jsonl"]] == [
        ("images/a.png", ["a red fish", "the sea"]),
        ("images/more/c.jpg", ["a boat, seen from above"]),
    ]
    assert {*files["text.txt"][0].split()} == {"a", "red", "fish", "the", "sea"}
    assert files["text.txt"][1:] == ["a boat, seen from above"]
    for name in ("captions.json", "instruct.json"):
        answers = [r["conversations"][1]["value"] for r in files[name]]
        assert answers == ["a red fish", "the sea", "a boat, seen from above"]
        assert {r.get("type") for r in files[name]} == {"caption" if name == "captions.json" else None}
    assert len(files["words.json"]) == 3


def test_where_there_is_no_caption_a_question_with_its_answer_is_one(folder):
    described = row("b.png", BRIEF_REQUESTS[3], "a blue boat")
    rows = [row("a.png", "What is it?", "A fish.", "Is it\nred?", "Yes."), described, row(None, "Who?", "I.")]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = written(folder)
    captions = {context["image"]: context["captions"] for context in files["contexts.jsonl"]}
    assert captions == {"images/a.png": ["What is it? A fish.", "Is it red? Yes."], "images/b.png": ["a blue boat"]}
    assert files["text.txt"] == ["What is it? A fish. Is it red? Yes.", "a blue boat", "Who? I."]
    said = [[turn["value"] for turn in r["conversations"]] for r in files["captions.json"]]
    assert said[:2] == [["<image>\nWhat is it?", "A fish."], ["<image>\nIs it red?", "Yes."]]
    assert said[2] == [f"<image>\n{BRIEF_REQUESTS[3]}", "a blue boat"]
    assert files["instruct.json"][2] == files["words.json"][2] == rows[2]


def test_boxes_may_be_given_with_the_captions(folder):
    box = {"phrase": "a fish", "bbox": [0, 0, 0.5, 1]}
    contexts = [{"image": "a.png", "captions": ["x"], "instances": [box]}, {"image": "b.png", "captions": ["y", "z"]}]
    (folder / "contexts.jsonl").write_text("\n".join(map(json.dumps, contexts)))
    (folder / "captions.csv").write_text("image,caption\nb.png,w\n")
    found = {c["image"]: (c["captions"], c["instances"]) for c in written(folder)["contexts.jsonl"]}
    assert found == {"images/a.png": (["x"], [box]), "images/b.png": (["w", "y", "z"], [])}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a b", ["a", "b", "a", "b"]),
        ("a b c d", ["a", "b", "c", "d"]),
        ("a b c d e", ["a b", "c d", "e", "a b"]),
        ("", ["", "", "", ""]),
    ],
)
def test_words_are_spread_over_all_patches(text, parts):
    assert spread(text, 4) == parts


CSV = "image,caption\n"
ROWS = json.dumps([row("a.png", "What?", "A fish.")])
FAULTS = {
    "nothing": ({}, "photos: has none of captions.csv, contexts.jsonl and instruct.json"),
    "two files": ({"x.json": ROWS, "y.jsonl": ROWS}, "Call it instruct.json; there are x.json, y.jsonl"),
    "columns": ({"captions.csv": "name;text\na.png;x\n"}, "captions.csv: line 1: needs the columns image and"),
    "fields": ({"captions.csv": f"{CSV}a.png,x\na.png,a red, small fish\n"}, "captions.csv: line 3: not 2 fields"),
    "few fields": ({"captions.csv": f"{CSV}a.png\n"}, "captions.csv: line 2: not 2 fields"),
    "quotes": ({"captions.csv": f'{CSV}a.png,"x" y\n'}, "captions.csv: line 2: "),
    "no caption": ({"captions.csv": f"{CSV}a.png, \n"}, "captions.csv: line 2: no image with a caption"),
    "no line": ({"captions.csv": CSV}, "captions.csv: empty, no captions"),
    "mark": ({"captions.csv": f"{CSV}a.png,x <image>\n"}, "captions.csv: line 2: the caption contains <image>"),
    "bytes": ({"captions.csv": f"{CSV}a.png,x\n".encode() + b"b.png,\xff\n"}, "captions.csv: line 3: not UTF-8"),
    "picture": ({"captions.csv": f"{CSV}a.png,x\nnone.png,x\n"}, "captions.csv: line 3: {}/none.png: no such picture"),
    "broken": ({"captions.csv": f"{CSV}bad.png,x\n"}, "captions.csv: line 2: {}/bad.png: not a readable picture"),
    "outside": ({"captions.csv": f"{CSV}../a.png,x\n"}, "captions.csv: line 2: image path '../a.png' leads out of"),
    "row": ({"instruct.json": json.dumps([{"id": "1"}])}, "instruct.json: row 0: no 'conversations'"),
    "answer": ({"instruct.json": json.dumps([row("a.png", "What?")])}, "instruct.json: row 0: the row has no answer"),
    "text only": ({"instruct.json": json.dumps([row(None, "?", "!")])}, "instruct.json: no row has a picture"),
    "its picture": ({"instruct.json": json.dumps([row("e.png", "?", "!")])}, "instruct.json: row 0: {}/e.png: no such"),
    "context": ({"contexts.jsonl": '\n{"image": "a.png", "captions": []}'}, "contexts.jsonl: line 2: not a picture"),
    "box": (
        {"contexts.jsonl": '{"image": "a.png", "captions": ["x"], "instances": [{"phrase": "x", "bbox": [0, 1]}]}'},
        "contexts.jsonl: line 1: not a picture with captions and boxes",
    ),
    "its file": ({"contexts.jsonl": '{"image": "e.png", "captions": ["x"]}'}, "contexts.jsonl: line 1: {}/e.png: no"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_its_row_and_writes_nothing(folder, fault):
    files, line = FAULTS[fault]
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:40])
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(line.format(folder))) as error:
        written(folder)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(folder))
    assert not (folder.parent / "out").exists()


def test_held_out_rows_in_the_folder_are_not_trained_on(folder):
    (folder / "rows.json").write_text(ROWS)
    (folder / "heldout.json").write_text(json.dumps([row("b.png", "Why?", "So.")]))
    assert len(written(folder, folder / "more" / ".." / "heldout.json")["instruct.json"]) == 1


def test_a_folder_that_has_changed_needs_another_out(folder):
    (folder / "captions.csv").write_text(f"{CSV}a.png,x\n")
    before = written(folder)
    assert written(folder) == before
    (folder / "captions.csv").write_text(f"{CSV}a.png,y\n")
    with pytest.raises(UserError, match=r"data: has been made from something else than .*photos as it is now"):
        written(folder)
    (folder / "captions.csv").write_text(f"{CSV}a.png,x\n")
    assert written(folder) == before
    assert [path.name for path in (folder.parent / "out").iterdir()] == ["data"]


def test_the_requests_are_those_of_the_paper():
    assert "Describe the image concisely." in REQUESTS and len(REQUESTS) == 16


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a short training on ``table``, and what it printed."""
    out = tmp_path_factory.mktemp("trained") / "out"
    heldout = ("--heldout", table / "heldout.json", "--eval-every", "2", "--image-size", "32", "--patch-size", "8")
    command = ("train.py", "--stage", "2", "--from-scratch", "--data", table, "--out", out, "--max-steps", "3")
    done = run(*command, *heldout)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_one_command_trains_all_parts_on_the_folder(trained, table):
    out, said = trained
    words = json.loads((out / "data" / "words.json").read_text())
    assert {len(row["patch_words"]) for row in words} == {PATCHES} and not (out / "notes").exists()
    for name, rows in (("vision", 24), ("decoder", 192), ("stage1", 120), ("stage2", 96)):
        assert re.search(
            rf"^{name}: training into {out / name}: 3 steps of \d+ rows, .* times through {rows} rows$", said, re.M
        )
        losses = [json.loads(line)["loss"] for line in (out / f"{name}.metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 3 and all(0 < loss < 15 for loss in losses)
    assert "shipped" not in said and "held-out loss" in said and (out / "stage2.best").exists()
    done = run("chat.py", "--model", out / "stage2", "--image", table / "0000.png", "--prompt", "Which card is higher?")
    assert done.returncode == 0, done.stderr


def test_the_next_stage_and_a_resumed_run_find_the_folder_again(trained, table, tmp_path):
    out, _ = trained
    done = run("train.py", "--stage", "0", "--data", table, "--out", out)
    assert done.returncode == 0 and done.stdout.count("already trained") == 2, done.stderr
    os.rename(out / "stage2", tmp_path / "stage2")
    done = run("train.py", "--stage", "2", "--out", out, "--max-steps", "3")  # out/data is what --data has been
    assert done.returncode == 0, done.stderr
    assert "times through 96 rows" in done.stdout and "drawing" not in done.stdout
    for name in ("stage1", "stage2"):  # as if the first run had been interrupted before stage 1 was saved
        shutil.rmtree(out / name)
    command = ("--stage", "2", "--from-scratch", "--data", table, "--out", out, "--max-steps", "3", "--resume")
    done = run("train.py", *command)
    assert done.returncode == 0, done.stderr
    assert "stage1: training" in done.stdout and not re.search("(vision|decoder): training", done.stdout)


def test_a_missing_folder_is_named_before_anything_is_trained(tmp_path):
    for option in ("--data", "--heldout"):
        done = run("train.py", "--stage", "2", "--from-scratch", option, tmp_path / "none", "--out", tmp_path / "out")
        assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'none'}: no such file or folder\n"
    assert not (tmp_path / "out").exists()


def test_results_do_not_go_among_the_pictures(folder):
    before = sorted(folder.rglob("*"))
    done = run("train.py", "--stage", "2", "--from-scratch", "--data", folder, "--out", folder / "more" / "..")
    line = f"error: --out {folder / 'more' / '..'}: the folder of --data; choose another\n"
    assert (done.returncode, done.stderr) == (2, line) and sorted(folder.rglob("*")) == before


def test_faults_of_rows_are_found_before_anything_is_trained(table, folder):
    """Also those of rows that only the last training reads."""
    bad, out = folder / "bad.json", folder / "out"
    scratch = ("train.py", "--stage", "2", "--from-scratch", "--out", out)
    for rows, line in (
        (json.dumps([row("e.png", "?", "!")]), f"row 0: {folder / 'e.png'}: no such picture"),
        (json.dumps([row("a.png", "?")]), "row 0: the row has no answer"),
        (CSV, "not a list of rows, but a table"),
    ):
        bad.write_text(rows)
        for files in (("--data", table, "--heldout", bad), ("--data", bad), ("--heldout", bad)):
            said = line.replace(str(folder), str(table if table in files else folder))
            done = run(*scratch, *files)
            assert done.returncode == 2 and done.stderr.startswith(f"error: {bad}: {said}"), done.stderr
            assert done.stderr.count("\n") == 1 and not out.exists()


def test_nothing_is_written_if_there_is_nothing_to_resume(table, tmp_path):
    out = tmp_path / "out"
    done = run("train.py", "--stage", "2", "--from-scratch", "--data", table, "--out", out, "--resume")
    line = f"error: {out / 'stage2'}: no such folder, so there is nothing to resume\n"
    assert (done.returncode, done.stderr) == (2, line) and not out.exists()


def test_few_rows_are_read_again_and_again(table, monkeypatch, tmp_path):
    arguments = ["--stage", "2", "--from-scratch", "--data", str(table), "--out", str(tmp_path / "out")]
    arguments += ["--device", "cpu"]
    epochs, sizes = {}, {"vision": 24, "decoder": 192, "stage1": 120, "stage2": 96}

    def note(task, recipe, run) -> None:
        epochs[run.out.name] = recipe.epochs

    for name, size in sizes.items():
        task = SimpleNamespace(model=None, dataset=range(size))
        monkeypatch.setitem(train.STAGES, name, lambda a, task=task: task)
    monkeypatch.setattr(train, "train", note)
    for more, stage_2 in ([], 20000 / 96), (["--epochs", "7"], 7):
        monkeypatch.setattr("sys.argv", ["train.py", *arguments, *more])
        train.main()
        wanted = {"vision": 64000 / 24, "decoder": 8000 / 192, "stage1": 5000 / 120}
        assert epochs == pytest.approx(wanted | {"stage2": stage_2})
