"""The projector: the paper's W against a computation by hand, LLaVA-1.5's two layers against transformers, and the
folding of two linear layers into one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig
from transformers import LlavaConfig as TheirConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from minillava import load, save
from minillava.errors import UserError
from minillava.model.projector import PROJECTORS, LinearProjector, MLPProjector

LAYERS = [f"multi_modal_projector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]


def their_projector(vision_size: int, decoder_size: int, act: str) -> LlavaMultiModalProjector:
    config = TheirConfig(
        vision_config=CLIPVisionConfig(hidden_size=vision_size, num_attention_heads=1),
        text_config=LlamaConfig(hidden_size=decoder_size, num_attention_heads=1),
        projector_hidden_act=act,
    )
    return LlavaMultiModalProjector(config)


def test_linear_projector_is_w_z_plus_b():
    projector, z = LinearProjector(3, 2), torch.randn(3)
    w, b = projector.weight.tolist(), projector.bias.tolist()
    expected = [sum(w[i][j] * z[j].item() for j in range(3)) + b[i] for i in range(2)]
    torch.testing.assert_close(projector(z), torch.tensor(expected))


def test_mlp_projector_has_the_tensors_of_llava_hf():
    ours, theirs = MLPProjector(6, 10), their_projector(6, 10, "gelu")
    assert {name: t.shape for name, t in ours.state_dict().items()} == {
        name: t.shape for name, t in theirs.state_dict().items()
    }


def test_mlp_projector_is_transformers_projector():
    ours, z = MLPProjector(6, 10), torch.randn(2, 4, 6)
    theirs = their_projector(6, 10, "gelu")
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(z), theirs(z))


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_projector_treats_each_visual_token_by_itself(name):
    projector, z = PROJECTORS[name](6, 10), torch.randn(2, 4, 6)
    out = projector(z)
    assert out.shape == (2, 4, 10)
    for picture in range(2):
        for token in range(4):
            torch.testing.assert_close(out[picture, token], projector(z[picture, token]))


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


def test_the_folded_layer_computes_what_transformers_computes_with_two(two_layers):
    path, tensors = two_layers
    theirs, z = their_projector(24, 32, "linear"), torch.randn(2, 9, 24)
    theirs.load_state_dict({name.removeprefix("multi_modal_projector."): tensors[name] for name in LAYERS})
    torch.testing.assert_close(load(path.parent).multi_modal_projector(z), theirs(z), rtol=1e-4, atol=1e-4)


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
