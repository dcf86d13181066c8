"""The report of ``python -m data.check``, compared with counts made by hand and by the encoder of training."""

import json
import os
import random
import re
import statistics
import sys
from pathlib import Path

import pytest
from PIL import Image

from data import check as module
from data.check import main, render
from minillava import Tokenizer
from minillava.config import PRETRAINED
from minillava.errors import UserError, printable, run_program
from minillava.inputs import image as image_module
from minillava.inputs.byte_bpe import ByteBPE
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.templates import TEMPLATES

PATCHES = 64  # per picture, in the shipped model


def said(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def pictured(image: str, *values: str, **extra) -> dict:
    return {"id": image, "image": image, "conversations": said(f"<image>\n{values[0]}", *values[1:]), **extra}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (24, 16), "red").save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    return tmp_path


@pytest.fixture
def check(folder, capsys, monkeypatch):
    """``check(rows or bytes, *options)`` runs the program: its exit code, stdout and stderr."""

    def run(content, *options: str) -> tuple[int, str, str]:
        path = folder / "rows.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        monkeypatch.setattr(sys, "argv", ["check", str(path), *options])
        code = 0
        try:
            run_program(main)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(PRETRAINED / "llava")


FINE = [
    pictured("a.png", "What is it?", "A red fish.", type="conversation"),
    pictured(
        "a.png", "How many?", "One.", "Sure?", "Yes, there is one fish.", "Why?", "I see it.", type="conversation"
    ),
    {"id": "text", "conversations": said("What is red?", "A fish can be.")},
    pictured("b.png", "Describe the image concisely.", "A fish.", type="caption"),
    pictured("c.png", "Describe the image in detail.", "A fish " * 40, type="detail"),
]


def numbers(out: str) -> dict[str, int]:
    """The lines of the report that hold a name and a number."""
    found = re.findall(r"^ *(\S.*?) {2,}([\d,]+)(?:   .*)?$", out, re.MULTILINE)
    return {name: int(number.replace(",", "")) for name, number in found}


def test_file_without_fault_is_counted(check, tokenizer):
    code, out, err = check(FINE)
    assert code == 0 and err == ""
    encoded = [
        encode_conversation(
            row["conversations"], tokenizer, TEMPLATES["brief" if row.get("type") == "caption" else "v0"], PATCHES
        )
        for row in FINE
    ]
    lengths = sorted(len(ids) for ids, _ in encoded)
    assert numbers(out) == {
        "rows": 5,
        "with a picture": 4,
        "of type conversation": 2,
        "of type caption": 1,
        "of type detail": 1,
        "of type (none)": 1,
        "pictures": 3,
        "turns": 7,
        "tokens": sum(lengths),
        "with loss": sum(label != -100 for _, labels in encoded for label in labels),
        "rows too long": 0,
        "malformed rows": 0,
        "missing or broken pictures": 0,
    }
    assert "per row: min 1, median 1, 95 % 2.6, max 3\n" in out
    most = f"{lengths[3] + 0.8 * (lengths[4] - lengths[3]):.1f}".removesuffix(".0")  # index 0.95 * (5 - 1) = 3.8
    median = statistics.median(lengths)
    assert f"per row: min {lengths[0]}, median {median}, 95 % {most}, max {lengths[4]}\n" in out


def test_rows_longer_than_the_model_reads_are_counted_and_named(check, tokenizer):
    long = "A red fish in the sea. " * 400
    rows = [*FINE, pictured("a.png", "Tell.", long), pictured("a.png", "What?", "A fish.", "Tell.", long)]
    code, out, _ = check(rows)
    assert code == 0 and numbers(out)["rows too long"] == 2 and "of more than 1,024 tokens" in out
    assert re.search(r"^  row 5: [\d,]{5} tokens, left out: not even one turn fits$", out, re.MULTILINE)
    assert re.search(r"^  row 6: [\d,]{5} tokens, cut after turn 1 of 2$", out, re.MULTILINE)
    assert numbers(check(rows, "--max-length", "64000")[1])["rows too long"] == 0
    turns = FINE[1]["conversations"]
    short, whole = (len(encode_conversation(turns[:n], tokenizer)[0]) for n in (4, 6))
    for limit, line in ((whole - 1, f"{whole} tokens, cut after turn 2 of 3"), (short - 1, "cut after turn 1 of 3")):
        assert line in check(FINE[1:2], "--max-length", str(limit))[1]
    assert numbers(check(FINE[1:2], "--max-length", str(whole))[1])["rows too long"] == 0


def test_characters_that_the_tokenizer_leaves_out_are_counted(check, monkeypatch):
    rows = [*FINE, {"conversations": said("What\x06?\x06", "A f\x06ish é.")}]
    code, out, _ = check(rows)
    assert code == 0 and "unknown characters" not in out
    monkeypatch.setattr(ByteBPE, "__init__", without(ByteBPE.__init__, b"\x06\xa9"))
    code, out, _ = check(rows)
    assert code == 0 and numbers(out)["unknown characters"] == 4


def without(init, missing: bytes):
    """ByteBPE.__init__ for a vocabulary that lacks some bytes."""

    def change(self, files):
        init(self, files)
        self.missing = missing

    return change


FAULTY = {  # row number -> the row, and what the report says of it
    1: ({"id": 1, "image": "a.png"}, "no 'conversations'"),
    2: ({"conversations": {"from": "human"}}, "'conversations' must be a list of turns"),
    3: (pictured("a.png", "What?"), "no answer"),
    5: ({**FINE[0], "image": ["a.png"]}, "'image' is not a string"),
    6: ({**FINE[0], "conversations": said("<image>\nWhat?", "A", "B", "C")[::-1]}, "turn 0 must be"),
    8: ({**FINE[0], "conversations": said("What?", "No mark.")}, "the row has 'image', but no <image> in turn 0"),
    9: ({"conversations": said("<image>\nWhat?", "No picture.")}, "the row has <image> in turn 0, but no 'image'"),
    10: ({**FINE[0], "conversations": said("<image>\nWhat?", "An <image>.")}, "turn 1 contains <image>"),
}
MISSING = {
    0: ("none.png", "no such picture"),
    4: ("broken.png", "not a readable picture"),
    7: ("../outside.png", "leads out of"),
    12: ("none.png", None),  # reported at row 0
    13: ("rows.json", "not a readable picture"),
}


def test_every_faulty_row_and_picture_is_listed_with_its_row(check):
    rows = []
    for index in range(15):
        if index in FAULTY:
            rows.append(FAULTY[index][0])
        else:
            rows.append(pictured(MISSING[index][0] if index in MISSING else "a.png", "What?", "A fish."))
    code, out, err = check(rows)
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert err.strip().endswith("rows.json: malformed rows 8, missing or broken pictures 4")
    assert numbers(out)["malformed rows"] == 8 and numbers(out)["missing or broken pictures"] == 4
    malformed, pictures = out.split("\nmalformed rows ")[1].split("\nmissing or broken pictures ")
    told = {int(row): what for row, what in re.findall(r"^  row (\d+): (.*)$", malformed, re.MULTILINE)}
    assert told.keys() == FAULTY.keys()
    assert all(what in told[row] for row, (_, what) in FAULTY.items())
    told = {int(row): what for row, what in re.findall(r"^  row (\d+)(.*)$", pictures, re.MULTILINE)}
    assert told.keys() == {0, 4, 7, 13}
    assert all(MISSING[row][0] in what and MISSING[row][1] in what for row, what in told.items())
    assert told[0].startswith(" and 1 more: ") and told[4].startswith(": ")


def test_long_lists_of_faults_are_cut_unless_all_are_wanted(check):
    rows = [pictured(f"{index}.png", "What?", "A fish.") for index in range(50)] + [{}] * 30
    code, out, _ = check(rows)
    assert code == 2 and "  and 30 more: --all lists them" in out and "  and 10 more: --all lists them" in out
    assert len(re.findall(r"^  row", out, re.MULTILINE)) == 40
    code, out, _ = check(rows, "--all")
    assert code == 2 and len(re.findall(r"^  row", out, re.MULTILINE)) == 80 and "more:" not in out


def test_broken_json_is_named_after_what_could_be_read(check):
    text = json.dumps(FINE, indent=1)
    code, out, err = check(text[: text.rindex("conversations")].encode())
    assert code == 2 and "rows.json: malformed rows 1, missing or broken pictures 0" in err
    assert (numbers(out)["rows"], numbers(out)["with a picture"], numbers(out)["pictures"]) == (4, 3, 2)
    line = text[: text.rindex("conversations")].count("\n") + 1
    assert f"  not JSON at row 4, line {line}: " in out


def test_example_marks_the_tokens_that_have_loss(check, tokenizer):
    _, plain, _ = check(FINE[1:])
    example = plain.split("row 0, as the model reads it:\n")[1]
    assert re.findall(r"\[\[(.*?)\]\]", example) == [" One.###", " Yes, there is one fish.###", " I see it.###"]
    ids, _ = encode_conversation(FINE[1]["conversations"], tokenizer, TEMPLATES["v0"], PATCHES, True)
    whole = tokenizer.decode(ids).replace("<image>" * PATCHES, f"<image> x {PATCHES}")
    assert example.replace("[[", "").replace("]]", "").rstrip("\n") == whole.rstrip("\n")
    _, coloured, _ = check(FINE[1:], "--colour")
    assert coloured.split("reads it:\n")[1] == example.replace("[[", "\033[32m").replace("]]", "\033[0m")
    assert "\033" not in plain


def test_example_is_a_row_with_a_picture_where_there_is_one(check):
    assert "row 1, as the model reads it" in check([FINE[2], FINE[0], FINE[1]])[1]
    assert "row 0, as the model reads it" in check([FINE[2], FINE[2]])[1]


def test_text_in_a_file_does_not_reach_the_terminal_raw(check, tokenizer):
    rows = [pictured("a.png", "Hi\x1b[2J", "There\x1b]0;title\x07 \ud83d", type="\x1b[31m"), {"image": "a\x1b[2J"}]
    rows.append(pictured("no\n\x1b[2Jsuch.png", "What?", "A fish."))
    code, out, err = check(rows)
    assert code == 2 and "\x1b" not in out + err and "\x07" not in out + err
    assert "Hi\\x1b[2J" in out and "no\\n\\x1b[2Jsuch.png" in out
    assert printable("é 中 😀") == "é 中 😀"


def test_toy_rows_with_pictures_given_as_words_pass(check):
    row = {"id": 1, "patch_words": ["sea"] * PATCHES, "type": "notes", "conversations": said("<image>\nWhat?", "Sea.")}
    assert check([row])[0] == 0
    code, out, _ = check([{**row, "patch_words": ["sea"]}])
    assert code == 2 and "row 0: 'patch_words' must be a list of 64 strings" in out


def test_arguments_that_are_wrong_are_named(check, tmp_path):
    code, _, err = check(FINE, "--image-folder", str(tmp_path / "nowhere"))
    assert code == 2 and err == f"error: {tmp_path / 'nowhere'}: no such folder\n"
    code, _, err = check(FINE, "--model", str(tmp_path))
    assert code == 2 and "config.json" in err
    code, out, _ = check(FINE, "--template", "v1")
    assert code == 0 and "USER: <image> x 64\nWhat is it? ASSISTANT:[[ A red fish.</s>]]" in out


def test_what_the_crop_cuts_is_told_and_shown(check, folder):
    Image.new("RGB", (60, 20), "lime").save(folder / "c.png")
    Image.new("RGB", (20, 20), "red").save(folder / "square.png")
    for side, colour in ((0, "red"), (40, "blue")):
        image = Image.open(folder / "c.png")
        image.paste(colour, (side, 0, side + 20, 20))
        image.save(folder / "c.png")
    rows = [*FINE, pictured("square.png", "What?", "A square."), pictured("none.png", "What?", "Nothing.")]
    code, out, _ = check(rows, "--image-fit", "crop", "--show", str(folder / "cut.png"))
    assert code == 2 and numbers(out)["pictures"] == 5
    line = "pictures cut                           3   % of their area: min 33.3, median 33.3, 95 % 63.3, max 66.7; "
    assert f"{line}--image-fit pad shows all\n" in out
    assert f"\nc.png as the vision tower sees it, without 66.7% of its area: {folder / 'cut.png'}\n" in out
    cut = Image.open(folder / "cut.png")
    assert cut.size == (64, 64) and cut.crop((8, 0, 56, 64)).getextrema() == ((0, 0), (255, 255), (0, 0))

    code, out, _ = check(FINE, "--show", str(folder / "whole.png"))  # the shipped model pads
    assert code == 0 and "pictures cut" not in out and "a.png as the vision tower sees it, without 0.0%" in out
    whole = Image.open(folder / "whole.png")
    assert [whole.getpixel((32, y)) for y in (0, 32, 63)] == [(122, 116, 104), (255, 0, 0), (122, 116, 104)]


def test_what_cannot_be_shown_is_named(check, folder):
    code, _, err = check(FINE, "--show", str(folder / "a.png"))
    assert code == 2 and err == f"error: {folder / 'a.png'}: File exists\n"
    code, _, err = check([FINE[2], pictured("none.png", "What?", "A.")], "--show", str(folder / "new.png"))
    assert code == 2 and err == "error: --show: there is no picture to show\n" and not (folder / "new.png").exists()


def test_a_picture_that_would_grow_too_large_is_a_fault(check, folder, monkeypatch):
    monkeypatch.setattr(image_module, "MAX_GROWN", 24 * 24 - 1)
    code, out, _ = check(FINE)
    assert code == 2 and "row 0 and 1 more: 24 x 16 pixels would become 24 x 24: too large" in out


def test_pictures_are_processed_as_in_training(check, monkeypatch):
    def fail(self, image):
        raise UserError("no view of it")

    monkeypatch.setattr(image_module.ImageProcessor, "view", fail)
    code, out, _ = check(FINE)
    assert code == 2 and "row 0 and 1 more: no view of it" in out


def test_image_folder_may_be_elsewhere(check, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    code, out, _ = check(FINE, "--image-folder", str(other))
    assert code == 2 and numbers(out)["missing or broken pictures"] == 3


def test_keys_of_judgement_pass_or_are_named_with_their_row_and_turn(check):
    def judged(**keys) -> dict:
        row = pictured("a.png", "Is there a fish?", "No.", "Sure?", "Yes.")
        row["conversations"][3] |= keys
        return row

    assert check([judged(type="sure", need=[["yes", "sure"]], refuse=["no"], more=1)])[0] == 0
    code, out, err = check([FINE[0], judged(need=["yes"]), judged(refuse="no"), judged(type=["sure"])])
    assert code == 2 and len(err.splitlines()) == 1
    assert "  row 1: turn 3: 'need' must be a list of lists of words\n" in out
    assert "  row 2: turn 3: 'refuse' must be a list of words\n" in out
    assert "  row 3: turn 3: 'type' must be a string\n" in out


def test_types_and_things_that_evaluation_cannot_use_are_named(check):
    code, out, err = check([FINE[0], {**FINE[0], "type": None}, {**FINE[0], "type": 3}, {**FINE[4], "things": "fish"}])
    assert code == 2 and "malformed rows 3" in err
    assert "  row 1: 'type' must be a string\n  row 2: 'type' must be a string\n" in out
    assert "  row 3: 'things' must be a list of words, since the row has a description\n" in out
    assert check([{**FINE[4], "things": ["red fish"]}])[0] == 0


def test_a_file_of_which_training_would_keep_no_row_is_refused(check, folder):
    long = pictured("a.png", "What?", "x" * 200_000)
    code, out, err = check([long, long])
    assert code == 2 and "malformed rows 1" in err
    assert "  no row is left: no turn of any row fits into 1,024 tokens\n" in out
    assert check([long, FINE[0]])[0] == 0
    long["image"] = "broken.png"  # the picture of a row that is left out is not needed
    assert check([long, FINE[0]])[0] == 0


def test_odd_rows_are_counted_and_named(check):
    text = json.dumps([FINE[0], pictured("a.png", "What?", "It is \ud83d."), pictured("a.png", "What?", " ")])
    code, out, _ = check(text.replace('"id": ', '"id": 1, "id": ', 1).encode())
    assert code == 0
    for kind, why in (
        ("a key is there twice, of which the last one counts", "row 0: 'id' is there twice in one object"),
        ("half of a character is in them, which is read as U+FFFD", r"row 1: \ud83d is half of a character"),
        ("an answer is empty", "row 2: turn 1, an answer, is empty"),
    ):
        assert f"odd rows                               1   kept though {kind}\n  {why}\n" in out


@pytest.mark.parametrize("way", ["read-only folder", "full disk"])
def test_what_cannot_be_written_is_one_line(check, folder, monkeypatch, way):
    def fail(*_):
        raise OSError(28, "No space left on device")  # names no file, as a write's

    monkeypatch.setattr(*((os, "fsync", fail) if way == "full disk" else ("minillava.files.open", fail)), raising=False)
    code, _, err = check(FINE, "--show", str(folder / "new.png"))
    assert code == 2 and err == f"error: {folder / 'new.png'}: No space left on device\n"
    assert not (folder / "new.png").exists()


GARBAGE = [
    None,
    True,
    5,
    -1e300,
    "",
    "x",
    [],
    {},
    [[]],
    {"from": "human"},
    "<image>",
    "\ud83d",
    ["human"],
    "a.png",
    "\0",
]


def garbage(rng: random.Random, depth: int = 0):
    """A valid row with a few values replaced by anything; rarely, no row at all."""
    row = pictured("a.png", "What?", "A fish.", "And?", "No.", type="detail")
    if rng.random() < 0.2:
        row["patch_words"] = ["a"] * PATCHES
        del row["image"]
    for _ in range(rng.randint(0, 2)):
        key = rng.choice([*row, "image", "patch_words"])
        row[key] = rng.choice(GARBAGE)
        if isinstance(row.get("conversations"), list) and row["conversations"] and rng.random() < 0.5:
            turn = rng.randrange(len(row["conversations"]))
            if isinstance(row["conversations"][turn], dict):
                key = rng.choice(["from", "value", "type", "need", "refuse"])
                row["conversations"][turn][key] = rng.choice(GARBAGE)
    return row if rng.random() < 0.97 else rng.choice(GARBAGE)


def test_no_garbage_ends_in_a_traceback(check):
    """Each file ends in exit code 0, or in 2 with one line on stderr. A traceback would fail the call of check()."""
    rng = random.Random(0)
    codes = []
    for attempt in range(250):
        text = json.dumps([garbage(rng) for _ in range(rng.randint(1, 3))]).encode()
        if attempt % 3 == 0:
            data = bytearray(text)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            text = bytes(data)
        elif attempt % 10 == 1:
            text = rng.randbytes(rng.randrange(2000))
        code, _, err = check(text)
        assert code in (0, 2) and len(err.strip().splitlines()) == (code == 2)
        codes.append(code)
    assert codes.count(0) > 10 and codes.count(2) > 100


@pytest.mark.parametrize("length, code", [(400_000, 0), (2_000_000, 2)])
def test_a_turn_of_blanks_does_no_harm(check, length, code):
    assert check([pictured("a.png", "What?", " " * length), FINE[0]])[0] == code


def test_render_keeps_neighbouring_answers_apart(tokenizer):
    ids = [*tokenizer.encode("a"), *tokenizer.encode("b")]
    assert (
        render(ids, [-100, *ids[1:]], tokenizer, False) == f"{tokenizer.decode(ids[:1])}[[{tokenizer.decode(ids[1:])}]]"
    )
    assert module.SHOWN == 20
