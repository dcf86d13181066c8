"""Both CLIP towers and their loss, part by part; test_parts_transformers.py compares them with CLIP's."""

import math

import pytest
import torch
import torch.nn.functional as F
from expect import same

from minillava.config import TextConfig, VisionConfig
from minillava.model.attention import CLOSED
from minillava.model.contrastive import Clip, TextEmbeddings, TextTower, clip_loss, contrastive_loss

NO_REGIONS = torch.empty(0, dtype=torch.long)
END = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
VISION = VisionConfig(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=24,
    patch_size=8,
    projection_dim=20,
)
TEXT = TextConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    max_position_embeddings=24,
    projection_dim=20,
    eos_token_id=END,
)


@pytest.fixture
def clip(randomise) -> Clip:
    model = randomise(Clip(VISION, TEXT))
    torch.nn.init.constant_(model.logit_scale, 1.7)
    return model


def texts(*lengths: int) -> torch.Tensor:
    """Random ids (B, T): each row has so many words, and then end tokens."""
    ids = torch.full((len(lengths), max(lengths) + 1), END)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, 60, (length,))
    return ids


def units(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@torch.no_grad()
def test_a_text_is_its_tokens_and_their_places(randomise):
    embeddings, ids = randomise(TextEmbeddings(TEXT)), texts(4, 2)
    tokens, places = embeddings.token_embedding.weight, embeddings.position_embedding.weight
    wanted = torch.stack([torch.stack([tokens[index] + places[t] for t, index in enumerate(row)]) for row in ids])
    same(embeddings(ids), wanted, "token t of a row is its token embedding plus position embedding t")


@torch.no_grad()
def test_a_text_is_the_normed_state_at_its_first_end_token(randomise):
    tower, ids = randomise(TextTower(TEXT)), texts(5, 3, 1)
    hidden = tower.encoder(tower.embeddings(ids), torch.full((6, 6), CLOSED).triu(1))
    at_end = torch.stack([hidden[0, 5], hidden[1, 3], hidden[2, 1]])
    mean, spread = at_end.mean(dim=-1, keepdim=True), at_end.var(dim=-1, keepdim=True, correction=0)
    norm = tower.final_layer_norm
    wanted = (at_end - mean) / (spread + TEXT.layer_norm_eps).sqrt() * norm.weight + norm.bias
    words = "a text is the causal encoder's state at the row's first end token, after final_layer_norm"
    same(tower(ids), wanted, words, **CLOSE)


@torch.no_grad()
def test_what_follows_the_first_end_token_does_not_change_a_text(randomise):
    tower, short = randomise(TextTower(TEXT)), texts(4)
    padded = torch.cat([short, torch.full((1, 4), END)], dim=1)
    same(tower(padded), tower(short), "end tokens that pad a text do not change it: the first one counts", **CLOSE)


def to_text_by_hand(logits: list[list[float]], match: list[int]) -> float:
    rows = [math.log(sum(map(math.exp, row))) - row[match[i]] for i, row in enumerate(logits)]
    return sum(rows) / len(rows)


def to_image_by_hand(logits: list[list[float]], match: list[int]) -> float:
    loss, columns = 0.0, [list(column) for column in zip(*logits)]
    for t, column in enumerate(columns):
        own = [i for i in range(len(column)) if match[i] == t]
        loss += sum(math.log(sum(map(math.exp, column))) - column[i] for i in own) / len(own) / len(columns)
    return loss


def logits_by_hand(image: torch.Tensor, text: torch.Tensor, scale: float) -> list[list[float]]:
    return [[math.exp(scale) * sum(a * b for a, b in zip(i, t)) for t in text.tolist()] for i in image.tolist()]


def by_hand(image: torch.Tensor, text: torch.Tensor, match: list[int], scale: float) -> torch.Tensor:
    """contrastive_loss() as its docstring defines it, computed pair by pair."""
    logits = logits_by_hand(image, text, scale)
    return torch.tensor((to_text_by_hand(logits, match) + to_image_by_hand(logits, match)) / 2)


@pytest.mark.parametrize("match", [[0, 1, 2, 3], [3, 1, 0, 2]], ids=str)
def test_loss_is_the_mean_over_pictures_and_over_texts(match):
    image, text = units(4, 5), units(4, 5)
    loss = contrastive_loss(image, text, torch.tensor(match), torch.tensor(1.3))
    words = (
        "the loss is the mean of two cross-entropies of exp(scale) * image @ text^T: over each row, picture i's text "
    )
    same(loss, by_hand(image, text, match, 1.3), f"{words}is match[i]; over each column, a text's picture", **CLOSE)


@pytest.mark.parametrize("match", [[0, 0, 1, 0, 2, 1], [0, 0, 0]], ids=str)
def test_pictures_that_share_a_text_share_its_target(match):
    image, text = units(len(match), 5), units(max(match) + 1, 5)
    loss = contrastive_loss(image, text, torch.tensor(match), torch.tensor(1.3))
    words = "a text with n pictures has the target 1 / n at each of them, and counts as much as any other text"
    same(loss, by_hand(image, text, match, 1.3), words, **CLOSE)


def test_loss_does_not_depend_on_the_order_of_pictures_or_texts():
    image, text, match = units(6, 5), units(3, 5), torch.tensor([0, 0, 1, 0, 2, 1])
    pictures, order = torch.randperm(6), torch.tensor([2, 0, 1])
    shuffled = contrastive_loss(image[pictures], text[order], order.argsort()[match[pictures]], torch.tensor(1.0))
    wanted = contrastive_loss(image, text, match, torch.tensor(1.0))
    same(shuffled, wanted, "the order of pictures and texts does not change the loss", **CLOSE)


def test_pictures_that_share_a_text_are_not_pushed_apart():
    """If the features separate all texts, gradients are zero although two pictures share a text."""
    corners = torch.eye(3)
    image, text = corners[[0, 0, 1, 2]].clone().requires_grad_(), corners.clone().requires_grad_()
    loss = contrastive_loss(image, text, torch.tensor([0, 0, 1, 2]), torch.tensor(math.log(100.0)))
    loss.backward()
    wanted = torch.tensor(math.log(2) / 3 / 2)  # text 0's target is 1/2 for two pictures
    same(loss.detach(), wanted, "a text with two equal pictures costs log(2) in its column, and no more", atol=1e-5)
    words = "pictures that share a text are not pushed apart: their gradient is 0"
    assert image.grad is not None and text.grad is not None, "the loss has a gradient"
    assert image.grad.abs().max() < 1e-4 and text.grad.abs().max() < 1e-4, words


def unit(x: torch.Tensor) -> torch.Tensor:
    return x.float() / x.float().square().sum(dim=-1, keepdim=True).sqrt()


@torch.no_grad()
def test_text_features_are_projected_unit_vectors(clip):
    ids = texts(5, 3)
    wanted = unit(F.linear(clip.text_model(ids), clip.text_projection.weight))
    same(
        clip.text_features(ids),
        wanted,
        "a text's features are text_projection of its tower, divided by their norm",
        **CLOSE,
    )


@torch.no_grad()
def test_a_picture_has_the_features_of_its_class_token(clip):
    pixel_values = torch.randn(3, 3, 24, 24)
    hidden = clip.vision_model.post_layernorm(clip.vision_model.hidden_state(pixel_values))
    wanted = unit(F.linear(hidden[:, 0], clip.visual_projection.weight))
    for owner, patch in ((NO_REGIONS, NO_REGIONS), (torch.tensor([1, 0]), torch.tensor([4, 0]))):
        got = clip.image_features(pixel_values, owner, patch)[0]
        words = "a picture is its class token, at index 0: post_layernorm, visual_projection, divided by its norm"
        same(got, wanted, words, **CLOSE)


@torch.no_grad()
def test_a_region_has_the_features_of_its_patch_in_its_picture(clip):
    pixel_values = torch.randn(2, 3, 24, 24)
    owner, patch = torch.tensor([1, 0, 1]), torch.tensor([4, 0, 8])
    hidden = clip.vision_model.post_layernorm(clip.vision_model.hidden_state(pixel_values))
    wanted = torch.stack(
        [unit(F.linear(hidden[o, 1 + p], clip.visual_projection.weight)) for o, p in zip(owner, patch)]
    )
    words = "region r is patch[r] of picture owner[r]; the class token at 0 moves patch p to 1 + p"
    same(clip.image_features(pixel_values, owner, patch)[1], wanted, words, **CLOSE)


@torch.no_grad()
def test_features_are_unit_vectors_in_float32_whatever_the_weights(clip):
    clip, pixel_values = clip.bfloat16(), torch.randn(2, 3, 24, 24).bfloat16()
    text, words = (
        clip.text_features(texts(5, 3)),
        "have norm 1, computed in float32 also where the weights are bfloat16",
    )
    same(text.norm(dim=-1), torch.ones(2), f"text features {words}")
    image, regions = clip.image_features(pixel_values, torch.tensor([1]), torch.tensor([3]))
    same(image.norm(dim=-1), torch.ones(2), f"picture features {words}")
    same(regions.norm(dim=-1), torch.ones(1), f"region features {words}")


def small_batch() -> dict[str, torch.Tensor]:
    """Eight pictures of noise, of which two share a caption, with one region each; four phrases."""
    return {
        "pixel_values": torch.randn(8, 3, 24, 24),
        "captions": texts(2, 3, 2, 4, 3, 2, 5),
        "caption_match": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),
        "region_owner": torch.arange(8),
        "region_patch": torch.tensor([0, 3, 8, 5, 1, 2, 7, 4]),
        "phrases": texts(2, 1, 3, 2),
        "phrase_match": torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]),
    }


@torch.no_grad()
def test_clip_loss_adds_captions_and_phrases(clip):
    batch, scale = small_batch(), clip.logit_scale.item()
    pictures, regions = clip.image_features(batch["pixel_values"], batch["region_owner"], batch["region_patch"])
    wanted = by_hand(pictures, clip.text_features(batch["captions"]), batch["caption_match"].tolist(), scale)
    wanted = wanted + by_hand(regions, clip.text_features(batch["phrases"]), batch["phrase_match"].tolist(), scale)
    words = "the loss of pictures and captions plus that of regions and phrases, both with logit_scale"
    same(clip_loss(clip, batch), wanted, words, **CLOSE)


@torch.no_grad()
def test_without_boxes_only_captions_count(clip):
    batch, scale = small_batch(), clip.logit_scale.item()
    pictures, _ = clip.image_features(batch["pixel_values"], NO_REGIONS, NO_REGIONS)
    wanted = by_hand(pictures, clip.text_features(batch["captions"]), batch["caption_match"].tolist(), scale)
    none = dict.fromkeys(("region_owner", "region_patch", "phrase_match"), NO_REGIONS)
    loss = clip_loss(clip, batch | none | {"phrases": torch.zeros(0, 1, dtype=torch.long)})
    same(loss, wanted, "without regions the loss is that of captions: the mean of no phrases would be NaN", **CLOSE)


def test_temperature_begins_as_clips_does():
    """A temperature of 0.07: Radford et al. 2021, section 2.5."""
    assert Clip(VISION, TEXT).logit_scale.exp().item() == pytest.approx(1 / 0.07)
