"""The vision tower, part by part, compared with its formulas; test_parts_transformers.py compares it with CLIP's."""

import math

import pytest
import torch
import torch.nn.functional as F
from expect import refused, same
from torch import nn

from minillava.config import VisionConfig
from minillava.model.attention import CLOSED
from minillava.model.vision import MLP, Attention, Block, Embeddings, Encoder, VisionTower, quick_gelu

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIGS = {
    "quick_gelu": VisionConfig(**SMALL, image_size=24, patch_size=8),
    "gelu": VisionConfig(**SMALL, image_size=16, patch_size=4, hidden_act="gelu"),
    "one head, one patch": VisionConfig(**{**SMALL, "num_attention_heads": 1}, image_size=14, patch_size=14),
    "large epsilon": VisionConfig(**SMALL, image_size=20, patch_size=10, layer_norm_eps=0.1),
}
CONFIG = CONFIGS["quick_gelu"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request) -> VisionConfig:
    return request.param


@pytest.fixture
def tower(config, randomise) -> VisionTower:
    return randomise(VisionTower(config))


def pictures(tower: VisionTower, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, tower.config.image_size, tower.config.image_size)


def test_quick_gelu_is_its_formula():
    x = torch.linspace(-5, 5, 21)
    wanted = torch.tensor([v / (1 + math.exp(-1.702 * v)) for v in x.tolist()])
    same(quick_gelu(x), wanted, "quick_gelu(x) is x * sigmoid(1.702 x)")


@torch.no_grad()
def test_the_class_token_comes_first(config, randomise):
    embeddings = randomise(Embeddings(config))
    out = embeddings(torch.randn(2, 3, config.image_size, config.image_size))
    shape, wanted = tuple(out.shape), (2, 1 + config.num_patches, config.hidden_size)
    assert shape == wanted, f"the result is (B, 1 + patches, hidden) (yours is {shape}, it should be {wanted})"
    first = (embeddings.class_embedding + embeddings.position_embedding.weight[0]).expand(2, -1)
    same(out[:, 0], first, "index 0 is the class embedding plus position embedding 0, in each row", **CLOSE)


@torch.no_grad()
def test_a_patch_is_a_dot_product_with_its_pixels_in_reading_order(config, randomise):
    embeddings, size = randomise(Embeddings(config)), config.patch_size
    pixel_values = torch.randn(2, 3, config.image_size, config.image_size)
    weight, positions = embeddings.patch_embedding.weight, embeddings.position_embedding.weight
    out, per_row = embeddings(pixel_values), config.image_size // size
    for index in range(config.num_patches):
        y, x = index // per_row * size, index % per_row * size
        patch = pixel_values[1, :, y : y + size, x : x + size]
        product = torch.stack([(patch * weight[i]).sum() for i in range(config.hidden_size)])
        words = f"patch {index}, counted row by row, is at index {1 + index} with position embedding {1 + index}"
        same(out[1, 1 + index], product + positions[1 + index], words, **CLOSE)


def attention_by_hand(layer: Attention, x: torch.Tensor, sees: torch.Tensor, heads: int) -> torch.Tensor:
    """Head by head and query by query; ``sees`` is bool (B, T, T)."""
    d, out = x.shape[-1] // heads, torch.zeros_like(x)
    q, k, v = (F.linear(x, p.weight, p.bias) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    for b in range(len(x)):
        for h in range(heads):
            own = slice(h * d, h * d + d)
            for t in range(x.shape[1]):
                scores = torch.stack([q[b, t, own] @ key / math.sqrt(d) for key in k[b, sees[b, t], own]])
                out[b, t, own] = scores.softmax(dim=0) @ v[b, sees[b, t], own]
    return F.linear(out, layer.out_proj.weight, layer.out_proj.bias)


@torch.no_grad()
def test_attention_with_one_head_is_its_formula(randomise):
    config = CONFIGS["one head, one patch"]
    layer, x = randomise(Attention(config)), torch.randn(2, 5, 24)
    wanted = attention_by_hand(layer, x, torch.ones(2, 5, 5, dtype=torch.bool), 1)
    words = "with one head it is out_proj(attend(q, k, v)); q, k and v are q_proj(x), k_proj(x) and v_proj(x)"
    same(layer(x), wanted, words, **CLOSE)


@torch.no_grad()
def test_each_head_takes_its_slice_of_the_queries_keys_and_values(config, randomise):
    layer, x = randomise(Attention(config)), torch.randn(2, 5, 24)
    wanted = attention_by_hand(layer, x, torch.ones(2, 5, 5, dtype=torch.bool), config.num_attention_heads)
    words = "head h takes numbers h * d to h * d + d of q, k and v; the heads are joined in this order"
    same(layer(x), wanted, words, **CLOSE)


@torch.no_grad()
def test_attention_obeys_its_mask(config, randomise):
    layer, x, sees = randomise(Attention(config)), torch.randn(2, 5, 24), torch.rand(2, 5, 5) < 0.7
    sees |= torch.eye(5, dtype=torch.bool)
    wanted = attention_by_hand(layer, x, sees, config.num_attention_heads)
    out = layer(x, torch.where(sees, 0.0, CLOSED)[:, None])
    same(out, wanted, "the mask goes to attend()", **CLOSE)


@torch.no_grad()
def test_an_mlp_is_two_layers_with_the_activation_between(config, randomise):
    layer, x = randomise(MLP(config)), torch.randn(2, 5, 24)
    inner = F.linear(x, layer.fc1.weight, layer.fc1.bias)
    inner = F.gelu(inner) if config.hidden_act == "gelu" else inner / (1 + torch.exp(-1.702 * inner))
    wanted = F.linear(inner, layer.fc2.weight, layer.fc2.bias)
    same(layer(x), wanted, "the result is fc2(activation(fc1(x)))", **CLOSE)


def normed(norm: nn.LayerNorm, x: torch.Tensor, config: VisionConfig) -> torch.Tensor:
    """LayerNorm as its formula, with the epsilon of the configuration."""
    scale = torch.sqrt(x.var(dim=-1, keepdim=True, correction=0) + config.layer_norm_eps)
    return (x - x.mean(dim=-1, keepdim=True)) / scale * norm.weight + norm.bias


@torch.no_grad()
def test_a_block_adds_attention_and_then_the_mlp_of_normed_vectors(config, randomise):
    block, x = randomise(Block(config)), torch.randn(2, 5, 24)
    halfway = x + block.self_attn(normed(block.layer_norm1, x, config))
    wanted = halfway + block.mlp(normed(block.layer_norm2, halfway, config))
    words = "a block is x + self_attn(layer_norm1(x)), then x + mlp(layer_norm2(x)); what is added to is not normed"
    same(block(x), wanted, words, **CLOSE)
    mask = torch.full((5, 5), CLOSED).triu(1)
    halfway = x + block.self_attn(normed(block.layer_norm1, x, config), mask)
    wanted = halfway + block.mlp(normed(block.layer_norm2, halfway, config))
    same(block(x, mask), wanted, "a block passes its mask to attention", **CLOSE)


@torch.no_grad()
def test_encoder_is_as_many_blocks_as_asked_for_one_after_the_other(config, randomise):
    encoder, x, mask = randomise(Encoder(config)), torch.randn(2, 5, 24), torch.full((5, 5), CLOSED).triu(1)
    wanted = [x]
    for block in encoder.layers:
        wanted.append(block(wanted[-1], mask))
    for count in (1, 2, 3, 0):
        words = f"num_layers={count} runs {count} of the blocks, each on the result of the one before, with the mask"
        same(encoder(x, mask, count), wanted[count], words, **CLOSE)
    same(encoder(x, mask), wanted[3], "num_layers=None runs all blocks", **CLOSE)


@torch.no_grad()
def test_every_layer_is_that_many_blocks_after_the_first_norm(tower):
    pixel_values = pictures(tower)
    wanted = [normed(tower.pre_layrnorm, tower.embeddings(pixel_values), tower.config)]
    for block in tower.encoder.layers:
        wanted.append(block(wanted[-1]))
    for layer in (0, 1, 2, 3):
        words = f"layer {layer} is the embeddings, pre_layrnorm and {layer} blocks"
        same(tower.hidden_state(pixel_values, layer), wanted[layer], words, **CLOSE)
    for layer in (-1, -2, -3, -4):
        words = f"layer {layer} of three blocks is the same as layer {4 + layer}"
        same(tower.hidden_state(pixel_values, layer), wanted[layer], words, **CLOSE)
    same(tower.hidden_state(pixel_values), wanted[-1], "without a layer it is the last", **CLOSE)


class Forbidden(nn.Module):
    def forward(self, *_: object) -> None:
        raise AssertionError("blocks after the chosen layer are not computed")


@pytest.mark.parametrize("layer, computed", [(-1, 3), (-2, 2), (-4, 0), (0, 0), (1, 1), (3, 3)])
def test_blocks_after_the_chosen_layer_are_not_computed(randomise, layer, computed):
    tower = randomise(VisionTower(CONFIG))
    for index in range(computed, 3):
        tower.encoder.layers[index] = Forbidden()
    tower.hidden_state(pictures(tower), layer)


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (1, 3, 24, 16), (1, 3, 32, 32), (1, 1, 24, 24), (3, 24, 24)])
def test_a_picture_of_another_shape_raises(randomise, shape):
    tower = randomise(VisionTower(CONFIG))
    with refused(ValueError, f"pixel_values of shape {shape} raise a ValueError that names them", "pixel_values"):
        tower.hidden_state(torch.zeros(shape))


@pytest.mark.parametrize("layer", [4, -5, 99])
def test_a_layer_that_is_not_there_raises(randomise, layer):
    tower = randomise(VisionTower(CONFIG))
    with refused(ValueError, f"a tower of 3 blocks has no layer {layer}: a ValueError names it", str(layer)):
        tower.hidden_state(pictures(tower), layer)


@torch.no_grad()
def test_features_are_the_grid_without_the_class_token(tower):
    pixel_values = pictures(tower)
    for layer in (-1, 1):
        wanted = tower.hidden_state(pixel_values, layer)[:, 1:]
        same(tower(pixel_values, layer), wanted, "the class token is first: drop index 0", **CLOSE)
    wanted = tower.hidden_state(pixel_values, 2)[:, 1:]
    same(tower(pixel_values), wanted, "without a layer it is the one before the last, -2", **CLOSE)


@torch.no_grad()
def test_full_features_have_the_class_token_first(tower):
    pixel_values = pictures(tower)
    wanted = tower.hidden_state(pixel_values, -1)
    same(tower(pixel_values, -1, "full"), wanted, 'strategy "full" keeps the class token, at index 0', **CLOSE)


@torch.no_grad()
def test_a_picture_does_not_depend_on_the_others_in_its_batch(tower):
    pixel_values = pictures(tower, 3)
    words = "a picture's features do not depend on the other pictures of the batch"
    same(tower(pixel_values)[1:2], tower(pixel_values[1:2]), words, **CLOSE)


def test_a_patch_that_does_not_divide_the_picture_raises():
    with pytest.raises(ValueError, match="image_size 20"):
        VisionTower(VisionConfig(**SMALL, image_size=20, patch_size=8))


def test_an_unknown_activation_raises():
    with pytest.raises(ValueError, match="'relu6'"):
        VisionTower(VisionConfig(**SMALL, hidden_act="relu6"))


def test_heads_that_do_not_divide_the_hidden_size_raise():
    with pytest.raises(ValueError, match="hidden_size 24"):
        VisionTower(VisionConfig(**{**SMALL, "num_attention_heads": 5}, image_size=24, patch_size=8))
