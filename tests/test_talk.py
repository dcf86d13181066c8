"""Chat: turns, history, stops and streaming; the fast path gives the same answers as the plain one."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from minillava import Llava
from minillava.errors import UserError
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.image import ImageProcessor
from minillava.model import fast
from minillava.model.lora import add_lora, merge_lora

PATCHES = 9


@pytest.fixture
def model(lively_model) -> Llava:
    return lively_model


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize("with_picture", [True, False])
def test_stream_joined_is_chat_is_generate(model, picture, with_picture):
    tokenizer, question = model.processor.tokenizer, "What is it?"
    image = picture if with_picture else None
    turn = {"from": "human", "value": f"<image>\n{question}" if with_picture else question}
    ids, _ = encode_conversation([turn], tokenizer, num_image_tokens=PATCHES)
    pixel_values = ImageProcessor.for_size(24)(picture)[None] if with_picture else None
    stops = [tokenizer.eos_id, *tokenizer.encode("###")]
    out = model.generate(torch.tensor([ids]), pixel_values, max_new_tokens=30, stop_ids=stops)[0].tolist()
    expected = tokenizer.decode([token for token in out if token not in stops]).strip()
    streamed = list(model.stream(image, question, max_new_tokens=30))
    assert len(streamed) > (5 if with_picture else 0) and all(streamed)
    assert "".join(streamed).strip() == model.chat(image, question, max_new_tokens=30) == expected != ""


def test_an_answer_begins_with_its_first_word(model, monkeypatch):
    ids = [model.processor.tokenizer.encode(piece) for piece in (" ", "\n", " red", " fish", "###")]
    steps = [torch.tensor([index]) for piece in ids for index in piece]
    monkeypatch.setattr("minillava.model.fast.generate_ids", lambda *arguments: iter(steps))
    assert "".join(model.stream(None, "What is it?", max_new_tokens=len(steps))) == "red fish"


def test_chat_takes_a_path_as_it_takes_a_picture(model, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    by_path = model.chat(tmp_path / "picture.png", "What is it?", max_new_tokens=10)
    assert by_path == model.chat(picture, "What is it?", max_new_tokens=10)


def test_a_picture_talked_about_for_many_turns_is_encoded_once(model, picture):
    histories, calls = ([], [("Is it big?", "Yes.")]), []
    expected = [model.chat(picture, "What is it?", history, max_new_tokens=10) for history in histories]
    model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    seen = model.encode_image(picture)
    assert [model.chat(seen, "What is it?", history, max_new_tokens=10) for history in histories] == expected
    assert len(calls) == 1


def test_history_is_what_was_said_before(model, picture):
    history = [("What is it?", "It is a fish."), ("Is it big?", "It is small.")]
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "It is a fish."},
        {"from": "human", "value": "Is it big?"},
        {"from": "gpt", "value": "It is small."},
        {"from": "human", "value": "Where is it?"},
    ]
    ids, _ = encode_conversation(turns, model.processor.tokenizer, num_image_tokens=PATCHES)
    stops = [model.processor.tokenizer.eos_id, *model.processor.tokenizer.encode("###")]
    out = model.generate(
        torch.tensor([ids]), ImageProcessor.for_size(24)(picture)[None], max_new_tokens=15, stop_ids=stops
    )
    expected = model.processor.tokenizer.decode([token for token in out[0].tolist() if token not in stops]).strip()
    assert model.chat(picture, "Where is it?", history=history, max_new_tokens=15) == expected
    assert model.chat(picture, "Where is it?", max_new_tokens=15) != expected
    assert len(history) == 2  # the caller's list is not changed


def test_chat_refuses_a_conversation_longer_than_the_model_reads(model):
    with pytest.raises(UserError, match="at most 256"):
        model.chat(None, "What is it? " * 100, max_new_tokens=10)
    ids, _ = model.processor.encode([{"from": "human", "value": "Hi"}])
    what = f"the conversation has {len(ids)} tokens and an answer of up to 256 (max_new_tokens); the model reads at"
    with pytest.raises(UserError, match=re.escape(what)):
        model.chat(None, "Hi", max_new_tokens=256)
    with pytest.raises(UserError, match=r"^max_new_tokens 2,000: the model reads at most 256 tokens$"):
        model.chat(None, "Hi", max_new_tokens=2000)


def test_chat_refuses_a_question_with_a_picture_mark(model):
    with pytest.raises(UserError, match="<image>"):
        model.chat(None, "<image> What is it?")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_fast_path_gives_the_answer_of_the_plain_one(model, picture, monkeypatch, temperature):
    answers, calls = [], []
    step = fast.Step.__call__
    monkeypatch.setattr(fast.Step, "__call__", lambda self, ids: calls.append(1) or step(self, ids))
    for plain in (True, False):
        monkeypatch.setattr(fast, "is_plain", lambda decoder, plain=plain: plain)
        torch.manual_seed(0)
        answers.append(model.chat(picture, "What is it?", max_new_tokens=40, temperature=temperature))
    assert answers[0] == answers[1] and len(answers[0]) > 40
    assert len(calls) == 39  # only one of the answers, and its first token comes from the prompt's pass


def test_the_temperature_reaches_the_sampling(model, picture):
    torch.manual_seed(0)
    cold, hot = (model.chat(picture, "What is it?", max_new_tokens=40, temperature=t) for t in (0.0, 1.0))
    assert cold != hot


def test_top_p_reaches_the_sampling(model, picture):
    greedy = model.chat(picture, "What is it?", max_new_tokens=40)
    hot = {"max_new_tokens": 40, "temperature": 5.0}
    assert model.chat(picture, "What is it?", **hot, top_p=1e-6) == greedy
    assert model.chat(picture, "What is it?", **hot) != greedy


def test_answers_are_those_of_the_model_with_lora(model, picture):
    before = model.chat(picture, "What is it?", max_new_tokens=20)
    add_lora(model.language_model, rank=2, alpha=4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    apart = model.chat(picture, "What is it?", max_new_tokens=20)
    merge_lora(model.language_model)
    assert model.chat(picture, "What is it?", max_new_tokens=20) == apart != before
