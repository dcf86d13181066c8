"""The second world, cards.py: its words are true, its cards can be read, and what is held out is not trained on."""

import csv
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import cards
import numpy as np
import pytest
from PIL import Image

from data import check
from minillava.inputs.image import ImageProcessor

ORDER = ["nine", "ten", "jack", "queen", "king", "ace"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cards") / "world"
    cards.write(out, 56, seed=0)
    return out


def told(folder: Path) -> dict[str, list[str]]:
    with open(folder / "captions.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["image", "caption"]
    found: dict[str, list[str]] = {}
    for image, caption in lines[1:]:
        found.setdefault(image, []).append(caption)
    return found


def asked(folder: Path, split: str) -> dict[str, list[tuple[str, str, str]]]:
    """For each picture, the type, the question and the answer of each turn."""
    found: dict[str, list] = {}
    for row in json.loads((folder / f"{split}.json").read_text()):
        said = row["conversations"]
        assert [turn["value"].startswith("<image>\n") for turn in said] == [True] + [False] * (len(said) - 1)
        assert len({answer["type"] for answer in said[1::2]}) == len(said) // 2 == (2 if split == "instruct" else 1)
        for question, answer in zip(said[::2], said[1::2]):
            turn = answer["type"], question["value"].removeprefix("<image>\n"), answer["value"]
            found.setdefault(row["image"], []).append(turn)
    return found


def cards_in(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(\w+) of (\w+)", text)


def left_and_right(folder: Path, image: str, turns: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """The two cards, as a caption tells them or, of a held-out picture, "beside" and "place"."""
    for caption in told(folder).get(image, []):
        if found := re.fullmatch(r"the (\w+) of (\w+) on the left and the (\w+) of (\w+) on the right", caption):
            return [(found[1], found[2]), (found[3], found[4])]
    said = {kind: (question, answer) for kind, question, answer in turns}
    (one,), (other,) = map(cards_in, said["beside"])
    (place,) = cards_in(said["place"][1])
    assert place in (one, other)
    pair = [place, one if place == other else other]
    return pair if "left" in said["place"][0] else pair[::-1]


@pytest.mark.parametrize("split", ["instruct", "heldout"])
def test_every_answer_is_true_of_the_two_cards(folder, split):
    met = Counter()
    for image, turns in asked(folder, split).items():
        (rank, suit), (rank_2, suit_2) = pair = left_and_right(folder, image, turns)
        best = max(pair, key=lambda card: ORDER.index(card[0]))
        red = sum(one in ("diamonds", "hearts") for one in (suit, suit_2))
        for kind, question, answer in turns:
            met[kind] += 1
            told_first, _, verdict = answer.rstrip(".").rpartition(", so ")
            there = cards_in(verdict)
            if kind == "higher":
                assert cards_in(told_first) == pair  # from left to right
            if kind == "beside":
                assert sorted([*cards_in(question), *there]) == sorted(pair)
            elif kind == "place":
                assert there == [pair["right" in question]]
            elif kind == "higher":
                assert there == [best] and rank != rank_2
            elif kind == "row":
                assert there == pair
            elif kind == "which":
                assert there == [card for card in pair if question.rstrip("?").split()[-1] == card[0]] != []
            elif kind == "suit":
                assert answer == ("Yes." if suit == suit_2 else "No.")
            else:
                assert kind == "colour" and answer == ["None.", "One.", "Two."][red]
        for caption in told(folder).get(image, []):
            assert cards_in(caption) and set(cards_in(caption)) <= set(pair)
            for *card, side in re.findall(r"(\w+) of (\w+) (?:lies )?on the (left|right)", caption):
                assert tuple(card) == pair[side == "right"]
        if split == "instruct":
            assert len(set(told(folder)[image])) == 5 and len(turns) == 8
        else:
            assert len({kind for kind, _, _ in turns}) == len(turns) == 7 - (rank == rank_2)
    assert len(met) == 7


def test_what_is_held_out_is_not_trained_on(folder):
    train, heldout = asked(folder, "instruct"), asked(folder, "heldout")
    assert sorted([*train, *heldout]) == sorted(path.name for path in folder.glob("*.png")) and len(heldout) == 8
    assert told(folder).keys() == train.keys()
    seen, unseen = (
        {frozenset(left_and_right(folder, image, turns)) for image, turns in split.items()}
        for split in (train, heldout)
    )
    assert not seen & unseen


def test_colours_in_the_pictures_are_those_in_the_words(folder):
    """Red ink is in the half of each red card, and only there. Few pictures are square."""
    square = 0
    for image, turns in asked(folder, "instruct").items():
        picture = Image.open(folder / image)
        square += picture.width == picture.height
        red, green, blue = np.moveaxis(np.asarray(picture, dtype=int), -1, 0)
        ink = np.array_split((red > 150) & (green < 60) & (blue < 80), 2, axis=1)
        for half, (_, suit) in zip(ink, left_and_right(folder, image, turns)):
            assert (half.sum() > 100) == (suit in ("hearts", "diamonds"))
    assert square < 5


def test_a_card_can_be_read_at_the_size_a_small_tower_sees():
    """A turned card is nearest to its own upright picture, 23 x 31 pixels, of all 24; so each sign is its own."""

    def seen(card: cards.Card, turn: float) -> np.ndarray:
        face = cards.draw_card(card, 66, 90).rotate(turn, Image.Resampling.BICUBIC)
        table = Image.new("RGBA", face.size, (60, 70, 105))
        return np.float32(Image.alpha_composite(table, face).convert("RGB").resize((23, 31)))

    upright = np.stack([seen(card, 0) for card in cards.PACK])
    for index, card in enumerate(cards.PACK):
        for turn in (-7, 7):
            assert np.abs(upright - seen(card, turn)).mean((1, 2, 3)).argmin() == index, card


def test_guessing_without_the_picture_is_right_in_at_most_four_of_ten():
    rng = random.Random(0)
    pairs = list(cards.combinations(cards.PACK, 2))
    answers: dict[str, Counter] = {}
    for _ in range(2000):
        for kind, _, answer in cards.questions(cards.deal(pairs, rng), rng):
            answers.setdefault(kind, Counter())[answer] += 1
    assert len(answers) == 7
    best = sum(counter.most_common(1)[0][1] for counter in answers.values())
    assert best <= 0.33 * sum(counter.total() for counter in answers.values())


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    for seed in (0, 1):
        cards.write(tmp_path / str(seed), 56 if seed == 0 else 14, seed)
    same = [path.read_bytes() == (folder / path.name).read_bytes() for path in sorted((tmp_path / "0").iterdir())]
    assert all(same) and len(same) == 59
    assert (tmp_path / "1" / "0000.png").read_bytes() != (folder / "0000.png").read_bytes()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_folder_passes_the_check(folder, fit, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", str(folder / "instruct.json"), "--image-fit", fit])
    check.main()
    out = capsys.readouterr().out
    assert re.search(r"malformed rows +0\nmissing or broken pictures +0\n", out)
    assert ("pictures cut" in out) == (fit == "crop")
    assert ImageProcessor.for_size(64).cut(*Image.open(folder / "0000.png").size) > 0.1


def test_a_folder_that_exists_is_kept(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cards.py", "--out", str(folder)])
    with pytest.raises(SystemExit) as end:
        cards.main()
    assert end.value.code == 2 and f"{folder}: already exists" in capsys.readouterr().err
