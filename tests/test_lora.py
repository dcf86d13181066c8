"""LoRA layer by layer, compared with the full matrix that it replaces; test_lora_training.py trains and saves it."""

import pytest
import torch
import torch.nn.functional as F
from expect import same
from test_decoder import CONFIG
from torch import nn

from minillava.model.decoder import Decoder
from minillava.model.lora import LoraLinear, add_lora, has_lora, merge_lora

RANK, ALPHA = 3, 12.0
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def lora(bias: bool = True, dtype: torch.dtype = torch.float32) -> LoraLinear:
    """A layer (8 -> 6) with a B that is not zero, as after training."""
    layer = LoraLinear(nn.Linear(8, 6, bias, dtype=dtype), RANK, ALPHA)
    nn.init.normal_(layer.lora_B.weight)
    return layer


def whole(layer: LoraLinear) -> torch.Tensor:
    """W + alpha / r B A in float64, the product as a sum of outer products."""
    matrix = layer.weight.detach().double()
    for r in range(RANK):
        outer = torch.outer(layer.lora_B.weight[:, r].double(), layer.lora_A.weight[r].double())
        matrix = matrix + ALPHA / RANK * outer.detach()
    return matrix


@pytest.fixture
def decoder(randomise) -> Decoder:
    return randomise(Decoder(CONFIG))


def linear_layers(decoder: Decoder) -> dict[str, nn.Module]:
    """The linear layers of the blocks by name, with A and B as parts of their layer."""
    layers = {name: part for name, part in decoder.layers.named_modules() if isinstance(part, nn.Linear)}
    return {name: part for name, part in layers.items() if ".lora_" not in name}


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_computes_what_its_full_matrix_computes(bias):
    layer, x = lora(bias), torch.randn(2, 5, 8)
    plain = F.linear(x, layer.weight, layer.bias)
    layer.lora_B.weight.zero_()
    same(layer(x), plain, "with B = 0 the result is that of the plain layer, W x + bias", **CLOSE)
    nn.init.normal_(layer.lora_B.weight)
    wanted = F.linear(x.double(), whole(layer), layer.bias.double() if bias else None).float()
    same(layer(x), wanted, "the result is W x + bias + (alpha / r) B A x", **CLOSE)


def test_gradients_are_those_of_the_matrix_along_its_low_rank():
    x, target, layer = torch.randn(5, 8), torch.randn(5, 6), lora()
    a, b, scale = layer.lora_A.weight, layer.lora_B.weight, ALPHA / RANK
    matrix = (layer.weight + scale * b @ a).detach().requires_grad_()
    F.mse_loss(F.linear(x, matrix, layer.bias), target).backward()
    F.mse_loss(layer(x), target).backward()
    assert a.grad is not None and b.grad is not None, "the gradient reaches A and B"
    same(
        a.grad,
        scale * b.detach().T @ matrix.grad,
        "A's gradient is scale B^T G, where G is that of W + scale B A",
        **CLOSE,
    )
    same(
        b.grad,
        scale * matrix.grad @ a.detach().T,
        "B's gradient is scale G A^T, where G is that of W + scale B A",
        **CLOSE,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_a_merged_layer_is_a_plain_one_with_the_full_matrix(bias):
    layer = lora(bias)
    plain, (out, size) = layer.merged(), layer.weight.shape
    assert type(plain) is nn.Linear, f"merged() returns an nn.Linear (yours is a {type(plain).__name__})"
    assert (plain.in_features, plain.out_features) == (size, out), "merged() is a layer of the same size"
    assert not plain.weight.is_meta, "a layer made on the device meta needs a weight of its own"
    same(plain.weight.detach(), whole(layer).float(), "the merged matrix is W + (alpha / r) B A", **CLOSE)
    if bias:
        assert plain.bias is not None, "the merged layer keeps the bias"
        same(plain.bias, layer.bias, "the merged layer keeps the bias")
    else:
        assert plain.bias is None, "a layer without bias is merged into one without"


def test_a_merged_layer_adds_up_in_float32_and_keeps_its_dtype():
    layer = LoraLinear(nn.Linear(48, 40, dtype=torch.bfloat16), RANK, ALPHA)
    nn.init.normal_(layer.lora_B.weight)
    plain, wanted = layer.merged(), whole(layer).bfloat16()
    same(plain.weight.detach(), wanted, "the merged matrix has W's dtype", rtol=0.01, atol=0.01)
    differ = (plain.weight != wanted).sum().item()
    words = "W + scale B A is added up in float32 and rounded to W's dtype once"
    assert differ <= 2, f"{words} ({differ} of {wanted.numel()} numbers are rounded otherwise)"


def test_lora_stands_in_every_linear_layer_of_the_blocks(decoder):
    plain = linear_layers(decoder)
    add_lora(decoder, RANK, ALPHA)
    layers = linear_layers(decoder)
    for name in plain:
        assert isinstance(layers[name], LoraLinear), f"layer {name} of the blocks becomes a LoraLinear"
        same(layers[name].weight, plain[name].weight, f"W of {name} stays")
        got = (layers[name].lora_A.out_features, layers[name].scale)
        assert got == (RANK, ALPHA / RANK), f"{name} has the rank and alpha that are given (rank, scale: {got})"
    assert not isinstance(decoder.lm_head, LoraLinear), "the head is no part of a block: it stays a plain layer"


def test_only_a_and_b_are_trained(decoder):
    add_lora(decoder, RANK, ALPHA)
    for name, parameter in decoder.named_parameters():
        learns = "lora_A" in name or "lora_B" in name
        assert parameter.requires_grad == learns, f"{name} is {'trained' if learns else 'frozen'}"


@torch.no_grad()
def test_untrained_lora_changes_nothing_and_starts_as_in_the_paper(decoder):
    x = torch.randn(2, 5, 32)
    before = decoder(x)
    add_lora(decoder, RANK, ALPHA)
    same(decoder(x), before, "before training the model computes what it did without LoRA", **CLOSE)
    for name, layer in linear_layers(decoder).items():
        assert not layer.lora_B.weight.any(), f"B of {name} starts at zero"
        bound = layer.in_features**-0.5  # Kaiming uniform, as in the authors' loralib
        assert 0.8 * bound < layer.lora_A.weight.abs().max() <= bound, f"A of {name} starts as nn.Linear's weight does"


@torch.no_grad()
def test_merged_and_unmerged_decoders_agree(decoder):
    add_lora(decoder, RANK, ALPHA)
    for layer in linear_layers(decoder).values():
        if isinstance(layer, LoraLinear):
            nn.init.normal_(layer.lora_B.weight, std=0.1)
    x = torch.randn(2, 5, 32)
    before = decoder(x)
    merge_lora(decoder)
    left = [name for name, part in decoder.named_modules() if isinstance(part, LoraLinear)]
    assert not left and not has_lora(decoder), f"merge_lora() replaces every LoraLinear ({len(left)} are left)"
    same(decoder(x), before, "the merged decoder computes what it did with A and B", **CLOSE)
