"""The vision tower gives the results of transformers' CLIPVisionModel and runs only the blocks that are needed."""

import math

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from minillava.config import VisionConfig
from minillava.model.attention import CLOSED
from minillava.model.vision import VisionTower, quick_gelu

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIGS = {
    "quick_gelu": VisionConfig(**SMALL, image_size=24, patch_size=8),
    "gelu": VisionConfig(**SMALL, image_size=16, patch_size=4, hidden_act="gelu"),
    "one head, one patch": VisionConfig(**{**SMALL, "num_attention_heads": 1}, image_size=14, patch_size=14),
    "large epsilon": VisionConfig(**SMALL, image_size=20, patch_size=10, layer_norm_eps=0.1),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def tower(request, randomise) -> VisionTower:
    return randomise(VisionTower(request.param))


def pictures(tower: VisionTower, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, tower.config.image_size, tower.config.image_size)


def as_clip(tower: VisionTower) -> CLIPVisionModel:
    theirs = CLIPVisionModel(CLIPVisionConfig(**tower.config.to_dict())).eval()
    theirs.load_state_dict(tower.state_dict())
    return theirs


def test_quick_gelu_is_its_formula():
    x = torch.linspace(-5, 5, 21)
    torch.testing.assert_close(quick_gelu(x), torch.tensor([v / (1 + math.exp(-1.702 * v)) for v in x.tolist()]))


@pytest.mark.parametrize("part", ["mlp", "self_attn", ""])
@torch.no_grad()
def test_a_block_and_its_parts_are_transformers_clip(tower, part):
    ours, theirs = (t.encoder.layers[1].get_submodule(part) for t in (tower, as_clip(tower)))
    x = torch.randn(2, 5, 24)
    mask = () if part == "mlp" else (torch.where(torch.rand(2, 1, 5, 5) < 0.3, CLOSED, 0.0),)
    expected = theirs(x, *mask)
    if part == "self_attn":
        expected = expected[0]
    torch.testing.assert_close(ours(x, *mask), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_encoder_is_as_many_blocks_as_asked_for_one_after_the_other(tower):
    x = torch.randn(2, 5, 24)
    expected = [x]
    for block in tower.encoder.layers:
        expected.append(block(expected[-1]))
    for count in range(4):
        assert torch.equal(tower.encoder(x, num_layers=count), expected[count])
    assert torch.equal(tower.encoder(x), expected[3])


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


def test_features_are_the_grid_of_the_layer_before_the_last_without_class_token(tower):
    pixel_values = pictures(tower)
    features = tower(pixel_values)
    assert features.shape == (2, tower.config.num_patches, 24)
    assert torch.equal(features, tower.hidden_state(pixel_values, 2)[:, 1:])
    assert torch.equal(tower(pixel_values, -1), tower.hidden_state(pixel_values, 3)[:, 1:])


def test_a_picture_does_not_depend_on_the_others_in_its_batch(tower):
    pixel_values = pictures(tower, 3)
    torch.testing.assert_close(tower(pixel_values)[1:2], tower(pixel_values[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer, computed", [(-1, 3), (-2, 2), (-4, 0), (0, 0), (1, 1), (3, 3)])
def test_blocks_after_the_chosen_layer_are_not_computed(randomise, layer, computed):
    tower = randomise(VisionTower(CONFIGS["quick_gelu"]))
    calls = []
    for block in tower.encoder.layers:
        block.register_forward_hook(lambda *_: calls.append(1))
    tower(pictures(tower), layer)
    assert len(calls) == computed


def test_patch_embedding_is_a_dot_product_with_each_patch_in_reading_order(tower):
    config, pixel_values = tower.config, pictures(tower)
    size, weight = config.patch_size, tower.embeddings.patch_embedding.weight
    positions = tower.embeddings.position_embedding.weight
    out = tower.embeddings(pixel_values)
    assert out.shape == (2, 1 + config.num_patches, config.hidden_size)
    torch.testing.assert_close(out[1, 0], tower.embeddings.class_embedding + positions[0])
    per_row = config.image_size // size
    for index in range(config.num_patches):
        y, x = index // per_row * size, index % per_row * size
        patch = pixel_values[1, :, y : y + size, x : x + size]
        expected = torch.stack([(patch * weight[i]).sum() for i in range(config.hidden_size)]) + positions[1 + index]
        torch.testing.assert_close(out[1, 1 + index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (1, 3, 24, 16), (1, 3, 32, 32), (1, 1, 24, 24), (3, 24, 24)])
def test_a_picture_of_another_shape_raises(randomise, shape):
    tower = randomise(VisionTower(CONFIGS["quick_gelu"]))
    with pytest.raises(ValueError, match="pixel_values"):
        tower(torch.zeros(shape))


def test_a_patch_that_does_not_divide_the_picture_raises():
    with pytest.raises(ValueError, match="image_size 20"):
        VisionTower(VisionConfig(**SMALL, image_size=20, patch_size=8))


def test_an_unknown_activation_raises():
    with pytest.raises(ValueError, match="'relu6'"):
        VisionTower(VisionConfig(**SMALL, hidden_act="relu6"))


def test_full_features_have_the_class_token_first(tower):
    pixel_values = pictures(tower)
    full = tower(pixel_values, -1, "full")
    assert torch.equal(full, tower.hidden_state(pixel_values, -1))
    assert torch.equal(full[:, 1:], tower(pixel_values, -1))


def test_heads_that_do_not_divide_the_hidden_size_raise():
    with pytest.raises(ValueError, match="hidden_size 24"):
        VisionTower(VisionConfig(**{**SMALL, "num_attention_heads": 5}, image_size=24, patch_size=8))


@pytest.mark.parametrize("layer", [4, -5, 99])
def test_a_layer_that_is_not_there_raises(randomise, layer):
    tower = randomise(VisionTower(CONFIGS["quick_gelu"]))
    with pytest.raises(ValueError, match=f"layer {layer}"):
        tower(pictures(tower), layer)
