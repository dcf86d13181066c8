"""Rows that are longer than the model reads, and rows whose picture cannot be read: cut, left out, counted, listed."""

import json
import random
import shutil
import time
from pathlib import Path

import make_tokenizers
import pytest
import torch
from conftest import batch_of
from PIL import Image
from torch.utils.data import DataLoader

import train
from minillava import save
from minillava.errors import UserError
from minillava.formats.odd_rows import EMPTY, HALF, TWICE, oddities
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.conversations import ConversationDataset, turns_that_fit
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.inputs.regions import RegionDataset
from minillava.inputs.rejected import CUT, NO_PICTURE, TOO_LONG, Rejected
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer

PATCHES = 4


@pytest.fixture
def processor(tokenizer) -> Processor:
    return Processor(tokenizer, ImageProcessor.for_size(8), PATCHES)


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:-30])
    return tmp_path


@pytest.fixture
def dataset(folder, processor):
    """``dataset(rows, **options)`` opens a ConversationDataset of ``rows``."""

    def make(rows: list[dict], **options) -> ConversationDataset:
        (folder / "rows.json").write_text(json.dumps(rows))
        return ConversationDataset(folder / "rows.json", folder, processor, **options)

    return make


def said(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def pictured(image: str = "0.png", *values: str, **extra) -> dict:
    values = values or ("What is it?", "A fish.")
    return {"image": image, "conversations": said(f"<image>\n{values[0]}", *values[1:]), **extra}


# ---- rows that are odd ----------------------------------------------------------------------------------------------


def test_odd_rows_are_kept_and_told(dataset, folder, processor):
    half = {"conversations": said("What?", "A whole \ud83d\ude00, halves \ude00\ud83d")}
    rows = [pictured(), half, pictured("1.png", "What?", "\n")]
    text = json.dumps(rows).replace('"image": "0', '"image": "none.png", "image": "0')
    (folder / "rows.json").write_text(text)
    data = ConversationDataset(folder / "rows.json", folder, processor)
    assert len(data) == 3 and len(batch_of(data, [0, 1, 2])["pixel_values"]) == 2
    assert data.rejected.found == [
        {"row": 0, "what": TWICE, "why": "'image' is there twice in one object"},
        {"row": 1, "what": HALF, "why": r"\ude00 is half of a character"},
        {"row": 2, "what": EMPTY, "why": "turn 1, an answer, is empty"},
    ]
    assert data.rejected.report()[:3] == [
        "rows kept though a key is there twice, of which the last one counts: 1",
        "rows kept though half of a character is in them, which is read as U+FFFD: 1",
        "rows kept though an answer is empty: 1",
    ]


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ('{"a": 1, "b": {"c": 1, "d": {"e": [{"c": 2}]}}}', []),
        (r'{"a" : ": x", "b": "\": {\"a\":"}', []),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', [TWICE]),
        ('{"a": [{"x" :1, "y": 2, "x": 3}]}', [TWICE]),
        ('{"a": 1, "\\u0061": 2}', [TWICE]),
        (r'{"a": "\\ud83d"}', []),
        (r'{"a": "\\\ud83d"}', [HALF]),
        (r'{"a": "\uD83D\uDE00"}', []),
        (r'{"a": "\uD83D\u0041"}', [HALF]),
        (r'{"\udc00": 1, "a": 1, "a": 2}', [TWICE, HALF]),
    ],
)
def test_what_is_odd_is_told_from_what_looks_like_it(text, odd):
    assert [what for what, _ in oddities(text, json.loads(text))] == odd


def test_an_object_with_many_keys_takes_no_longer(folder):
    text = "{" + ", ".join(f'"{key}": 1' for key in range(30_000)) + ', "0": 2}'
    start = time.process_time()
    assert oddities(text, json.loads(text)) == [(TWICE, "'0' is there twice in one object")]
    assert time.process_time() - start < 1


def test_odd_lines_of_regions_are_told(folder, processor):
    line = '{"image": "0.png", "captions": ["A fish."], "captions": ["\\ud83d"]}\n'
    (folder / "contexts.jsonl").write_text(line)
    found = RegionDataset(folder / "contexts.jsonl", folder, processor).rejected.found
    assert [(one["line"], one["what"]) for one in found] == [(1, TWICE), (1, HALF)]


def test_words_for_a_patch_are_limited(dataset):
    row = {"patch_words": ["a" * 2000] + ["sea"] * (PATCHES - 1), "conversations": said("<image>\nWhat?", "Sea.")}
    assert len(dataset([row])[0, 0, 0]["word_ids"]) == PATCHES
    row["patch_words"][0] += "a"
    with pytest.raises(UserError, match=r"row 0: 'patch_words' must be a list of 4 strings of at most 2,000"):
        dataset([row])


def test_a_row_that_cannot_be_read_again_is_named(dataset, folder, monkeypatch):
    data = dataset([pictured()])

    def fail(_):
        raise RecursionError("too deep")

    monkeypatch.setattr(json, "loads", fail)
    with pytest.raises(UserError, match=r"rows\.json: row 0: not JSON \(too deep\)"):
        data[0, 0, 0]


def test_the_picture_of_a_row_that_is_left_out_is_not_needed(dataset):
    data = dataset([pictured("none.png", "What?", "A fish. " * 200), pictured()], max_length=100)
    assert [line["what"] for line in data.rejected.found] == [TOO_LONG] and len(data) == 1


# ---- rows that are too long -----------------------------------------------------------------------------------------

LONG = [
    pictured("0.png", "What?", "A fish. " * 9, "And?", "A boat.", "Sure?", "Yes. " * 20),
    {"conversations": said("What is red?", "A fish.", "And blue?", "The sea. " * 12)},
    pictured("1.png", "Describe the picture.", "A red fish. " * 8, type="caption"),
    pictured("2.png", "What?", "A tree."),
    pictured("0.png", "What?", "A fish. " * 3, "And a last question without an answer?" * 2),
]


@pytest.mark.parametrize("place", ["first", "last", "random"])
def test_rows_are_cut_after_the_last_whole_turn_that_fits(dataset, tokenizer, place):
    """Compared with the encoding of every beginning of each conversation, with the picture in both places."""
    lengths, outcomes = [], set()
    for row in LONG:
        template = TEMPLATES["brief" if row.get("type") == "caption" else "v0"]
        lengths.append({})
        for turns in (2, 4, 6, None):
            encoded = [
                encode_conversation(row["conversations"][:turns], tokenizer, template, PATCHES, first)
                for first in (True, False)
            ]
            lengths[-1][turns] = max(len(ids) for ids, _ in encoded), encoded
    limits = sorted({length + more for row in lengths for length, _ in row.values() for more in (-1, 0)})
    for limit in limits:
        wanted, lines = [], []
        for number, (row, found) in enumerate(zip(LONG, lengths)):
            whole = len(row["conversations"]) // 2
            turns = max((n for n in (2, 4, 6) if n <= 2 * whole and found[n][0] <= limit), default=0)
            if found[None][0] <= limit:
                wanted.append(found[None][1])
                outcomes.add("whole")
                continue
            if turns:
                wanted.append(found[turns][1])
            outcomes.add(CUT if turns else TOO_LONG)
            why = f"{turns // 2} of {whole} turns fit into {limit} tokens"
            lines.append({"row": number, "what": CUT if turns else TOO_LONG, "why": why})
        if not wanted:
            continue
        data = dataset(LONG, image_place=place, max_length=limit)
        assert data.rejected.found == lines and len(data) == len(wanted)
        for index, encoded in enumerate(wanted):
            for epoch in range(2):
                example = data[0, epoch, index]
                assert len(example["input_ids"]) <= limit
                allowed = {"first": encoded[:1], "last": encoded[1:], "random": encoded}[place]
                assert (example["input_ids"], example["labels"]) in allowed
    assert outcomes == {"whole", CUT, TOO_LONG}


def test_a_row_keeps_its_own_picture_when_others_are_left_out(dataset):
    data = dataset([LONG[0], pictured("1.png"), LONG[0], pictured("2.png")], max_length=60)
    pixels = batch_of(data, [0, 1])["pixel_values"].mean((2, 3))
    assert len(data) == 2 and pixels.argmax(1).tolist() == [1, 2]
    assert data.size(1) == len(json.dumps(pictured("2.png")))


def test_a_file_of_which_nothing_is_left_is_refused(dataset, folder):
    with pytest.raises(UserError) as error:
        dataset(LONG, max_length=10)
    assert str(error.value) == f"{folder / 'rows.json'}: no row is left; row 0: 0 of 3 turns fit into 10 tokens"


def test_lines_of_text_are_cut(dataset, folder, tokenizer):
    (folder / "text.txt").write_text("short\n" + "a red fish " * 50 + "\n")
    data = dataset([pictured()], text_path=folder / "text.txt", max_length=100)
    ids = [*tokenizer.encode("a red fish " * 50, special=False), tokenizer.eos_id]
    assert len(ids) > 100 and data[0, 0, 2] == {"input_ids": ids[:100], "labels": ids[:100]}
    why = f"line 2 of {folder / 'text.txt'} has more than 100 tokens"
    assert data.rejected.found == [{"row": 2, "what": CUT, "why": why}]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Tokenizer:
    """A LLaMA tokenizer that puts a space after every token, trained on texts in a few of the letters it will meet."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    make_tokenizers.write(folder, tokenizer=make_tokenizers.train_llama(make_tokenizers.LEGACY, None))
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.special["<image>"] = tokenizer.vocab_size
    return tokenizer


def test_no_row_that_is_too_long_is_taken_for_one_that_fits(tokenizer, sentencepiece):
    """Most rows are not encoded; that must not pass a row of even one token too many."""
    rng = random.Random(0)
    texts = ["", " ", "~", "a fish", "ab" * 30, "中" * 50, "\0\x01", "é中😀", "<s></s>", "### ", "\n\n"]
    texts += make_tokenizers.fuzzed(200, 1)
    for _ in range(120):
        model, names = rng.choice([(tokenizer, ("v0", "brief")), (sentencepiece, ("v1", "llama-2", "zephyr"))])
        processor = Processor(model, None, 300, TEMPLATES[rng.choice(names)])
        values = ["".join(rng.choices(texts, k=rng.randint(0, 4))).replace("<image>", "") for _ in range(6)]
        row = {"conversations": said(*values[: rng.randint(2, 6)])}
        if rng.random() < 0.7:
            row["conversations"][0]["value"] = f"<image>\n{values[0]}"
        exact = max(len(processor.encode(row["conversations"], first)[0]) for first in (True, False))
        assert turns_that_fit(row, processor, exact) is None
        assert turns_that_fit(row, processor, exact - 1) is not None


# ---- rows whose picture cannot be read ------------------------------------------------------------------------------


def test_a_missing_picture_is_found_when_the_file_is_opened(dataset, folder):
    rows = [pictured(), pictured("none.png"), pictured("1.png"), pictured("gone.png")]
    with pytest.raises(UserError) as error:
        dataset(rows, max_rejected=1)
    assert str(error.value) == (
        f"{folder / 'rows.json'}: row 1: {folder / 'none.png'}: no such picture "
        "(rows whose picture cannot be read: 2, --max-rejected allows 1)"
    )
    data = dataset(rows, max_rejected=2)
    assert [line["row"] for line in data.rejected.found] == [1, 3]
    assert batch_of(data, [0, 1])["pixel_values"].mean((2, 3)).argmax(1).tolist() == [0, 1] and len(data) == 2


def test_by_default_one_row_in_a_thousand_may_lack_its_picture(dataset):
    rows = [pictured("none.png"), *[pictured()] * 998]
    with pytest.raises(UserError, match=r"row 0: .*none\.png: no such picture .*allows 0"):
        dataset(rows, max_rejected=None)
    assert len(dataset([*rows, pictured()], max_rejected=None)) == 999
    with pytest.raises(UserError, match=r"read: 2, --max-rejected allows 1"):
        dataset([*rows, pictured("gone.png")], max_rejected=None)


@pytest.mark.parametrize(
    "image, what",
    [
        ("https://example.org/a.png", "https://example.org/a.png: a URL; download the picture into {folder}"),
        ("photos\\a.png", "{folder}/photos\\a.png: no such picture; write / between folders, not \\"),
        (".", "{folder}: no such picture"),
        ("../0.png", "leads out of"),
        ("x" * 300, ""),
        ("0.png\0", ""),
    ],
)
def test_what_is_wrong_with_a_name_is_said(dataset, folder, image, what):
    with pytest.raises(UserError) as error:
        dataset([pictured(), pictured(image)])
    message = str(error.value)
    assert message.startswith(f"{folder / 'rows.json'}: row 1: ") and what.format(folder=folder) in message


BROKEN = [pictured("0.png"), pictured("broken.png"), pictured("broken.png", "Which?", "None."), pictured("2.png")]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_row_takes_the_place_of_one_whose_picture_is_broken(dataset, folder, workers):
    data = dataset(BROKEN, max_rejected=2)
    file = folder / "out.rejected.jsonl"
    data.rejected.write(file, keep=False)
    data.rejected.file = file
    keys = [[(0, epoch, index)] for epoch in range(2) for index in range(4)]
    loader = DataLoader(data, batch_sampler=keys, collate_fn=data.collate, num_workers=workers)
    shown = [batch["pixel_values"].mean((2, 3)).argmax().item() for batch in loader]
    assert shown == [0, 2, 2, 2] * 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == [1, 2]  # once each, though both are met in both epochs
    assert all(line["what"] == NO_PICTURE and "broken.png: not a readable" in line["why"] for line in lines)
    assert data.rejected.report() == [
        "rows left out because their picture cannot be read: 2",
        f"listed in {file}",
    ]


def test_more_broken_pictures_than_allowed_end_the_run(dataset, folder):
    data = dataset([*BROKEN, pictured("broken.png", "Why?", "So.")], max_rejected=2)
    data.rejected.file = folder / "out.rejected.jsonl"
    assert torch.equal(data[0, 0, 1]["pixel_values"], data[0, 0, 3]["pixel_values"])
    with pytest.raises(UserError) as error:
        data[0, 0, 4]
    assert str(error.value).startswith(f"{folder / 'rows.json'}: row 4: {folder / 'broken.png'}: not a readable")
    assert str(error.value).endswith("(rows whose picture cannot be read: 3, --max-rejected allows 2)")


def test_a_file_of_broken_pictures_only_is_refused(dataset):
    with pytest.raises(UserError, match="no picture can be read"):
        dataset([pictured("broken.png")] * 2, max_rejected=5)[0, 0, 0]


def test_a_resumed_run_keeps_what_was_found_before(tmp_path):
    file = tmp_path / "out.rejected.jsonl"

    def run(keep: bool, met: list[int]) -> Rejected:
        rejected = Rejected("rows.json", 10)
        rejected.add(3, CUT, "long")
        rejected.write(file, keep)
        rejected.file = file
        for number in met:
            rejected.add(number, NO_PICTURE, "gone")
        return rejected

    assert [line["row"] for line in run(False, [7, 5, 7]).lines()] == [3, 7, 5]
    with file.open("a") as torn:
        torn.write('{"row": 9, "what"{"row": 9}\n{"row": 9, "what": [], "why": ""}\n{"row": 9, "what"')
    assert [line["row"] for line in run(True, [5, 8]).lines()] == [3, 7, 5, 8]
    assert [line["row"] for line in run(False, []).lines()] == [3]
    assert len(file.read_text().splitlines()) == 1


def test_nothing_found_writes_no_file_and_says_nothing(tmp_path):
    rejected = Rejected("rows.json")
    rejected.write(tmp_path / "out.rejected.jsonl", keep=False)
    rejected.file = tmp_path / "out.rejected.jsonl"
    rejected.check()
    assert rejected.report() == [] and not rejected.file.exists()


# ---- captions for the vision tower ----------------------------------------------------------------------------------


@pytest.fixture
def regions(folder, processor):
    """``regions(captions by picture, **options)`` opens a RegionDataset; a box has the phrase "a fish"."""

    def make(captions: dict[str, list[str]], phrase: str = "a fish", **options) -> RegionDataset:
        box = [{"phrase": phrase, "bbox": [0, 0, 1, 1]}]
        lines = [json.dumps({"image": name, "captions": told, "instances": box}) for name, told in captions.items()]
        (folder / "contexts.jsonl").write_text("\n\n".join(lines), encoding="utf-8-sig")
        return RegionDataset(folder / "contexts.jsonl", folder, processor, **options)

    return make


def test_texts_longer_than_the_text_tower_reads_are_cut_and_keep_their_end(regions, tokenizer):
    long, short = "a red fish in the sea " * 20, "a boat"
    exact = next(n for n in range(200) if len(tokenizer.encode("a" * n, special=False)) == 95) * "a"
    data = regions({"0.png": [long], "1.png": [short], "2.png": [exact]}, phrase="a blue fish " * 50)
    batch = batch_of(data, [0, 1, 2])
    captions = batch["captions"].tolist()
    assert batch["captions"].shape == (3, 96) and batch["phrases"].shape == (1, 96)
    assert captions[0] == [*tokenizer.encode(long, special=False)[:95], tokenizer.eos_id]
    assert captions[1] == [*tokenizer.encode(short, special=False)] + [tokenizer.eos_id] * (
        96 - len(tokenizer.encode(short, special=False))
    )
    assert captions[2] == [*tokenizer.encode(exact, special=False), tokenizer.eos_id]
    assert batch["phrases"][0, -1] == tokenizer.eos_id
    found = [(line["line"], line["what"], line["why"]) for line in data.rejected.found]
    assert found == [(n, CUT, f"texts of more than 96 tokens: {count} of 2") for n, count in ((1, 2), (3, 1), (5, 1))]


def test_lines_without_a_readable_picture_are_left_out_up_to_a_number(regions, folder):
    captions = {name: ["a fish"] for name in ("0.png", "none.png", "broken.png", "2.png")}
    with pytest.raises(UserError, match=r"contexts\.jsonl: line 3: .*none\.png: no such picture \(lines whose"):
        regions(captions)
    data = regions(captions, max_rejected=1)
    assert len(data) == 3
    with pytest.raises(UserError, match=r"contexts\.jsonl: line 5: .*broken\.png: not a readable"):
        data[0, 0, 1]
    data = regions(captions, max_rejected=2)
    assert batch_of(data, [1])["pixel_values"].mean((2, 3)).argmax() == 2


# ---- in a training --------------------------------------------------------------------------------------------------


@pytest.fixture
def train_on(tiny_model, folder, monkeypatch, capsys):
    """``train_on(rows, *options)`` runs ``train.py --stage 2`` on a tiny model: its standard output."""
    save(tiny_model, folder / "model")

    def run(rows: list[dict], *options: str) -> str:
        (folder / "rows.json").write_text(json.dumps(rows))
        places = {"--model": "model", "--data": "rows.json", "--out": "out"}
        arguments = [text for option, name in places.items() for text in (option, str(folder / name))]
        monkeypatch.setattr("sys.argv", ["train.py", "--stage", "2", "--device", "cpu", *arguments, *options])
        train.main()
        return capsys.readouterr().out

    return run


def listed(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "out" / "stage2.rejected.jsonl").read_text().splitlines()
    return [(line["row"], line["what"]) for line in map(json.loads, lines)]


def test_a_training_says_what_it_cuts_and_leaves_out_and_lists_it(train_on, folder):
    rows = [
        pictured("0.png", "What?", "A fish.", "And?", "A red fish. " * 200),
        pictured("0.png", "What?", "A red fish. " * 200),
        pictured("none.png"),
        *[pictured("1.png")] * 3,
        pictured("broken.png"),
    ]
    out = train_on(rows, "--max-rejected", "2", "--batch-size", "5").splitlines()
    said = [line for line in out if line.startswith("stage2: rows ") or "listed" in line]
    assert said == [
        "stage2: rows cut to what the model reads: 1",
        "stage2: rows left out because not even one turn fits: 1",
        "stage2: rows left out because their picture cannot be read: 1",
        f"stage2: listed in {folder / 'out' / 'stage2.rejected.jsonl'}",
        "stage2: rows left out because their picture cannot be read: 1",  # the broken one, found since
        f"stage2: listed in {folder / 'out' / 'stage2.rejected.jsonl'}",
    ]
    assert listed(folder) == [(0, CUT), (1, TOO_LONG), (2, NO_PICTURE), (6, NO_PICTURE)]


def test_a_training_reads_rows_of_the_length_that_is_asked_for(train_on, folder):
    assert "listed" not in train_on([pictured()])
    shutil.rmtree(folder / "out")
    with pytest.raises(UserError, match="no row is left; row 0: 0 of 1 turns fit into 20 tokens"):
        train_on([pictured()], "--max-length", "20")
    with pytest.raises(UserError, match="--max-length 257: the model reads at most 256 tokens"):
        train_on([pictured()], "--max-length", "257")


def test_a_missing_picture_ends_a_training_before_its_first_step(train_on, folder):
    with pytest.raises(UserError, match=r"rows\.json: row 1: .*none\.png: no such picture"):
        train_on([pictured(), pictured("none.png")])
    assert [path.name for path in (folder / "out").iterdir()] == ["train.lock"]
