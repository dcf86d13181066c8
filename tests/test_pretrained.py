"""The shipped model on scenes drawn for this test: it answers questions, it needs the picture, its files are small."""

import json

import pytest
import torch
from test_contrastive import clip  # noqa: F401  a fixture

from data.picturebook.write import write_world
from minillava.checkpoint import load, load_clip, load_vision
from minillava.config import PRETRAINED
from minillava.evaluate import evaluate
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.language_model import load_decoder
from minillava.saving import write_clip

SPLITS = ("heldout", "unseen", "heldout_words", "heldout_frames")


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> dict:
    world = tmp_path_factory.mktemp("fresh") / "world"
    write_world(world, count=1, seed=20240331)
    for name in SPLITS:
        rows = json.loads((world / f"{name}.json").read_text())
        few = rows[:200] if name in ("heldout", "unseen") else rows[:: len(rows) // 120]  # the types follow one another
        (world / f"few-{name}.json").write_text(json.dumps(few))
    model = load(PRETRAINED / "llava")
    return {name: evaluate(model, world / f"few-{name}.json", world) for name in SPLITS}


def test_it_answers_questions_about_fresh_scenes(scores):
    assert scores["heldout"]["accuracy"] >= 0.88
    assert scores["heldout"]["by_type"]["setting"] >= 0.97
    assert min(scores["heldout"]["by_type"].values()) >= 0.55


def test_it_answers_questions_in_other_words(scores):
    assert scores["heldout_words"]["meaning"] >= 0.72
    assert scores["heldout_frames"]["meaning"] >= 0.42


def test_it_puts_colours_and_kinds_together_that_stage_2_never_showed(scores):
    assert scores["unseen"]["accuracy"] >= 0.85


def test_it_needs_the_picture(scores):
    for split in scores.values():
        assert split["blind"] <= 0.3 and split["majority"] <= 0.3 and split["shuffled"] <= 0.3


def test_it_describes_what_is_there(scores):
    heldout = scores["heldout"]
    assert heldout["precision"] >= 0.93 and heldout["recall"] >= 0.85
    assert heldout["blind_precision"] <= 0.1 and heldout["blind_recall"] <= 0.1


def test_its_towers_are_the_ones_it_was_made_from():
    model, vision = load(PRETRAINED / "llava"), load_vision(PRETRAINED / "vision")
    for name, tensor in vision.state_dict().items():  # the vision tower is frozen in both stages
        assert torch.equal(model.vision_tower.state_dict()[name], tensor)
    towers, text_processor = load_clip(PRETRAINED / "vision")
    decoder, tokenizer = load_decoder(PRETRAINED / "decoder")
    assert towers.text_model.config.vocab_size == text_processor.tokenizer.vocab_size == tokenizer.vocab_size
    assert decoder.config == model.config.decoder


def test_all_of_it_is_under_16_mb_without_smol():
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if "smol" not in path.parts) < 16e6
    assert not [path for path in files if path.suffix in (".pt", ".bin", ".pth")]


def test_load_clip_reads_what_write_clip_wrote(clip, tokenizer, tmp_path):  # noqa: F811
    processor = Processor(tokenizer, ImageProcessor(image_mean=(0.1, 0.2, 0.3)).fitting("pad", 24), 9)
    write_clip(clip, processor, tmp_path)
    read, its_processor = load_clip(tmp_path)
    assert its_processor.tokenizer.encode("a red fish") == tokenizer.encode("a red fish")
    assert (its_processor.image, its_processor.num_image_tokens) == (processor.image, 9)
    for name, tensor in clip.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
