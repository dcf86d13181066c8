"""Each part of the model computes what the same part of transformers computes, with the same random weights."""

from dataclasses import replace

import pytest
import torch
from test_contrastive import NO_REGIONS, clip, texts  # noqa: F401  clip is a fixture
from test_decoder import CONFIG, CONFIGS, run
from test_generation import left_padded, prompt
from test_llava import batch
from test_vision import CONFIGS as TOWERS
from test_vision import pictures
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    TopPLogitsWarper,
)
from transformers import LlavaConfig as TheirConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from minillava import Llava, save
from minillava.inputs.conversation import IGNORE
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.model.attention import CLOSED
from minillava.model.contrastive import contrastive_loss
from minillava.model.decoder import Decoder, rope_frequencies, rope_tables
from minillava.model.generation import nucleus
from minillava.model.projector import MLPProjector
from minillava.model.vision import VisionTower
from minillava.saving import write_clip

CLOSE = {"rtol": 1e-4, "atol": 1e-5}

# Vision tower


@pytest.fixture(params=TOWERS.values(), ids=TOWERS.keys())
def tower(request, randomise) -> VisionTower:
    return randomise(VisionTower(request.param))


def as_clip(tower: VisionTower) -> CLIPVisionModel:
    theirs = CLIPVisionModel(CLIPVisionConfig(**tower.config.to_dict())).eval()
    theirs.load_state_dict(tower.state_dict())
    return theirs


@pytest.mark.parametrize("part", ["mlp", "self_attn", ""])
@torch.no_grad()
def test_a_vision_block_and_its_parts_are_transformers_clip(tower, part):
    ours, theirs = (t.encoder.layers[1].get_submodule(part) for t in (tower, as_clip(tower)))
    x = torch.randn(2, 5, 24)
    mask = () if part == "mlp" else (torch.where(torch.rand(2, 1, 5, 5) < 0.3, CLOSED, 0.0),)
    expected = theirs(x, *mask)
    if part == "self_attn":
        expected = expected[0]
    torch.testing.assert_close(ours(x, *mask), expected, rtol=1e-4, atol=1e-5)


def test_every_layer_is_transformers_clip(tower):
    theirs, pixel_values = as_clip(tower), pictures(tower)
    with torch.no_grad():
        expected = theirs(pixel_values, output_hidden_states=True).hidden_states
        for layer in range(-4, 4):
            assert (tower.hidden_state(pixel_values, layer) - expected[layer]).norm() < 1e-5 * expected[layer].norm()


def test_pooled_class_token_is_transformers_clip(tower):
    theirs, pixel_values = as_clip(tower), pictures(tower)
    with torch.no_grad():
        pooled = tower.post_layernorm(tower.hidden_state(pixel_values)[:, 0])
        torch.testing.assert_close(pooled, theirs(pixel_values).pooler_output, rtol=1e-4, atol=1e-5)


# Projector


def their_projector(vision_size: int, decoder_size: int, act: str) -> LlavaMultiModalProjector:
    config = TheirConfig(
        vision_config=CLIPVisionConfig(hidden_size=vision_size, num_attention_heads=1),
        text_config=LlamaConfig(hidden_size=decoder_size, num_attention_heads=1),
        projector_hidden_act=act,
    )
    return LlavaMultiModalProjector(config)


def test_mlp_projector_is_transformers_projector():
    ours, z = MLPProjector(6, 10), torch.randn(2, 4, 6)
    theirs = their_projector(6, 10, "gelu")
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(z), theirs(z))


# Decoder


def as_llama(decoder: Decoder) -> LlamaForCausalLM:
    config = decoder.config.to_dict()
    scaling = config.pop("rope_scaling") or {"rope_type": "default"}
    rope = {**scaling, "rope_theta": config.pop("rope_theta")}
    theirs = LlamaForCausalLM(LlamaConfig(**config, rope_parameters=rope)).eval()
    weights = decoder.state_dict()
    theirs.load_state_dict({k if k.startswith("lm_head.") else f"model.{k}": v for k, v in weights.items()})
    return theirs


@pytest.fixture
def decoder(randomise) -> Decoder:
    return randomise(Decoder(CONFIG))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_transformers_llama(randomise, config):
    decoder = randomise(Decoder(config))
    ids = torch.randint(50, (2, 17))
    with torch.no_grad():
        ours, theirs = decoder.lm_head(run(decoder, ids)), as_llama(decoder)(ids).logits
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_logits_are_transformers_llama_behind_left_padding(decoder):
    ids, mask = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        ours = decoder.lm_head(run(decoder, ids, mask))
        theirs = as_llama(decoder)(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], **CLOSE)


@pytest.mark.parametrize("part", ["mlp", "self_attn", ""])
@torch.no_grad()
def test_a_block_and_its_parts_are_transformers_llama(decoder, part):
    ours, theirs = decoder.layers[1].get_submodule(part), as_llama(decoder).model.layers[1].get_submodule(part)
    x = torch.randn(2, 7, 32)
    if part == "mlp":
        torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
        return
    mask = torch.where(torch.rand(2, 1, 7, 7) < 0.3, CLOSED, 0.0)
    cos, sin = rope_tables(torch.arange(7)[None], rope_frequencies(decoder.config))
    sine = torch.cat(2 * [sin.squeeze(1)[..., 6:]], dim=-1)  # theirs has no sign: rotate_half() negates instead
    expected = theirs(x, position_embeddings=(cos.squeeze(1), sine), attention_mask=mask)
    if part == "self_attn":
        expected = expected[0]
    torch.testing.assert_close(ours(x, (cos, sin), mask, None), expected, **CLOSE)


# CLIP


@torch.no_grad()
def test_text_tower_is_transformers_clip(clip):  # noqa: F811
    theirs = CLIPTextModel(CLIPTextConfig(**clip.text_model.config.to_dict())).eval()
    theirs.load_state_dict(clip.text_model.state_dict())
    ids = texts(5, 9, 1)
    torch.testing.assert_close(clip.text_model(ids), theirs(ids).pooler_output, rtol=1e-4, atol=1e-5)


def test_both_towers_and_loss_are_transformers_clip(clip, tokenizer, tmp_path):  # noqa: F811
    write_clip(clip, Processor(tokenizer, ImageProcessor.for_size(24), 9), tmp_path)
    theirs, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = texts(5, 9, 1, 6)
    pixel_values = torch.randn(4, 3, 24, 24)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, pixel_values=pixel_values, return_loss=True)
        image, text = clip.image_features(pixel_values, NO_REGIONS, NO_REGIONS)[0], clip.text_features(ids)
        loss = contrastive_loss(image, text, torch.arange(4), clip.logit_scale)
    torch.testing.assert_close(image, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, expected.text_embeds, rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


# LLaVA


@pytest.fixture(params=["linear", "mlp"])
def model(request, tiny_config, tiny_model, randomise) -> Llava:
    return randomise(Llava(replace(tiny_config, projector=request.param), tiny_model.processor))


def opened_by_transformers(model: Llava, folder) -> LlavaForConditionalGeneration:
    save(model, folder)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return theirs.eval()


@pytest.mark.parametrize("layer", [-2, -1, 1])
@torch.no_grad()
def test_logits_and_loss_are_transformers_llava(model, tmp_path, layer):
    model.config.vision_feature_layer = layer
    theirs = opened_by_transformers(model, tmp_path / "model")
    inputs = batch(model)
    (selected, loss), expected = model(**inputs), theirs(**inputs)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    before = torch.nn.functional.pad(inputs.pop("labels")[:, 1:] != IGNORE, (0, 1))
    logits, _ = model(**inputs)
    assert logits.shape == (3, 29, model.config.decoder.vocab_size)
    for ours, wanted in ((logits, expected.logits), (selected, expected.logits[before])):
        assert ours.shape == wanted.shape and (ours - wanted).norm() < 1e-5 * wanted.norm()


@torch.no_grad()
def test_logits_behind_left_padding_are_transformers_llava(model, tmp_path):
    theirs = opened_by_transformers(model, tmp_path / "model")
    inputs = batch(model)
    ids = torch.cat([torch.full((3, 4), model.processor.tokenizer.pad_id), inputs["input_ids"]], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    ours, _ = model(ids, inputs["pixel_values"], mask)
    expected = theirs(input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=mask).logits
    torch.testing.assert_close(ours[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_without_pictures_is_transformers_llava(model, tmp_path):
    theirs = opened_by_transformers(model, tmp_path / "model")
    ids = torch.randint(100, (2, 11))
    logits, loss = model(ids)
    assert loss is None
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


# Generation


def test_greedy_is_transformers_generate(lively_model, tmp_path):
    model = lively_model
    save(model, tmp_path / "model")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    for pixel_values in torch.randn(3, 1, 3, 24, 24):
        ids = prompt(model, "What is it?")
        ours = model.generate(ids, pixel_values, max_new_tokens=40, stop_ids=[])
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixel_values,
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=model.processor.tokenizer.pad_id,
        )
        assert ours.tolist() == expected[:, ids.shape[1] :].tolist()
        assert len(set(ours[0].tolist())) > 10


def test_a_left_padded_batch_is_transformers_generate(lively_model, tmp_path):
    model = lively_model
    save(model, tmp_path / "model")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    questions = ("What is it?", "Is the small green fish near the bottom?", "Where?")
    ids, mask = left_padded(model, [prompt(model, question) for question in questions])
    pixel_values = torch.randn(3, 3, 24, 24)
    ours = model.generate(ids, pixel_values, max_new_tokens=20, stop_ids=[], attention_mask=mask)
    expected = theirs.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pixel_values,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=model.processor.tokenizer.pad_id,
    )
    assert ours.tolist() == expected[:, ids.shape[1] :].tolist()


LOGITS = {
    "random": lambda: torch.randn(64, 50) * 3,
    "one sure": lambda: torch.randn(64, 50).index_fill(1, torch.tensor([7]), 30.0),
    "all equal": lambda: torch.zeros(3, 47),  # no share of them is exactly one of the numbers below
    "equal in pairs": lambda: torch.randn(64, 25).repeat_interleave(2, dim=1),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.55, 0.9, 0.999])
def test_the_nucleus_is_that_of_transformers(name, top_p):
    logits = LOGITS[name]()
    theirs = TopPLogitsWarper(top_p)(None, logits.clone()).softmax(dim=-1)
    ours = nucleus(logits.softmax(dim=-1), top_p)
    ours = ours / ours.sum(dim=-1, keepdim=True)
    if "equal" in name:  # which of two equal tokens is kept is arbitrary
        theirs, ours = theirs.sort(dim=-1).values, ours.sort(dim=-1).values
    assert ((ours > 0) == (theirs > 0)).all()
    torch.testing.assert_close(ours, theirs)
