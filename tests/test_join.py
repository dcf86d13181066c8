"""Towers saved by transformers, joined and trained by ``train.py``: transformers opens the result and gives the same
answer about a picture."""

import json
import sys
from pathlib import Path

import pytest
import torch
from make_tokenizers import sentencepiece_file, write
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

import chat
import train
from minillava import load, save
from minillava.checkpoint import join
from minillava.errors import UserError, printable
from minillava.formats.chat_template import to_jinja
from minillava.inputs.templates import TEMPLATES

VICUNA = "{% for message in messages %}USER: {{ message }} ASSISTANT: {% endfor %}"  # only what it is recognised by
PICTURE_SIZE = 32


@pytest.fixture
def towers(tmp_path, randomise) -> tuple[Path, Path]:
    """A CLIP folder whose image processor squashes pictures and has its own mean and std, and a LLaMA folder with a
    SentencePiece tokenizer and Vicuna's chat template."""
    vision, decoder = tmp_path / "clip", tmp_path / "vicuna"
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes = {**layers, "image_size": PICTURE_SIZE, "patch_size": 8}
    randomise(CLIPModel(CLIPConfig(vision_config=sizes, text_config=layers))).save_pretrained(vision)
    square = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    mean = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.3, 0.4]}
    CLIPImageProcessorPil(size=square, crop_size=square, resample=2, **mean).save_pretrained(vision)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "chat_template": VICUNA}
    write(decoder, model=sentencepiece_file(), tokenizer_config={**config, "add_bos_token": True})
    config = LlamaConfig(**layers, vocab_size=900, max_position_embeddings=1024)
    language_model = randomise(LlamaForCausalLM(config))
    with torch.no_grad():  # no byte tokens: the two libraries decode invalid UTF-8 differently
        language_model.lm_head.weight[3:259] = 0
    language_model.save_pretrained(decoder)
    return vision, decoder


@pytest.fixture
def rows(tmp_path) -> Path:
    for name in ("a", "b"):
        Image.effect_noise((50, 41), 90).convert("RGB").save(tmp_path / f"{name}.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "the cat sat on a mat"}]
    rows = [{"id": name, "image": f"{name}.png", "conversations": turns} for name in ("a", "b")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


def run(monkeypatch, program, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    program.main()


@pytest.mark.parametrize("projector, fit", [("linear", None), ("mlp", "crop")])
def test_what_is_trained_on_real_towers_says_the_same_in_transformers(
    towers, rows, projector, fit, tmp_path, monkeypatch, capsys
):
    vision, decoder = towers
    common = ["--data", rows, "--out", tmp_path / "out", "--batch-size", 2, "--dtype", "float32"]
    given = ["--vision", vision, "--decoder", decoder, "--projector", projector]
    chosen = ["--image-fit", fit] if fit else []
    run(monkeypatch, train, "--stage", 1, *given, *common, *chosen, "--max-steps", 3)
    line = f"pictures: padded to a square, unlike {vision} itself (--image-fit crop cuts them)\n"
    assert (line in capsys.readouterr().out) == (fit is None)
    run(monkeypatch, train, "--stage", 2, *common, "--max-steps", 3)
    folder = tmp_path / "out" / "stage2"
    ours, processor = load(folder), AutoProcessor.from_pretrained(folder)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    assert ours.processor.template == TEMPLATES["v1"] and ours.config.projector == projector
    assert ours.processor.image == join(*towers).processor.image.fitting(fit or "pad", PICTURE_SIZE)
    image = Image.open(tmp_path / "a.png")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"][0], ours.processor.image(image), atol=1e-5, rtol=0)
    with torch.no_grad():
        found, expected = ours(**inputs)[0], theirs(**inputs).logits
    assert (found - expected).norm() < 1e-4 * expected.norm()
    written = theirs.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(written, skip_special_tokens=True).strip()
    capsys.readouterr()
    run(monkeypatch, chat, "--model", folder, "--image", tmp_path / "a.png", "--prompt", "What is it?",
        "--max-new-tokens", 20)  # fmt: skip
    assert capsys.readouterr().out.strip() == printable(text, keep="\n\t") != ""


def test_a_checkpoint_keeps_its_own_way_with_pictures_unless_another_is_asked_for(towers, rows, tmp_path, monkeypatch):
    model, found = join(*towers), []
    save(model, tmp_path / "squashing")
    monkeypatch.setattr(train, "train", lambda task, *others: found.append(task.dataset.processor.image))
    for fit in ([], ["--image-fit", "pad"], ["--image-fit", "crop"]):
        arguments = ["--stage", 2, "--model", tmp_path / "squashing", "--data", rows, "--out", tmp_path / "out"]
        run(monkeypatch, train, *arguments, *fit)
    own = model.processor.image
    assert found == [own, own.fitting("pad", PICTURE_SIZE), own.fitting("crop", PICTURE_SIZE)]
    assert not own.do_pad and len({str(image) for image in found}) == 3


def test_joined_towers_keep_their_tokens_pictures_and_template(towers):
    model = join(*towers)
    assert (model.processor.tokenizer.image_id, model.processor.tokenizer.pad_id) == (900, 901)
    assert model.config.decoder.vocab_size == 960  # a multiple of 64
    assert model.processor.template == TEMPLATES["v1"] and model.processor.stop_ids == [2]
    assert model.processor.image.image_mean == (0.3, 0.4, 0.5)


def test_a_picture_processor_of_another_size_is_refused(towers):
    vision, decoder = towers
    square = {"height": 24, "width": 24}
    CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(vision)
    with pytest.raises(UserError, match=rf"{vision}: its image processor makes pictures of .*24.* reads 32 x 32"):
        join(vision, decoder)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", "chat_template.jinja"])
def test_the_chat_template_is_found_wherever_it_lies(towers, place):
    vision, decoder = towers
    text = to_jinja(vars(TEMPLATES["llama-2"]))
    path = decoder / place
    if place.endswith("jinja"):
        path.write_text(text)
    else:
        stored = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**stored, "chat_template": text}))
    if place == "chat_template.json":  # read before tokenizer_config.json, which has another template
        assert "chat_template" in json.loads((decoder / "tokenizer_config.json").read_text())
    assert join(vision, decoder).processor.template == TEMPLATES["llama-2"]


@pytest.mark.parametrize(
    "text",
    ["<|user|>\n{{ messages }}<|assistant|>", [{"name": "default"}], [{"name": "default", "template": 3}],
     [{"name": ["default"]}, "x"], [], 3],
)  # fmt: skip
def test_an_unknown_chat_template_is_reported(towers, capsys, text):
    vision, decoder = towers
    path = decoder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": text}))
    assert join(vision, decoder).processor.template == TEMPLATES["v0"]
    (line,) = capsys.readouterr().err.splitlines()
    others = ", ".join(name for name in TEMPLATES if name != "v0")
    assert line == f"{decoder}: the chat template is unknown; v0 is used; --template gives another: {others}"


def test_a_chat_template_taken_for_a_family_is_said(towers, capsys):
    vision, decoder = towers
    assert join(vision, decoder).processor.template == TEMPLATES["v1"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{decoder}: the chat template is not known word for word; it has the marks of v1")
    assert "--template" in line and "chatml" in line


@pytest.mark.parametrize("as_list", [False, True])
def test_tinyllama_is_asked_in_the_ids_that_transformers_gives(towers, capsys, as_list):
    """Its tokenizer has no tokens for <|user|> and <|assistant|>: they are text."""
    vision, decoder = towers
    templates = json.loads((Path(__file__).parent / "chat_templates.json").read_text())
    (text,) = (one["chat_template"] for one in templates if "TinyLlama" in one["model"])
    path = decoder / "tokenizer_config.json"
    stored = [{"name": "tool_use", "template": "?"}, {"name": "default", "template": text}] if as_list else text
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": stored}))
    processor = join(vision, decoder).processor
    assert capsys.readouterr().err == "" and processor.template == TEMPLATES["zephyr"]
    said = ["What is it?", "the cat", "a mat?"]
    turns = [{"from": ("human", "gpt")[i % 2], "value": words} for i, words in enumerate(said)]
    messages = [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(said)]
    theirs = AutoTokenizer.from_pretrained(decoder)
    text = theirs.apply_chat_template(messages, chat_template=text, add_generation_prompt=True, tokenize=False)
    assert processor.encode(turns)[0] == theirs(text)["input_ids"]


def test_template_option_overrides_the_checkpoints_template(towers, rows, tmp_path, monkeypatch):
    vision, decoder = towers
    run(monkeypatch, train, "--stage", 1, "--vision", vision, "--decoder", decoder, "--template", "v0", "--data", rows,
        "--out", tmp_path / "out", "--batch-size", 2, "--max-steps", 1)  # fmt: skip
    assert load(tmp_path / "out" / "stage1").processor.template == TEMPLATES["v0"]


def test_a_model_saved_in_bfloat16_answers_in_it(towers, tmp_path, monkeypatch, capsys):
    save(join(*towers), tmp_path / "model", torch.bfloat16)
    run(monkeypatch, chat, "--model", tmp_path / "model", "--dtype", "bfloat16", "--prompt", "the cat", "--seed", 1,
        "--max-new-tokens", 3)  # fmt: skip
    assert capsys.readouterr().out.count("\n") == 1
