"""The whole model, part by part; test_parts_transformers.py compares it with transformers' LLaVA."""

import math
from dataclasses import replace

import pytest
import torch
from expect import refused, same

from minillava import Llava
from minillava.inputs.conversation import IGNORE
from minillava.model.llava import next_token_loss, splice

PATCHES = 9
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def batch(model: Llava) -> dict[str, torch.Tensor]:
    """Three rows with labels: a picture at the start, two pictures, no picture. Three pictures in all."""
    image = [model.config.image_token_id] * PATCHES
    rows = [[*image, *range(40, 60)], [40, *image, 50, 51, *image, 60], list(range(70, 70 + PATCHES + 20))]
    rows[1] += list(range(80, 80 + len(rows[0]) - len(rows[1])))
    labels = torch.full((3, len(rows[0])), IGNORE)
    for row, start, end in ((0, 12, 15), (1, 21, 29), (2, 3, 4), (2, 20, 22)):
        labels[row, start:end] = torch.tensor(rows[row][start:end])
    pixel_values = torch.randn(3, 3, 24, 24)
    return {"input_ids": torch.tensor(rows), "pixel_values": pixel_values, "labels": labels}


@pytest.fixture(params=["linear", "mlp"])
def model(request, tiny_config, tiny_model, randomise) -> Llava:
    return randomise(Llava(replace(tiny_config, projector=request.param), tiny_model.processor))


def test_splice_puts_visual_tokens_at_the_placeholders_in_order():
    input_ids = torch.tensor([[1, 9, 9, 2, 9, 9], [9, 9, 3, 4, 5, 6]])
    embeddings, visual = torch.randn(2, 6, 4), torch.randn(3, 2, 4)
    queue = [token for picture in visual for token in picture]
    wanted = embeddings.clone()
    for row in range(2):
        for t in range(6):
            if input_ids[row, t] == 9:
                wanted[row, t] = queue.pop(0)
    before = embeddings.clone()
    out = splice(embeddings, input_ids, 9, visual)
    words = "the placeholders of the rows, in reading order, take the visual tokens of the pictures, in their order"
    same(out, wanted, f"{words}; all other embeddings stay")
    same(embeddings, before, "splice() does not change the embeddings that it is given")
    half = splice(embeddings.bfloat16(), input_ids, 9, visual)
    same(half, wanted.bfloat16(), "visual tokens take the dtype of the embeddings")


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_another_number_of_visual_tokens_than_of_placeholders_raises(pictures):
    ids, embeddings = torch.tensor([[5, *[9] * 2 * PATCHES, 6]]), torch.randn(1, 20, 4)
    with refused(ValueError, f"18 placeholders for {pictures} pictures of 9 visual tokens raise a ValueError"):
        splice(embeddings, ids, 9, torch.randn(pictures, PATCHES, 4))


def surprises(logits: list, labels: torch.Tensor) -> list[float]:
    """-log p of every label but a row's first, by the logits one position earlier."""
    found = []
    for row in range(len(labels)):
        for t in range(1, labels.shape[1]):
            if (label := labels[row, t].item()) != IGNORE:
                scores = logits[row][t - 1]
                top = max(scores)
                found.append(top + math.log(sum(math.exp(x - top) for x in scores)) - scores[label])
    return found


def labelled(*places: tuple[int, int]) -> torch.Tensor:
    labels = torch.full((2, 5), IGNORE)
    for row, t in places:
        labels[row, t] = 5 + row + t
    return labels


def test_a_label_is_predicted_by_the_position_before_it(tiny_model):
    """Only these positions get a gradient from the loss."""
    decoder, labels = tiny_model.language_model, labelled((0, 0), (0, 3), (1, 4))
    hidden = torch.randn(2, 5, 32, requires_grad=True)
    logits, loss = next_token_loss(decoder, hidden, labels)
    wanted = decoder.lm_head(hidden[[0, 1], [2, 3]])
    words = (
        "the label at i + 1 is predicted at i: labels at 3 of row 0 and 4 of row 1 take the states at 2 and 3, (N, V)"
    )
    same(logits, wanted, f"{words}; no position predicts a row's first token", **CLOSE)
    loss.backward()
    reached = hidden.grad.abs().sum(dim=-1).nonzero().tolist()
    words = "the loss reaches only the states before a label"
    assert reached == [[0, 2], [1, 3]], f"{words}, [[0, 2], [1, 3]] as [row, position] (yours reaches {reached})"


@torch.no_grad()
def test_loss_is_the_mean_surprise_at_labelled_tokens(tiny_model):
    decoder, labels, hidden = tiny_model.language_model, labelled((0, 1), (0, 3), (0, 4), (1, 2)), torch.randn(2, 5, 32)
    found = surprises(decoder.lm_head(hidden).tolist(), labels)
    wanted = torch.tensor(sum(found) / len(found))
    words = "the loss is the mean of -log p(label), in nats, over the labels that are not -100"
    same(next_token_loss(decoder, hidden, labels)[1], wanted, words, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_loss_is_computed_in_float32(tiny_model, dtype):
    decoder, labels = tiny_model.language_model.to(dtype), labelled((0, 1), (0, 3), (0, 4), (1, 2))
    hidden = torch.randn(2, 5, 32).to(dtype) * 8
    found = surprises(decoder.lm_head(hidden).tolist(), labels)
    wanted = torch.tensor(sum(found) / len(found))
    words = "cross-entropy is computed in float32, whatever the logits' dtype: convert them first"
    same(next_token_loss(decoder, hidden, labels)[1], wanted, words, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["default", "full"])
@torch.no_grad()
def test_visual_tokens_are_the_projection_of_the_chosen_features(model, strategy):
    model.config.vision_feature_select_strategy = strategy
    pixel_values = torch.randn(2, 3, 24, 24)
    for layer in (1, -1):
        model.config.vision_feature_layer = layer
        features = model.vision_tower.hidden_state(pixel_values, layer)
        wanted = model.multi_modal_projector(features if strategy == "full" else features[:, 1:])
        words = f"with vision_feature_layer {layer} and strategy {strategy!r}, it is the projection of those"
        same(model.encode_images(pixel_values), wanted, words, **CLOSE)


@torch.no_grad()
def test_pixels_take_the_dtype_of_the_tower(model):
    visual = model.bfloat16().encode_images(torch.randn(1, 3, 24, 24))
    assert visual.dtype == torch.bfloat16, f"pixels in float32 take the tower's dtype (yours gives {visual.dtype})"


@torch.no_grad()
def test_words_are_embedded_and_placeholders_are_replaced(tiny_model):
    """The placeholder's id may lie outside the embedding matrix."""
    tiny_model.config.image_token_id = image = len(tiny_model.language_model.embed_tokens.weight) + 5
    ids, pixel_values = torch.tensor([[40, *[image] * PATCHES, 41]]), torch.randn(1, 3, 24, 24)
    words, visual = (
        tiny_model.language_model.embed_tokens(torch.tensor([[40, 41]])),
        tiny_model.encode_images(pixel_values),
    )
    same(tiny_model.embed(ids[:, [0, -1]]), words, "without pictures all ids are words: embed_tokens")
    out = tiny_model.embed(ids, pixel_values)
    same(out[:, [0, -1]], words, "words keep their embeddings next to a picture")
    same(out[:, 1:-1], visual, "the placeholders are replaced by encode_images(pixel_values)", **CLOSE)
    same(tiny_model.embed(ids, visual=visual), out, "``visual`` is the result of encode_images(), given ready", **CLOSE)


@torch.no_grad()
def test_without_labels_the_logits_are_those_of_every_position(model):
    inputs = batch(model)
    del inputs["labels"]
    logits, loss = model(**inputs)
    assert loss is None, "without labels the loss is None"
    decoder = model.language_model
    wanted = decoder.lm_head(decoder(model.embed(**inputs)))
    same(logits, wanted, "logits (B, T, V) are lm_head of the decoder's output for embed()", **CLOSE)


@torch.no_grad()
def test_the_attention_mask_reaches_the_decoder(model):
    inputs = batch(model)
    del inputs["labels"]
    padded = torch.cat([torch.full((3, 4), 7), inputs["input_ids"]], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    out, wanted = model(padded, inputs["pixel_values"], mask)[0][:, 4:], model(**inputs)[0]
    same(
        out,
        wanted,
        "the decoder gets the attention mask, so padding before a row changes nothing",
        rtol=1e-4,
        atol=1e-4,
    )


@torch.no_grad()
def test_with_labels_the_loss_is_that_of_the_logits_before_them(model):
    inputs = batch(model)
    selected, loss = model(**inputs)
    labels = inputs.pop("labels")
    logits, before = model(**inputs)[0], torch.nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1))
    same(selected, logits[before], "with labels the logits are those of next_token_loss(), (N, V)", **CLOSE)
    found = surprises(logits.tolist(), labels)
    assert len(found) == 3 + 8 + 1 + 2
    same(loss, torch.tensor(sum(found) / len(found)), "with labels the loss is that of next_token_loss()", **CLOSE)


@torch.no_grad()
def test_a_picture_changes_what_comes_after_it_and_nothing_before(tiny_model):
    image = [tiny_model.config.image_token_id] * PATCHES
    ids = torch.tensor([[40, 41, *image, 42, 43]])
    one, other = (tiny_model(ids, torch.randn(1, 3, 24, 24))[0] for _ in range(2))
    same(one[:, :2], other[:, :2], "a picture does not change the logits before it")
    assert (one[:, 2:] != other[:, 2:]).any(dim=-1).all(), "a picture changes all logits from its first token on"


def test_tokens_without_loss_are_not_learned(tiny_model):
    """Changing an unlabelled token that comes after all labels does not change the gradients."""
    inputs = batch(tiny_model)
    gradients = []
    for token in (90, 91):
        inputs["input_ids"][:, -1] = token
        inputs["labels"][:, -1] = IGNORE
        tiny_model.zero_grad()
        tiny_model(**inputs)[1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tiny_model.parameters() if p.grad is not None]))
    same(*gradients, "a token without a label that comes after all labels has no part in the gradient", atol=1e-6)
