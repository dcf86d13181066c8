"""The caption filter, compared with a brute-force version of the paper's rule; training reads its rows."""

import json
import random
import re
import subprocess
import sys
import types
from array import array
from collections import Counter
from pathlib import Path

import pytest
from conftest import batch_of
from PIL import Image

from data import filter_captions as module
from data import noun_phrases
from data.captions import read_captions
from data.filter_captions import Phrases, filter_captions, select
from data.noun_phrases import by_rule, find_chunker
from data.requests import BRIEF_REQUESTS
from minillava.errors import UserError
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor

ROOT = Path(__file__).parent.parent


# ---- noun phrases ---------------------------------------------------------------------------------------------------

CAPTIONS = {
    "A man riding the brown horse.": ["man", "brown horse"],
    "Two dogs and a cat are sleeping on his sofa": ["dogs", "cat", "sofa"],
    "the ball is red": ["ball"],
    "A SMILING woman wearing a black hat, in front of the building": [
        "smiling woman",
        "black hat",
        "front",
        "building",
    ],
    "man playing guitar and wearing sunglasses": ["man", "guitar", "sunglasses"],
    "actor attends the premiere of comedy": ["actor", "premiere", "comedy"],
    "people walking slowly across a busy street at night": ["people", "busy street", "night"],
    "a dining table with three wooden chairs": ["dining table", "wooden chairs"],
    "a well-known artist's house; the artist's house": ["well-known artist's house", "artist's house"],
    "the girl’s hat isn’t red": ["girl's hat"],
    "a dog, a dog and another dog": ["dog"],
    "the end of the evening in 2012": ["end", "evening"],
    "a butterfly and its family on the bed": ["butterfly", "family", "bed"],
    "this is it!": [],
    "": [],
    "\0 ### 😀 ...": [],
    "été à la plage": ["été à la plage"],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_rules_find_noun_phrases(caption):
    assert by_rule(caption) == CAPTIONS[caption]


def without_spacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)  # importing it raises ImportError


def test_rules_serve_where_spacy_or_its_model_is_missing(monkeypatch):
    without_spacy(monkeypatch)
    name, chunk = find_chunker()
    assert "own rules" in name and list(chunk([("A red fish.", 5)])) == [(["red fish"], 5)]

    def load(*arguments, **options):
        raise OSError("[E050] Can't find model")

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    assert "own rules" in find_chunker()[0]


def test_spacy_serves_where_it_is_there(monkeypatch):
    """A fake spaCy reads "DET:the NOUN:fish | ...": bars separate noun phrases, and words have their part of speech."""

    def token(text: str):
        kind, word = text.split(":")
        return types.SimpleNamespace(pos_=kind, lower_=word.lower())

    def pipe(pairs, as_tuples):
        assert as_tuples
        for text, other in pairs:
            chunks = [[token(word) for word in chunk.split()] for chunk in text.split("|")]
            yield types.SimpleNamespace(noun_chunks=chunks), other

    loaded = []
    spacy = types.SimpleNamespace(load=lambda name, **_: loaded.append(name) or types.SimpleNamespace(pipe=pipe))
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    name, chunk = find_chunker()
    assert loaded == [noun_phrases.MODEL] and "spaCy" in name
    text = "DET:The ADJ:Red NOUN:fish | NUM:two NOUN:Fish | PRON:he | NOUN:fish"
    assert list(chunk([(text, 7), ("PRON:it", 8)])) == [(["red fish", "fish"], 7), ([], 8)]


# ---- the rule -------------------------------------------------------------------------------------------------------


def numbered(corpus: list[list[str]]) -> tuple[Phrases, array]:
    phrases = Phrases()
    for held in corpus:
        phrases.add(held)
    return phrases, phrases.count()


def brute_force(corpus: list[list[str]], most: int, rng: random.Random) -> set[int]:
    """The rule in the paper's appendix, sentence by sentence: the captions it takes."""
    captions: dict[str, list[int]] = {}
    for index, held in enumerate(corpus):
        for phrase in held:
            captions.setdefault(phrase, []).append(index)
    pool: set[int] = set()
    for phrase in sorted(captions, key=lambda phrase: len(captions[phrase])):
        if len(captions[phrase]) < 3:
            continue
        pool |= set(captions[phrase] if len(captions[phrase]) <= most else rng.sample(captions[phrase], most))
    return pool


def random_corpus(rng: random.Random) -> list[list[str]]:
    """A few frequent phrases and many rare ones: phrase k has a frequency proportional to 1 / k."""
    words = [f"p{k}" for k in range(1, 200)]
    weights = [1 / k for k in range(1, 200)]
    return [list(dict.fromkeys(rng.choices(words, weights, k=rng.randrange(5)))) for _ in range(rng.randrange(1, 400))]


def test_selection_is_the_brute_force_one_where_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(module, "MOST", 10**6)
    rng = random.Random(0)
    for _ in range(200):
        corpus = random_corpus(rng)
        taken = select(*numbered(corpus), rng)
        assert {index for index, yes in enumerate(taken) if yes} == brute_force(corpus, 10**6, rng)


def test_random_draws_have_the_distribution_of_brute_force(monkeypatch):
    """Frequencies of captions and of sample sizes agree with brute force: 1,500 draws each, four standard errors."""
    monkeypatch.setattr(module, "MOST", 6)
    corpus = [["a"]] * 10 + [["a", "b"]] * 4 + [["b"]] * 8 + [["c"]] * 6 + [["c", "a", "d"]] + [["d"], ["e"], []]
    draws = 1500
    ours, theirs, sizes = Counter(), Counter(), ([], [])
    for seed in range(draws):
        taken = select(*numbered(corpus), random.Random(seed))
        chosen = brute_force(corpus, 6, random.Random(-seed - 1))
        ours.update(index for index, yes in enumerate(taken) if yes)
        theirs.update(chosen)
        sizes[0].append(sum(taken))
        sizes[1].append(len(chosen))
    for index in range(len(corpus)):
        share = theirs[index] / draws
        error = (2 * max(share * (1 - share), 0.0) / draws) ** 0.5
        assert abs(ours[index] - theirs[index]) / draws <= 4 * error, index
    spread = [Counter(size) for size in sizes]
    for size in spread[0] | spread[1]:
        expected = max(spread[0][size], spread[1][size])
        assert abs(spread[0][size] - spread[1][size]) <= 4 * (2 * expected) ** 0.5 + 1, size


def test_a_phrase_gives_100_captions_at_most_and_all_up_to_100():
    counts = {"once": 1, "twice": 2, "thrice": 3, "many": 99, "full": 100, "over": 101, "far over": 2000}
    corpus = [[phrase] for phrase, count in counts.items() for _ in range(count)]
    random.Random(1).shuffle(corpus)
    for seed in range(3):
        taken = select(*numbered(corpus), random.Random(seed))
        kept = Counter(held[0] for held, yes in zip(corpus, taken) if yes)
        assert kept == {"thrice": 3, "many": 99, "full": 100, "over": 100, "far over": 100}


# ---- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path, monkeypatch) -> list[tuple[str, str, list[str]]]:
    """(image, caption, its phrases) for 900 captions, in all three formats; a phrase is in 1 to 282 of them."""
    without_spacy(monkeypatch)
    rng = random.Random(3)
    rows = []
    for index in range(900):
        number = rng.choice([0] * 8 + [1] * 4 + [2, 3] + list(range(4, 200)) * rng.randrange(2))
        held = [f"thing{'abcdefghij'[number % 10]} kind{'abcdefghijklmnopqrst'[number // 10]}"]
        caption = f"there is a {held[0]}"
        if rng.random() < 0.3:
            held.append("green boat")
            caption += " beside the green boat."
        rows.append((f"images/{index}.jpg", caption, held))
    (tmp_path / "a.tsv").write_text("".join(f"{image}\t{caption}\n" for image, caption, _ in rows))
    meta = [{"id": n, "image": i, "caption": c, "blip_caption": "no"} for n, (i, c, _) in enumerate(rows)]
    (tmp_path / "b.json").write_text(json.dumps(meta))
    turns = [[{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": c}] for _, c, _ in rows]
    chat = [{"id": n, "image": i, "conversations": t} for n, ((i, _, _), t) in enumerate(zip(rows, turns))]
    (tmp_path / "c.json").write_text(json.dumps(chat, indent=1))
    return rows


def test_planted_corpus_is_filtered_as_by_brute_force(planted, tmp_path):
    table = filter_captions(tmp_path / "a.tsv", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    indices = [int(row["image"][7:-4]) for row in rows]
    assert indices == sorted(set(indices))  # none twice, in the file's order
    held = [phrases for _, _, phrases in planted]
    counts = Counter(phrase for phrases in held for phrase in phrases)
    assert min(counts.values()) < 3 and sum(count > 100 for count in counts.values()) >= 3
    assert sum(3 <= count <= 100 for count in counts.values()) >= 20
    taken = set(indices)
    for index, phrases in enumerate(held):
        if any(3 <= counts[phrase] <= 100 for phrase in phrases):
            assert index in taken
        if all(counts[phrase] < 3 for phrase in phrases):
            assert index not in taken
    after = Counter(phrase for index in taken for phrase in held[index])
    assert all(after[phrase] >= min(count, 100) for phrase, count in counts.items() if count >= 3)
    sizes = [len(brute_force(held, 100, random.Random(seed))) for seed in range(60)]
    assert min(sizes) - 5 <= len(taken) <= max(sizes) + 5

    lines = re.findall(r"^ *(\S.*?) {2,}([\d,]+) +([\d,]+)$", table, re.MULTILINE)
    numbers = {name: (int(one.replace(",", "")), int(two.replace(",", ""))) for name, one, two in lines}
    assert numbers["captions"] == (900, len(taken))
    concepts = [phrase for phrase, count in counts.items() if count >= 3]
    assert numbers["noun phrases, in 3 or more"] == (len(concepts), len(concepts))
    for low, high in ((3, 9), (10, 99), (100, 999)):
        true = tuple(sum(low <= of[phrase] <= high for phrase in concepts) for of in (counts, after))
        assert numbers[f"in {low} to {high} captions"] == true
    named = list(numbers)[-10:]
    assert [numbers[phrase] for phrase in named] == [(counts[phrase], after[phrase]) for phrase in named]
    assert [counts[phrase] for phrase in named] == [count for _, count in counts.most_common(10)]
    assert f"{len(counts) - len(concepts)} phrases skipped" in table
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (1280, 720) and len(picture.getcolors(100_000)) > 3


def test_the_three_formats_are_read_alike(planted, tmp_path):
    for name in ("a.tsv", "b.json", "c.json"):
        assert list(read_captions(tmp_path / name)) == [(image, caption) for image, caption, _ in planted]
        filter_captions(tmp_path / name, tmp_path / f"out.{name}")
    assert len({(tmp_path / f"out.{name}").read_text() for name in ("a.tsv", "b.json", "c.json")}) == 1


def test_the_seed_decides(planted, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        filter_captions(tmp_path / "a.tsv", tmp_path / f"{name}.json", seed)
    one, same, other = ((tmp_path / f"{name}.json").read_text() for name in ("one", "same", "other"))
    assert one == same
    drawn, drawn_anew = ({row["image"] for row in json.loads(text)} for text in (one, other))
    assert drawn != drawn_anew and len(drawn & drawn_anew) > len(drawn) / 2


def test_rows_are_what_stage_1_trains_on(planted, tmp_path, tokenizer):
    filter_captions(tmp_path / "a.tsv", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    caption_of = {image: caption for image, caption, _ in planted}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        question, answer = row["conversations"]
        assert question["from"] == "human" and question["value"].removeprefix("<image>\n") in BRIEF_REQUESTS
        assert answer == {"from": "gpt", "value": caption_of[row["image"]]}
    requests = Counter(row["conversations"][0]["value"] for row in rows)
    assert len(BRIEF_REQUESTS) == 11 and len(requests) == 11 and max(requests.values()) < 3 * min(requests.values())
    (tmp_path / "images").mkdir()
    (tmp_path / "four.json").write_text(json.dumps(rows[:4]))
    for row in rows[:4]:
        Image.new("RGB", (8, 8)).save(tmp_path / row["image"])
    processor = Processor(tokenizer, ImageProcessor.for_size(16), 4)
    batch = batch_of(ConversationDataset(tmp_path / "four.json", tmp_path, processor), [0, 1, 2, 3])
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    learnt = tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100].tolist())
    assert learnt == f" {rows[0]['conversations'][1]['value']}###"


WRONG = {
    "a.txt": ("x\ty\n", "a.txt: not a .json, .jsonl, .tsv or .csv file"),
    "a.tsv": ("", "a.tsv: empty"),
    "b.tsv": ("1.jpg\ta fish\n2.jpg a fish\n", "b.tsv: line 2: not image, tab, caption"),
    "c.tsv": ("1.jpg\ta fish\n\n", "c.tsv: line 2: not image"),
    "d.tsv": ("1.jpg\ta\tfish\n", "d.tsv: line 1: not image"),
    "e.tsv": ("1.jpg\t \n", "e.tsv: line 1: no image with a caption"),
    "f.tsv": ("\ta fish\n", "f.tsv: line 1: no image with a caption"),
    "g.tsv": ("1.jpg\tan <image> of a fish\n", "g.tsv: line 1: the caption contains <image>"),
    "h.tsv": (b"1.jpg\ta fish\n2.jpg\t\xff\n", "h.tsv: line 2: not UTF-8"),
    "i.tsv": (b"x" * (1 << 21), "i.tsv: line 1: longer than"),
    "j.tsv": ("1.jpg\ta fish\n2.jpg\ta fish\n3.jpg\ta boat\n", "j.tsv: no noun phrase is in 3 captions"),
    "l.tsv": ("1.jpg\ta fish\n".encode("utf-16"), "l.tsv: UTF-16; save it as UTF-8"),
    "k.tsv": ("1.jpg\tthis\n", "k.tsv: no noun phrase is in 3 captions"),
    "a.json": ("[]", "a.json: an empty list"),
    "b.json": ('[{"image": "1.jpg", "caption": "a fish"},\n{"image": "2.jpg"', "b.json: not JSON at row 1, line 2"),
    "c.json": ('[{"image": "1.jpg"}]', "c.json: row 0: no image with a caption"),
    "d.json": ('[{"image": ["1.jpg"], "caption": "a fish"}]', "d.json: row 0: no image with a caption"),
    "e.json": ('[{"image": "1.jpg", "caption": 5}]', "e.json: row 0: no image with a caption"),
    "f.json": ('[{"image": "1.jpg", "conversations": [{"value": "?"}]}]', "f.json: row 0: no image with a caption"),
    "g.json": ('[{"image": "1.jpg", "conversations": {"1": "a"}}]', "g.json: row 0: no image with a caption"),
}


@pytest.mark.parametrize("suffix", ["tsv", "csv", "json", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, suffix):
    pairs = [("1.jpg", "a fish"), ("2.jpg", "a boat")]
    rows = [json.dumps({"image": image, "caption": caption}) for image, caption in pairs]
    text = {
        "tsv": "1.jpg\ta fish\n2.jpg\ta boat\n",
        "csv": "image,caption,id\n1.jpg,a fish,1\n2.jpg,a boat,2\n",
        "json": f"[{', '.join(rows)}]",
        "jsonl": "\n".join(rows),
    }[suffix]
    path = tmp_path / f"captions.{suffix}"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(text.encode(encoding))
        assert list(read_captions(path)) == pairs


@pytest.mark.parametrize("name", WRONG)
def test_faults_are_named(tmp_path, name, monkeypatch):
    without_spacy(monkeypatch)
    content, message = WRONG[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)) as error:
        filter_captions(tmp_path / name, tmp_path / "out.json")
    assert "\n" not in str(error.value) and not (tmp_path / "out.json").exists()


def test_the_program_says_which_chunker_runs_and_keeps_what_is_there(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"{n}.jpg\ta red fish\n" for n in range(5)))
    command = [sys.executable, "-m", "data.filter_captions", tmp_path / "a.tsv", "--out", tmp_path / "out.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "noun phrases are found by" in done.stderr
    assert re.search(r"^captions +5 +5$", done.stdout, re.MULTILINE)
    assert re.search(r"^  red fish +5 +5$", done.stdout, re.MULTILINE)
    assert len(json.loads((tmp_path / "out.json").read_text())) == 5
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.strip().endswith("out.json: already exists")
