"""The whole model: logits and loss equal those of transformers' LlavaForConditionalGeneration, and it can learn."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from minillava import Llava, save
from minillava.inputs.conversation import IGNORE, encode_conversation
from minillava.inputs.conversations import pad_rows
from minillava.model.llava import next_token_loss, splice

PATCHES = 9


def opened_by_transformers(model: Llava, folder) -> LlavaForConditionalGeneration:
    save(model, folder)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return theirs.eval()


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


@pytest.mark.parametrize("layer", [-2, -1, 1])
@torch.no_grad()
def test_logits_and_loss_are_transformers_llava(model, tmp_path, layer):
    model.config.vision_feature_layer = layer
    theirs = opened_by_transformers(model, tmp_path / "model")
    inputs = batch(model)
    (selected, loss), expected = model(**inputs), theirs(**inputs)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    before = torch.nn.functional.pad(inputs.pop("labels")[:, 1:] != IGNORE, (0, 1))
    logits, _ = model(**inputs)
    assert logits.shape == (3, 29, model.config.decoder.vocab_size)
    for ours, wanted in ((logits, expected.logits), (selected, expected.logits[before])):
        assert ours.shape == wanted.shape and (ours - wanted).norm() < 1e-5 * wanted.norm()


@torch.no_grad()
def test_logits_behind_left_padding_are_transformers_llava(model, tmp_path):
    theirs = opened_by_transformers(model, tmp_path / "model")
    inputs = batch(model)
    ids = torch.cat([torch.full((3, 4), model.processor.tokenizer.pad_id), inputs["input_ids"]], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    ours, _ = model(ids, inputs["pixel_values"], mask)
    expected = theirs(input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=mask).logits
    torch.testing.assert_close(ours[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_without_pictures_is_transformers_llava(model, tmp_path):
    theirs = opened_by_transformers(model, tmp_path / "model")
    ids = torch.randint(100, (2, 11))
    logits, loss = model(ids)
    assert loss is None
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["default", "full"])
@torch.no_grad()
def test_visual_tokens_are_the_projection_of_the_chosen_features(tiny_model, strategy):
    tiny_model.config.vision_feature_layer, tiny_model.config.vision_feature_select_strategy = 1, strategy
    pixel_values = torch.randn(2, 3, 24, 24)
    features = tiny_model.vision_tower.hidden_state(pixel_values, 1)
    expected = tiny_model.multi_modal_projector(features if strategy == "full" else features[:, 1:])
    assert torch.equal(tiny_model.encode_images(pixel_values), expected)


@torch.no_grad()
def test_words_are_embedded_and_placeholders_are_replaced(tiny_model):
    """The placeholder's id may lie outside the embedding matrix."""
    tiny_model.config.image_token_id = image = len(tiny_model.language_model.embed_tokens.weight) + 5
    ids, pixel_values = torch.tensor([[40, *[image] * PATCHES, 41]]), torch.randn(1, 3, 24, 24)
    out = tiny_model.embed(ids, pixel_values)
    assert torch.equal(out[:, [0, -1]], tiny_model.embed(ids[:, [0, -1]]))
    assert torch.equal(out[:, [0, -1]], tiny_model.language_model.embed_tokens(torch.tensor([[40, 41]])))
    assert torch.equal(out[:, 1:-1], tiny_model.encode_images(pixel_values))


def test_splice_puts_visual_tokens_at_the_placeholders_in_order():
    input_ids = torch.tensor([[1, 9, 9, 2, 9, 9], [9, 9, 3, 4, 5, 6]])
    embeddings, visual = torch.randn(2, 6, 4), torch.randn(3, 2, 4)
    queue = [token for picture in visual for token in picture]
    expected = embeddings.clone()
    for row in range(2):
        for t in range(6):
            if input_ids[row, t] == 9:
                expected[row, t] = queue.pop(0)
    assert torch.equal(splice(embeddings, input_ids, 9, visual), expected)


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_another_number_of_pictures_than_of_placeholders_raises(tiny_model, pictures):
    ids = torch.tensor([[5] + [tiny_model.config.image_token_id] * 2 * PATCHES + [6]])
    with pytest.raises(ValueError, match=f"18 image placeholders for {pictures} pictures of 9 tokens"):
        tiny_model(ids, torch.randn(pictures, 3, 24, 24))


@torch.no_grad()
def test_a_picture_changes_what_comes_after_it_and_nothing_before(tiny_model):
    image = [tiny_model.config.image_token_id] * PATCHES
    ids = torch.tensor([[40, 41, *image, 42, 43]])
    one, other = (tiny_model(ids, torch.randn(1, 3, 24, 24))[0] for _ in range(2))
    assert torch.equal(one[:, :2], other[:, :2])
    assert (one[:, 2:] != other[:, 2:]).any(dim=-1).all()


@torch.no_grad()
def test_loss_is_the_mean_surprise_at_labelled_tokens(tiny_model):
    inputs = batch(tiny_model)
    _, loss = tiny_model(**inputs)
    logits = tiny_model(inputs["input_ids"], inputs["pixel_values"])[0].tolist()
    surprises = []
    for row in range(3):
        for t in range(1, inputs["labels"].shape[1]):
            label = inputs["labels"][row, t].item()
            if label != IGNORE:
                scores = logits[row][t - 1]
                top = max(scores)
                surprises.append(top + math.log(sum(math.exp(x - top) for x in scores)) - scores[label])
    assert len(surprises) == 3 + 8 + 1 + 2
    assert loss.item() == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)


def test_a_label_is_predicted_by_the_position_before_it(tiny_model):
    """Only these positions get a gradient from the loss."""
    labels = torch.full((2, 5), IGNORE)
    labels[0, 0] = labels[0, 3] = labels[1, 4] = 5  # no position predicts the first token
    hidden = torch.randn(2, 5, 32, requires_grad=True)
    logits, loss = next_token_loss(tiny_model.language_model, hidden, labels)
    loss.backward()
    assert hidden.grad.abs().sum(dim=-1).nonzero().tolist() == [[0, 2], [1, 3]]
    torch.testing.assert_close(logits, tiny_model.language_model.lm_head(hidden[[0, 1], [2, 3]]))


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
    assert torch.equal(*gradients)


def test_one_batch_is_memorised_and_the_answers_depend_on_the_pictures(tiny_model):
    model, tokenizer = tiny_model.train(), tiny_model.processor.tokenizer
    question = {"from": "human", "value": "<image>\nWhat is it?"}
    answers = ["The small red fish is at the top.", "It is a blue boat."]
    rows = [
        encode_conversation([question, {"from": "gpt", "value": answer}], tokenizer, num_image_tokens=PATCHES)
        for answer in answers
    ]
    pictures = torch.randn(2, 3, 24, 24)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
    for _ in range(80):
        optimizer.zero_grad()
        losses.append(model(pixel_values=pictures, **pad_rows(rows, tokenizer.pad_id))[1])
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 2 and losses[-1] < 0.02

    ids, _ = encode_conversation([question], tokenizer, num_image_tokens=PATCHES)
    stop = tokenizer.encode("###")
    out = model.eval().generate(torch.tensor([ids, ids]), pictures, max_new_tokens=40, stop_ids=stop)
    for row, answer in zip(out.tolist(), answers):
        assert tokenizer.decode(row[: row.index(stop[0])]) == f" {answer}"
