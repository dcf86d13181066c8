"""Models saved by transformers compute the same when loaded here: vision features, logits and 64 generated tokens."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from minillava import load
from minillava.checkpoint import load_vision
from minillava.language_model import load_decoder
from minillava.model.generation import collect, generate_ids

TOKENS = 64


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def greedy(model, pad: int = 0, **inputs: torch.Tensor) -> torch.Tensor:
    """The next 64 tokens that transformers generates, (B, 64)."""
    model.generation_config.eos_token_id = None  # otherwise it replaces the None below
    config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=pad, eos_token_id=None)
    return model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]


def edit_config(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


# Vision towers

TOWERS = {
    "patch 14, quick_gelu": {"image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu"},
    "patch 4, gelu": {"image_size": 16, "patch_size": 4, "hidden_act": "gelu"},
    "patch 16, large epsilon": {"image_size": 32, "patch_size": 16, "layer_norm_eps": 0.03},
}


def tower_config(**more) -> CLIPVisionConfig:
    sizes = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 3}
    return CLIPVisionConfig(**{**sizes, **more})


@pytest.mark.parametrize("both", [True, False], ids=["CLIPModel", "CLIPVisionModel"])
@pytest.mark.parametrize("sizes", TOWERS.values(), ids=TOWERS.keys())
@torch.no_grad()
def test_vision_tower(randomise, tmp_path, sizes, both):
    config = tower_config(**sizes)
    if both:
        text = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
        folder_model = randomise(CLIPModel(CLIPConfig(vision_config=config.to_dict(), text_config=text.to_dict())))
        theirs = folder_model.vision_model
    else:
        folder_model = theirs = randomise(CLIPVisionModel(config))
    folder_model.save_pretrained(tmp_path)
    ours = load_vision(tmp_path)
    pixel_values = torch.randn(2, 3, config.image_size, config.image_size)
    states = theirs(pixel_values, output_hidden_states=True).hidden_states
    for layer in (-1, -2):
        assert_close(ours(pixel_values, layer, "full"), states[layer])
        assert_close(ours(pixel_values, layer, "default"), states[layer][:, 1:])


# Decoders

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
DECODERS = {
    "MHA": {},
    "GQA": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "head_dim": {"head_dim": 20, "num_key_value_heads": 2, "rms_norm_eps": 0.01},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5000.0, **LLAMA3}, "num_key_value_heads": 2},
}


def decoder_config(tokenizer, **more) -> LlamaConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    rows = tokenizer.vocab_size + 23  # a padded vocabulary
    return LlamaConfig(**{**sizes, "vocab_size": rows, "max_position_embeddings": 512, **more})


def spell_as_before(config: dict) -> None:
    """Rewrite rope_parameters as transformers 4 and configs on the hub spell it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("sizes", DECODERS.values(), ids=DECODERS.keys())
@torch.no_grad()
def test_decoder(randomise, tokenizer, tmp_path, sizes, spelling):
    theirs = randomise(LlamaForCausalLM(decoder_config(tokenizer, **sizes)))
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if spelling == "rope_scaling":
        edit_config(tmp_path, spell_as_before)
    ours, read_tokenizer = load_decoder(tmp_path)
    assert read_tokenizer.special == tokenizer.special
    ids = torch.randint(tokenizer.vocab_size, (2, 200))
    assert_close(ours.lm_head(ours(ours.embed_tokens(ids))), theirs(ids).logits)
    prompt = ids[:, :90]
    tokens = collect(generate_ids(ours, ours.embed_tokens(prompt), max_new_tokens=TOKENS), [], 0)
    assert torch.equal(tokens, greedy(theirs, input_ids=prompt, attention_mask=torch.ones_like(prompt)))
    if "rope_parameters" in sizes:  # without the scaling, logits differ by far more than the tolerance above
        ours.config.rope_scaling = None
        unscaled = ours.lm_head(ours(ours.embed_tokens(ids)))
        assert (unscaled - theirs(ids).logits).norm() > 0.1 * unscaled.norm()


# Whole models

LLAVAS = {
    "mlp": {},
    "linear": {"projector_hidden_act": "linear"},
    "last layer": {"vision_feature_layer": -1},
    "with the class token": {"vision_feature_select_strategy": "full"},
    "last layer with the class token": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
}


def make_llava(randomise, vision: CLIPVisionConfig, decoder: LlamaConfig, **more) -> LlavaForConditionalGeneration:
    return randomise(LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=decoder, **more)))


@pytest.fixture(params=LLAVAS.values(), ids=LLAVAS.keys())
def llava(request, randomise, tokenizer) -> LlavaForConditionalGeneration:
    vision = tower_config(image_size=24, patch_size=8)
    decoder = decoder_config(tokenizer, num_key_value_heads=2, eos_token_id=tokenizer.eos_id)
    return make_llava(randomise, vision, decoder, image_token_index=tokenizer.image_id, **request.param)


def batch(model: LlavaForConditionalGeneration, pad: int) -> dict[str, torch.Tensor]:
    """Rows of unequal length, padded on the left: no picture, one, three (two of them adjacent)."""
    count = 9 + (model.config.vision_feature_select_strategy == "full")
    image = [model.config.image_token_id] * count
    rows = [[60, 61, 62, 63], [70, *image, 71, 72], [*image, *image, 80, 81, *image, 82, 83, 84]]
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(4, 3, 24, 24)}


@torch.no_grad()
def test_llava_on_rows_of_unequal_length_with_none_one_and_several_pictures(llava, tokenizer, tmp_path):
    llava.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = load(tmp_path)
    inputs = batch(llava, tokenizer.pad_id)
    there = inputs["attention_mask"] == 1
    assert_close(ours(**inputs)[0][there], llava(**inputs).logits[there])
    tokens = ours.generate(**inputs, max_new_tokens=TOKENS, stop_ids=[])
    assert torch.equal(tokens, greedy(llava, tokenizer.pad_id, **inputs))


@torch.no_grad()
def test_llava_in_bfloat16_is_transformers_llava_in_bfloat16(randomise, tokenizer, tmp_path):
    vision, decoder = tower_config(image_size=24, patch_size=8), decoder_config(tokenizer)
    make_llava(randomise, vision, decoder, image_token_index=tokenizer.image_id).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    inputs = batch(theirs, tokenizer.pad_id)
    there = inputs["attention_mask"] == 1
    found, expected = ours(**inputs)[0][there].float(), theirs(**inputs).logits[there].float()
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert ours.generate(**inputs, max_new_tokens=3).shape == (3, 3)
