"""Checkpoints: saved and loaded bit for bit, opened by transformers, named as on the hub; errors name the damage."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from minillava import Llava, load, save
from minillava.checkpoint import load_vision
from minillava.config import LlavaConfig, TextConfig
from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.image import ImageProcessor
from minillava.language_model import load_decoder
from minillava.model.contrastive import Clip
from minillava.saving import recover_folder, replace_folder, write_clip, write_decoder

PATCHES = 9
LLAMA3 = {"factor": 5.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def variant(
    model: Llava, randomise, projector: str = "linear", layer: int = -2, strategy: str = "default", **decoder
) -> Llava:
    """A tiny model like ``model``, with another projector, feature layer or strategy, or decoder settings."""
    config = replace(
        model.config, projector=projector, vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    config.decoder = replace(config.decoder, **decoder)
    return randomise(Llava(config, model.processor))


VARIANTS = {
    "unchanged": {},
    "mlp": {"projector": "mlp"},
    "untied": {"tie_word_embeddings": False},
    "rope_theta, epsilon": {"rope_theta": 77.0, "rms_norm_eps": 0.01},
    "last layer": {"layer": -1},
    "class token": {"strategy": "full"},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama3 scaling": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "eos_token_id": [420, 423]},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, tiny_model, randomise) -> Llava:
    return variant(tiny_model, randomise, **request.param)


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    save(tiny_model, tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Logits of one row with a picture, from our model or from transformers'."""
    count = PATCHES + (model.config.vision_feature_select_strategy == "full")
    ids = torch.tensor([[40, *[model.config.image_token_id] * count, 41, 42, *range(60, 100)]])
    pixel_values = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    return model(input_ids=ids, pixel_values=pixel_values)[0]


def edit_tensors(folder: Path, change) -> None:
    """Replace the dict of tensors in model.safetensors by ``change(tensors)``."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def assert_refused(call, *names: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for name in names:
        assert name in text


# Round trips


def test_what_is_saved_comes_back_bit_for_bit(model, tmp_path):
    save(model, tmp_path / "model")
    read = load(tmp_path / "model")
    assert read.config == model.config and not read.training
    wanted = model.state_dict()
    assert read.state_dict().keys() == wanted.keys()
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert read.processor.tokenizer.encode("a red fish###") == model.processor.tokenizer.encode("a red fish###")
    assert torch.equal(logits(read), logits(model))


def test_saving_twice_writes_the_same_bytes(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "one")
    save(load(tmp_path / "one"), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_stored_and_loaded(tiny_model, tmp_path, dtype):
    save(tiny_model, tmp_path / "model", dtype)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    rounded, kept = load(tmp_path / "model"), load(tmp_path / "model", dtype=dtype)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], tensor.to(dtype).float()), name
        assert torch.equal(kept.state_dict()[name], tensor.to(dtype)), name


def test_a_model_in_half_precision_is_stored_in_it_throughout(tiny_model, tmp_path):
    save(tiny_model.to(torch.bfloat16), tmp_path / "model")
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_stored_unless_it_is_the_embedding(tiny_model, randomise, tmp_path, tied):
    model = variant(tiny_model, randomise, tie_word_embeddings=tied)
    save(model, tmp_path / "llava")
    write_decoder(model.language_model, model.processor.tokenizer, tmp_path)
    for folder in (tmp_path / "llava", tmp_path):
        heads = [name for name in load_file(folder / "model.safetensors") if "lm_head" in name]
        assert len(heads) == (0 if tied else 1)
    for decoder in (load(tmp_path / "llava").language_model, load_decoder(tmp_path)[0]):
        assert (decoder.lm_head.weight is decoder.embed_tokens.weight) == tied
        assert torch.equal(decoder.lm_head.weight, model.language_model.lm_head.weight)


@pytest.mark.parametrize("whole, text", [(True, None), (True, False), (None, True), (False, True)])
def test_the_head_is_tied_where_either_config_says_so(saved, whole, text):
    config = json.loads((saved / "config.json").read_text())
    for part, value in ((config, whole), (config["text_config"], text)):
        del part["tie_word_embeddings"]
        if value is not None:
            part["tie_word_embeddings"] = value
    (saved / "config.json").write_text(json.dumps(config))
    theirs, ours = LlavaForConditionalGeneration.from_pretrained(saved), load(saved).language_model
    assert theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    assert ours.lm_head.weight is ours.embed_tokens.weight


# Between us and transformers


def test_transformers_opens_what_we_save(model, tmp_path):
    save(model, tmp_path / "model")
    theirs, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(logits(theirs.eval()), logits(model), rtol=1e-4, atol=1e-4)


def test_we_open_what_transformers_saves(model, tmp_path):
    save(model, tmp_path / "ours")
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    model.processor.tokenizer.save_pretrained(tmp_path / "theirs")
    read = load(tmp_path / "theirs")
    assert read.config == model.config
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_decoders_go_to_transformers_and_back(tiny_model, randomise, tmp_path, tied):
    decoder = variant(tiny_model, randomise, tie_word_embeddings=tied, rope_theta=77.0).language_model
    write_decoder(decoder, tiny_model.processor.tokenizer, tmp_path)
    theirs, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    theirs.save_pretrained(tmp_path / "theirs")
    tiny_model.processor.tokenizer.save_pretrained(tmp_path / "theirs")
    read, tokenizer = load_decoder(tmp_path / "theirs")
    assert tokenizer.vocab_size == decoder.config.vocab_size
    ids = torch.randint(100, (1, 9))
    with torch.no_grad():
        for ours in (decoder, read):
            out = ours.lm_head(ours(ours.embed_tokens(ids)))
            torch.testing.assert_close(out, theirs.eval()(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["write_clip", "CLIPModel", "CLIPVisionModel", "hub"])
def test_vision_towers_are_read_from_a_tower_or_from_both_towers(tiny_model, randomise, tmp_path, source):
    tokenizer = tiny_model.processor.tokenizer
    clip = randomise(Clip(tiny_model.config.vision, TextConfig(tokenizer.vocab_size, projection_dim=20)))
    write_clip(clip, tiny_model.processor, tmp_path)
    folder = tmp_path
    if source != "write_clip":
        folder = tmp_path / "theirs"
        theirs = CLIPVisionModel if source == "CLIPVisionModel" else CLIPModel
        theirs.from_pretrained(tmp_path).save_pretrained(folder)
    if source == "hub":  # OpenAI's files hold these constants
        positions = {f"{part}_model.embeddings.position_ids": torch.arange(10)[None] for part in ("vision", "text")}
        edit_tensors(folder, lambda tensors: tensors | positions)
    tower = load_vision(folder)
    assert tower.config == tiny_model.config.vision
    for name, tensor in clip.vision_model.state_dict().items():
        assert torch.equal(tower.state_dict()[name], tensor), name


SPELLINGS = {
    "hub": {"vision_tower.": "vision_tower.vision_model."},
    "newer": {
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
    },
    "newer, nested": {
        "vision_tower.": "model.vision_tower.vision_model.",
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("tied", [True, False])
def test_spellings_met_on_the_hub_load(tiny_model, randomise, tmp_path, spelling, tied):
    model = variant(tiny_model, randomise, tie_word_embeddings=tied)
    save(model, tmp_path / "model")

    def respell(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {}
        for name, tensor in tensors.items():
            ours = next((start for start in spelling if name.startswith(start)), "")
            out[spelling.get(ours, "") + name.removeprefix(ours)] = tensor
        assert out.keys() != tensors.keys() and len(out) == len(tensors)
        return out

    edit_tensors(tmp_path / "model", respell)
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


def test_processor_gives_our_pixels_and_our_ids(tiny_model, saved):
    processor = AutoProcessor.from_pretrained(saved, backend="pil")  # torchvision resizes pictures differently
    rng = np.random.default_rng(0)
    for width, height in ((24, 24), (40, 60), (61, 33), (55, 22), (10, 17)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        messages = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        turn = {"from": "human", "value": "<image>\nWhat is it?"}
        ids, _ = encode_conversation([turn], tiny_model.processor.tokenizer, num_image_tokens=PATCHES)
        assert inputs["input_ids"].tolist() == [ids]
        torch.testing.assert_close(
            inputs["pixel_values"][0], ImageProcessor.for_size(24)(image), msg=f"{width} x {height}"
        )


def test_chat_template_writes_further_turns_as_we_do(tiny_model, saved):
    processor = AutoProcessor.from_pretrained(saved)
    said = ["What is it?", "It is a fish.", "Is it big?", "No: it's 3 cm, tiny!"]
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(said)
    ]
    text = processor.apply_chat_template(messages)
    ids, _ = encode_conversation(turns, tiny_model.processor.tokenizer)
    assert tiny_model.processor.tokenizer.decode(ids) == text
    assert processor.tokenizer(text)["input_ids"] == ids


def test_transformers_stops_where_we_stop(tiny_model, saved):
    config = LlavaForConditionalGeneration.from_pretrained(saved).generation_config
    assert config.eos_token_id == [tiny_model.processor.tokenizer.eos_id, *tiny_model.processor.tokenizer.encode("###")]
    assert config.pad_token_id == tiny_model.processor.tokenizer.pad_id and config.do_sample is False


# Damage


def test_a_missing_folder_is_named(tmp_path):
    for read in (load, load_vision, load_decoder):
        assert_refused(lambda read=read: read(tmp_path / "nowhere"), f"{tmp_path}/nowhere", "no such folder")


def test_a_folder_of_another_architecture_is_named(tiny_model, saved, tmp_path):
    write_decoder(tiny_model.language_model, tiny_model.processor.tokenizer, tmp_path)
    for read, folder in ((load, tmp_path), (load_vision, tmp_path), (load_vision, saved), (load_decoder, saved)):
        kind = "llava" if folder == saved else "llama"
        assert_refused(lambda read=read, folder=folder: read(folder), f"{folder}/config.json", "model_type", kind)
    edit = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**edit, "model_type": "mistral"}))
    assert_refused(lambda: load_decoder(tmp_path), f"{tmp_path}/config.json", "'mistral'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert_refused(lambda: load(saved), f"{saved}/{name}", "o such file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '{"model": {"vocab": []}, "added_tokens": []}'])
def test_a_file_that_is_not_what_it_should_be_is_named(saved, name, content):
    (saved / name).write_text(content)
    assert_refused(lambda: load(saved), f"{saved}/{name}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_is_not_utf8_is_named(saved, name):
    (saved / name).write_bytes(b'{"model_type": "\xff"}')
    assert_refused(lambda: load(saved), f"{saved}/{name}")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999], ids=str)
def test_a_weight_file_cut_short_is_named(saved, keep):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    assert_refused(lambda: load(saved), str(path))


def test_a_missing_tensor_is_named(saved):
    name = "language_model.layers.1.mlp.up_proj.weight"
    edit_tensors(saved, lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up_proj" not in k})
    assert_refused(lambda: load(saved), str(saved / "model.safetensors"), name, "missing")


def test_a_missing_head_is_named_where_it_is_no_embedding(tiny_model, randomise, tmp_path):
    save(variant(tiny_model, randomise, tie_word_embeddings=False), tmp_path / "model")
    edit_tensors(tmp_path / "model", lambda t: {k: v for k, v in t.items() if "lm_head" not in k})
    assert_refused(lambda: load(tmp_path / "model"), "language_model.lm_head.weight", "missing")


def test_a_tensor_left_over_is_named(saved):
    edit_tensors(saved, lambda t: t | {"language_model.model.layers.0.self_attn.q_proj.bias": torch.zeros(48)})
    assert_refused(lambda: load(saved), "layers.0.self_attn.q_proj.bias", "left over")


def test_a_tensor_of_another_shape_is_named(saved):
    edit_tensors(saved, lambda t: t | {"vision_tower.post_layernorm.bias": torch.zeros(23)})
    assert_refused(lambda: load(saved), "vision_tower.post_layernorm.bias", "(23,)", "(24,)")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"projector_hidden_act": "relu"},
        {"text_config": None},
        {"text_config": {"hidden_act": "gelu"}},
        {"text_config": {"model_type": "mistral"}},
        {"text_config": {"attention_bias": True}},
        {"text_config": {"mlp_bias": True}},
        {"text_config": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}},
        {"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}},
        {"text_config": {"rope_scaling": {"type": "linear"}}},
        {"text_config": {"rope_scaling": {"type": "linear", "factor": "2"}}},
        {"text_config": {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}},
        {"text_config": {"rope_scaling": ["linear"]}},
        {"text_config": {"partial_rotary_factor": 0.5}},
        {"text_config": {"num_key_value_heads": 3}},
        {"text_config": {"head_dim": 7}},
        {"text_config": {"hidden_size": "32"}},
        {"text_config": {"hidden_size": -32}},
        {"text_config": {"hidden_size": 2**60}},
        {"text_config": {"hidden_size": 2**80}},
        {"text_config": {"num_attention_heads": 0}},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"text_config": {"rms_norm_eps": "small"}},
        {"vision_config": {"model_type": "siglip_vision_model"}},
        {"vision_config": {"hidden_act": "relu6"}},
        {"vision_config": {"image_size": 25}},
        {"vision_config": {"num_channels": 1}},
        {"vision_config": {"image_size": [24, 24]}},
        {"vision_config": {"num_attention_heads": 5}},
        {"vision_feature_layer": [-2, -1]},
        {"vision_feature_layer": 4},
        {"vision_feature_select_strategy": "cls"},
        {"multimodal_projector_bias": False},
    ],
    ids=str,
)
def test_a_config_that_we_cannot_compute_is_refused(saved, change):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    assert_refused(lambda: load(saved), str(path))


def test_values_that_a_config_omits_are_transformers_defaults():
    """Configs on the hub omit values: text_config of llava-1.5-7b-hf gives no sizes and no numbers of heads."""
    config = LlavaConfig.from_dict({"vision_config": {"image_size": 336}, "text_config": {"vocab_size": 32064}})
    for ours, theirs in (
        (config.vision, CLIPVisionConfig(image_size=336)),
        (config.decoder, LlamaConfig(vocab_size=32064)),
    ):
        for name, value in ours.to_dict().items():
            if name == "rope_scaling":
                assert value is None
            elif name == "rope_theta":
                assert value == theirs.rope_parameters["rope_theta"]
            elif not name.endswith("token_id"):
                assert value == getattr(theirs, name), name


# Kills


class Killed(BaseException):
    """A BaseException, so that no ``except Exception`` in the code under test catches it."""


FILES = {
    old: {name: f"{old} {name}" for name in ("config.json", "model.safetensors", "trainer_state.pt")} for old in "AB"
}


def fill_with(state: str):
    def fill(folder: Path) -> None:
        for name, text in FILES[state].items():
            (folder / name).write_text(text)

    return fill


def content(folder: Path) -> dict[str, str] | None:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else None


class Killer:
    """Counts the calls that change the disk, and raises Killed before, within or after one of them."""

    def __init__(self, monkeypatch, call: int | None, moment: str = ""):
        self.call, self.moment, self.calls = call, moment, 0
        for module, name in ((Path, "mkdir"), (Path, "write_text"), (os, "fsync"), (os, "replace"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.wrap(name, getattr(module, name)))

    def wrap(self, name: str, original):
        def wrapped(*arguments, **options):
            self.calls += 1
            now = self.calls == self.call
            if now and self.moment == "within" and name == "rmtree" and Path(arguments[0]).exists():
                next(Path(arguments[0]).iterdir()).unlink(missing_ok=True)
            if now and self.moment != "after":
                raise Killed
            result = original(*arguments, **options)
            if now:
                raise Killed
            return result

        return wrapped


@pytest.mark.parametrize("moment", ["before", "within", "after"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder_whole(tmp_path, monkeypatch, existed, moment):
    def attempt(folder: Path, call: int | None) -> int:
        """Replace state A by state B, killed at call number ``call``. Returns the number of calls."""
        if existed:
            replace_folder(folder, fill_with("A"))
        with monkeypatch.context() as patch:
            killer = Killer(patch, call, moment)
            with suppress(Killed):
                replace_folder(folder, fill_with("B"))
            return killer.calls

    total = attempt(tmp_path / "whole", None)
    assert total > 6 and content(tmp_path / "whole") == FILES["B"]
    seen = set()
    for call in range(1, total + 1):
        folder = tmp_path / str(call)
        attempt(folder, call)
        recover_folder(folder)
        found = content(folder)
        assert found in ((FILES["A"] if existed else None), FILES["B"]), f"call {call}"
        seen.add("B" if found == FILES["B"] else "A")
        assert not folder.with_name(f"{call}.old").exists()
        replace_folder(folder, fill_with("B"))
        assert content(folder) == FILES["B"]
        assert sorted(path.name for path in tmp_path.glob(f"{call}*")) == [str(call)]
    assert seen == {"A", "B"}


def test_a_kill_inside_a_recovery_can_be_recovered_from(tmp_path, monkeypatch):
    folder, old = tmp_path / "model", tmp_path / "model.old"
    for moment in ("before", "within", "after"):
        for call in (1, 2):
            shutil.rmtree(folder, ignore_errors=True)
            replace_folder(old, fill_with("A"))  # what a kill between the two renames leaves
            with monkeypatch.context() as patch:
                Killer(patch, call, moment)
                with pytest.raises(Killed):
                    recover_folder(folder)
            recover_folder(folder)
            assert content(folder) == FILES["A"] and not old.exists()


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, fill_with("A"))

    def fill(new: Path) -> None:
        (new / "config.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(UserError, match=f"^{folder}: cannot be saved: disk full$"):
        replace_folder(folder, fill)
    assert content(folder) == FILES["A"]


def test_nothing_of_the_old_folder_stays_in_the_new(tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, lambda new: (new / "stale.json").write_text("old"))
    replace_folder(folder, fill_with("B"))
    assert content(folder) == FILES["B"]
