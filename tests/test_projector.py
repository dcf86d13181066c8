"""The projector, compared with computations by hand; test_parts_transformers.py compares it with LLaVA-1.5's."""

import math

import pytest
import torch
from expect import same

from minillava.model.projector import PROJECTORS, MLPProjector


def linear(w: list, b: list, z: list) -> list:
    return [sum(w_ij * z_j for w_ij, z_j in zip(row, z)) + b_i for row, b_i in zip(w, b)]


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def test_linear_projector_is_w_z_plus_b():
    projector, z = PROJECTORS["linear"](3, 2), torch.randn(3)
    wanted = linear(projector.weight.tolist(), projector.bias.tolist(), z.tolist())
    same(projector(z), torch.tensor(wanted), "the linear projector is W z + b")


def test_mlp_projector_has_the_tensors_of_llava_hf():
    shapes = {name: tuple(tensor.shape) for name, tensor in MLPProjector(6, 10).state_dict().items()}
    wanted = {
        "linear_1.weight": (10, 6),
        "linear_1.bias": (10,),
        "linear_2.weight": (10, 10),
        "linear_2.bias": (10,),
    }
    assert shapes == wanted, f"its tensors are linear_1 and linear_2, each with a bias: {wanted} (yours are {shapes})"


def test_mlp_projector_is_two_layers_with_a_gelu_between():
    projector, z = MLPProjector(3, 4), torch.randn(3) * 2
    w1, b1, w2, b2 = (tensor.tolist() for tensor in projector.parameters())
    wanted = torch.tensor(linear(w2, b2, [gelu(x) for x in linear(w1, b1, z.tolist())]))
    same(projector(z), wanted, "the result is linear_2(gelu(linear_1(z))), with the exact GELU", atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_projector_treats_each_visual_token_by_itself(name):
    projector, z = PROJECTORS[name](6, 10), torch.randn(2, 4, 6)
    wanted = torch.stack([torch.stack([projector(token) for token in picture]) for picture in z])
    same(projector(z), wanted, "each visual token is projected by itself: (..., vision) -> (..., decoder)")
