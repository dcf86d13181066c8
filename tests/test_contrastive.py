"""Both CLIP towers and their loss: equal to transformers' CLIPModel, and the case of pictures that share a text."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel

from minillava.checkpoint import load_clip
from minillava.config import TextConfig, VisionConfig
from minillava.inputs.image import ImageProcessor
from minillava.inputs.processor import Processor
from minillava.model.contrastive import Clip, clip_loss, contrastive_loss
from minillava.saving import write_clip

NO_REGIONS = torch.empty(0, dtype=torch.long)


@pytest.fixture
def clip(tokenizer, randomise) -> Clip:
    vision = VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        projection_dim=20,
    )
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        max_position_embeddings=24,
        projection_dim=20,
        eos_token_id=tokenizer.eos_id,
    )
    model = randomise(Clip(vision, text))
    torch.nn.init.constant_(model.logit_scale, 1.7)
    return model


def encoded(tokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids (B, T); each row ends with the end token and is padded with it."""
    rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.eos_id] * (longest - len(row)) for row in rows])


def units(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def by_hand(image: torch.Tensor, text: torch.Tensor, match: list[int], scale: float) -> float:
    """contrastive_loss() as its docstring defines it, computed pair by pair."""
    similarity = [[math.exp(scale) * sum(a * b for a, b in zip(i, t)) for t in text.tolist()] for i in image.tolist()]
    to_text = to_image = 0.0
    for i, row in enumerate(similarity):
        to_text -= (row[match[i]] - math.log(sum(map(math.exp, row)))) / len(similarity)
    for t in range(len(text)):
        column = [row[t] for row in similarity]
        own = [i for i in range(len(column)) if match[i] == t]
        for i in own:
            to_image -= (column[i] - math.log(sum(map(math.exp, column)))) / len(own) / len(text)
    return (to_text + to_image) / 2


@pytest.mark.parametrize("match", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 0, 1, 0, 2, 1], [0, 0, 0]], ids=str)
def test_loss_is_the_mean_over_pictures_and_over_texts(match):
    image, text = units(len(match), 5), units(max(match) + 1, 5)
    loss = contrastive_loss(image, text, torch.tensor(match), torch.tensor(1.3))
    assert loss.item() == pytest.approx(by_hand(image, text, match, 1.3), rel=1e-5)


def test_loss_does_not_depend_on_the_order_of_pictures_or_texts():
    image, text, match = units(6, 5), units(3, 5), torch.tensor([0, 0, 1, 0, 2, 1])
    pictures, texts = torch.randperm(6), torch.tensor([2, 0, 1])
    shuffled = contrastive_loss(image[pictures], text[texts], texts.argsort()[match[pictures]], torch.tensor(1.0))
    torch.testing.assert_close(shuffled, contrastive_loss(image, text, match, torch.tensor(1.0)))


def test_pictures_that_share_a_text_are_not_pushed_apart():
    """If the features separate all texts, gradients are zero although two pictures share a text."""
    corners = torch.eye(3)
    image, text = corners[[0, 0, 1, 2]].clone().requires_grad_(), corners.clone().requires_grad_()
    loss = contrastive_loss(image, text, torch.tensor([0, 0, 1, 2]), torch.tensor(math.log(100.0)))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) / 3 / 2, abs=1e-5)  # text 0's target is 1/2 for two pictures
    assert image.grad.abs().max() < 1e-4 and text.grad.abs().max() < 1e-4


def test_a_text_is_its_tokens_and_their_places(clip):
    ids = torch.randint(clip.text_model.config.vocab_size, (2, 5))
    embeddings = clip.text_model.embeddings
    tokens, places = embeddings.token_embedding.weight, embeddings.position_embedding.weight
    for row, of_row in zip(ids, embeddings(ids)):
        assert torch.equal(of_row, torch.stack([tokens[index] + places[t] for t, index in enumerate(row)]))


@torch.no_grad()
def test_text_tower_is_transformers_clip(clip, tokenizer):
    theirs = CLIPTextModel(CLIPTextConfig(**clip.text_model.config.to_dict())).eval()
    theirs.load_state_dict(clip.text_model.state_dict())
    ids = encoded(tokenizer, ["a red fish", "The small blue boat is at the top.", "a"])
    torch.testing.assert_close(clip.text_model(ids), theirs(ids).pooler_output, rtol=1e-4, atol=1e-5)


def test_temperature_begins_as_clips_does(clip):
    """A temperature of 0.07: Radford et al. 2021, section 2.5."""
    fresh = Clip(clip.vision_model.config, clip.text_model.config)
    assert fresh.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_both_towers_and_loss_are_transformers_clip(clip, tokenizer, tmp_path):
    write_clip(clip, Processor(tokenizer, ImageProcessor.for_size(24), 9), tmp_path)
    theirs, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = encoded(tokenizer, ["a red fish", "The small blue boat is at the top.", "a", "a green tree"])
    pixel_values = torch.randn(4, 3, 24, 24)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, pixel_values=pixel_values, return_loss=True)
        image, text = clip.image_features(pixel_values, NO_REGIONS, NO_REGIONS)[0], clip.text_features(ids)
        loss = contrastive_loss(image, text, torch.arange(4), clip.logit_scale)
    torch.testing.assert_close(image, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, expected.text_embeds, rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_load_clip_reads_what_write_clip_wrote(clip, tokenizer, tmp_path):
    processor = Processor(tokenizer, ImageProcessor(image_mean=(0.1, 0.2, 0.3)).fitting("pad", 24), 9)
    write_clip(clip, processor, tmp_path)
    read, its_processor = load_clip(tmp_path)
    assert its_processor.tokenizer.encode("a red fish") == tokenizer.encode("a red fish")
    assert (its_processor.image, its_processor.num_image_tokens) == (processor.image, 9)
    for name, tensor in clip.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_what_follows_the_first_end_token_does_not_change_a_text(clip, tokenizer):
    short = encoded(tokenizer, ["a red fish"])
    padded = torch.cat([short, torch.full((1, 4), tokenizer.eos_id)], dim=1)
    torch.testing.assert_close(clip.text_features(padded), clip.text_features(short), rtol=1e-4, atol=1e-5)


def test_a_region_has_the_features_of_its_patch_in_its_picture(clip):
    pixel_values = torch.randn(2, 3, 24, 24)
    owner, patch = torch.tensor([1, 0, 1]), torch.tensor([4, 0, 8])
    _, regions = clip.image_features(pixel_values, owner, patch)
    grid = clip.vision_model.post_layernorm(clip.vision_model(pixel_values, -1))
    for region, o, p in zip(regions, owner, patch):
        torch.testing.assert_close(region, F.normalize(clip.visual_projection(grid[o, p]), dim=0), rtol=1e-4, atol=1e-5)


def test_features_are_unit_vectors(clip, tokenizer):
    image, regions = clip.image_features(torch.randn(2, 3, 24, 24), torch.tensor([0]), torch.tensor([3]))
    text = clip.text_features(encoded(tokenizer, ["a red fish", "a boat"]))
    for features in (image, regions, text):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def small_batch(tokenizer) -> dict[str, torch.Tensor]:
    """Eight pictures of noise, of which two share a caption, with one region each; four phrases."""
    captions = ["red fish", "blue boat", "green tree", "small fish", "big boat", "tiny tree", "blue fish"]
    return {
        "pixel_values": torch.randn(8, 3, 24, 24),
        "captions": encoded(tokenizer, captions),
        "caption_match": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),
        "region_owner": torch.arange(8),
        "region_patch": torch.tensor([0, 3, 8, 5, 1, 2, 7, 4]),
        "phrases": encoded(tokenizer, ["at the top", "the middle", "near the bottom", "a fish"]),
        "phrase_match": torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]),
    }


def test_clip_loss_adds_captions_and_phrases(clip, tokenizer):
    batch = small_batch(tokenizer)
    pictures, regions = clip.image_features(batch["pixel_values"], batch["region_owner"], batch["region_patch"])
    scale = clip.logit_scale.item()
    expected = by_hand(pictures, clip.text_features(batch["captions"]), batch["caption_match"].tolist(), scale)
    expected += by_hand(regions, clip.text_features(batch["phrases"]), batch["phrase_match"].tolist(), scale)
    assert clip_loss(clip, batch).item() == pytest.approx(expected, rel=1e-5)


def test_without_boxes_only_captions_count(clip, tokenizer):
    batch = small_batch(tokenizer)
    pictures, _ = clip.image_features(batch["pixel_values"], NO_REGIONS, NO_REGIONS)
    scale = clip.logit_scale.item()
    expected = by_hand(pictures, clip.text_features(batch["captions"]), batch["caption_match"].tolist(), scale)
    none = dict.fromkeys(("region_owner", "region_patch", "phrase_match"), NO_REGIONS)
    loss = clip_loss(clip, batch | none | {"phrases": torch.zeros(0, 1, dtype=torch.long)})
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_small_batch_is_learned_by_heart(clip, tokenizer):
    batch = small_batch(tokenizer)
    pixel_values, captions, match = batch["pixel_values"], batch["captions"], batch["caption_match"]
    optimizer = torch.optim.AdamW(clip.parameters(), 3e-3)

    def found() -> float:
        with torch.no_grad():
            pictures, regions = clip.image_features(pixel_values, batch["region_owner"], batch["region_patch"])
            by_caption = (pictures @ clip.text_features(captions).T).argmax(dim=1) == match
            by_phrase = (regions @ clip.text_features(batch["phrases"]).T).argmax(dim=1) == batch["phrase_match"]
            return torch.cat([by_caption, by_phrase]).float().mean().item()

    assert found() < 0.5
    for _ in range(40):
        optimizer.zero_grad()
        clip_loss(clip, batch).backward()
        optimizer.step()
    assert found() == 1.0
