"""A projector of two linear layers, the second of which is not the identity, is folded into one when it is loaded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from minillava import load, save
from minillava.errors import UserError

LAYERS = [f"multi_modal_projector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]


@pytest.fixture
def two_layers(tiny_model, tmp_path):
    """The weight file of a model with two linear layers, the second of which is not the identity; and its tensors."""
    save(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for name in LAYERS:
        tensors[name] = torch.randn_like(tensors[name])
    save_file(tensors, path)
    return path, tensors


def test_two_linear_layers_are_folded_into_their_product(two_layers):
    path, tensors = two_layers
    projector = load(path.parent).multi_modal_projector
    w1, b1, w2, b2 = (tensors[name] for name in LAYERS)
    torch.testing.assert_close(projector.weight, w2 @ w1)
    torch.testing.assert_close(projector.bias, w2 @ b1 + b2)
    z = torch.randn(2, 9, 24)
    both = (z @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(projector(z), both, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_missing_layer_of_the_two_is_named(two_layers, name):
    path, tensors = two_layers
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"{name} is missing"):
        load(path.parent)


def test_saving_leaves_the_model_itself_with_one_layer(tiny_model, tmp_path):
    before = sorted(tiny_model.state_dict())
    save(tiny_model, tmp_path / "model")
    assert sorted(tiny_model.state_dict()) == before
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored[LAYERS[2]], torch.eye(32)) and not stored[LAYERS[3]].any()
