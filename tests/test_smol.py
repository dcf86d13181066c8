"""The shipped projection and LoRA for SmolLM2: it answers about fresh scenes, still talks, and transformers agrees."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from programs import run
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from data.picturebook.draw import draw_scene
from data.picturebook.scene import KINDS, Scene, sample_scene
from data.picturebook.talk import BEYOND
from minillava import Llava, load, merge
from minillava.config import PRETRAINED
from minillava.formats.adapter_config import read_config
from minillava.formats.tensors import ADAPTER

SMOL = PRETRAINED / "smol"
SEEDS = (100, 101, 102, 103, 104)


@pytest.fixture(scope="module")
def model(smollm2) -> Llava:
    return load("smol")


def picture(seed: int) -> tuple[Scene, Image.Image]:
    rng = random.Random(seed)
    scene = sample_scene(rng, "never")
    return scene, draw_scene(scene, rng)


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, list[str]]]:
    """Three questions about a scene, and words of which one must be in the answer."""
    thing = rng.choice(scene.things)
    missing = rng.choice([kind for kind in KINDS if kind not in {other.kind for other in scene.things}])
    colours = [other.colour for other in scene.things if other.kind == thing.kind]
    return [
        (f"What colour is the {thing.kind}?", colours),
        (f"Is there {'an' if thing.colour == 'orange' else 'a'} {thing.pair} in the picture?", ["Yes"]),
        (f"Is there a {missing} in the picture?", ["No"]),
    ]


def test_it_is_small():
    tensors = load_file(SMOL / ADAPTER)
    assert sum(path.stat().st_size for path in SMOL.iterdir()) < 25e6
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    rank = read_config(SMOL).rank
    assert 0 < rank <= 32
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {rank}
    assert all("lora" in name or "multi_modal_projector" in name for name in tensors)


def test_its_towers_are_the_shipped_one_and_the_package_s():
    base = read_config(SMOL).base
    assert Path(base.vision).resolve() == (PRETRAINED / "vision").resolve()
    assert (base.decoder, base.projector) == ("smollm2", "mlp")


def test_it_answers_questions_about_fresh_scenes_and_needs_the_picture(model):
    right = blind = total = 0
    rng = random.Random(0)
    empty = model.encode_image(Image.new("RGB", (64, 64), "grey"))

    def is_right(image: torch.Tensor, question: str, answers: list[str]) -> bool:
        said = model.chat(image, question, max_new_tokens=8)
        return any(answer in said for answer in answers)

    for seed in SEEDS:
        scene, image = picture(seed)
        seen = model.encode_image(image)
        asked = questions(scene, rng)
        total, right = total + len(asked), right + sum(is_right(seen, *one) for one in asked)
        blind += is_right(empty, *asked[0])  # the colour
    assert total == 15 and right >= 13 and blind <= 3, (right, blind)


def test_it_still_talks_with_a_picture_and_without_one_and_refuses_what_no_one_can_know(model):
    _, image = picture(SEEDS[0])
    for shown in (None, image):
        assert "Paris" in model.chat(shown, "What is the capital of France?", max_new_tokens=16)
    assert model.chat(image, "Who painted it?", max_new_tokens=16) == BEYOND


def test_chat_answers_with_it(model, tmp_path):
    scene, image = picture(SEEDS[0])
    image.save(tmp_path / "scene.png")
    question, _ = questions(scene, random.Random(0))[0]
    done = run("chat.py", "--model", "smol", "--image", tmp_path / "scene.png", "--prompt", question,
               "--max-new-tokens", "16")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == model.chat(tmp_path / "scene.png", question, max_new_tokens=16) != ""


def test_merged_into_one_folder_it_says_the_same_in_transformers(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["merge", "smol", str(tmp_path / "merged")])
    merge.main()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "llava"
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    scene, image = picture(SEEDS[1])
    asked = [*(question for question, _ in questions(scene, random.Random(0))[:2]), "What is in the picture?"]
    for question in asked:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        inputs = processor(images=image, text=processor.apply_chat_template(messages, add_generation_prompt=True),
                           return_tensors="pt")  # fmt: skip
        ids, _ = model.processor.encode([{"from": "human", "value": f"<image>\n{question}"}])
        assert inputs["input_ids"][0].tolist() == ids
        torch.testing.assert_close(inputs["pixel_values"][0], model.processor.image(image), atol=1e-5, rtol=0)
        written = theirs.generate(**inputs, max_new_tokens=16, do_sample=False)[0, len(ids) :]
        text = processor.decode(written, skip_special_tokens=True).strip()
        assert text == model.chat(image, question, max_new_tokens=16).strip() != "", question
