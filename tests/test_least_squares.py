"""The start of the projection by least squares, compared with numpy's solution; on a small picture-book it helps."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.picturebook.draw import draw_scene
from data.picturebook.scene import sample_scene
from data.picturebook.write import _caption, _word_picture
from data.rows import write_rows
from minillava.checkpoint import join
from minillava.config import PRETRAINED
from minillava.errors import UserError
from minillava.inputs.conversations import ConversationDataset
from minillava.inputs.image import open_image
from minillava.model.projector import LinearProjector, MLPProjector
from minillava.training import least_squares
from minillava.training.least_squares import embeddings_of, features, fit, start_projection

PATCHES, SEEN, HIDDEN = 200, 6, 5


def numpys(z: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, float]:
    """The solution (inputs + 1, outputs) for features with a one behind them, and the share that it explains."""
    z, e = np.hstack([z, np.ones((len(z), 1))]).astype(float), e.astype(float)
    solution = np.linalg.lstsq(z, e, rcond=None)[0]
    return solution, 1 - ((e - z @ solution) ** 2).sum() / (len(e) * e.var(axis=0).sum())


@pytest.mark.parametrize("offset", [0, 3])
def test_a_linear_projection_is_numpys_solution(offset):
    z, e = torch.randn(PATCHES, SEEN) + offset, torch.randn(PATCHES, HIDDEN) - 2 * offset
    e[:, 0] += z[:, 2]
    projector = LinearProjector(SEEN, HIDDEN)
    share = fit(projector, z, e)
    solution, expected = numpys(z.numpy(), e.numpy())
    np.testing.assert_allclose(projector.weight.detach().numpy(), solution[:-1].T, atol=1e-5)
    np.testing.assert_allclose(projector.bias.detach().numpy(), solution[-1], atol=1e-5)
    assert share == pytest.approx(expected, abs=1e-9) and 0 < share < 1
    left = (e - projector(z)).square().sum() / (e - e.mean(dim=0)).square().sum()
    assert share == pytest.approx(1 - left.item(), abs=1e-5)


def test_what_is_linear_in_the_features_is_found():
    true = LinearProjector(SEEN, HIDDEN)
    z = torch.randn(PATCHES, SEEN)
    with torch.no_grad():
        e = true(z)
    projector = LinearProjector(SEEN, HIDDEN)
    assert fit(projector, z, e) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(projector.state_dict(), true.state_dict(), atol=1e-5, rtol=0)


def test_features_that_say_nothing_explain_nothing_and_give_the_mean():
    e = torch.randn(PATCHES, HIDDEN)
    projector = LinearProjector(SEEN, HIDDEN)
    assert fit(projector, torch.zeros(PATCHES, SEEN), e) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(projector(torch.zeros(1, SEEN))[0], e.mean(dim=0))


def test_features_that_depend_on_each_other_have_a_solution_too():
    z = torch.randn(PATCHES, 2).repeat(1, 3)
    e = z[:, :2] @ torch.randn(2, HIDDEN)
    projector = LinearProjector(SEEN, HIDDEN)
    assert fit(projector, z, e) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(projector(z), e, atol=1e-4, rtol=0)


def test_of_an_mlp_only_the_second_layer_is_fitted():
    z, e = torch.randn(PATCHES, SEEN), torch.randn(PATCHES, HIDDEN)
    projector = MLPProjector(SEEN, HIDDEN)
    before = {name: tensor.clone() for name, tensor in projector.linear_1.state_dict().items()}
    with torch.no_grad():
        e[:, 1] += 3 * F.gelu(projector.linear_1(z))[:, 0]
        inside = F.gelu(projector.linear_1(z)).numpy()
    share = fit(projector, z, e)
    solution, expected = numpys(inside, e.numpy())
    np.testing.assert_allclose(projector.linear_2.weight.detach().numpy(), solution[:-1].T, atol=1e-4)
    np.testing.assert_allclose(projector.linear_2.bias.detach().numpy(), solution[-1], atol=1e-4)
    assert share == pytest.approx(expected, abs=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in projector.linear_1.state_dict().items())
    left = (e - projector(z)).square().sum() / (e - e.mean(dim=0)).square().sum()
    assert share == pytest.approx(1 - left.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_keep_their_dtype(dtype):
    z, e = torch.randn(PATCHES, SEEN).to(dtype), torch.randn(PATCHES, HIDDEN).to(dtype)
    projector = LinearProjector(SEEN, HIDDEN).to(dtype)
    share = fit(projector, z, e)
    solution, expected = numpys(z.float().numpy(), e.float().numpy())
    assert projector.weight.dtype == dtype and share == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(projector.weight.detach().float().numpy(), solution[:-1].T, atol=0.01)


def test_features_are_what_the_projection_reads(tiny_model):
    pixels, seen = torch.randn(3, 24, 24), []
    tiny_model.multi_modal_projector.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny_model.encode_images(pixels[None])
    assert torch.equal(features(tiny_model, pixels), seen[0].reshape(9, 24))


def test_embeddings_of_words_are_their_means(tiny_model):
    texts = ["red fish", "tree", "the big blue boat near the bottom"]
    found, table = embeddings_of(tiny_model, texts), tiny_model.language_model.embed_tokens.weight
    ids = [tiny_model.processor.tokenizer.encode(f" {text}") for text in texts]
    assert len({len(row) for row in ids}) == 3
    torch.testing.assert_close(found, torch.stack([table[row].mean(dim=0) for row in ids]))
    assert not found.requires_grad


# ---- on the picture-book --------------------------------------------------------------------------------------------


def write_small_world(folder: Path, count: int) -> None:
    """The two files of a world that are read here, and their pictures."""
    rng = random.Random(3)
    scenes = [sample_scene(rng) for _ in range(count)]
    write_rows(folder / "captions.json", (_caption(scene, index, rng) for index, scene in enumerate(scenes)))
    write_rows(folder / "words.json", (_word_picture(scene, index, rng, 8) for index, scene in enumerate(scenes)))
    (folder / "images" / "train").mkdir(parents=True)
    for index, scene in enumerate(scenes):
        draw_scene(scene, rng).save(folder / "images" / "train" / f"{index:06d}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_small_world(folder, 80)
    return folder


@pytest.fixture
def towers():
    """A function: the kind of projection -> the shipped towers, joined by a random one."""

    def joined(projector: str):
        torch.manual_seed(0)
        return join(str(PRETRAINED / "vision"), str(PRETRAINED / "decoder"), projector)

    return joined


@torch.no_grad()
def caption_loss(model, world: Path) -> float:
    dataset = ConversationDataset(world / "captions.json", world, model.processor.for_captions(), "first")
    batch = dataset.collate([dataset[0, 0, row] for row in range(48, 80)])
    del batch["lengths"]
    return model(**batch)[1].item()


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_captions_are_likelier_than_from_a_random_projection(towers, world, projector, monkeypatch):
    """On pictures that were not used."""
    monkeypatch.setattr(least_squares, "PICTURES", 48)
    model = towers(projector)
    before, frozen = caption_loss(model, world), {name: t.clone() for name, t in model.state_dict().items()}
    share = start_projection(model, world)
    after = caption_loss(model, world)
    assert 0.3 < share < 1 and after < before - 0.5, (share, before, after)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, frozen[name])}
    last = "multi_modal_projector." + ("linear_2." if projector == "mlp" else "")
    assert changed == {f"{last}weight", f"{last}bias"}


def test_it_is_the_fit_of_all_patches_of_the_first_pictures(towers, world, monkeypatch):
    monkeypatch.setattr(least_squares, "PICTURES", 5)
    one, other = towers("linear"), towers("linear")
    share = start_projection(one, world)
    rows = [json.loads((world / f"{name}.json").read_text())[:5] for name in ("captions", "words")]
    z = torch.cat([features(other, other.processor.image(open_image(world / row["image"]))) for row in rows[0]])
    e = torch.cat([embeddings_of(other, row["patch_words"]) for row in rows[1]])
    assert len(z) == len(e) == 5 * 64 and fit(other.multi_modal_projector, z, e) == pytest.approx(share, abs=1e-12)
    assert torch.equal(one.multi_modal_projector.weight, other.multi_modal_projector.weight)


def test_pictures_and_words_are_of_the_same_scene(world):
    """Row by row, the words of captions.json's picture are in words.json."""
    for picture, words in zip(*(json.loads((world / f"{name}.json").read_text()) for name in ("captions", "words"))):
        assert picture["things"] == words["things"] and len(words["patch_words"]) == 64
        assert all(any(pair in text for text in words["patch_words"]) for pair in picture["things"])


def test_other_patches_than_the_towers_are_named(towers, world, tmp_path):
    for name in ("captions.json", "words.json"):
        shutil.copy(world / name, tmp_path)
    (tmp_path / "images").symlink_to(world / "images")
    rows = json.loads((tmp_path / "words.json").read_text())
    rows = [row | {"patch_words": row["patch_words"][:49]} for row in rows]
    (tmp_path / "words.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"words\.json: has 49 cells a picture, the tower gives 64 visual tokens"):
        start_projection(towers("linear"), tmp_path)
